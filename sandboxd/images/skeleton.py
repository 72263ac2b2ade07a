"""Make an unpacked image one that a sandbox can be created from: the directories and files that a creation needs."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter
from typing import Final

from sandboxd.images.readers import ImageRefused

__all__ = ["complete_skeleton"]

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Path, mode where it is made, and whether a link in its place may go.
_DIRECTORIES: Final = (
    ("dev", 0o755, False),
    ("proc", 0o755, False),
    ("sys", 0o755, False),
    ("etc", 0o755, False),
    ("tmp", 0o1777, True),
    ("workspace", 0o755, True),
)
_FILES: Final = ("hostname", "hosts", "machine-id", "resolv.conf")


def complete_skeleton(root: int, notes: Counter[str]) -> None:
    """Make what is missing below `root`, and replace what would lead a creation astray.

    Raises:
        ImageRefused: something is in the way that no real image has there.
    """
    os.fchown(root, 0, 0)
    os.fchmod(root, 0o755)
    for name, mode, replaceable in _DIRECTORIES:
        _directory(root, name, mode, replaceable, notes)
    etc = os.open("etc", _DIRECTORY, dir_fd=root)
    try:
        for name in _FILES:
            _empty_file(etc, name, notes)
    finally:
        os.close(etc)


def _directory(root: int, name: str, mode: int, replaceable: bool, notes: Counter[str]) -> None:
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(name, dir_fd=root, follow_symlinks=False).st_mode
        if stat.S_ISDIR(found):
            return
        if not (replaceable and stat.S_ISLNK(found)):
            raise ImageRefused(f"its /{name} is not a directory", reason="no-folder", member=name)
        notes[f"replaced by a directory: the link /{name}"] += 1
        os.unlink(name, dir_fd=root)
    os.mkdir(name, mode, dir_fd=root)
    fd = os.open(name, _DIRECTORY, dir_fd=root)
    try:
        os.fchmod(fd, mode)  # whatever the umask
    finally:
        os.close(fd)


def _empty_file(etc: int, name: str, notes: Counter[str]) -> None:
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(name, dir_fd=etc, follow_symlinks=False).st_mode
        if stat.S_ISDIR(found):
            raise ImageRefused(f"its /etc/{name} is a directory", reason="no-file", member=f"etc/{name}")
        if stat.S_ISLNK(found):
            notes[f"replaced by an empty file: the link /etc/{name}"] += 1
        os.unlink(name, dir_fd=etc)  # a hard link too: what a creation writes is of no other name
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=etc)
    try:
        os.fchmod(fd, 0o644)
    finally:
        os.close(fd)
