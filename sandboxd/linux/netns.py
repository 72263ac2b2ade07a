"""The little that a network namespace needs without netlink."""

from __future__ import annotations

import fcntl
import socket
import struct
from typing import Final

_SIOCSIFFLAGS: Final = 0x8914  # include/uapi/linux/sockios.h
_IFF_UP: Final = 0x1


def bring_loopback_up() -> None:
    """Set `lo` up in the present network namespace; the kernel then gives it 127.0.0.1 and ::1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))
