"""Walks, deletes and copies trees of files that other processes may change meanwhile.

Each step down is an open relative to the directory above, which never follows a link, so if a directory is swapped for
a link in the middle of a walk, the walk ends there and leads nowhere else. Entries that disappear meanwhile are
skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import heapq
import itertools
import os
import stat
from collections.abc import Iterator
from typing import Any, Final

from ..errors import LimitExceeded, NotAFile
from ..linux.kernel import Kernel
from .paths import TEMPORARY, same_file, shown, type_of

#: How deep a walk goes: it holds a descriptor a level (a copy two).
MAX_DEPTH: Final = 1024
#: Names of one directory that deleting takes at a time.
_DELETE_BATCH: Final = 4096
#: Levels that deleting holds open; what lies deeper is moved up first.
_MAX_DELETE_DEPTH: Final = 256
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: One copy between two descriptors.
_COPY_BYTES: Final = 16 * 1024 * 1024
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
#: What copy_file_range(2) says where it cannot and a plain copy can.
_NO_RANGE: Final = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclasses.dataclass(slots=True)
class Entry:
    """Something that a walk met: `directory` is a descriptor of where it is, `path` its name below the walk's root.

    `opened` is a descriptor that the caller may set when it has opened a directory: the walk goes on in it, and owns
    it.
    """

    directory: int
    name: str
    path: str
    facts: os.stat_result
    descend: bool = True
    opened: int | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.facts.st_mode)


def order_of(path: str) -> list[bytes]:
    """Return what paths are sorted by: their parts, as bytes, so that a directory is followed by what is in it."""
    return [os.fsencode(part) for part in path.split("/")]


def walk(
    root: int, *, recursive: bool = True, hidden: bool = True, after: str | None = None, at_most: int | None = None
) -> Iterator[Entry]:
    """Give everything below the directory `root` in order, each directory before what is in it.

    The caller may set an entry's `descend` to False. `after` is a path: only what sorts behind it is given. No
    directory is held in memory for more than the next `at_most` names of it.

    Raises:
        LimitExceeded: it is deeper than `MAX_DEPTH`.
    """
    start = order_of(after) if after is not None else []
    opened: list[int] = []
    levels = [(root, "", _names(root, hidden, start[:1], at_most))]
    try:
        while levels:
            directory, prefix, names = levels[-1]
            entry = _next(directory, prefix, names)
            if entry is None:
                levels.pop()
                if opened:
                    os.close(opened.pop())
                continue
            depth = len(levels)
            passed = start[:depth] == [*order_of(prefix)[: depth - 1], os.fsencode(entry.name)]
            if not passed:
                try:
                    yield entry
                finally:
                    if entry.opened is not None:
                        opened.append(entry.opened)
            if not (recursive and entry.descend and entry.is_folder):
                if entry.opened is not None:
                    os.close(opened.pop())
                continue
            if depth >= MAX_DEPTH:
                raise LimitExceeded(f"cannot walk deeper than {MAX_DEPTH} directories", bound=MAX_DEPTH)
            if entry.opened is None:
                entry.opened = _open(entry)
                if entry.opened is None:
                    continue
                opened.append(entry.opened)
            follow = start[depth : depth + 1] if passed else []
            levels.append((entry.opened, entry.path + "/", _names(entry.opened, hidden, follow, at_most)))
    finally:
        for fd in opened:
            os.close(fd)


def _next(directory: int, prefix: str, names: Iterator[str]) -> Entry | None:
    """Return the next of these names that is still there, None after the last."""
    for name in names:
        try:
            facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            continue
        return Entry(directory, name, prefix + name, facts)
    return None


def _open(entry: Entry) -> int | None:
    try:
        return os.open(entry.name, _DIRECTORY, dir_fd=entry.directory)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise


def _names(directory: int, hidden: bool, start: list[bytes], at_most: int | None) -> Iterator[str]:
    """Give a directory's names in order, from `start` on; holds `at_most` at a time, and reads the directory again."""
    last: list[bytes] = []
    while True:
        with _reading(directory) as entries:
            raw = (os.fsencode(entry.name) for entry in entries)
            wanted = (
                name
                for name in raw
                if (hidden or not name.startswith(b"."))
                and not name.startswith(TEMPORARY.encode())
                and [name] >= start
                and [name] > last
            )
            names = sorted(wanted) if at_most is None else heapq.nsmallest(at_most, wanted)
        yield from map(os.fsdecode, names)
        if at_most is None or len(names) < at_most:
            return
        last = names[-1:]


