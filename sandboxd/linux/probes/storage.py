"""Where sandboxes keep their files: the directories can be written, there is room, and what could limit it."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from typing import Final

from .. import procfs
from .feature import AS_ROOT, Feature, Status, listed
from .files import existing_ancestor, filesystem_of, read_text

#: Whether the launcher has a driver that limits; a test holds this to it.
BTRFS_DRIVER_BUILT: Final = True
#: Below the first, the reserve where no configuration says otherwise, no sandbox is made; below the second a few
#: sandboxes fill the disk.
LEAST_FREE: Final = 1 << 30
SCARCE_FREE: Final = 5 << 30


@dataclasses.dataclass(frozen=True, slots=True)
class Directory:
    """A directory that the daemon needs: where it is (or would be made), and whether root may write there.

    `writable` is None when this user's rights say nothing about root's.
    """

    path: str
    ancestor: str
    writable: bool | None


@dataclasses.dataclass(frozen=True, slots=True)
class StorageState:
    """What was found about the directories and about btrfs.

    Attributes:
        directories: by name.
        filesystem: the state directory's.
        free, total: its bytes.
        btrfs: "built in", "a module", or None.
        mkfs: the program mkfs.btrfs, or None.
        loop: whether there is /dev/loop-control.
    """

    directories: Mapping[str, Directory]
    filesystem: str
    free: int
    total: int
    btrfs: str | None
    mkfs: str | None
    loop: bool


def gather(directories: Mapping[str, str], *, root: bool) -> StorageState:
    """Look at `directories` (one is called state-dir) without making them."""
    looked = {}
    for name, path in directories.items():
        ancestor = existing_ancestor(path)
        writable = os.access(ancestor, os.W_OK | os.X_OK)
        looked[name] = Directory(path, ancestor, writable if root or writable else None)
    state = looked["state-dir"].ancestor
    space = os.statvfs(state)
    return StorageState(
        looked,
        filesystem_of(state, procfs.mounts()),
        space.f_bavail * space.f_frsize,
        space.f_blocks * space.f_frsize,
        _btrfs(),
        shutil.which("mkfs.btrfs", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"),
        os.path.exists("/dev/loop-control"),
    )


def evaluate(facts: StorageState) -> list[Feature]:
    """Tell whether files can be kept, and limited."""
    features = [_directory(name, directory) for name, directory in facts.directories.items()]
    return [*features, _space(facts), *_btrfs_features(facts)]


def _btrfs() -> str | None:
    if "btrfs" in (read_text("/proc/filesystems") or "").split():
        return "the kernel has it"
    modules = f"/lib/modules/{os.uname().release}"
    for name in ("modules.builtin", "modules.dep"):
        if "/btrfs.ko" in (read_text(f"{modules}/{name}") or ""):
            return "the kernel has it as a module"
    return None


def _directory(name: str, directory: Directory) -> Feature:
    absent = "" if directory.path == directory.ancestor else f" (to be created in {directory.ancestor})"
    found, means = f"{directory.path}{absent}", "the state that sandboxes need between calls is kept there"
    if directory.writable:
        return Feature(name=name, status=Status.OK, found=found, means=means, essential=True)
    if directory.writable is None:
        found = f"{found}: whether root can write there cannot be determined without root"
        return Feature(name=name, status=Status.UNKNOWN, found=found, means=means, remedy=AS_ROOT, essential=True)
    remedy = f"make {directory.ancestor} writable (a read-only mount?)"
    if name != "id-claims":
        remedy += f", or pass another directory: --{name} DIR"
    found, means = f"{found}: root cannot write there", "the daemon cannot start"
    return Feature(name=name, status=Status.MISSING, found=found, means=means, remedy=remedy, essential=True)


def _space(facts: StorageState) -> Feature:
    name, found = "free-space", f"{size(facts.free)} of {size(facts.total)} on {facts.filesystem}"
    where = facts.directories["state-dir"].ancestor
    if facts.free >= SCARCE_FREE:
        return Feature(name=name, status=Status.OK, found=found, means="sandboxes share it", essential=True)
    none = facts.free < LEAST_FREE
    return Feature(
        name=name,
        status=Status.MISSING if none else Status.DEGRADED,
        found=found,
        means="no rootfs fits and no sandbox can be created" if none else "a few sandboxes will fill it",
        remedy=f"free some at {where}, or use a larger filesystem: --state-dir DIR",
        essential=True,
    )


def _btrfs_features(facts: StorageState) -> list[Feature]:
    parts = {
        "btrfs": (facts.btrfs, "the kernel has no btrfs", "use a kernel with CONFIG_BTRFS_FS (modprobe btrfs)"),
        "mkfs.btrfs": (facts.mkfs, "the program is not installed", "apt-get install btrfs-progs"),
        "loop": (
            "/dev/loop-control" if facts.loop else None,
            "there is no /dev/loop-control",
            "modprobe loop; a container must be given the device",
        ),
    }
    # A pool on a filesystem that is btrfs already needs neither an image nor the program that makes one.
    needed = {"btrfs"} if facts.filesystem == "btrfs" else set(parts)
    features, lacking = [], []
    for name, (found, absent, remedy) in parts.items():
        means = "a pool that enforces disk limits and takes snapshots needs it"
        if found:
            features.append(Feature(name=name, status=Status.OK, found=found, means=means))
            continue
        status = Status.MISSING if name in needed else Status.OK
        if name in needed:
            lacking.append(name)
        features.append(
            Feature(name=name, status=status, found=absent, means=means, remedy=remedy if name in needed else None)
        )
    features.append(_disk_limits(lacking))
    return features


def _disk_limits(lacking: list[str]) -> Feature:
    if BTRFS_DRIVER_BUILT and not lacking:
        means = "a sandbox's disk_bytes is enforced"
        return Feature(name="disk-limits", status=Status.OK, found="a btrfs pool can be created", means=means)
    found = f"a btrfs pool cannot be created: {listed(lacking)} missing" if lacking else "a btrfs pool could be created"
    remedy = "see the features named" if lacking else "start the daemon with --allow-unenforced"
    if not BTRFS_DRIVER_BUILT:
        found = "this version keeps files in a plain directory, which cannot limit them"
        remedy = "start the daemon with --allow-unenforced, and watch the disk"
    means = "a sandbox's disk_bytes cannot be enforced: refused unless the daemon has --allow-unenforced"
    return Feature(name="disk-limits", status=Status.DEGRADED, found=found, means=means, remedy=remedy)


def size(count: int) -> str:
    """Return bytes for people."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"
