"""Run as the daemon's user, with nothing but that: what could code do that took the daemon over but not the launcher?

Arguments: the state and runtime directories, a sandbox's id, its init's pid, the launcher's, the sandbox's cgroup and
the rootfs directory. Prints a JSON object: each attempt's name, and "allowed" or the errno's name.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pathlib
import signal
import sys
from collections.abc import Callable

state, run, sandbox, rootfs = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3], sys.argv[7]
init, launcher, group = int(sys.argv[4]), int(sys.argv[5]), pathlib.Path(sys.argv[6])
libc = ctypes.CDLL(None, use_errno=True)


def attempt(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return "allowed"


def call(number: int, *arguments: object) -> None:
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")


def open_write(path: str | pathlib.Path) -> None:
    os.close(os.open(path, os.O_WRONLY))


def open_read(path: str) -> None:
    pathlib.Path(path).read_bytes()


MOUNT, SETNS, PTRACE, BPF, MKNOD = 165, 308, 101, 321, 133
attempts: dict[str, Callable[[], object]] = {
    "list the pool": lambda: os.listdir(state / "pool"),
    "read the sandbox's files": lambda: os.listdir(state / "pool" / sandbox / "upper"),
    "read the launcher's records": lambda: os.listdir(state / "records"),
    "make a record": (state / "records" / "x").touch,
    "make a directory in the state directory": (state / "own").mkdir,
    "make a link": (run / "links" / "x.sock").touch,
    "replace a link": (run / "links" / f"{sandbox}.sock").unlink,
    "put a directory in the stage": (run / "stage" / "x").mkdir,
    "replace the rootfs": (pathlib.Path(rootfs) / "x").mkdir,
    "write in the rootfs": lambda: open_write(pathlib.Path(rootfs) / "default/private/tree/etc/passwd"),
    "claim a range of ids": lambda: pathlib.Path("/run/sandboxd-ids/1").write_bytes(b""),
    "signal init": lambda: os.kill(init, signal.SIGKILL),
    "signal the launcher": lambda: os.kill(launcher, signal.SIGKILL),
    "signal init by pidfd": lambda: signal.pidfd_send_signal(os.pidfd_open(init), signal.SIGKILL),
    "read init's memory": lambda: open_read(f"/proc/{init}/mem"),
    "read init's environment": lambda: open_read(f"/proc/{init}/environ"),
    "read the launcher's memory": lambda: open_read(f"/proc/{launcher}/mem"),
    "use the launcher's descriptors": lambda: os.listdir(f"/proc/{launcher}/fd"),
    "enter init's root": lambda: os.listdir(f"/proc/{init}/root/"),
    "trace init": lambda: call(PTRACE, 16, init, None, None),
    "trace the launcher": lambda: call(PTRACE, 16, launcher, None, None),
    "join the sandbox's namespaces": lambda: call(SETNS, os.pidfd_open(init), 0x20000 | 0x20000000 | 0x40000000),
    "join its user namespace": lambda: os.open(f"/proc/{init}/ns/user", os.O_RDONLY),
    "lift its memory limit": lambda: open_write(group / "cgroup.max.descendants"),
    "freeze it": lambda: open_write(group / "cgroup.freeze"),
    "kill it by its cgroup": lambda: open_write(group / "cgroup.kill"),
    "put a process in it": lambda: open_write(group / "work/cgroup.procs"),
    "make a cgroup beside it": (group.parent / "own").mkdir,
    "mount": lambda: call(MOUNT, b"none", b"/mnt", b"tmpfs", 0, None),
    "leave its own mounts": lambda: call(272, 0x20000),
    "make a device": lambda: call(MKNOD, b"/tmp/sandboxd-node", 0o60666, 0),
    "become root": lambda: os.setresuid(0, 0, 0),
    "take a group": lambda: os.setgroups([0]),
    "change the host's name": lambda: call(170, b"evil", 4),
    "write a sysctl": lambda: open_write("/proc/sys/kernel/core_pattern"),
    "write the password file": lambda: open_write("/etc/passwd"),
    "read the shadow file": lambda: open_read("/etc/shadow"),
    "open raw memory": lambda: os.open("/dev/mem", os.O_RDONLY),
    "load a program into the kernel": lambda: call(BPF, 5, b"\0" * 128, 128),
    "raise its priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, -5),
    "listen below 1024": lambda: __import__("socket").socket().bind(("127.0.0.1", 81)),
}
print(json.dumps({name: attempt(action) for name, action in attempts.items()}))
