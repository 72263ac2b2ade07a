"""What the launcher asks of a storage driver, and what all drivers share."""

from __future__ import annotations

import os
from typing import Protocol

from ...linux import btrfs
from ...linux.kernel import Kernel
from ..idranges import DISK_FIRST_ID


class StorageDriver(Protocol):
    """Keeps the sandboxes' own files.

    Attributes:
        name: as the configuration has it.
        enforces_limit: whether `disk_bytes` is a hard limit.
        unenforced_because: what is missing where it is not.
        path: the directory of all.
        capacity: the largest `disk_bytes` that can be promised; None where nothing is.
    """

    name: str
    enforces_limit: bool
    unenforced_because: str
    path: str
    capacity: int | None

    def admit(self) -> None:
        """Raise `StorageFull` where the host has no room for another sandbox."""
        ...

    def create(self, sandbox_id: str, disk_bytes: int) -> str:
        """Make the directory that holds `upper` and `work`; return its path. What fails here, `remove` removes.

        Raises:
            StorageFull: there is no room.
            SyscallError: the kernel refused.
        """
        ...

    def remove(self, sandbox_id: str, *, in_child: bool = False) -> bool:
        """Remove what `create` made. False when that takes long: then it is called again, in a child."""
        ...

    def holds(self, sandbox_id: str) -> bool:
        """Whether there is something of that id here."""
        ...

    def stored(self) -> list[str]:
        """Return the ids that have something here."""
        ...

    def resize(self, sandbox_id: str, disk_bytes: int) -> None:
        """Give a sandbox another limit, in force at once; a driver that cannot limit does nothing.

        Below what the sandbox uses, it can only delete. Raises FileNotFoundError where there is no such sandbox.
        """
        ...

    def used(self, sandbox_id: str) -> int | None:
        """Return how many bytes count against the limit, at once; None where nobody counts."""
        ...

    def facts(self) -> dict[str, int]:
        """Return numbers about all sandboxes together, in bytes: what there is to know of this driver."""
        ...

    def tend(self) -> None:
        """Keep what depends on the rest of the host in step; called now and then while there are sandboxes."""
        ...


def make_layers(kernel: Kernel, path: str) -> None:
    """Give a sandbox's directory to the on-disk range, and make `upper` and `work` in it, where nothing is compressed.

    btrfs compresses in the kernel's own threads, which no sandbox's CPU limit reaches; whoever may write to a file or
    directory may ask for it (an attribute `btrfs.compression`), through an overlay too. The profiles refuse the ioctls
    that would undo this.
    """
    # All three: through the idmapped mount an id outside the range is nobody whom a capability could help.
    kernel.chown(path, DISK_FIRST_ID, DISK_FIRST_ID)
    for name in ("upper", "work"):
        kernel.mkdir(f"{path}/{name}", 0o755)
        kernel.chown(f"{path}/{name}", DISK_FIRST_ID, DISK_FIRST_ID)
        fd = kernel.open(f"{path}/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if btrfs.is_btrfs(kernel, fd):
                btrfs.write_in_place(kernel, fd)
        finally:
            os.close(fd)
