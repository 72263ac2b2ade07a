"""The child's side of a start: between clone3 and execve.

The child is born in its own cgroup leaf. It may fail in ways that are the program's (not found, not executable,
a working folder it may not enter): these are told on its stderr and as status 127 or 126, as a shell does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import termios
from typing import Final

from ..linux import seccomp
from ..linux.kernel import Kernel
from .users import User

NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
#: No program is given more descriptors than this.
_ABOVE_TARGETS: Final = 16
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run_child(  # noqa: PLR0913 - what a program is started with
    kernel: Kernel,
    argv: tuple[str, ...],
    env: dict[str, str],
    cwd: str,
    user: User,
    stdio: tuple[int, int, int],
    *,
    terminal: bool = False,
    more: tuple[int, ...] = (),
    first: int = 3,
) -> None:
    """Become the program; never returns.

    With `terminal`, its stdin is a terminal that it is to control; `more` become its descriptors from `first` on.
    """
    try:
        os.setsid()
        # Out of the way first: a number among them may be another one's target.
        above = max(_ABOVE_TARGETS, first + len(more))
        sources = [*stdio, *(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in more)]
        for target, fd in zip((0, 1, 2, *range(first, first + len(more))), sources, strict=True):
            os.dup2(fd, target)
        if terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if first > 3:
            kernel.close_range(3, first - 1)
        kernel.close_range(first + len(more), 2**32 - 1)
        os.setgroups(user.groups)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        _enter(cwd)
        kernel.seccomp(seccomp.COMMAND_FILTER)
        _exec(argv, env)
    except OSError as error:
        _fail(f"cannot start {argv[0]!r}: {error.strerror}", NOT_EXECUTABLE)
    finally:
        os._exit(NOT_EXECUTABLE)


def _enter(cwd: str) -> None:
    try:
        os.chdir(cwd)
    except OSError as error:
        _fail(f"cannot enter {cwd!r}: {error.strerror}", NOT_EXECUTABLE)


def _exec(argv: tuple[str, ...], env: dict[str, str]) -> None:
    """Execve along PATH; returns only by `_fail`."""
    program = argv[0]
    places = [program] if "/" in program else [f"{d or '.'}/{program}" for d in env["PATH"].split(":")]
    denied = 0
    for place in places:
        try:
            os.execve(place, argv, env)  # noqa: S606 - running programs is what this is for
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                denied = error.errno or errno.EACCES
                if error.errno != errno.EACCES:
                    break
            elif "/" in program and os.path.lexists(place):
                # The file is there, its interpreter is not: say so, as "not found" would mislead.
                _fail(f"cannot run {program!r}: its interpreter does not exist", NOT_FOUND)
    if denied:
        _fail(f"cannot run {program!r}: {os.strerror(denied)}", NOT_EXECUTABLE)
    _fail(f"cannot run {program!r}: not found", NOT_FOUND)


def _fail(text: str, status: int) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"sandboxd: {text}\n".encode("utf-8", "replace"))
    os._exit(status)
