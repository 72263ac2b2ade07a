"""inotify(7): what happens in directories. Through libc, since the standard library has no part for it."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from .kernel import SyscallError

# include/uapi/linux/inotify.h
IN_MODIFY: Final = 0x00000002
IN_ATTRIB: Final = 0x00000004
IN_MOVED_FROM: Final = 0x00000040
IN_MOVED_TO: Final = 0x00000080
IN_CREATE: Final = 0x00000100
IN_DELETE: Final = 0x00000200
IN_DELETE_SELF: Final = 0x00000400
IN_MOVE_SELF: Final = 0x00000800
IN_UNMOUNT: Final = 0x00002000
IN_Q_OVERFLOW: Final = 0x00004000
IN_IGNORED: Final = 0x00008000
IN_ONLYDIR: Final = 0x01000000
IN_DONT_FOLLOW: Final = 0x02000000
IN_EXCL_UNLINK: Final = 0x04000000
IN_ISDIR: Final = 0x40000000

_HEADER: Final = struct.Struct("iIII")
#: One read; each event is at most 272 bytes.
_READ_BYTES: Final = 64 * 1024
_libc = ctypes.PyDLL(None, use_errno=True)


class Happening(NamedTuple):
    """One event of the kernel: which watch, what (IN_*), what joins the two halves of a rename, and the name."""

    watch: int
    mask: int
    cookie: int
    name: bytes


class Inotify:
    """One inotify instance; owns its descriptor."""

    def __init__(self) -> None:
        self.fd: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self.fd < 0:
            raise SyscallError(ctypes.get_errno(), "inotify_init1")

    def watch(self, path: str, mask: int) -> int:
        """Watch a path and return the number of the watch; an inode that is watched already keeps its number."""
        number: int = _libc.inotify_add_watch(self.fd, os.fsencode(path), ctypes.c_uint32(mask))
        if number < 0:
            raise SyscallError(ctypes.get_errno(), "inotify_add_watch", path)
        return number

    def unwatch(self, number: int) -> None:
        """Forget a watch; one that is gone is no error."""
        _libc.inotify_rm_watch(self.fd, ctypes.c_int(number))

    def read(self) -> Iterator[Happening]:
        """Give what has happened, without waiting."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            watch, mask, cookie, size = _HEADER.unpack_from(data, at)
            at += _HEADER.size
            yield Happening(watch, mask, cookie, data[at : at + size].rstrip(b"\0"))
            at += size
