"""Names of files: how the sandbox's own root resolves them, and what an errno of theirs means.

Everything is opened by `openat2` with RESOLVE_NO_MAGICLINKS: /proc's links into other processes lead out of the
tree. The last part of a path is always used relative to a descriptor of its directory, so that what is looked at is
what is changed, whatever a program swaps meanwhile. Names are bytes; inside they are text with surrogates for what
is no UTF-8, and `shown` is the form that may leave in a message.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Any, Final

from ..errors import (
    Conflict,
    DirectoryNotEmpty,
    FileExists,
    FileNotFound,
    FilePermissionDenied,
    InvalidRequest,
    NotAFile,
    SandboxdError,
)
from ..linux.kernel import AT_FDCWD, RESOLVE_NO_MAGICLINKS, Kernel
from ..spec import check_file_path
from ..wire.exhausted import limit_error
from .users import User

#: How many links one path may go through, as in the kernel (MAXSYMLINKS).
MAX_LINKS: Final = 40
#: Names that a write under way has until it is whole; lists, archives and watches leave them out.
TEMPORARY: Final = ".sandboxd-tmp-"

TYPES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character-device",
    stat.S_IFBLK: "block-device",
    stat.S_IFLNK: "symlink",
}
_BY_ERRNO: Final[dict[int, type[SandboxdError]]] = {
    errno.ENOENT: FileNotFound,
    errno.EACCES: FilePermissionDenied,
    errno.EPERM: FilePermissionDenied,
    errno.EROFS: FilePermissionDenied,
    errno.EEXIST: FileExists,
    errno.ENOTEMPTY: DirectoryNotEmpty,
    errno.EAGAIN: Conflict,
    errno.EBUSY: Conflict,
    errno.ETXTBSY: Conflict,
}
_NO_FILE: Final = {
    errno.EISDIR: "directory",
    errno.ENXIO: "socket or FIFO",
    errno.ENOTDIR: "not a directory",
}


def shown(name: str | bytes) -> str:
    """Return a name as text that any encoder takes: what is no UTF-8 becomes U+FFFD."""
    raw = os.fsencode(name) if isinstance(name, str) else name
    return raw.decode("utf-8", "replace")


def path_of(params: dict[str, Any], field: str = "path") -> str:
    """Return the checked path in a request's field, which is text or bytes."""
    value = params[field]
    if not isinstance(value, str | bytes):
        raise TypeError(f"{field} is neither text nor bytes")
    return check_file_path(value, field)


def file_error(error: OSError, path: str, verb: str) -> SandboxdError:
    """Return the error that stands for an errno of a file operation."""
    number = error.errno or 0
    path = shown(path)
    why = f"cannot {verb} {path}: {os.strerror(number).lower()}"
    code = errno.errorcode.get(number, str(number))
    if number in _BY_ERRNO:  # first: of a file, EAGAIN is a lock's
        return _BY_ERRNO[number](why, path=path, errno=code)
    limit = limit_error(error, verb, path)
    if limit is not None:
        return limit
    if number in _NO_FILE:
        return NotAFile(why, path=path, file_type=_NO_FILE[number])
    return InvalidRequest(why, field="path", errno=code)


class mapped(contextlib.AbstractContextManager[None]):
    """Turns an OSError of a file operation into the error that names what happened."""

    def __init__(self, path: str, verb: str) -> None:
        self._path = path
        self._verb = verb

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError):
            raise file_error(error, self._path, self._verb) from error


def type_of(mode: int) -> str:
    """Return what kind of file a mode tells, in words."""
    return TYPES.get(stat.S_IFMT(mode), "special-file")


def require(path: str, mode: int, wanted: int, verb: str) -> None:
    """Raise `NotAFile` unless the mode is of the wanted type (S_IFREG, S_IFDIR)."""
    if stat.S_IFMT(mode) != wanted:
        kind = type_of(mode)
        raise NotAFile(f"cannot {verb} {shown(path)}: it is a {kind}", path=shown(path), file_type=kind)


def split(path: str, verb: str) -> tuple[str, str]:
    """Return a path's directory and last part.

    Raises:
        InvalidRequest: it is the root, which has no name.
    """
    directory, _, name = path.rpartition("/")
    if not name:
        raise InvalidRequest(f"cannot {verb} /: it is the sandbox's root", field="path")
    return directory or "/", name


def open_directory(kernel: Kernel, path: str, *, dirfd: int = AT_FDCWD, owner: User | None = None) -> int:
    """Return a descriptor of a directory; with an `owner` it is made where it is missing, as all above it.

    Raises:
        OSError: it is not there, or no directory.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY
    try:
        return kernel.openat2(dirfd, path, flags, RESOLVE_NO_MAGICLINKS)
    except FileNotFoundError:
        if owner is None:
            raise
    parts = [part for part in path.split("/") if part]
    done = "/" if path.startswith("/") else "."
    at = kernel.openat2(dirfd, done, flags, RESOLVE_NO_MAGICLINKS)
    for part in parts:
        try:
            below = kernel.openat2(at, part, flags, RESOLVE_NO_MAGICLINKS)
        except FileNotFoundError:
            try:
                make_directory(part, at, owner)
                below = kernel.openat2(at, part, flags, RESOLVE_NO_MAGICLINKS)
            except BaseException:
                os.close(at)
                raise
        except BaseException:
            os.close(at)
            raise
        os.close(at)
        at = below
    return at


def make_directory(name: str, directory: int, owner: User, mode: int = 0o755) -> None:
    """Make one directory that belongs to `owner`; one that somebody else just made is as good."""
    try:
        os.mkdir(name, 0o700, dir_fd=directory)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            raise
        return
    os.chown(name, owner.uid, owner.gid, dir_fd=directory, follow_symlinks=False)
    os.chmod(name, mode, dir_fd=directory)


def open_parent(kernel: Kernel, path: str, verb: str, *, owner: User | None = None) -> tuple[int, str]:
    """Return a descriptor of a path's directory and its last part; with an `owner` missing directories are made.

    Raises:
        SandboxdError: as `file_error` says.
    """
    directory, name = split(path, verb)
    with mapped(path, verb):
        return open_directory(kernel, directory, owner=owner), name


def open_target(kernel: Kernel, path: str, owner: User) -> tuple[int, str]:
    """Return the directory and the name that a program's own write to `path` would make or change: links are followed.

    By the kernel's own rules and bound: code that follows links itself can be kept busy by a chain of them.

    Raises:
        SandboxdError: as `file_error` says.
    """
    fd, name = open_parent(kernel, path, "write", owner=owner)
    with mapped(path, "write"):
        for _ in range(MAX_LINKS + 1):  # the last look finds no link
            try:
                link = os.readlink(name, dir_fd=fd)
            except OSError:
                return fd, name  # no link, or nothing there: this is the place
            directory, _, name = link.rpartition("/")
            if link.startswith("/"):
                directory = directory or "/"
            try:
                after = open_directory(kernel, directory or ".", dirfd=fd, owner=owner)
            finally:
                os.close(fd)
            fd = after
            if name in ("", ".", ".."):
                os.close(fd)
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        os.close(fd)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def same_file(one: os.stat_result, other: os.stat_result) -> bool:
    """Tell whether two looks saw the same file."""
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
