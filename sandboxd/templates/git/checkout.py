"""Making the files of a tree, and the index that says so.

**What a hostile tree could do, and why it does not.** Its names are checked one by one with dulwich's rules for every
file system (`.git` in all the spellings that NTFS and HFS+ take for it, `.`, `..`, slashes, NUL); a directory holds
each name once (of two files that have it the later one is meant, as in C git; anything else is refused); everything is
made new, with O_EXCL, through the descriptor of a directory that was itself made here and opened with O_NOFOLLOW. So no
entry can be reached through another entry that is a symbolic link. Filters, hooks and line endings are not applied:
what the repository holds is what the files hold. A tree that repeats itself into billions of files ("git bomb") is
counted before the first is made: each distinct tree is looked at once.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Callable, Iterator
from hashlib import sha1
from pathlib import Path
from typing import Final

from dulwich.index import (
    validate_path_element_default,
    validate_path_element_hfs,
    validate_path_element_ntfs,
)

from ...errors import GitRefused
from .objects import DIRECTORY, EXECUTABLE, FILE, GITLINK, SYMLINK, entries_of
from .pack import BLOB, TREE, Pack

MAX_FILES: Final = 2_000_000
MAX_PATH_BYTES: Final = 3900  # below PATH_MAX, with room for the target before it
MAX_DEPTH: Final = 400  # a descriptor a level, and two calls: Python's own bound is 1000
MAX_LINK_BYTES: Final = 4095
_SKIP_WORKTREE: Final = 0x4000
_EXTENDED: Final = 0x4000
_ENTRY: Final = struct.Struct(">10I20sH")
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TELL_EVERY: Final = 64
_FILES: Final = frozenset((FILE, EXECUTABLE))

_Entry = tuple[bytes, int, bytes]


def _refused(path: bytes, why: str, reason: str) -> GitRefused:
    shown = path.decode("utf-8", "backslashreplace")[:200]
    return GitRefused(f"cannot check out {shown!r}: {why}", reason=reason, path=shown)


@dataclasses.dataclass(slots=True)
class Sparse:
    """The directories to check out ("cone mode"): all in them, and the files beside the way to them."""

    directories: tuple[bytes, ...]

    def takes_file(self, directory: bytes) -> bool:
        """Whether the files that lie directly in `directory` are wanted."""
        return not directory or any(
            one == directory or directory.startswith(one + b"/") or one.startswith(directory + b"/")
            for one in self.directories
        )

    def patterns(self) -> bytes:
        """Return the file info/sparse-checkout that says the same (git-sparse-checkout(1))."""
        lines = [b"/*", b"!/*/"]
        parents = {b"/".join(one.split(b"/")[:n]) for one in self.directories for n in range(1, one.count(b"/") + 1)}
        for directory in sorted({*parents, *self.directories}):
            lines.append(b"/%b/" % directory)
            if directory not in self.directories:
                lines.append(b"!/%b/*/" % directory)
        return b"\n".join(lines) + b"\n"


class Trees:
    """The trees of a pack, checked."""

    def __init__(self, pack: Pack) -> None:
        self._pack = pack
        self._counts: dict[bytes, int] = {}

    def entries(self, name: bytes, path: bytes) -> list[_Entry]:
        """Return (name, mode, object's binary name) of each entry.

        Raises:
            GitRefused: a name is not one to be made.
            GitProtocolError: it is no tree.
        """
        kind, data = self._pack.get(name)
        if kind != TREE:
            raise _refused(path, "it should be a tree", "not-a-tree")
        found: list[_Entry] = []
        seen: dict[bytes, int] = {}
        for element, mode, child in entries_of(data, name):
            whole = path + b"/" + element if path else element
            if not is_safe(element):
                raise _refused(whole, "that name is not allowed", "name")
            if element in seen:
                before = found[seen[element]]
                if before[1:] != (mode, child) and not {before[1], mode} <= _FILES:
                    raise _refused(whole, "its directory has the name twice", "name")
                found[seen[element]] = (element, mode, child)  # of two files the later one, as in C git's index
                continue
            if len(whole) > MAX_PATH_BYTES:
                raise _refused(whole, "the path is too long", "path-too-long")
            seen[element] = len(found)
            found.append((element, mode, child))
        return found

    def count(self, name: bytes) -> int:
        """Return how many files a tree makes; what it holds twice counts twice.

        Raises:
            As `entries`, and GitRefused: too many, or too deep.
        """
        return self._count(name, b"", 0)

    def _count(self, name: bytes, path: bytes, depth: int) -> int:
        known = self._counts.get(name)
        if known is not None:
            return known
        if depth > MAX_DEPTH:
            raise _refused(path, f"it is more than {MAX_DEPTH} directories deep", "too-deep")
        total = 0
        for element, mode, child in self.entries(name, path):
            if mode == DIRECTORY:
                total += self._count(child, path + b"/" + element if path else element, depth + 1)
            else:
                total += 1
            if total > MAX_FILES:
                raise GitRefused(
                    f"cannot check out more than {MAX_FILES} files", reason="too-many-files", limit=MAX_FILES
                )
        self._counts[name] = total
        return total


def is_safe(element: bytes) -> bool:
    """Whether one part of a path may be made."""
    return (
        bool(element)
        and len(element) <= 255
        and b"/" not in element
        and b"\0" not in element
        and validate_path_element_default(element)
        and validate_path_element_ntfs(element)
        # A name that is no UTF-8 cannot be taken for .git on HFS+, which has only UTF-8.
        and (not _is_utf8(element) or validate_path_element_hfs(element))
    )


def _is_utf8(element: bytes) -> bool:
    if element.isascii():
        return True
    try:
        element.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


class Checkout:
    """Makes the files of one tree below a directory that is there and empty (but for `.git`)."""

    def __init__(self, pack: Pack, sparse: Sparse | None, on_file: Callable[[int, int], None]) -> None:
        self._pack = pack
        self._trees = Trees(pack)
        self._sparse = sparse
        self._on_file = on_file
        self._total = 0
        self._made = 0
        self._index: list[tuple[bytes, bytes]] = []
        #: Where other repositories are to be: path and commit.
        self.gitlinks: list[tuple[bytes, bytes]] = []
        self._is_sparse = False

    @property
    def files(self) -> int:
        """How many files were made."""
        return self._made

    def run(self, tree: bytes, root: Path) -> None:
        """Make the files.

        Raises:
            GitRefused, GitProtocolError: the tree is not one to be made.
            OSError: the disk says no.
        """
        self._total = self._trees.count(tree)
        directory = os.open(root, _OPEN_DIRECTORY)
        try:
            self._directory(tree, directory, b"", skipped=False)
        finally:
            os.close(directory)
        self._on_file(self._made, self._total)

    def _directory(self, tree: bytes, directory: int, path: bytes, *, skipped: bool) -> None:
        """Make what one tree holds; a tree that is left out only gets its rows in the index."""
        files_wanted = not skipped and (self._sparse is None or self._sparse.takes_file(path))
        for element, mode, name in self._trees.entries(tree, path):
            whole = path + b"/" + element if path else element
            if mode == DIRECTORY:
                self._down(name, directory, element, whole, skipped=skipped)
            elif mode == GITLINK:
                self.gitlinks.append((whole, name))
                if not skipped:
                    os.mkdir(element, 0o777, dir_fd=directory)
                self._row(whole, None, GITLINK, name, skip=False)
            elif not files_wanted:
                self._row(whole, None, mode, name, skip=True)
            elif mode == SYMLINK:
                self._link(directory, element, whole, name)
            else:
                self._file(directory, element, whole, mode, name)

    def _down(self, tree: bytes, directory: int, element: bytes, whole: bytes, *, skipped: bool) -> None:
        if not self._trees.count(tree):
            return  # an index holds no directories, and C git makes none that is empty
        if skipped or not (self._sparse is None or self._sparse.takes_file(whole)):
            self._directory(tree, directory, whole, skipped=True)
            return
        os.mkdir(element, 0o777, dir_fd=directory)
        below = os.open(element, _OPEN_DIRECTORY, dir_fd=directory)
        try:
            self._directory(tree, below, whole, skipped=False)
        finally:
            os.close(below)

    def _file(self, directory: int, element: bytes, whole: bytes, mode: int, name: bytes) -> None:
        kind, pieces = self._pack.pieces(name)
        if kind != BLOB:
            raise _refused(whole, "it should be a file", "not-a-file")
        fd = os.open(element, _NEW_FILE, 0o777 if mode == EXECUTABLE else 0o666, dir_fd=directory)
        try:
            for piece in pieces:
                _write(fd, piece)
            facts = os.fstat(fd)
        finally:
            os.close(fd)
        self._row(whole, facts, mode, name, skip=False)
        self._tell()

    def _link(self, directory: int, element: bytes, whole: bytes, name: bytes) -> None:
        kind, target = self._pack.get(name)
        if kind != BLOB or not 0 < len(target) <= MAX_LINK_BYTES or b"\0" in target:
            raise _refused(whole, "its target is not one that a symbolic link can have", "symlink")
        os.symlink(target, element, dir_fd=directory)
        self._row(whole, os.lstat(element, dir_fd=directory), SYMLINK, name, skip=False)
        self._tell()

    def _tell(self) -> None:
        self._made += 1
        if self._made % _TELL_EVERY == 0:
            self._on_file(self._made, self._total)

    # --- the index (gitformat-index(5)) ---

    def _row(self, path: bytes, facts: os.stat_result | None, mode: int, name: bytes, *, skip: bool) -> None:
        if facts is None:
            numbers = (0, 0, 0, 0, 0, 0, mode, 0, 0, 0)
        else:
            numbers = (
                int(facts.st_ctime),
                facts.st_ctime_ns % 10**9,
                int(facts.st_mtime),
                facts.st_mtime_ns % 10**9,
                facts.st_dev & 0xFFFFFFFF,
                facts.st_ino & 0xFFFFFFFF,
                mode,
                facts.st_uid & 0xFFFFFFFF,
                facts.st_gid & 0xFFFFFFFF,
                facts.st_size & 0xFFFFFFFF,
            )
        flags = min(len(path), 0xFFF)
        more = b""
        if skip:
            self._is_sparse = True
            flags |= _EXTENDED
            more = struct.pack(">H", _SKIP_WORKTREE)
        row = _ENTRY.pack(*numbers, name, flags) + more + path
        self._index.append((path, row + b"\0" * (8 - len(row) % 8)))

    def write_index(self, path: Path) -> None:
        """Write the index file."""
        self._index.sort()
        digest = sha1(usedforsecurity=False)
        with path.open("xb") as file:
            for part in self._parts():
                digest.update(part)
                file.write(part)
            file.write(digest.digest())

    def _parts(self) -> Iterator[bytes]:
        yield struct.pack(">4sII", b"DIRC", 3 if self._is_sparse else 2, len(self._index))
        yield b"".join([row for _, row in self._index])


def _write(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])
