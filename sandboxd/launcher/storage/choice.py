"""Which driver keeps the sandboxes' files, and the drivers that hold what an earlier choice left."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from typing import Final

from ...errors import ConfigError, HostUnsupported
from ...linux import btrfs
from ...linux.kernel import Kernel, SyscallError
from ..settings import Settings
from . import image
from .btrfs import BtrfsDriver
from .directory import DirectoryDriver
from .driver import StorageDriver
from .reserve import DiskReserve

log = logging.getLogger("sandboxd.launcher")

#: A pool's number among the quota groups of a filesystem has 48 bits.
_NUMBER_MASK: Final = (1 << 48) - 1


class Storage:
    """The chosen driver, and those that still hold sandboxes from before another was chosen."""

    def __init__(self, driver: StorageDriver, former: Sequence[StorageDriver]) -> None:
        self.driver = driver
        self._all: list[StorageDriver] = [driver, *former]

    def of(self, sandbox_id: str) -> StorageDriver:
        """Return the driver that holds a sandbox."""
        return next((driver for driver in self._all[1:] if driver.holds(sandbox_id)), self.driver)

    def admit(self) -> None:
        """Raise `StorageFull` where there is no room for another sandbox."""
        self.driver.admit()

    def create(self, sandbox_id: str, disk_bytes: int) -> str:
        """Make a sandbox's directory; see `StorageDriver.create`."""
        return self.driver.create(sandbox_id, disk_bytes)

    def remove(self, sandbox_id: str, *, in_child: bool = False) -> bool:
        """Remove what there is of a sandbox, whoever holds it; False when that takes long."""
        return all([driver.remove(sandbox_id, in_child=in_child) for driver in self._all])

    def stored(self) -> list[str]:
        """Return the ids that have something anywhere."""
        return sorted({name for driver in self._all for name in driver.stored()})

    def resize(self, sandbox_id: str, disk_bytes: int) -> None:
        """Change a sandbox's limit; see `StorageDriver.resize`."""
        self.of(sandbox_id).resize(sandbox_id, disk_bytes)

    def used(self, sandbox_id: str) -> int | None:
        """Return what a sandbox uses, or None where nobody counts."""
        return self.of(sandbox_id).used(sandbox_id)

    def tend(self) -> None:
        """See `StorageDriver.tend`."""
        for driver in self._all:
            driver.tend()


def open_storage(kernel: Kernel, settings: Settings) -> Storage:
    """Open what the settings ask for; `auto` is btrfs where this host can, else the directory.

    An image that exists is never passed over: sandboxes may live in it.

    Raises:
        AlreadyRunning, ConfigError, HostUnsupported, SyscallError: the pool cannot be opened.
    """
    room = DiskReserve(settings.storage_path or settings.state_dir, settings.storage_reserve_bytes)
    there = os.path.exists(settings.pool_image)
    plain = DirectoryDriver(kernel, settings.pool_dir, room)
    left: list[StorageDriver] = [plain] if plain.stored() else []
    if settings.storage == "directory":
        return Storage(plain, [_open_image(kernel, settings)] if there else [])
    if settings.storage_path:
        former = [*left, *([_open_image(kernel, settings)] if there else [])]
        return Storage(_open_path(kernel, settings, room), former)
    if settings.storage == "btrfs" or there:
        return Storage(_open_image(kernel, settings), left)
    why = image.lacking()
    if why is None:
        try:
            return Storage(_open_image(kernel, settings), left)
        except (HostUnsupported, SyscallError) as error:
            why = str(error)
    log.warning("Sandboxes are kept in a plain directory, which limits nothing: %s", why)
    return Storage(DirectoryDriver(kernel, settings.pool_dir, room, why=why), [])


def _open_image(kernel: Kernel, settings: Settings) -> BtrfsDriver:
    room = DiskReserve(settings.state_dir, settings.storage_reserve_bytes)
    bound = settings.storage_bytes or max(room.total() - room.reserve_bytes, 1)
    os.makedirs(settings.pool_mount, mode=0o700, exist_ok=True)
    pool = image.PoolImage(kernel, settings.pool_image, settings.pool_mount)
    pool.open(bound)
    try:
        return BtrfsDriver(kernel, settings.pool_mount, room, number=0, bound=bound)
    except BaseException:
        pool.undo()
        raise


def _open_path(kernel: Kernel, settings: Settings, room: DiskReserve) -> BtrfsDriver:
    """Open a pool on a btrfs filesystem that is the operator's: nothing of its own is changed."""
    path = settings.storage_path
    digest = hashlib.sha256(settings.state_dir.encode()).hexdigest()
    fd = kernel.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not btrfs.is_btrfs(kernel, fd):
            raise ConfigError(f"cannot keep sandboxes in {path}: it is not on btrfs", key="storage_path")
        if btrfs.quota_mode(btrfs.uuid(kernel, fd)) is None:
            raise HostUnsupported(
                f"cannot keep sandboxes in {path}: quotas are turned off on its filesystem; its owner can enable them",
                feature="btrfs quotas",
                remedy=f"btrfs quota enable --simple {path} (Linux 6.7), or btrfs quota enable {path}",
            )
    finally:
        os.close(fd)
    top = f"{path}/sandboxd-{digest[:12]}"
    os.makedirs(top, mode=0o700, exist_ok=True)
    bound = settings.storage_bytes or max(room.total() - room.reserve_bytes, 1)
    return BtrfsDriver(kernel, top, room, number=int(digest[:12], 16) & _NUMBER_MASK, bound=bound)
