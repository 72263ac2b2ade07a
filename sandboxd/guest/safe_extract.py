"""Extracts the members of an archive below one directory, whatever their names say.

The rules are those of the standard library's data filter (`tarfile.data_filter`), but for symbolic links: a leading
slash is taken off; a name or a hard link that leads outside is refused; devices and FIFOs are refused; set-id bits and
the write bits of others are dropped, owners are those of whoever unpacks. They are held by the kernel: every name is
resolved by `openat2` with RESOLVE_BENEATH, so no link, old or new, and no program that swaps a directory in between
leads a member outside. A symbolic link stays as it is, as in tar(1) and docker cp: whoever follows it is in the
sandbox, and comes to the sandbox's own files (`.venv/bin/python` is such a link in every project).

A file appears once it is complete; until then, an existing file stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from ..errors import ArchiveRefused, QuotaExceeded
from ..linux.kernel import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, Kernel
from .paths import TEMPORARY, make_directory, shown
from .users import User

#: Members of one archive: each costs an inode, which no disk limit of bytes counts.
MAX_MEMBERS: Final = 1_000_000
_MAX_NAME: Final = 4095
_RULES: Final = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY


def refuse(name: str, reason: str, why: str) -> ArchiveRefused:
    """Return the error that names a member and what is wrong with it."""
    member = shown(name)
    return ArchiveRefused(f"cannot unpack: the member {member} {why}", reason=reason, member=member)


class SafeExtract:
    """Puts members below the directory `root`; they belong to `owner`. Bounds entries and bytes.

    Every method raises `ArchiveRefused` for a member that must not be, and OSError for what the disk says.
    """

    def __init__(self, kernel: Kernel, root: int, owner: User, max_bytes: int) -> None:
        self._kernel = kernel
        self._root = root
        self._owner = owner
        self._max_bytes = max_bytes
        self._at: tuple[str, int] | None = None  # the directory of the last member
        self._spooled = 0
        self.entries = 0
        self.bytes = 0

    def directory(self, name: str) -> None:
        """Make a directory, or take the one that is there."""
        parts = self._parts(name)
        if parts:
            self._open(parts, name)

    def file(self, name: str, mode: int, mtime: float, data: Iterator[bytes]) -> None:
        """Put a file of the bytes that `data` gives; 0644 and 0755 are what a mode becomes, less if it says so."""
        directory, last = self._place(name)
        mode = stat.S_IMODE(mode) & 0o755 | 0o600
        if not mode & 0o100:
            mode &= ~0o111
        temporary = f"{TEMPORARY}{os.urandom(8).hex()}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            try:
                for piece in data:
                    self.bytes += len(piece)
                    if self.bytes > self._max_bytes:
                        raise QuotaExceeded(
                            f"cannot unpack: the content is over {self._max_bytes} bytes", limit_bytes=self._max_bytes
                        )
                    _write_all(fd, piece)
                os.fchown(fd, self._owner.uid, self._owner.gid)
                os.fchmod(fd, mode)
                with contextlib.suppress(OSError, OverflowError, ValueError):
                    os.utime(fd, (mtime, mtime))
            finally:
                os.close(fd)
            self._rename(temporary, directory, last, name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise

    def link(self, name: str, target: str) -> None:
        """Put a symbolic link, wherever it leads: no member is ever placed through one that leads out."""
        directory, last = self._place(name)
        if not target or "\0" in target or len(os.fsencode(target)) > _MAX_NAME:
            raise refuse(name, "link", "is a link to an invalid name")
        temporary = f"{TEMPORARY}{os.urandom(8).hex()}"
        os.symlink(target, temporary, dir_fd=directory)
        try:
            os.chown(temporary, self._owner.uid, self._owner.gid, dir_fd=directory, follow_symlinks=False)
            self._rename(temporary, directory, last, name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise

    def hard_link(self, name: str, target: str) -> None:
        """Put another name of a file that the archive has given, or that is below the root."""
        parts = self._parts(target)
        if target.startswith("/") or not parts:
            raise refuse(name, "absolute-link", f"is a hard link to {shown(target)}")
        directory, last = self._place(name)
        source = -1
        temporary = f"{TEMPORARY}{os.urandom(8).hex()}"
        try:
            with self._contained(name):
                source = self._kernel.openat2(self._root, "/".join(parts[:-1]) or ".", _DIRECTORY, _RULES)
            facts = os.stat(parts[-1], dir_fd=source, follow_symlinks=False)
            if not stat.S_ISREG(facts.st_mode):
                raise refuse(name, "kind", "is a hard link to something other than a file")
            os.link(parts[-1], temporary, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
            self._rename(temporary, directory, last, name)
        except FileNotFoundError:
            raise refuse(name, "link", f"is a hard link to {shown(target)}, which does not exist") from None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            if source >= 0:
                os.close(source)

    def spooled(self, count: int) -> None:
        """Count bytes that are kept until the archive is whole: they are on the disk as well."""
        self._spooled += count
        if self._spooled > self._max_bytes:
            raise QuotaExceeded(
                f"cannot unpack: the content is over {self._max_bytes} bytes", limit_bytes=self._max_bytes
            )

    # --- names ---

    def _parts(self, name: str) -> list[str]:
        if "\0" in name or len(os.fsencode(name)) > _MAX_NAME:
            raise refuse(name[:200], "name", "has an invalid name")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise refuse(name, "outside", "has '..' in its name")
        return parts

    def _place(self, name: str) -> tuple[int, str]:
        """Return the directory that a member lies in, made where it is missing, and the last part of its name."""
        parts = self._parts(name)
        if not parts:
            raise refuse(name, "name", "has the name of the directory itself")
        self._count()
        return self._open(parts[:-1], name), parts[-1]

    def _count(self) -> None:
        self.entries += 1
        if self.entries > MAX_MEMBERS:
            raise QuotaExceeded(f"cannot unpack: the archive has over {MAX_MEMBERS} members", bound=MAX_MEMBERS)

    def _open(self, parts: list[str], name: str) -> int:
        """Return a descriptor of a directory below the root, which stays ours; it is made where it is missing."""
        path = "/".join(parts) or "."
        if self._at is not None:
            if self._at[0] == path:
                return self._at[1]
            os.close(self._at[1])
            self._at = None
        with self._contained(name):
            try:
                fd = self._kernel.openat2(self._root, path, _DIRECTORY, _RULES)
            except FileNotFoundError:
                fd = self._make(parts)
        self._at = (path, fd)
        return fd

    def _make(self, parts: list[str]) -> int:
        fd = self._kernel.openat2(self._root, ".", _DIRECTORY, _RULES)
        for count, part in enumerate(parts, 1):
            path = "/".join(parts[:count])
            try:
                below = self._kernel.openat2(self._root, path, _DIRECTORY, _RULES)
            except FileNotFoundError:
                try:
                    make_directory(part, fd, self._owner)
                    self._count()
                    below = self._kernel.openat2(self._root, path, _DIRECTORY, _RULES)
                except BaseException:
                    os.close(fd)
                    raise
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            fd = below
        return fd

    def _rename(self, temporary: str, directory: int, last: str, name: str) -> None:
        try:
            os.rename(temporary, last, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as error:
            if error.errno in (errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY):
                raise refuse(name, "kind", "has the name of an existing directory") from None
            raise

    @contextlib.contextmanager
    def _contained(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise refuse(name, "outside", "leads outside through a link") from None
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EEXIST):
                raise refuse(name, "kind", "lies below something other than a directory") from None
            raise


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
