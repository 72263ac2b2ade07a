"""The host's own room: a part of the disk that no sandbox may take."""

from __future__ import annotations

import os

from ...errors import StorageFull


class DiskReserve:
    """The free space of the filesystem that holds `path`, and the part of it that is kept back."""

    def __init__(self, path: str, reserve_bytes: int) -> None:
        self._path = path
        self.reserve_bytes = reserve_bytes

    def total(self) -> int:
        """Return the filesystem's size in bytes."""
        facts = os.statvfs(self._path)
        return facts.f_blocks * facts.f_frsize

    def spare(self) -> int:
        """Return how much is free above the reserve; negative below it."""
        facts = os.statvfs(self._path)
        return facts.f_bavail * facts.f_frsize - self.reserve_bytes

    def admit(self) -> None:
        """Let another sandbox in.

        Raises:
            StorageFull: the disk is filled down to the reserve.
        """
        spare = self.spare()
        if spare <= 0:
            raise StorageFull(
                f"cannot create a sandbox: the disk at {self._path} has no free space beyond the reserve of "
                f"{self.reserve_bytes} bytes",
                free_bytes=spare + self.reserve_bytes,
                reserve_bytes=self.reserve_bytes,
            )
