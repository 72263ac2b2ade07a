"""Which disks lie under a directory, as io.max names them: whole devices, by "major:minor"."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from . import procfs


def under(paths: Iterable[str], *, sysfs: str = "/sys") -> list[str]:
    """Return the disks under the directories `paths`, each once; none where a directory is on no block device."""
    found: dict[str, None] = {}
    mounts = procfs.mounts()
    for path in paths:
        try:
            device = os.stat(path).st_dev
        except OSError:
            continue
        for disk in _disks(path, device, mounts, sysfs):
            found[disk] = None
    return list(found)


def _disks(path: str, device: int, mounts: Sequence[procfs.Mount], sysfs: str) -> list[str]:
    if os.major(device):
        return [whole(f"{os.major(device)}:{os.minor(device)}", sysfs)]
    # A filesystem of several devices, or of none, has a number of its own: its source says which (btrfs).
    mount = mount_of(path, mounts)
    if mount is None or not mount.source.startswith("/dev/"):
        return []
    return [whole(member, sysfs) for member in _members(mount, sysfs)]


def mount_of(path: str, mounts: Sequence[procfs.Mount]) -> procfs.Mount | None:
    """Return the mount that a directory is in; st_dev does not tell: each subvolume of btrfs has its own."""
    real = os.path.realpath(path)
    found = None
    for mount in mounts:
        above = mount.target.rstrip("/")
        # In mount order: the last of those that hold the directory covers the ones before.
        if real == above or real.startswith(f"{above}/"):
            found = mount if found is None or len(above) >= len(found.target.rstrip("/")) else found
    return found


def _members(mount: procfs.Mount, sysfs: str) -> list[str]:
    """Return the devices of the filesystem that `mount.source` belongs to."""
    try:
        number = os.stat(mount.source).st_rdev
    except OSError:
        return []
    own = f"{os.major(number)}:{os.minor(number)}"
    if mount.fstype == "btrfs":
        pools = f"{sysfs}/fs/btrfs"
        for pool in os.listdir(pools) if os.path.isdir(pools) else []:
            devices = f"{pools}/{pool}/devices"
            if os.path.isdir(devices):
                members = [_read(f"{devices}/{member}/dev") for member in sorted(os.listdir(devices))]
                if own in members:
                    return [member for member in members if member]
    return [own]


def whole(name: str, sysfs: str = "/sys") -> str:
    """Return the disk of a partition, or the device itself: io.max takes no partition (block/blk-cgroup.c)."""
    directory = os.path.realpath(f"{sysfs}/dev/block/{name}")
    if os.path.exists(f"{directory}/partition"):
        return _read(f"{os.path.dirname(directory)}/dev") or name
    return name


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""
