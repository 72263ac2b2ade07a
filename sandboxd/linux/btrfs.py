"""btrfs: subvolumes and quota groups (include/uapi/linux/btrfs.h, fs/btrfs/{ioctl,qgroup}.c).

A quota group `0/<subvolume id>` counts what a subvolume takes, its files and their metadata; a group of level 1 what
its members take together. A limit is checked when space is reserved, so that a write over it is EDQUOT, at once.

There are two ways of counting. Simple quotas (Linux 6.7) charge an extent to the subvolume that made it; the older
ones walk back references at each commit, which stops everybody for a moment (measured: 340 against 27 ms at the
worst in 600 creations and deletions). Simple quotas are taken where the kernel has them.
"""

from __future__ import annotations

import array
import errno
import os
import struct
from typing import Final

from .kernel import Kernel, SyscallError

_MAGIC: Final = 0x94
_WRITE, _READ = 1, 2


def _request(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | _MAGIC << 8 | number


_RESIZE: Final = _request(_WRITE, 3, 4096)
_SNAP_DESTROY: Final = _request(_WRITE, 15, 4096)
_INO_LOOKUP: Final = _request(_WRITE | _READ, 18, 4096)
_SUBVOL_CREATE_V2: Final = _request(_WRITE, 24, 4096)
_FS_INFO: Final = _request(_READ, 31, 1024)
_QUOTA_CTL: Final = _request(_WRITE | _READ, 40, 16)
_QGROUP_CREATE: Final = _request(_WRITE, 42, 16)
_QGROUP_LIMIT: Final = _request(_READ, 43, 48)
_QUOTA_RESCAN_WAIT: Final = _request(0, 46, 0)

#: include/uapi/linux/fs.h
_SETFLAGS: Final = 0x40086602
_NOCOW: Final = 0x00800000

_QUOTA_ENABLE: Final = 1
_QUOTA_ENABLE_SIMPLE: Final = 4
_SUBVOL_QGROUP_INHERIT: Final = 1 << 2
_INHERIT_SET_LIMITS: Final = 1
_LIMIT_MAX_REFERENCED: Final = 1
_LEVEL_SHIFT: Final = 48
#: The lowest id of a subvolume that was made (BTRFS_FIRST_FREE_OBJECTID).
FIRST_SUBVOLUME: Final = 256
_NAME_BYTES: Final = 4040
#: Above any tree's height: a deleted tree is then always counted, never given up on as too tall.
_NO_THRESHOLD: Final = b"8"


def level1(number: int) -> int:
    """Return the id of the quota group `1/<number>`."""
    return 1 << _LEVEL_SHIFT | number


def is_btrfs(kernel: Kernel, fd: int) -> bool:
    """Whether the open file lies on btrfs."""
    try:
        uuid(kernel, fd)
    except SyscallError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise
    return True


def uuid(kernel: Kernel, fd: int) -> str:
    """Return the filesystem's id as its directory in /sys/fs/btrfs is called."""
    buffer = bytearray(1024)
    kernel.ioctl(fd, _FS_INFO, buffer, "BTRFS_IOC_FS_INFO")
    text = buffer[16:32].hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def grow(kernel: Kernel, fd: int) -> None:
    """Let the filesystem fill a device that has grown."""
    buffer = bytearray(struct.pack("=q4088s", 0, b"max"))
    kernel.ioctl(fd, _RESIZE, buffer, "BTRFS_IOC_RESIZE")


def write_in_place(kernel: Kernel, fd: int) -> None:
    """Have an empty file, or all that is made in a directory from now on, written in place and so never compressed.

    The kernel then refuses `btrfs.compression` there, and ignores compression by mount options; only FS_IOC_SETFLAGS on
    an empty file takes it back.

    Raises:
        SyscallError: EOPNOTSUPP, ENOTTY or EINVAL where a filesystem has no such flag.
    """
    kernel.ioctl(fd, _SETFLAGS, bytearray(struct.pack("=q", _NOCOW)), "FS_IOC_SETFLAGS")


# --- subvolumes ---


def create_subvolume(kernel: Kernel, fd: int, name: str, limit: int, group: int) -> None:
    """Make a subvolume below the directory `fd`, limited to `limit` bytes and counted in `group`, in one call."""
    # struct btrfs_qgroup_inherit with one group: flags, counts, struct btrfs_qgroup_limit, groups.
    inherit = array.array(
        "B", struct.pack("=4Q5QQ", _INHERIT_SET_LIMITS, 1, 0, 0, _LIMIT_MAX_REFERENCED, limit, 0, 0, 0, group)
    )
    address, size = inherit.buffer_info()
    # struct btrfs_ioctl_vol_args_v2: fd, transid, flags, size and pointer of the inheritance, unused, name.
    arguments = struct.pack("=q6Q", 0, 0, _SUBVOL_QGROUP_INHERIT, size, address, 0, 0)
    buffer = bytearray(arguments + name.encode().ljust(_NAME_BYTES, b"\0"))
    kernel.ioctl(fd, _SUBVOL_CREATE_V2, buffer, f"BTRFS_IOC_SUBVOL_CREATE_V2 {name}")


def delete_subvolume(kernel: Kernel, fd: int, name: str) -> None:
    """Unlink a subvolume; the kernel gives its space back in the background, whatever its size."""
    buffer = bytearray(struct.pack("=q", 0) + name.encode().ljust(4088, b"\0"))
    kernel.ioctl(fd, _SNAP_DESTROY, buffer, f"BTRFS_IOC_SNAP_DESTROY {name}")


def subvolume_id(kernel: Kernel, fd: int) -> int:
    """Return the id of the subvolume that holds the open file."""
    buffer = bytearray(struct.pack("=QQ4080s", 0, FIRST_SUBVOLUME, b""))
    kernel.ioctl(fd, _INO_LOOKUP, buffer, "BTRFS_IOC_INO_LOOKUP")
    return int(struct.unpack_from("=Q", buffer)[0])


# --- quota groups ---


def quota_mode(filesystem: str) -> str | None:
    """Return "squota", "qgroup", or None where quotas are off; `filesystem` is what `uuid` gave."""
    base = f"/sys/fs/btrfs/{filesystem}/qgroups"
    try:
        with open(f"{base}/mode") as file:
            return file.read().strip()
    except FileNotFoundError:
        # The file came with simple quotas.
        return "qgroup" if os.path.isdir(base) else None


def enable_quota(kernel: Kernel, fd: int, filesystem: str) -> None:
    """Turn quotas on where they are off: the simple ones, or the older ones on an older kernel."""
    if quota_mode(filesystem) is None:
        try:
            _quota_control(kernel, fd, _QUOTA_ENABLE_SIMPLE)
        except SyscallError as error:
            if error.errno != errno.EINVAL:
                raise
            _quota_control(kernel, fd, _QUOTA_ENABLE)
            kernel.ioctl(fd, _QUOTA_RESCAN_WAIT, 0, "BTRFS_IOC_QUOTA_RESCAN_WAIT")
    if quota_mode(filesystem) == "qgroup":
        never_give_up(kernel, filesystem)


def never_give_up(kernel: Kernel, filesystem: str) -> None:
    """Count on when a tall tree is deleted; else the kernel drops all counting, every limit with it, until a rescan."""
    try:
        fd = kernel.open(f"/sys/fs/btrfs/{filesystem}/qgroups/drop_subtree_threshold", os.O_WRONLY)
    except FileNotFoundError:
        return  # a kernel that always counts
    try:
        kernel.write(fd, _NO_THRESHOLD)
    finally:
        os.close(fd)


def create_group(kernel: Kernel, fd: int, group: int) -> None:
    """Make a quota group unless it is there."""
    try:
        kernel.ioctl(fd, _QGROUP_CREATE, bytearray(struct.pack("=QQ", 1, group)), "BTRFS_IOC_QGROUP_CREATE")
    except SyscallError as error:
        if error.errno != errno.EEXIST:
            raise


def remove_group(kernel: Kernel, fd: int, group: int) -> None:
    """Remove a quota group whose subvolume is gone; newer kernels do that by themselves."""
    kernel.ioctl(fd, _QGROUP_CREATE, bytearray(struct.pack("=QQ", 0, group)), "BTRFS_IOC_QGROUP_CREATE")


def limit_group(kernel: Kernel, fd: int, group: int, limit: int) -> None:
    """Limit a quota group to `limit` bytes; group 0 is that of the subvolume which holds `fd`."""
    buffer = bytearray(struct.pack("=6Q", group, _LIMIT_MAX_REFERENCED, limit, 0, 0, 0))
    kernel.ioctl(fd, _QGROUP_LIMIT, buffer, "BTRFS_IOC_QGROUP_LIMIT")


def groups(filesystem: str) -> list[tuple[int, int]]:
    """Return every quota group as level and number."""
    found = []
    for name in os.listdir(f"/sys/fs/btrfs/{filesystem}/qgroups"):
        level, underscore, number = name.partition("_")
        if underscore and level.isdigit() and number.isdigit():
            found.append((int(level), int(number)))
    return found


def group_bytes(filesystem: str, group: int, what: str) -> int:
    """Return a number that the kernel tells of a group: `referenced`, `max_referenced`, `rsv_data` and so on."""
    level, number = group >> _LEVEL_SHIFT, group & (1 << _LEVEL_SHIFT) - 1
    with open(f"/sys/fs/btrfs/{filesystem}/qgroups/{level}_{number}/{what}") as file:
        return int(file.read())


def _quota_control(kernel: Kernel, fd: int, command: int) -> None:
    kernel.ioctl(fd, _QUOTA_CTL, bytearray(struct.pack("=QQ", command, 0)), "BTRFS_IOC_QUOTA_CTL")
