"""Pseudo-terminals: opened in the sandbox's own devpts, without trusting a name in it (CVE-2025-52565).

The master comes from /dev/pts/ptmx, and is looked at after it was opened: the sandbox's root may put anything at a
path, but makes no device nodes and mounts nothing, so a character device 5:2 is the multiplexer of its own devpts.
The other side comes from the master itself (TIOCGPTPEER); no path is opened for it, so there is none to swap.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import termios
from typing import Final

from ..errors import LimitExceeded, NotAvailable
from ..linux.kernel import RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, Kernel
from ..wire.exhausted import limit_error
from .users import User

_PTMX: Final = os.makedev(5, 2)
_TIOCSPTLCK: Final = 0x40045431  # asm-generic/ioctls.h; Python has these from 3.13 on
_TIOCGPTPEER: Final = 0x5441


def open_terminal(kernel: Kernel, cols: int, rows: int, owner: User) -> tuple[int, int]:
    """Return a new terminal of `cols` x `rows` characters: (our side, the program's side); the caller owns both.

    Raises:
        LimitExceeded: the sandbox has as many terminals as it may.
        NotAvailable: its /dev/pts is not what it was at creation.
    """
    try:
        flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
        master = kernel.openat2(-100, "/dev/pts/ptmx", flags, RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            why = "cannot open a terminal: the sandbox has reached its limit of terminals"
            raise LimitExceeded(why, limit="terminals") from None
        if (limit := limit_error(error, "open a terminal")) is not None:
            raise limit from None
        raise NotAvailable(f"cannot open a terminal: {os.strerror(error.errno or 0).lower()}") from None
    try:
        _check(master)
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except BaseException:
        os.close(master)
        raise
    try:
        resize(master, cols, rows)
        # As grantpt(3): the user's, and the group tty's (which the mount gave it) may write.
        os.fchown(slave, owner.uid, -1)
        os.fchmod(slave, 0o620)
    except BaseException:
        os.close(master)
        os.close(slave)
        raise
    return master, slave


def _check(fd: int) -> None:
    facts = os.fstat(fd)
    if not stat.S_ISCHR(facts.st_mode) or facts.st_rdev != _PTMX:
        raise NotAvailable("cannot open a terminal: the sandbox's /dev/pts/ptmx is not a terminal multiplexer")


def resize(master: int, cols: int, rows: int) -> None:
    """Give the terminal a size; its foreground processes get SIGWINCH if it is another one."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


def foreground(master: int) -> int | None:
    """Return the process group that reads from the terminal, or None."""
    try:
        group = os.tcgetpgrp(master)
    except OSError:
        return None
    return group if group > 1 else None