def _reading(directory: int) -> Any:  # noqa: ANN401 - what os.scandir gives has no name
    """Read an open directory from its start. btrfs shows what was there at the last rewind, and no entry made since."""
    os.lseek(directory, 0, os.SEEK_SET)
    return os.scandir(directory)


# --- deleting ---


def delete_tree(directory: int, name: str) -> None:
    """Delete a directory with all that is in it, whatever its depth; its name goes last."""
    top = os.open(name, _DIRECTORY, dir_fd=directory)
    try:
        _empty(top, top, 1)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=directory)


def _empty(top: int, directory: int, depth: int) -> None:
    """Delete what is in `directory`, again as long as moving things up gave it more."""
    while True:
        with _reading(directory) as entries:
            names = [(e.name, e.is_dir(follow_symlinks=False)) for e in itertools.islice(entries, _DELETE_BATCH)]
        if not names:
            return
        progress = False
        for name, is_folder in names:
            progress |= _delete_one(top, directory, name, is_folder, depth)
        if not progress:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), shown(names[0][0]))


def _delete_one(top: int, directory: int, name: str, is_folder: bool, depth: int) -> bool:
    """Delete one name; return whether it has left this directory."""
    try:
        if not is_folder:
            os.unlink(name, dir_fd=directory)
            return True
        if depth >= _MAX_DELETE_DEPTH:
            # Up beside the first level, where the outermost loop comes by again: depth costs time, not descriptors.
            os.rename(name, f"{TEMPORARY}{os.urandom(8).hex()}", src_dir_fd=directory, dst_dir_fd=top)
            return True
        below = os.open(name, _DIRECTORY, dir_fd=directory)
        try:
            _empty(top, below, depth + 1)
        finally:
            os.close(below)
        os.rmdir(name, dir_fd=directory)
    except FileNotFoundError:
        return True
    except (NotADirectoryError, IsADirectoryError):
        return False  # swapped meanwhile: looked at again
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTEMPTY):
            return False
        raise
    return True


# --- copying ---


class Copier:
    """Copies files, directories, links and FIFOs as they are, owner, mode and time included; counts what it did."""

    def __init__(self) -> None:
        self.entries = 0
        self.bytes = 0
        self.skipped = 0

    def copy(self, source: int, name: str, target: int, new: str, facts: os.stat_result) -> None:
        """Copy one thing, a directory with all that is in it; `new` must not exist.

        Raises:
            NotAFile: it is a socket or a device.
        """
        if not stat.S_ISDIR(facts.st_mode):
            if not self._copy_plain(source, name, target, new, facts):
                kind = type_of(facts.st_mode)
                raise NotAFile(f"cannot copy {shown(name)}: it is a {kind}", path=shown(name), file_type=kind)
            return
        top = os.open(name, _DIRECTORY, dir_fd=source)
        try:
            os.mkdir(new, 0o700, dir_fd=target)
            root = os.open(new, _DIRECTORY, dir_fd=target)
            try:
                self._copy_tree(top, root)
                self.entries += 1
                _copy_metadata(root, facts)
            finally:
                os.close(root)
        finally:
            os.close(top)

    def _copy_tree(self, source: int, root: int) -> None:
        """Copy what is in a directory. Directories get their modes and times last."""
        own = os.fstat(root)
        levels: list[tuple[int, str, os.stat_result]] = [(root, "", own)]
        try:
            for entry in walk(source):
                directory_path = entry.path.rpartition("/")[0]
                while levels[-1][1] != directory_path:
                    _leave(levels)
                if same_file(entry.facts, own):
                    entry.descend = False  # the copy itself, which lies in what is copied
                    continue
                if not entry.is_folder:
                    if not self._copy_plain(entry.directory, entry.name, levels[-1][0], entry.name, entry.facts):
                        self.skipped += 1
                    continue
                os.mkdir(entry.name, 0o700, dir_fd=levels[-1][0])
                levels.append((os.open(entry.name, _DIRECTORY, dir_fd=levels[-1][0]), entry.path, entry.facts))
                self.entries += 1
            while len(levels) > 1:
                _leave(levels)
        finally:
            for fd, _, _ in levels[1:]:
                os.close(fd)

    def _copy_plain(self, source: int, name: str, target: int, new: str, facts: os.stat_result) -> bool:
        """Copy what is no directory; False for a socket or a device."""
        if stat.S_ISREG(facts.st_mode):
            self._copy_file(source, name, target, new)
        elif stat.S_ISLNK(facts.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), new, dir_fd=target)
            os.chown(new, facts.st_uid, facts.st_gid, dir_fd=target, follow_symlinks=False)
        elif stat.S_ISFIFO(facts.st_mode):
            os.mkfifo(new, stat.S_IMODE(facts.st_mode), dir_fd=target)
            os.chown(new, facts.st_uid, facts.st_gid, dir_fd=target, follow_symlinks=False)
        else:
            return False
        self.entries += 1
        return True

    def _copy_file(self, source: int, name: str, target: int, new: str) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=source)
        try:
            facts = os.fstat(fd)
            if not stat.S_ISREG(facts.st_mode):
                raise FileNotFoundError(errno.ENOENT, "it was replaced in the meantime", shown(name))
            out = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
            try:
                self.bytes += copy_data(fd, out, facts.st_size)
                _copy_metadata(out, facts)
            finally:
                os.close(out)
        finally:
            os.close(fd)


