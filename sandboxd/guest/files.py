"""Opens files on the daemon's behalf, inside the sandbox's root and with the sandbox's rights.

init hands out descriptors and does no reading or writing itself. A write goes to a temporary file beside the
target and becomes the target by a rename, so a reader sees the old file or the new one, and a writer that
vanishes leaves the old one whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
from typing import Final

from ..errors import (
    FileNotFound,
    FilePermissionDenied,
    InvalidRequest,
    NotAFile,
    QuotaExceeded,
    SandboxdError,
    ServerBusy,
)
from ..linux.kernel import RESOLVE_NO_MAGICLINKS, Kernel
from ..spec import check_path
from .users import User

#: Writes that may be open at once: each holds two descriptors here and one in the daemon.
MAX_WRITES: Final = 256
_TYPES: Final = {
    stat.S_IFDIR: "directory",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFLNK: "symbolic link",
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Write:
    """A write under way: the target's folder, its name, and the temporary name beside it."""

    folder: int
    name: str
    temporary: str


class Files:
    """The file operations of one sandbox; owns the folders of the writes under way."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._writes: dict[int, _Write] = {}
        self._next_ticket = 1

    def open_read(self, path: str) -> tuple[dict[str, int | float], int]:
        """Return facts {size, mtime, mode} and a descriptor of a regular file.

        Raises:
            FileNotFound, NotAFile, FilePermissionDenied: as the names say.
        """
        check_path(path)
        with _mapped(path, "read"):
            # O_NONBLOCK: opening a FIFO must not wait for a writer. /proc's magic links lead out of the tree.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
            fd = self._kernel.openat2(-100, path, flags, RESOLVE_NO_MAGICLINKS)
        try:
            facts = os.fstat(fd)
            _require_regular(path, facts.st_mode, "read")
        except SandboxdError:
            os.close(fd)
            raise
        return {"size": facts.st_size, "mtime": facts.st_mtime, "mode": stat.S_IMODE(facts.st_mode)}, fd

    def open_write(self, path: str, owner: User) -> tuple[int, int]:
        """Return a ticket and a descriptor of an empty temporary file that `commit` makes `path`.

        Missing folders are made. A link is followed to what it names, as a program's own write would.

        Raises:
            NotAFile, FilePermissionDenied, QuotaExceeded: as the names say.
            ServerBusy: `MAX_WRITES` are under way.
        """
        check_path(path)
        if path.endswith("/"):
            raise InvalidRequest(f"cannot write {path}: a file's path does not end with a slash", field="path")
        if len(self._writes) >= MAX_WRITES:
            raise ServerBusy(f"cannot write {path}: {MAX_WRITES} writes are under way")
        with _mapped(path, "write"):
            real = os.path.realpath(path)
            parent, name = os.path.split(real)
            _make_folders(parent, owner)
            folder = self._kernel.openat2(-100, parent, os.O_RDONLY | os.O_DIRECTORY, RESOLVE_NO_MAGICLINKS)
        try:
            mode = self._target_mode(path, folder, name)
            ticket = self._next_ticket
            # Not made of the name, which may fill NAME_MAX; not to be guessed by what runs here.
            temporary = f".sandboxd-tmp-{os.urandom(8).hex()}"
            with _mapped(path, "write"):
                fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
                try:
                    os.fchown(fd, owner.uid, owner.gid)
                    os.fchmod(fd, mode)
                except OSError:
                    os.close(fd)
                    os.unlink(temporary, dir_fd=folder)
                    raise
        except (OSError, SandboxdError):
            os.close(folder)
            raise
        self._next_ticket += 1
        self._writes[ticket] = _Write(folder, name, temporary)
        return ticket, fd

    def _target_mode(self, path: str, folder: int, name: str) -> int:
        """Return the mode that the file gets: that of the one it replaces, or 0644."""
        try:
            old = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return 0o644
        _require_regular(path, old, "write")
        return stat.S_IMODE(old) & 0o777

    def commit(self, ticket: int) -> bool:
        """Put a written file in its place; return whether there was none before.

        Raises:
            InvalidRequest: no such write.
            NotAFile: a folder has that name by now.
        """
        write = self._take(ticket)
        try:
            with _mapped(write.name, "write"):
                try:
                    os.stat(write.name, dir_fd=write.folder, follow_symlinks=False)
                    created = False
                except FileNotFoundError:
                    created = True
                os.rename(write.temporary, write.name, src_dir_fd=write.folder, dst_dir_fd=write.folder)
        except SandboxdError:
            with contextlib.suppress(OSError):
                os.unlink(write.temporary, dir_fd=write.folder)
            raise
        finally:
            os.close(write.folder)
        return created

    def abort(self, ticket: int) -> None:
        """Forget a write; the old file stays as it was.

        Raises:
            InvalidRequest: no such write.
        """
        write = self._take(ticket)
        with contextlib.suppress(OSError):
            os.unlink(write.temporary, dir_fd=write.folder)
        os.close(write.folder)

    def abort_all(self) -> None:
        """Forget every write: the daemon that made them is gone."""
        for ticket in list(self._writes):
            self.abort(ticket)

    def _take(self, ticket: int) -> _Write:
        write = self._writes.pop(ticket, None)
        if write is None:
            raise InvalidRequest("cannot end a write: no such ticket", field="ticket")
        return write


def _require_regular(path: str, mode: int, verb: str) -> None:
    if not stat.S_ISREG(mode):
        kind = _TYPES.get(stat.S_IFMT(mode), "special file")
        raise NotAFile(f"cannot {verb} {path}: it is a {kind}", path=path, type=kind)


def _make_folders(path: str, owner: User) -> None:
    """Mkdir -p, the new ones owned by `owner`."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        os.mkdir(folder, 0o755)
        os.chown(folder, owner.uid, owner.gid, follow_symlinks=False)


class _mapped(contextlib.AbstractContextManager[None]):
    """Turns an OSError of a file operation into the error that names what happened."""

    def __init__(self, path: str, verb: str) -> None:
        self._path = path
        self._verb = verb

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError):
            raise file_error(error, self._path, self._verb) from error


def file_error(error: OSError, path: str, verb: str) -> SandboxdError:
    """Return the error that stands for an errno of a file operation."""
    why = f"cannot {verb} {path}: {os.strerror(error.errno or 0).lower()}"
    code = errno.errorcode.get(error.errno or 0, str(error.errno))
    if error.errno == errno.ENOENT:
        return FileNotFound(why, path=path, errno=code)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return QuotaExceeded(why, path=path, errno=code)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return FilePermissionDenied(why, path=path, errno=code)
    if error.errno in (errno.EISDIR, errno.ENXIO):
        return NotAFile(why, path=path, type="directory" if error.errno == errno.EISDIR else "socket or FIFO")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return NotAFile(why, path=path, type="not a directory")
    return InvalidRequest(why, field="path", errno=code)
