"""The combination that every creation needs, really mounted: an overlay of an idmapped lower and an idmapped upper.

Whether it works depends on the kernel, on the filesystems of the rootfs and of the state directory (both must know
idmapped mounts; an upper needs d_type and trusted xattrs), and on the container that all this may run in. So it is
tried where the sandboxes will be, in a directory made for it, mounted only inside a private mount namespace.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import tempfile
from typing import Final

from ..kernel import (
    AT_FDCWD,
    CLONE_NEWNS,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    OPEN_TREE_CLONE,
    SECBIT_NO_SETUID_FIXUP,
    Kernel,
    SyscallError,
)
from .child import DISK_FIRST_ID, TRIAL_FIRST_ID, Outcome, attempt, user_namespace
from .feature import Feature, Status, untried

#: As `launcher/steps.py` mounts it; a test holds the two together.
OPTIONS: Final = (
    "lowerdir=lower,upperdir=disk/upper,workdir=disk/work,redirect_dir=on,index=off,metacopy=off,xino=on,volatile"
)
CAPABILITIES: Final = sum(1 << number for number in (0, 1, 2, 3, 4, 6, 7, 21, 27, 31))
SCRATCH_PREFIX: Final = ".sandboxd-doctor-"
_MEANS: Final = "a sandbox's root is an overlay of the rootfs and its own files, seen through its own ids"


@dataclasses.dataclass(frozen=True, slots=True)
class OverlayTrial:
    """What was tried where; `outcome` is None when nothing could be tried."""

    directory: str
    filesystem: str
    outcome: Outcome | None


def gather(kernel: Kernel, directory: str, filesystem: str, lower: str | None, *, root: bool) -> OverlayTrial:
    """Try it below `directory`, with the rootfs tree `lower` or, without one, a small tree of our own."""
    return OverlayTrial(directory, filesystem, _trial(kernel, directory, lower) if root else None)


def evaluate(facts: OverlayTrial) -> list[Feature]:
    """Tell what the trial showed."""
    if facts.outcome is None:
        return [untried("overlay", _MEANS, essential=True)]
    where = f"{facts.directory} ({facts.filesystem})"
    if facts.outcome.ok:
        found = f"mounted and written to, with idmapped layers, at {where}"
        return [Feature(name="overlay", status=Status.OK, found=found, means=_MEANS, essential=True)]
    return [
        Feature(
            name="overlay",
            status=Status.MISSING,
            found=f"at {where}: {facts.outcome.error}",
            means="no sandbox can be created here",
            remedy=_remedy(facts.outcome),
            essential=True,
        )
    ]


def _remedy(outcome: Outcome) -> str:
    if outcome.code == "ENODEV":
        return "modprobe overlay"
    if outcome.syscall == "mount_setattr":
        return "put the rootfs and the state directory on ext4, xfs or btrfs: --rootfs-dir DIR --state-dir DIR"
    if outcome.code in {"EROFS", "ENOSPC", "EDQUOT"}:
        return "give --state-dir a directory on a writable filesystem with free space"
    if outcome.code in {"EPERM", "EACCES"}:
        return "run it as the host's own root, outside of any container"
    return "put the state directory on ext4, xfs or btrfs: --state-dir DIR; the kernel's log (dmesg) says more"


def _trial(kernel: Kernel, directory: str, lower: str | None) -> Outcome:
    scratch = None
    try:
        scratch = tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=directory)
        for name in ("stage", "lower", "lower/folder", "disk", "disk/upper", "disk/work"):
            os.mkdir(f"{scratch}/{name}")
        for name in ("disk", "disk/upper", "disk/work"):
            kernel.chown(f"{scratch}/{name}", DISK_FIRST_ID, DISK_FIRST_ID)
        with (
            user_namespace(kernel, 0, TRIAL_FIRST_ID, owner=TRIAL_FIRST_ID) as own,
            user_namespace(kernel, DISK_FIRST_ID, TRIAL_FIRST_ID, owner=0) as disk,
        ):
            layers = ((lower or f"{scratch}/lower", own), (f"{scratch}/disk", disk))
            return attempt(kernel, lambda: _mount(kernel, f"{scratch}/stage", layers), flags=CLONE_NEWNS)
    except OSError as error:
        return Outcome.of(error)
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _mount(kernel: Kernel, stage: str, layers: tuple[tuple[str, int], tuple[str, int]]) -> bool:
    """Do what steps IsolateMounts to MountOverlay of a creation do, and write; the namespace goes with the process."""
    kernel.mount("none", "/", None, MS_REC | MS_PRIVATE)
    kernel.mount("stage", stage, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=16k,nr_inodes=8,mode=755")
    os.chdir(stage)
    for name in ("lower", "disk", "merged"):
        kernel.mkdir(name)
    for (source, userns), target, attributes in zip(layers, ("lower", "disk"), (MOUNT_ATTR_RDONLY, 0), strict=True):
        fd = kernel.open_tree(AT_FDCWD, source, OPEN_TREE_CLONE)
        try:
            kernel.mount_setattr(fd, attributes | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, userns_fd=userns)
        except SyscallError as error:
            raise SyscallError(error.errno or 0, error.syscall, f"{source} (MOUNT_ATTR_IDMAP)") from None
        kernel.move_mount(fd, AT_FDCWD, target)
    kernel.set_securebits(SECBIT_NO_SETUID_FIXUP)
    kernel.setfsids(TRIAL_FIRST_ID, TRIAL_FIRST_ID)
    own = kernel.capget()
    kernel.capset(CAPABILITIES & own, own, 0)
    kernel.mount("overlay", "merged", "overlay", MS_NOSUID | MS_NODEV, OPTIONS)
    kernel.capset(own, own, 0)
    if os.statvfs("merged").f_flag & os.ST_RDONLY:
        raise SyscallError(errno.EROFS, "mount", "overlay (the kernel refused the upper layer: see its log)")
    fd = kernel.open("merged/written", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    kernel.write(fd, b"x")
    if os.fstat(fd).st_uid != TRIAL_FIRST_ID:
        raise SyscallError(errno.EOVERFLOW, "open", "merged/written (its owner is not the sandbox's)")
    return True
