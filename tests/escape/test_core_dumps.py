"""A crash inside starts nothing on the host: RLIMIT_CORE is 1, with which the kernel starts no piped core_pattern."""

from __future__ import annotations

import pathlib

import pytest

from sandboxd import Sandbox
from tests.escape.conftest import host_pid
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real

#: Tries each way to another value (0 would start it, a larger one as well), then tells which value is in force.
TRY = """
import ctypes, os, resource, struct
libc = ctypes.CDLL(None, use_errno=True)
for soft, hard in ((0, 0), (0, 1), (1 << 20, 1 << 20), (resource.RLIM_INFINITY, resource.RLIM_INFINITY)):
    for change in (
        lambda: resource.setrlimit(resource.RLIMIT_CORE, (soft, hard)),
        lambda: resource.prlimit(os.getpid(), resource.RLIMIT_CORE, (soft, hard)),
        lambda: resource.prlimit(1, resource.RLIMIT_CORE, (soft, hard)),
        lambda: libc.syscall(160, 4, struct.pack('qq', soft, hard)),
        lambda: libc.syscall(160, ctypes.c_long(4 | 1 << 40), struct.pack('qq', soft, hard)),
        lambda: libc.syscall(302, 0, ctypes.c_long(4 | 1 << 40), struct.pack('qq', soft, hard), 0),
    ):
        try:
            change()
        except (OSError, ValueError):
            pass
print([line.split()[4:6] for line in open('/proc/self/limits') if line.startswith('Max core')])
"""


@pytest.mark.parametrize("profile", ["default", "strict"])
@pytest.mark.parametrize("user", ["root", 1000])
def test_the_limit_stays_1(daemon: Daemon, profile: str, user: str | int) -> None:
    with daemon.client() as client, Sandbox.create(client=client, seccomp=profile) as sandbox:
        assert sandbox.exec(["python3", "-c", TRY], user=user).stdout == "[['1', '1']]\n"
        limits = pathlib.Path(f"/proc/{host_pid(daemon, sandbox)}/limits").read_text()
        assert limits.split("Max core file size")[1].split()[:2] == ["1", "1"]
        # What scripts and programs do for their own good goes on working.
        assert sandbox.exec("ulimit -c 0 && ulimit -S -c 0 && echo fine", user=user).stdout == "fine\n"
        crash = sandbox.exec(["sh", "-c", "cd /tmp; kill -SEGV $$"], user=user)
        assert crash.signal == "SIGSEGV"
        assert sandbox.exec("ls /tmp /workspace | grep -c core", user=user).stdout == "0\n"
