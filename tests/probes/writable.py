"""Opens everything below /proc and /sys for writing, and prints what opened (`path`), then `end <how many tried>`.

Nothing is written. Left out: /proc/<pid>, but for pid 1 and one process of our own, whose files act on that
process alone.
"""

import os
import stat
import sys

tried = 0
for top in ("/proc", "/sys", "/dev"):
    for directory, names, files in os.walk(top):
        if directory == "/proc":
            names[:] = [name for name in names if not name.isdigit() and name not in ("self", "thread-self")] + ["1"]
        for name in files:
            path = f"{directory}/{name}"
            try:
                mode = os.lstat(path).st_mode
            except OSError:
                continue
            if not stat.S_ISREG(mode):
                continue
            tried += 1
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY))
            except OSError:
                continue
            print(path)
print("end", tried, file=sys.stdout)