def _leave(levels: list[tuple[int, str, os.stat_result]]) -> None:
    fd, _, facts = levels.pop()
    try:
        _copy_metadata(fd, facts)
    finally:
        os.close(fd)


def _copy_metadata(fd: int, facts: os.stat_result) -> None:
    """Give a copy its owner, mode and time."""
    os.fchown(fd, facts.st_uid, facts.st_gid)
    os.fchmod(fd, stat.S_IMODE(facts.st_mode))
    os.utime(fd, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def copy_data(source: int, target: int, size: int) -> int:
    """Copy a file's first `size` bytes, its holes as holes, and return how many bytes of data there were."""
    copied = 0
    offset = 0
    while offset < size:
        try:
            begin = os.lseek(source, offset, os.SEEK_DATA)
            end = min(os.lseek(source, begin, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break  # nothing but a hole is left
            begin, end = offset, size
        if begin >= size:
            break
        copied += _copy_range(source, target, begin, end)
        offset = end
    if os.fstat(target).st_size < size:
        os.ftruncate(target, size)
    return copied


def _copy_range(source: int, target: int, begin: int, end: int) -> int:
    at = begin
    plain = False
    while at < end:
        if not plain:
            try:
                count = os.copy_file_range(source, target, min(_COPY_BYTES, end - at), at, at)
            except OSError as error:
                if error.errno not in _NO_RANGE:
                    raise
                plain = True
                continue
        else:
            piece = os.pread(source, min(1 << 20, end - at), at)
            count = os.pwrite(target, piece, at) if piece else 0
        if not count:
            break  # it became shorter
        at += count
    return at - begin


def move(kernel: Kernel, source: tuple[int, str], target: tuple[int, str], *, overwrite: bool) -> bool:
    """Rename; across filesystems copy and delete. Returns whether a rename did.

    Raises:
        OSError: EEXIST if there is something at the target and `overwrite` is false; what the disk says.
    """
    try:
        if overwrite:
            os.rename(source[1], target[1], src_dir_fd=source[0], dst_dir_fd=target[0])
        else:
            kernel.rename_new(source[1], target[1], source[0], target[0])
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    else:
        return True
    facts = os.stat(source[1], dir_fd=source[0], follow_symlinks=False)
    place(kernel, source, target, facts, overwrite=overwrite)
    if stat.S_ISDIR(facts.st_mode):
        delete_tree(*source)
    else:
        os.unlink(source[1], dir_fd=source[0])
    return False


def place(
    kernel: Kernel, source: tuple[int, str], target: tuple[int, str], facts: os.stat_result, *, overwrite: bool
) -> Copier:
    """Copy to a temporary name beside the target, and give it the target's name when it is whole."""
    temporary = f"{TEMPORARY}{os.urandom(8).hex()}"
    copier = Copier()
    try:
        copier.copy(source[0], source[1], target[0], temporary, facts)
        if overwrite:
            os.rename(temporary, target[1], src_dir_fd=target[0], dst_dir_fd=target[0])
        else:
            kernel.rename_new(temporary, target[1], target[0], target[0])
    except BaseException:
        discard(target[0], temporary)
        raise
    return copier


def discard(directory: int, name: str) -> None:
    """Delete whatever has that name, if anything has."""
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            delete_tree(directory, name)
        else:
            os.unlink(name, dir_fd=directory)
