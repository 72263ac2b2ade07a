"""A sandbox's standby and its forker, seen from the host: who looks from inside is the standby."""

from __future__ import annotations

import contextlib
import pathlib

from sandboxd import Sandbox
from tests.support.daemon import Daemon, process_name
from tests.support.waiting import wait_until

#: What init has in a sandbox for itself.
OWN = ("init", "forker", "standby")


def init_pid(daemon: Daemon, box: Sandbox) -> int:
    """Return the host's pid of a sandbox's init."""
    return int((daemon.cgroup() / box.id / "init" / "cgroup.procs").read_text())


def leaves(daemon: Daemon, box: Sandbox) -> list[str]:
    """Return the names of what has a cgroup in a sandbox."""
    return sorted(path.name for path in (daemon.cgroup() / box.id / "work").glob("*/"))


def waiting(daemon: Daemon, box: Sandbox) -> dict[str, int]:
    """Return the host's pids of a sandbox's forker and its standby, by their names."""
    found = {}
    for path in (daemon.cgroup() / box.id / "work").glob("~*/cgroup.procs"):
        with contextlib.suppress(OSError):
            for pid in map(int, path.read_text().split()):
                found[process_name(pid)] = pid
    return {name: pid for name, pid in found.items() if name in OWN}


def ready(daemon: Daemon, box: Sandbox) -> dict[str, int]:
    """Return the host's pids once init knows of the standby: each of the three sleeps, and has nothing to read."""
    init = init_pid(daemon, box)

    def is_ready() -> bool:
        found = waiting(daemon, box)
        return len(found) == 2 and all(_sleeps(pid) for pid in (found["standby"], found["forker"], init))

    wait_until(is_ready)
    return waiting(daemon, box)


def pid_inside(pid: int) -> int:
    """Return a process's pid as its sandbox knows it."""
    return int(_status(pid)["NSpid"].split()[-1])


def strangers(box: Sandbox) -> list[tuple[str, str]]:
    """Return name and state of what is in a sandbox beside init and its two, and `cat`, which looks; zombies too."""
    stats = box.exec("cat /proc/[0-9]*/stat 2>/dev/null; true").stdout.splitlines()
    found = [(line[line.index("(") + 1 : line.rindex(")")], line[line.rindex(")") + 2]) for line in stats]
    for name in (*OWN, "sh", "cat"):
        one = next((each for each in found if each[0] == name and each[1] != "Z"), None)
        if one:
            found.remove(one)
    return found


def _status(pid: int) -> dict[str, str]:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _sleeps(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return _status(pid)["State"].startswith("S")
    return False
