"""Who is at the other end of a unix socket, where the standard library's `getsockopt` has no room for the answer."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from typing import Final

_SO_PEERGROUPS: Final = 59  # asm-generic/socket.h; Python has no name for it
_FIRST_BYTES: Final = 256
_libc = ctypes.PyDLL(None, use_errno=True)


def peer_groups(fd: int) -> frozenset[int]:
    """Return the supplementary groups that the peer had at connect(2): up to 65,536 (NGROUPS_MAX).

    Raises:
        OSError: the kernel does not know.
    """
    room = ctypes.c_uint32(_FIRST_BYTES)
    while True:
        buffer = ctypes.create_string_buffer(room.value)
        if _libc.getsockopt(fd, socket.SOL_SOCKET, _SO_PEERGROUPS, buffer, ctypes.byref(room)) == 0:
            return frozenset(memoryview(buffer.raw)[: room.value].cast("I"))
        number = ctypes.get_errno()
        if number != errno.ERANGE or room.value <= len(buffer):  # else the kernel has said how many bytes it takes
            raise OSError(number, os.strerror(number), "SO_PEERGROUPS")
