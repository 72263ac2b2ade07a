"""The pool image: a sparse file with btrfs in it, mounted where only the launcher and its children see it.

Theory of operation
-------------------
`<state>/pool.btrfs` is a hole as large as the bound; the host's disk gives it blocks as sandboxes write, and gets
them back (discard) when they are destroyed. It is attached to a loop device that clears itself, and mounted in a
mount namespace of the launcher's own, so nothing is left on the host by a launcher that dies, whichever way.

Crash-only: sandboxes outlive the launcher, and while one lives, its overlay keeps the filesystem and so the loop
device. The next launcher must use that same device: a second one on a mounted image mounts without an error and
destroys data. So it takes the lock, looks for a device that has the image's device and inode, and attaches only
where there is none. The lock is a POSIX record lock, which forked children do not inherit: it ends with the
launcher, not with its last init. It is in a file of its own, since closing any descriptor of a file drops them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import time
from collections.abc import Callable
from typing import Final

from ...errors import AlreadyRunning, HostUnsupported
from ...linux import btrfs, loopdev
from ...linux.kernel import MNT_DETACH, MS_NOATIME, MS_NODEV, MS_NOSUID, Kernel, SyscallError

#: Deleted space goes back to the host at once, and within a few seconds to the quotas.
_OPTIONS: Final = "discard=async,commit=5"
_MKFS: Final = ("/usr/sbin/mkfs.btrfs", "/sbin/mkfs.btrfs", "/usr/bin/mkfs.btrfs", "/usr/local/sbin/mkfs.btrfs")
#: The launcher before us, orphaned, may take this long to finish and end.
LOCK_S: Final = 15.0
#: A filesystem whose last mount has just gone may take this long to write itself out.
MOUNT_S: Final = 30.0
_RETRY_S: Final = 0.05
#: Above the bound, so that the quota is met before the filesystem runs out of room for its own trees.
_SLACK_BYTES: Final = 1 << 30
_LARGEST_BYTES: Final = 8 << 40
_GRAIN_BYTES: Final = 64 << 20


def size_for(bound: int) -> int:
    """Return how large a file holds `bound` bytes of sandboxes."""
    wanted = bound + max(_SLACK_BYTES, bound // 16)
    return min(wanted + -wanted % _GRAIN_BYTES, _LARGEST_BYTES)


def lacking() -> str | None:
    """Return what this host lacks for an image, or None."""
    with open("/proc/filesystems") as file:
        known = "btrfs" in file.read().split()
    if not known and not os.path.isdir(f"/lib/modules/{os.uname().release}"):
        return "the kernel has no btrfs"
    if _mkfs() is None:
        return "mkfs.btrfs is not installed (btrfs-progs)"
    if not os.path.exists("/dev/loop-control"):
        return "there is no /dev/loop-control"
    return None


class PoolImage:
    """An image and where it is mounted. It stays open as long as the launcher lives, and there is nothing to close."""

    def __init__(self, kernel: Kernel, image: str, target: str) -> None:
        self._kernel = kernel
        self._image = image
        self._target = target
        self._lock = -1
        self._made = self._mounted = False

    def open(self, bound: int) -> None:
        """Lock, make, attach and mount the image, for at least `bound` bytes of sandboxes.

        Raises:
            AlreadyRunning: another launcher is using it.
            HostUnsupported: there is no program that makes one, or it failed.
            SyscallError: the kernel refused.
        """
        kernel = self._kernel
        self._take_lock()
        try:
            if not os.path.exists(self._image):
                self._make(size_for(bound))
            image = kernel.open(self._image, os.O_RDWR)
            try:
                size = size_for(bound)
                if os.fstat(image).st_size < size:
                    kernel.ftruncate(image, size)
                self._mount(image)
            finally:
                os.close(image)
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Leave nothing of an `open` that came to nothing; an image that was there before stays."""
        if self._mounted:
            self._kernel.umount2(self._target, MNT_DETACH)
        if self._made:
            _unlink(self._image)
        if self._lock >= 0:
            os.close(self._lock)
        self._made = self._mounted = False
        self._lock = -1

    def _take_lock(self) -> None:
        self._lock = self._kernel.open(f"{self._image}.lock", os.O_RDWR | os.O_CREAT, 0o600)

        def locked() -> bool:
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        if not _within(LOCK_S, locked):
            self.undo()
            raise AlreadyRunning(f"cannot open {self._image}: another launcher is using it", image=self._image)

    def _make(self, size: int) -> None:
        """Make the image under another name first: one that has its name is whole."""
        kernel, fresh = self._kernel, f"{self._image}.new"
        _unlink(fresh)
        program = _mkfs()
        if program is None:
            raise HostUnsupported(
                "cannot create a pool image: mkfs.btrfs is not installed",
                feature="mkfs.btrfs",
                remedy="apt-get install btrfs-progs",
            )
        try:
            fd = kernel.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with contextlib.suppress(OSError):
                    # On btrfs a file that is written in place; elsewhere there is no such flag, and no need of it.
                    btrfs.write_in_place(kernel, fd)
                kernel.ftruncate(fd, size)
            finally:
                os.close(fd)
            self._format(program, fresh)
            kernel.rename(fresh, self._image)
            self._made = True
        except BaseException:
            _unlink(fresh)
            raise

    def _format(self, program: str, path: str) -> None:
        # Everything once: the sandboxes of a host that lost a block are lost anyhow.
        argv = [program, "-q", "-K", "-f", "-d", "single", "-m", "single", "-L", "sandboxd-pool", path]
        status = self._kernel.run(argv)
        if status != 0:
            raise HostUnsupported(
                f"cannot create a pool image at {self._image}: mkfs.btrfs exited with status {status}; its output is "
                "in the daemon's log",
                feature="mkfs.btrfs",
                remedy="see the log",
            )

    def _mount(self, image: int) -> None:
        kernel = self._kernel
        found = loopdev.find(kernel, image) or loopdev.attach(kernel, image, os.path.basename(self._image))
        path, device = found
        try:

            def mounted() -> bool:
                try:
                    kernel.mount(path, self._target, "btrfs", MS_NOSUID | MS_NODEV | MS_NOATIME, _OPTIONS)
                except SyscallError as error:
                    if error.errno != errno.EBUSY:
                        raise
                    return False
                self._mounted = True
                return True

            if not _within(MOUNT_S, mounted):
                raise SyscallError(errno.EBUSY, "mount", self._target)
            self._fill(device)
        finally:
            os.close(device)

    def _fill(self, device: int) -> None:
        """Let device and filesystem follow the file, however far an earlier launcher had come with that."""
        loopdev.refresh_size(self._kernel, device)
        top = self._kernel.open(self._target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            btrfs.grow(self._kernel, top)
        finally:
            os.close(top)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _mkfs() -> str | None:
    return next((path for path in _MKFS if os.access(path, os.X_OK)), None)


def _within(seconds: float, ready: Callable[[], bool]) -> bool:
    """Whether `ready` says yes within that time; neither a lock nor a dying filesystem has a descriptor to wait on."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            return False
        select.select([], [], [], _RETRY_S)
    return True
