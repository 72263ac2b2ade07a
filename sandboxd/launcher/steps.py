"""What the steps of a birth have in common.

A step is a value with `describe()` (what a person reads in a failure or a plan) and `run(kernel, birth)`. `Birth`
is what steps hand to later ones. Every path inside the sandbox is resolved by `openat2` below the merged root
without following any link, so a rootfs whose /proc, /sys, /dev or /etc is a link is refused, never followed
(CVE-2019-19921, CVE-2025-52881); every mount is made detached and attached by descriptor.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Final, Protocol

from ..linux.kernel import (
    AT_EMPTY_PATH,
    OPEN_TREE_CLONE,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    Kernel,
)

STRICT: Final = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS


@dataclasses.dataclass(slots=True)
class Birth:
    """What the steps share; every descriptor here is the newborn's own copy.

    Attributes:
        sandbox_userns, disk_userns: the range's namespaces (idranges.py).
        filters: the compiled seccomp profile.
        keep: descriptors that init goes on with.
        root: the merged root, once mounted. cgroup: a writable cgroup2 mount whose root is the sandbox's group.
        proc: the sandbox's /proc; proc_writable: a detached copy of it without the read-only parts.
        empty: a detached, empty, read-only tmpfs. null: the sandbox's own /dev/null.
        devices: st_dev of the filesystems whose files may leave as descriptors.
    """

    sandbox_userns: int
    disk_userns: int
    filters: list[bytes]
    keep: set[int]
    root: int = -1
    cgroup: int = -1
    proc: int = -1
    proc_writable: int = -1
    null: int = -1
    devices: list[int] = dataclasses.field(default_factory=list)


class Step(Protocol):
    """One act of a birth."""

    @property
    def name(self) -> str:
        """A kebab-case name."""
        ...

    def describe(self) -> str:
        """Say what it does, with its values."""
        ...

    def run(self, kernel: Kernel, birth: Birth) -> None:
        """Do it; raises `SyscallError`."""
        ...


class Named:
    """Gives a step its name from its class: MountProc is mount-proc."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """A kebab-case name."""
        words = "".join(f"-{c.lower()}" if c.isupper() else c for c in type(self).__name__)
        return words.removeprefix("-")


def open_directory(kernel: Kernel, birth: Birth, path: str, mode: int) -> int:
    """Open a directory of the merged root, making it where the rootfs has none; a link is refused."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    try:
        return kernel.openat2(birth.root, path, flags, STRICT)
    except FileNotFoundError:
        old = os.umask(0)
        kernel.mkdir(path, mode, dirfd=birth.root)
        os.umask(old)
        return kernel.openat2(birth.root, path, flags, STRICT)


def attach(kernel: Kernel, birth: Birth, mount: int, path: str) -> None:
    """Attach a detached mount at a directory of the merged root."""
    at = open_directory(kernel, birth, path, 0o755)
    try:
        kernel.move_mount(mount, at)
    finally:
        os.close(at)


def cover(kernel: Kernel, root: int, path: str, with_: int) -> None:
    """Attach a copy of the detached mount `with_` over `path`, if that exists: a file over files, else a folder."""
    try:
        at = kernel.openat2(root, path, os.O_PATH, STRICT)
    except FileNotFoundError:
        return
    try:
        copy = kernel.open_tree(with_, "", OPEN_TREE_CLONE | AT_EMPTY_PATH)
        try:
            kernel.move_mount(copy, at)
        finally:
            os.close(copy)
    finally:
        os.close(at)


def write_proc(kernel: Kernel, proc: int, path: str, value: str) -> None:
    """Write a sysctl through a /proc that we mounted ourselves, never through a path of the rootfs."""
    fd = kernel.openat2(proc, path, os.O_WRONLY, STRICT)
    try:
        kernel.write(fd, value.encode())
    finally:
        os.close(fd)
