"""The btrfs driver: a subvolume and a quota group for each sandbox.

    1/<pool's number>            all sandboxes together: what the pool may hold, less as the host's disk fills
        0/<subvolume>            one sandbox: its `disk_bytes`

Limits are met when space is reserved, so writing over one is EDQUOT at once, for bytes and for the metadata of files
that hold none. At the limit, what needs new space fails, a rename and the removal of a file of the rootfs (it takes
a whiteout) included; removing the sandbox's own files works and frees at once.

The group of all keeps the host's reserve: its limit is what the pool holds now and what the host has free above the
reserve. What sandboxes write moves from the one to the other, so the sum stays as long as nobody else writes; `tend`
follows what the others do.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final

from ...errors import StorageFull
from ...linux import btrfs
from ...linux.kernel import Kernel
from .driver import make_layers
from .reserve import DiskReserve

#: More than this and its many inodes may be cached, which the deletion has to drop (184,000 took 0.7 s).
_INLINE_BYTES: Final = 8 << 20
_FULL: Final = {
    errno.EDQUOT: "the pool is full",
    errno.ENOSPC: "the pool is full",
    # btrfs stops for good when its disk fails, or is filled by others so fast that the reserve does not help.
    errno.EROFS: "the pool's filesystem has stopped; destroy its sandboxes and restart the daemon",
}
#: The group's limit is left alone until it is off by this much: setting it writes to the disk.
_DRIFT_BYTES: Final = 64 << 20


class BtrfsDriver:
    """Keeps each sandbox in a subvolume `<top>/<id>`."""

    name = "btrfs"
    enforces_limit = True
    unenforced_because = ""

    def __init__(self, kernel: Kernel, top: str, room: DiskReserve, *, number: int, bound: int) -> None:
        """Take a directory on btrfs for the pool `number`, whose sandboxes together take at most `bound` bytes.

        Raises:
            SyscallError: the kernel refused.
        """
        self._kernel = kernel
        self.path = top
        self._room = room
        self._group = btrfs.level1(number)
        self._drift = min(_DRIFT_BYTES, room.reserve_bytes // 8)
        self._limit = -1
        self.capacity: int | None = bound
        self._top = kernel.open(top, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fchmod(self._top, 0o700)
            self._filesystem = btrfs.uuid(kernel, self._top)
            btrfs.enable_quota(kernel, self._top, self._filesystem)
            btrfs.create_group(kernel, self._top, self._group)
            self._keep_reserve()
        except BaseException:
            os.close(self._top)
            raise

    def admit(self) -> None:
        """Raise `StorageFull` below the host's reserve."""
        self._room.admit()
        self._keep_reserve()

    def create(self, sandbox_id: str, disk_bytes: int) -> str:
        """Make a limited subvolume with `upper` and `work` in it."""
        try:
            btrfs.create_subvolume(self._kernel, self._top, sandbox_id, disk_bytes, self._group)
            make_layers(self._kernel, f"{self.path}/{sandbox_id}")
        except OSError as error:
            why = _FULL.get(error.errno or 0)
            if why is None:
                raise
            raise StorageFull(
                f"cannot create sandbox {sandbox_id}: {why}: {error}", errno=errno.errorcode[error.errno or 0]
            ) from None
        return f"{self.path}/{sandbox_id}"

    def remove(self, sandbox_id: str, *, in_child: bool = False) -> bool:
        """Delete the subvolume; the kernel frees what it held in the background."""
        if not in_child and self._takes(sandbox_id) > _INLINE_BYTES:
            return False
        with contextlib.suppress(FileNotFoundError):
            btrfs.delete_subvolume(self._kernel, self._top, sandbox_id)
        return True

    def holds(self, sandbox_id: str) -> bool:
        """Whether there is such a subvolume."""
        return os.path.isdir(f"{self.path}/{sandbox_id}")

    def stored(self) -> list[str]:
        """Return the ids that have a subvolume."""
        return sorted(os.listdir(self.path))  # not by the open descriptor: btrfs shows it what was there at its opening

    def resize(self, sandbox_id: str, disk_bytes: int) -> None:
        """Change what a sandbox may take."""
        with self._open(sandbox_id) as fd:
            btrfs.limit_group(self._kernel, fd, 0, disk_bytes)

    def used(self, sandbox_id: str) -> int | None:
        """Return what a sandbox takes, what is written but not yet on the disk included."""
        with self._open(sandbox_id) as fd:
            group = btrfs.subvolume_id(self._kernel, fd)
        return sum(btrfs.group_bytes(self._filesystem, group, what) for what in ("referenced", "rsv_data"))

    def facts(self) -> dict[str, int]:
        """Tell what the pool may hold at most, what it may hold as the host's disk is now, and what it holds."""
        return {
            "capacity_bytes": self.capacity or 0,
            "limit_bytes": self._limit,
            "used_bytes": btrfs.group_bytes(self._filesystem, self._group, "referenced"),
            "reserve_bytes": self._room.reserve_bytes,
        }

    def tend(self) -> None:
        """Keep the reserve, and remove quota groups that an older kernel leaves when a subvolume is gone."""
        self._keep_reserve()
        names = self.stored()
        numbers = {number for level, number in btrfs.groups(self._filesystem) if level == 0}
        if len(numbers) - 1 <= len(names):  # all but the top's own
            return
        for name in names:
            with contextlib.suppress(FileNotFoundError), self._open(name) as fd:
                numbers.discard(btrfs.subvolume_id(self._kernel, fd))
        self._forget({number for number in numbers if number >= btrfs.FIRST_SUBVOLUME})

    def _forget(self, numbers: set[int]) -> None:
        for number in numbers:
            # The kernel may still be freeing what it counts, or have removed it meanwhile.
            with contextlib.suppress(OSError):
                if btrfs.group_bytes(self._filesystem, number, "referenced") == 0:
                    btrfs.remove_group(self._kernel, self._top, number)

    def _keep_reserve(self) -> None:
        held = btrfs.group_bytes(self._filesystem, self._group, "referenced")
        limit = max(min(held + self._room.spare(), self.capacity or 0), 1)
        if self._limit < 0 or abs(limit - self._limit) > self._drift:
            btrfs.limit_group(self._kernel, self._top, self._group, limit)
            self._limit = limit

    def _takes(self, sandbox_id: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self.used(sandbox_id) or 0
        return 0

    @contextlib.contextmanager
    def _open(self, sandbox_id: str) -> Iterator[int]:
        fd = self._kernel.open(sandbox_id, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dirfd=self._top)
        try:
            yield fd
        finally:
            os.close(fd)
