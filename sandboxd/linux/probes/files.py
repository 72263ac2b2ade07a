"""Reading small files that may not be there, and finding out where a path lies."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..procfs import Mount


def read_text(path: str) -> str | None:
    """Return a file's text without the last newline, or None if it cannot be read."""
    try:
        with open(path, errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return None


def read_number(path: str) -> int | None:
    """Return the number that a file holds, or None."""
    text = read_text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def existing_ancestor(path: str) -> str:
    """Return `path`, or the nearest directory above it that exists."""
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def mount_of(path: str, mounts: Iterable[Mount]) -> Mount | None:
    """Return the mount that the resolved `path` lies in: the last of those with the longest target."""
    found = None
    for mount in mounts:
        prefix = mount.target.rstrip("/")
        inside = path == mount.target or path.startswith(f"{prefix}/")
        if inside and (found is None or len(mount.target) >= len(found.target)):
            found = mount
    return found


def filesystem_of(path: str, mounts: Iterable[Mount]) -> str:
    """Return the type of the filesystem that `path` lies on."""
    mount = mount_of(os.path.realpath(path), mounts)
    return mount.fstype if mount is not None else "an unknown filesystem"
