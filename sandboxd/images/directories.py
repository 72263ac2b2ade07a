"""The directories of a tree being unpacked, found by name below its root without following any link."""

from __future__ import annotations

import errno
import os
import tarfile
from typing import TYPE_CHECKING

from sandboxd.images.archive import shown
from sandboxd.images.confine import STRICT
from sandboxd.images.readers import ImageRefused

if TYPE_CHECKING:
    from sandboxd.linux.kernel import Kernel

__all__ = ["Directories"]


class Directories:
    """Opens and makes directories below `root`; the last one made is kept open, since its next member follows it."""

    def __init__(self, root: int, kernel: Kernel) -> None:
        self._root = root
        self._kernel = kernel
        self._cached: tuple[str, int] = ("", -1)

    def open(self, parts: tuple[str, ...]) -> int:
        """Return a descriptor of the directory `parts`, the caller's to close; raises OSError."""
        # Without O_NOFOLLOW: a link at the end is then ELOOP, as one on the way is.
        return self._kernel.openat2(self._root, "/".join(parts) or ".", os.O_RDONLY | os.O_DIRECTORY, STRICT)

    def exists(self, parts: tuple[str, ...]) -> bool:
        """Tell whether there is a directory `parts`."""
        try:
            os.close(self.open(parts))
        except OSError:
            return False
        return True

    def make(self, parts: tuple[str, ...], member: tarfile.TarInfo) -> int:
        """Return a descriptor of the directory `parts`, made where missing; it stays ours."""
        path = "/".join(parts)
        if self._cached[1] >= 0 and self._cached[0] == path:
            return self._cached[1]
        self.forget()
        try:
            fd = self.open(parts)
        except FileNotFoundError:
            above = os.dup(self.make(parts[:-1], member))
            try:
                os.mkdir(parts[-1], 0o755, dir_fd=above)
                os.chmod(parts[-1], 0o755, dir_fd=above)  # noqa: S103 - whatever the umask
            finally:
                os.close(above)
            self.forget()
            fd = self.open(parts)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                kind = "a symbolic link" if error.errno == errno.ELOOP else "a file"
                raise ImageRefused(
                    f"member {shown(member.name)} would be written through {kind}: /{shown(path)} or one above it",
                    reason="through-link" if error.errno == errno.ELOOP else "through-file",
                ) from error
            raise
        self._cached = (path, fd)
        return fd

    def forget(self) -> None:
        """Close the directory that is kept, which may be about to go."""
        if self._cached[1] >= 0:
            os.close(self._cached[1])
        self._cached = ("", -1)
