"""Which disks lie under a folder, as io.max names them: whole devices, by "major:minor"."""

from __future__ import annotations

import os
from collections.abc import Iterable

from . import procfs


def under(paths: Iterable[str], *, sysfs: str = "/sys") -> list[str]:
    """Return the disks under the folders `paths`, each once; none where a folder is on no block device."""
    found: dict[str, None] = {}
    mounts = procfs.mounts()
    for path in paths:
        try:
            device = os.stat(path).st_dev
        except OSError:
            continue
        for disk in _disks(device, mounts, sysfs):
            found[disk] = None
    return list(found)


def _disks(device: int, mounts: Iterable[procfs.Mount], sysfs: str) -> list[str]:
    name = f"{os.major(device)}:{os.minor(device)}"
    if os.major(device):
        return [whole(name, sysfs)]
    # A filesystem of several devices, or of none, has a number of its own: its source says which (btrfs).
    for mount in mounts:
        if mount.device == name and mount.source.startswith("/dev/"):
            return [whole(member, sysfs) for member in _members(mount, sysfs)]
    return []


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
    folder = os.path.realpath(f"{sysfs}/dev/block/{name}")
    if os.path.exists(f"{folder}/partition"):
        return _read(f"{os.path.dirname(folder)}/dev") or name
    return name


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""
