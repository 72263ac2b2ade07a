"""ATTACKS 45: what the kernel counts for the whole host must not be for one sandbox to use up."""

from __future__ import annotations

import pathlib
import threading
import time
from collections.abc import Callable

import pytest

from sandboxd import Sandbox
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real

Python = Callable[..., str]


def test_aio_contexts_of_the_host_are_left_alone(python: Python) -> None:
    """A sixteenth of the budget is taken for a moment, not all of it: databases of the host live on it."""
    source = """
import ctypes
context = ctypes.c_ulong(0)
print(ctypes.CDLL(None).syscall(206, 2048, ctypes.byref(context)))
"""
    assert python(source) == "-1"


def test_ptys_are_bounded_for_each_sandbox(python: Python) -> None:
    source = """
import os
count = 0
try:
    while count < 1000:
        os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY)
        count += 1
except OSError as error:
    print('bounded')
else:
    print('took', count)
"""
    assert python(f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (2000, 2000))\n{source}") == "bounded"


USE_UP = {
    "inotify": ("libc.inotify_init1(0)", "libc.inotify_init1(0)"),
    "mqueue": (
        "libc.mq_open(b'/q%d' % count, os.O_RDWR | os.O_CREAT, 0o600, 0)",
        "libc.mq_open(b'/other', os.O_RDWR | os.O_CREAT, 0o600, 0)",
    ),
    "pipe": ("large_pipe()", "large_pipe()"),
}
PRELUDE = """
import ctypes, fcntl, os, resource, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
libc = ctypes.CDLL(None, use_errno=True)
kept = []
def large_pipe():
    try:
        kept.append(os.pipe())
        return 0 if fcntl.fcntl(kept[-1][1], 1031, 1 << 20) >= 1 << 20 else -1
    except OSError:
        return -1
"""


@pytest.mark.parametrize("what", list(USE_UP))
def test_counters_of_a_user_are_the_sandboxs_own(
    daemon: Daemon, sandbox: Sandbox, neighbour: Sandbox, what: str
) -> None:
    take, probe = USE_UP[what]
    greedy = f"""{PRELUDE}
count = 0
while count < 4000 and {take} >= 0:
    count += 1
open('/workspace/full', 'w').write(str(count))
time.sleep(20)
"""

    def go() -> None:
        with daemon.client() as client:
            Sandbox.connect(sandbox.id, client=client).exec(["python3", "-c", greedy], timeout=30)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not sandbox.exec("cat /workspace/full 2>/dev/null").stdout and time.monotonic() < deadline:
        time.sleep(0.05)
    assert 0 < int(sandbox.exec("cat /workspace/full").stdout) < 4000, "it was not used up"
    ask = ["python3", "-c", f"{PRELUDE}count = 0\nprint({probe} >= 0)"]
    assert sandbox.exec(ask).stdout == "False\n"
    assert neighbour.exec(ask).stdout == "True\n"
    sandbox.exec("pkill -9 python3")
    thread.join(10)


def test_the_hosts_aio_count_is_as_it_was() -> None:
    assert int(pathlib.Path("/proc/sys/fs/aio-nr").read_text()) < 65536
