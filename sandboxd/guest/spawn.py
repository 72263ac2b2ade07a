"""The child's side of a start: between clone3 and execve.

The child is born in its own cgroup leaf. It may fail in ways that are the program's (not found, not executable,
a working directory it may not enter): these are told on its stderr and as status 127 or 126, as a shell does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import termios
from collections.abc import Sequence
from typing import Final, NamedTuple, NoReturn

from ..linux import seccomp
from ..linux.kernel import Kernel
from ..spec import CommandSpec
from .users import User

NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
#: No program is given more descriptors than this.
_ABOVE_TARGETS: Final = 16
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class SpawnRequest(NamedTuple):
    """What a child becomes: values that marshal takes, since a standby is sent them.

    Attributes:
        first: what descriptors after the first three become, from this number on.
        terminal: its stdin is a terminal that it is to control.
        umask: None leaves it as it is.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    first: int = 3
    terminal: bool = False
    umask: int | None = None

    @classmethod
    def of(
        cls, spec: CommandSpec, user: User, argv: tuple[str, ...], env: dict[str, str], cwd: str, first: int = 3
    ) -> SpawnRequest:
        """Return what a command's child becomes: what runs it is given, and the rest is the command's own."""
        umask = None if spec.umask is None else int(spec.umask, 8)
        return cls(argv, env, cwd, *user.ids, first, terminal=spec.terminal is not None, umask=umask)


def run_child(kernel: Kernel, order: SpawnRequest, fds: Sequence[int]) -> NoReturn:
    """Become the program, with `fds` as stdin, stdout, stderr and what `order` says of others; never returns."""
    try:
        prepare(kernel)
    except OSError as error:
        _fail(f"cannot start {order.argv[0]!r}: {error.strerror}", NOT_EXECUTABLE)
    run(kernel, order, fds)


def prepare(kernel: Kernel) -> None:
    """Do what is the same for every program.

    Raises:
        OSError: it cannot be done.
    """
    os.setsid()
    kernel.seccomp(seccomp.COMMAND_FILTER)


def run(kernel: Kernel, order: SpawnRequest, fds: Sequence[int]) -> NoReturn:
    """Do the rest; why a program cannot be run is told where its errors would be."""
    try:
        _place(order, fds)
        if order.first > 3:
            kernel.close_range(3, order.first - 1)
        kernel.close_range(order.first + len(fds) - 3, 2**32 - 1)
        _own(order)
        if order.umask is not None:
            os.umask(order.umask)
        _enter(order.cwd)
        _exec(order.argv, order.env)
    except OSError as error:
        _fail(f"cannot start {order.argv[0]!r}: {error.strerror}", NOT_EXECUTABLE)
    finally:
        os._exit(NOT_EXECUTABLE)


def warm_up(kernel: Kernel, order: SpawnRequest) -> None:
    """Go through as much of the rest as can be done twice, so that what it writes to is not copied later.

    Raises:
        OSError: it cannot be done.
    """
    _place(order, (0, 1, 2))
    kernel.close_range(2**31, 2**32 - 1)
    os.setgroups(os.getgroups())
    os.setresgid(-1, -1, -1)
    os.setresuid(-1, -1, -1)
    _enter("/")
    with contextlib.suppress(OSError):
        os.execve("", order.argv, order.env)  # noqa: S606 - there is no such program


def _place(order: SpawnRequest, fds: Sequence[int]) -> None:
    """Give descriptors their numbers."""
    more, first = fds[3:], order.first
    # Out of the way first: a number among them may be another one's target.
    above = max(_ABOVE_TARGETS, first + len(more))
    sources = [*fds[:3], *(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in more)]
    os.dup2(fds[2], 2)  # what fails from here on is told there
    for target, fd in zip((0, 1, 2, *range(first, first + len(more))), sources, strict=True):
        os.dup2(fd, target)
    if order.terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _own(order: SpawnRequest) -> None:
    os.setgroups(order.groups)
    os.setresgid(order.gid, order.gid, order.gid)
    os.setresuid(order.uid, order.uid, order.uid)


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
