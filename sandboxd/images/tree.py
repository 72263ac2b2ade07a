"""Trees on disk: size them, empty them, remove them; never across a symbolic link or into another filesystem."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from pathlib import Path

__all__ = ["disk_usage", "empty", "fsync_directory", "make_root", "mounts_below", "remove_tree"]

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make_root(path: Path) -> None:
    """Make the directory that a rootfs is unpacked in, without its parent's wish that btrfs compress all below it.

    Each file would carry it, and could not be copied to where a sandbox writes: nothing is compressed there.
    """
    path.mkdir()
    path.chmod(0o755)
    with contextlib.suppress(OSError):  # there is none, or this is no btrfs
        os.removexattr(path, "btrfs.compression")


def mounts_below(path: Path, mountinfo: str | None = None) -> list[str]:
    """Return the mount points at or below `path` that this process sees.

    Raises:
        OSError: /proc is not readable.
    """
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8") if mountinfo is None else mountinfo
    top = os.path.realpath(path)
    found = []
    for line in text.splitlines():
        # The fifth field; space, tab, newline and backslash are written as \ooo.
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split()[4])
        if point == top or point.startswith(top + "/"):
            found.append(point)
    return found


def remove_tree(path: Path) -> None:
    """Remove the directory `path` and all that is in it.

    Works on open directories, so nobody who swaps a directory for a symbolic link meanwhile makes it leave the tree.

    Raises:
        OSError: `path` is no directory, or is or holds a directory of another filesystem (EXDEV; that is left as it
        is).
    """
    empty(path)
    path.rmdir()


def empty(path: Path) -> None:
    """Remove all that is in the directory `path`; raises as `remove_tree` does."""
    fd = os.open(path, _OPEN_DIRECTORY)
    try:
        _empty(fd, os.fstat(fd).st_dev)
    finally:
        os.close(fd)


def _empty(fd: int, device: int) -> None:
    for name in os.listdir(fd):
        if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=fd)
            continue
        below = os.open(name, _OPEN_DIRECTORY, dir_fd=fd)
        try:
            if os.fstat(below).st_dev != device:
                raise OSError(errno.EXDEV, "a directory below is on another filesystem", name)
            _empty(below, device)
        finally:
            os.close(below)
        os.rmdir(name, dir_fd=fd)


def disk_usage(path: Path) -> int:
    """Return the bytes that the tree takes on disk, with hard links counted once; raises OSError."""
    total = 0
    seen: set[int] = set()
    for directory, directories, files in os.walk(path):
        for name in (*directories, *files):
            entry = os.lstat(os.path.join(directory, name))
            if entry.st_nlink > 1 and not stat.S_ISDIR(entry.st_mode):
                if entry.st_ino in seen:
                    continue
                seen.add(entry.st_ino)
            total += entry.st_blocks * 512
    return total


def fsync_directory(path: Path) -> None:
    """Make the names in the directory `path` durable; raises OSError."""
    fd = os.open(path, _OPEN_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
