"""What the steps of a creation have in common.

A step is a value with `describe()` (what a person reads in a failure or a plan) and `run`. `Creation` is what the
builder's steps hand to later ones, `Prepared` what pid 1's do. Every path inside the sandbox is resolved by `openat2`
below the merged root without following any link, so a rootfs whose /proc, /sys, /dev or /etc is a link is refused,
never followed (CVE-2019-19921, CVE-2025-52881); every mount is made detached and attached by descriptor.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Iterable
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
class Creation:
    """What the builder's steps share; every descriptor here is the builder's own.

    Attributes:
        init: the connection to pid 1. init_pid: its pid, as the host sees it.
        disk_userns: the map of the sandbox's own files (idranges.py). sandbox_userns: pid 1's, once mapped.
        proc: the sandbox's /proc, which pid 1 mounted; proc_writable: a detached copy without the read-only parts.
        sys, dev: the sandbox's, on the stage until there is a root.
        root: the merged root, once mounted. cgroup: a writable cgroup2 mount whose root is the sandbox's group.
        null: the sandbox's own /dev/null.
        devices: st_dev of the filesystems whose files may leave as descriptors.
    """

    init: socket.socket
    init_pid: int
    disk_userns: int
    sandbox_userns: int = -1
    proc: int = -1
    sys: int = -1
    dev: int = -1
    root: int = -1
    cgroup: int = -1
    proc_writable: int = -1
    null: int = -1
    devices: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Prepared:
    """What pid 1's steps share; every descriptor here is its own.

    Attributes:
        builder: the connection to the process that builds what the sandbox sees.
        range_base: the first host id of its range. processes: RLIMIT_NPROC of each of its users.
        filters: the compiled seccomp profile. proc: the pid namespace's, still mounted nowhere.
        keep: descriptors that init goes on with. cgroup: the builder's writable cgroup2 mount, once handed over.
    """

    builder: socket.socket
    range_base: int
    processes: int
    filters: list[bytes]
    keep: set[int]
    proc: int = -1
    cgroup: int = -1


class OtherGone(Exception):
    """The builder, or pid 1, ended without handing over."""


class Step(Protocol):
    """One act of the builder."""

    @property
    def name(self) -> str:
        """A kebab-case name."""
        ...

    def describe(self) -> str:
        """Say what it does, with its values."""
        ...

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it; raises `SyscallError`."""
        ...


class InitStep(Protocol):
    """One act of pid 1."""

    @property
    def name(self) -> str:
        """A kebab-case name."""
        ...

    def describe(self) -> str:
        """Say what it does, with its values."""
        ...

    def run(self, kernel: Kernel, prepared: Prepared) -> None:
        """Do it; raises `SyscallError`, or `OtherGone`."""
        ...


class Named:
    """Gives a step its name from its class: MountProc is mount-proc."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """A kebab-case name."""
        words = "".join(f"-{c.lower()}" if c.isupper() else c for c in type(self).__name__)
        return words.removeprefix("-")


def open_directory(kernel: Kernel, creation: Creation, path: str, mode: int) -> int:
    """Open a directory of the merged root, making it where the rootfs has none; a link is refused."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    try:
        return kernel.openat2(creation.root, path, flags, STRICT)
    except FileNotFoundError:
        old = os.umask(0)
        kernel.mkdir(path, mode, dirfd=creation.root)
        os.umask(old)
        return kernel.openat2(creation.root, path, flags, STRICT)


def attach(kernel: Kernel, creation: Creation, mount: int, path: str) -> None:
    """Attach a detached mount at a directory of the merged root."""
    at = open_directory(kernel, creation, path, 0o755)
    try:
        kernel.move_mount(mount, at)
    finally:
        os.close(at)


def cover(kernel: Kernel, root: int, paths: Iterable[str], with_: int) -> None:
    """Attach the detached mount `with_` over those of `paths` that exist: each over its kind.

    The first takes the mount itself and the others copies of it: before Linux 6.15 a mount can be copied only once
    it is attached.
    """
    attached = False
    for path in paths:
        try:
            at = kernel.openat2(root, path, os.O_PATH, STRICT)
        except FileNotFoundError:
            continue
        try:
            copy = kernel.open_tree(with_, "", OPEN_TREE_CLONE | AT_EMPTY_PATH) if attached else with_
            try:
                kernel.move_mount(copy, at)
            finally:
                if attached:
                    os.close(copy)
            attached = True
        finally:
            os.close(at)


def write_proc(kernel: Kernel, proc: int, path: str, value: str) -> None:
    """Write a sysctl through a /proc that we mounted ourselves, never through a path of the rootfs."""
    fd = kernel.openat2(proc, path, os.O_WRONLY, STRICT)
    try:
        kernel.write(fd, value.encode())
    finally:
        os.close(fd)
