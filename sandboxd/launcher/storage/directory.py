"""The directory driver: a plain directory on the host's own filesystem, for hosts without btrfs.

It cannot limit, and says so. Its tree is root's, 0700.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final

from ...linux.kernel import Kernel
from .driver import make_layers
from .reserve import DiskReserve

#: A tree this small is removed at once; a larger one by a short child, so that other requests go on.
INLINE_ENTRIES: Final = 256


class DirectoryDriver:
    """Keeps each sandbox in `<pool>/<id>`; what is in there grows as the disk lets it."""

    name = "directory"
    enforces_limit = False
    capacity: int | None = None

    def __init__(
        self, kernel: Kernel, pool_dir: str, room: DiskReserve, *, why: str = "the configuration selects it"
    ) -> None:
        self._kernel = kernel
        self.path = pool_dir
        self._room = room
        self.unenforced_because = f"a storage driver that can limit disk space (this is 'directory': {why})"

    def admit(self) -> None:
        """Raise `StorageFull` below the host's reserve."""
        self._room.admit()

    def create(self, sandbox_id: str, disk_bytes: int) -> str:
        """Make `<pool>/<id>/{upper,work}`, owned by the on-disk range."""
        path = f"{self.path}/{sandbox_id}"
        self._kernel.mkdir(path, 0o700)
        make_layers(self._kernel, path)
        return path

    def holds(self, sandbox_id: str) -> bool:
        """Whether the directory is there."""
        return os.path.isdir(f"{self.path}/{sandbox_id}")

    def resize(self, sandbox_id: str, disk_bytes: int) -> None:
        """Do nothing: it cannot limit."""

    def used(self, sandbox_id: str) -> int | None:
        """Return None: counting would mean to walk a tree of any size."""
        return None

    def facts(self) -> dict[str, int]:
        """Tell what the disk has above the reserve."""
        return {"reserve_bytes": self._room.reserve_bytes, "spare_bytes": max(self._room.spare(), 0)}

    def tend(self) -> None:
        """Do nothing: there is nothing to keep in step."""

    def remove(self, sandbox_id: str, *, in_child: bool = False) -> bool:
        """Remove the directory, never leaving its filesystem and never following a link."""
        budget = None if in_child else INLINE_ENTRIES
        try:
            top = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            # An earlier removal that was cut short may have left flattened parts (see `remove_tree`).
            names = [n for n in os.listdir(top) if n == sandbox_id or n.startswith(f"{sandbox_id}.")]
            return remove_trees(top, names, sandbox_id, budget)
        finally:
            os.close(top)

    def stored(self) -> list[str]:
        """Return the ids that have a directory in the pool."""
        with contextlib.suppress(FileNotFoundError):
            return sorted({name.partition(".")[0] for name in os.listdir(self.path)})
        return []


def remove_trees(top: int, names: list[str], prefix: str, budget: int | None) -> bool:
    """Remove the trees `names` right below `top`; at most `budget` entries. True when nothing is left.

    What is inside comes from a stranger: a tree may be a hundred thousand levels deep. So nothing recurses: a
    directory that is not empty is renamed up, to `<prefix>.<unique>` below `top`, and waits its turn there. Directories
    on another filesystem are not entered (and then stay, with their parents).
    """
    unique = f"{prefix}.{os.urandom(6).hex()}"
    device = os.fstat(top).st_dev
    pending = list(names)
    counter = 0
    left = budget if budget is not None else -1
    while pending:
        name = pending[-1]
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        except FileNotFoundError:
            pending.pop()
            continue
        try:
            if os.fstat(fd).st_dev != device:
                pending.pop()
                continue
            moved: list[str] = []
            with os.scandir(fd) as entries:
                for entry in entries:
                    if left == 0:
                        return False
                    left -= 1
                    counter += _remove_entry(entry, fd, top, f"{unique}-{counter}", moved)
        finally:
            os.close(fd)
        pending.pop()
        try:
            os.rmdir(name, dir_fd=top)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            pending.append(name)  # readdir may miss what was moved meanwhile: look again
        pending.extend(moved)
    return True


def _remove_entry(entry: os.DirEntry[str], fd: int, top: int, new_name: str, moved: list[str]) -> int:
    """Remove one entry, or move it up as `new_name`; return 1 when that name was used."""
    if not entry.is_dir(follow_symlinks=False):
        os.unlink(entry.name, dir_fd=fd)
        return 0
    try:
        os.rmdir(entry.name, dir_fd=fd)
    except OSError:
        os.rename(entry.name, new_name, src_dir_fd=fd, dst_dir_fd=top)
        moved.append(new_name)
        return 1
    return 0
