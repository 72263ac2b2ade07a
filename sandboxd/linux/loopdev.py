"""Loop devices: a file as a block device (include/uapi/linux/loop.h, drivers/block/loop.c).

A file that is attached twice is one filesystem with two caches that know nothing of each other: it mounts without
an error and destroys what is in it. So `find` comes before `attach`, and goes by device and inode, since a path
may have been renamed, or be another one in another mount namespace.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from typing import Final

from .kernel import Kernel, SyscallError

_SET_CAPACITY: Final = 0x4C07
_GET_STATUS64: Final = 0x4C05
_CONFIGURE: Final = 0x4C0A
_CTL_GET_FREE: Final = 0x4C82
_READ_ONLY: Final = 1
_AUTOCLEAR: Final = 4
_DIRECT_IO: Final = 16
#: struct loop_info64: device, inode, rdevice, offset, sizelimit, number, encrypt type and key size, flags, names, key.
_INFO: Final = struct.Struct("=5Q4I64s64s32s2Q")
#: struct loop_config: fd, block size, the info, reserved.
_CONFIG: Final = struct.Struct(f"=2I{_INFO.size}s64s")
#: What filesystems use; a multiple of every disk's own, which direct I/O needs.
_BLOCK_BYTES: Final = 4096
#: Another process may take the free device that we were told of.
_ATTEMPTS: Final = 16


def find(kernel: Kernel, image: int) -> tuple[str, int] | None:
    """Return the path and an open descriptor of the loop device that the open file `image` is attached to.

    While the descriptor is open the device cannot clear itself.

    Raises:
        SyscallError: a device cannot be looked at, or has the file in part or read-only (EBUSY).
    """
    facts = os.fstat(image)
    for path in _attached():
        fd = kernel.open(path, os.O_RDWR)
        keep = False
        try:
            device, inode, _, offset, limit, _, _, _, flags, *_ = _status(kernel, fd)
            if (device, inode) == (facts.st_dev, facts.st_ino):
                if offset or limit or flags & _READ_ONLY:
                    raise SyscallError(
                        errno.EBUSY, "ioctl", f"LOOP_GET_STATUS64 {path} (attached in part or read-only)"
                    )
                keep = True
                return path, fd
        except SyscallError as error:
            if error.errno != errno.ENXIO:  # it has cleared itself meanwhile
                raise
        finally:
            if not keep:
                os.close(fd)
    return None


def attach(kernel: Kernel, image: int, name: str) -> tuple[str, int]:
    """Attach the open file `image` to a free device; return its path and an open descriptor.

    The device clears itself at its last close, a mount's included: nothing is left whichever way we end. Direct
    I/O keeps the image's pages from being cached once more. `name` is what tools show.
    """
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR | _DIRECT_IO, name.encode()[:63], b"", b"", 0, 0)
    control = kernel.open("/dev/loop-control", os.O_RDWR)
    try:
        for _ in range(_ATTEMPTS):
            path = f"/dev/loop{kernel.ioctl(control, _CTL_GET_FREE, 0, 'LOOP_CTL_GET_FREE')}"
            fd = kernel.open(path, os.O_RDWR)
            try:
                config = bytearray(_CONFIG.pack(image, _BLOCK_BYTES, info, b""))
                kernel.ioctl(fd, _CONFIGURE, config, f"LOOP_CONFIGURE {path}")
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return path, fd
    finally:
        os.close(control)
    raise SyscallError(errno.EBUSY, "ioctl", "LOOP_CONFIGURE")


def refresh_size(kernel: Kernel, fd: int) -> None:
    """Let a device see that its file has grown."""
    kernel.ioctl(fd, _SET_CAPACITY, 0, "LOOP_SET_CAPACITY")


def _attached() -> Iterator[str]:
    """Yield every loop device that has a file. The kernel's own list: /dev may lack nodes in a container."""
    for name in os.listdir("/sys/block"):
        if name.startswith("loop") and os.path.exists(f"/sys/block/{name}/loop/backing_file"):
            yield f"/dev/{name}"


def _status(kernel: Kernel, fd: int) -> tuple[int, ...]:
    buffer = bytearray(_INFO.size)
    kernel.ioctl(fd, _GET_STATUS64, buffer, "LOOP_GET_STATUS64")
    return _INFO.unpack(buffer)
