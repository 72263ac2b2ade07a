"""cgroup v2 as files: find the hierarchy, make and kill groups (Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable

from . import procfs


def find_mount(mounts: Iterable[procfs.Mount]) -> str | None:
    """Return where cgroup2 is mounted whole, or None."""
    for mount in mounts:
        if mount.fstype == "cgroup2" and mount.root == "/":
            return mount.target
    return None


def controllers(group: str) -> frozenset[str]:
    """Return the controllers that `group` may use."""
    return frozenset(_read(f"{group}/cgroup.controllers").split())


def enable_controllers(group: str, names: Iterable[str]) -> None:
    """Let the children of `group` use the controllers `names`."""
    wanted = " ".join(f"+{name}" for name in names)
    if wanted:
        write(f"{group}/cgroup.subtree_control", wanted)


def try_controller(group: str, name: str) -> bool:
    """Let the children of `group` use one controller; False where the kernel refuses it, or another user of it."""
    try:
        enable_controllers(group, [name])
    except OSError:
        return False
    return True


def write(path: str, text: str) -> None:
    """Write one cgroup file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def files(group: str, prefix: str, suffix: str) -> list[str]:
    """Return the names of the files of `group` that begin and end so."""
    return [name for name in os.listdir(group) if name.startswith(prefix) and name.endswith(suffix)]


def kill(group: str) -> None:
    """SIGKILL every process below `group`; a group that is gone is killed already."""
    with contextlib.suppress(FileNotFoundError, OSError):
        write(f"{group}/cgroup.kill", "1")


def is_populated(group: str) -> bool:
    """Tell whether a live process (a zombie does not count) is below `group`."""
    try:
        return "populated 1" in _read(f"{group}/cgroup.events")
    except OSError:
        return False


def is_frozen(group: str) -> bool:
    """Tell whether every process below `group` is frozen."""
    try:
        return "frozen 1" in _read(f"{group}/cgroup.events")
    except OSError:
        return False


def children(group: str) -> list[str]:
    """Return the names of the groups right below `group`."""
    with contextlib.suppress(FileNotFoundError), os.scandir(group) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []


def remove_tree(group: str, budget: int | None = None) -> int:
    """Remove `group` and all below it, at most `budget` groups; returns how many, which is below it when all are gone.

    Raises:
        OSError: a process is still leaving (EBUSY).
    """
    removed = 0
    with contextlib.suppress(FileNotFoundError):
        with os.scandir(group) as entries:
            found = (entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
            below = list(itertools.islice(found, budget))  # a listing of thousands takes its time as well
        for name in below:
            removed += remove_tree(f"{group}/{name}", None if budget is None else budget - removed)
            if budget is not None and removed >= budget:
                return budget
        os.rmdir(group)
        removed += 1
    return removed


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()
