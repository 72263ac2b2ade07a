"""Copies local directories as tar streams, into and out of sandboxes.

A copy into a sandbox takes everything that can be read. What cannot be read, and types that a copy cannot hold, are
left out and reported, so that a copy never stops half-way. Links are copied as they are: inside, they resolve to the
sandbox's own files.

A tar that comes out of a sandbox is not trusted: an attacker may have taken the sandbox over. It is unpacked into a
new, empty directory, with the links last, so that no name can lead anywhere else; the result is then moved into place.
Names and links that lead outside, and devices, are left out and reported. The size is bounded, and sparse files stay
sparse.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Final, cast

from sandboxd.errors import ArchiveRefused

_PIECE: Final = 256 * 1024
#: What comes out of a sandbox at most, its holes counted, where nobody says more.
MAX_BYTES: Final = 64 * 1024**3
#: Members of an archive that comes out: each costs an inode.
_MAX_MEMBERS: Final = 1_000_000
#: Before a member: a long name is a few KiB.
_MAX_HEADERS: Final = 64 * 1024**2
#: A run of zeros of this length is a hole.
_HOLE: Final = 4096
#: The part of a disk that a copy leaves to others.
_RESERVE: Final = 0.05
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS: Final = {stat.S_IFSOCK: "socket", stat.S_IFIFO: "FIFO", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}

#: Takes the name of what was left out, from the directory on, and why.
LeftOut = Callable[[str, str], object]


class Packing:
    """A tar of a directory's contents: iterate over it once for its bytes.

    `on_left_out` is told of unreadable files, sockets, FIFOs and devices. Hard links stay hard links.
    """

    def __init__(
        self,
        directory: Path,
        on_bytes: Callable[[int], object] = lambda count: None,
        on_left_out: LeftOut | None = None,
    ) -> None:
        self._directory = directory
        self._on_bytes = on_bytes
        self._on_left_out = on_left_out
        self._failure: OSError | None = None
        self._seen: dict[tuple[int, int], str] = {}

    def __iter__(self) -> Iterator[bytes]:
        for path in _walk(self._directory, self._failed):
            try:
                yield from self._member(path)
            except OSError as error:
                self._failed(error, path)
        yield bytes(2 * tarfile.BLOCKSIZE)

    def check(self) -> None:
        """Raise the first read error if there is no `on_left_out` to report it to.

        Raises:
            OSError: something was left out.
        """
        if self._failure is not None:
            raise self._failure

    def _failed(self, error: OSError, path: Path) -> None:
        if self._on_left_out is None:
            self._failure = self._failure or error
        else:
            self._on_left_out(self._name(path), error.strerror or str(error))

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._directory))

    def _member(self, path: Path) -> Iterator[bytes]:
        facts = path.lstat()
        info = tarfile.TarInfo(self._name(path))
        info.mode, info.mtime = stat.S_IMODE(facts.st_mode), int(facts.st_mtime)
        if stat.S_ISREG(facts.st_mode):
            yield from self._file(path, info)
        elif stat.S_ISLNK(facts.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
            yield _header(info)
        elif stat.S_ISDIR(facts.st_mode):
            info.type = tarfile.DIRTYPE
            yield _header(info)
        else:
            self._leave_out(path, facts)

    def _leave_out(self, path: Path, facts: os.stat_result) -> None:
        if self._on_left_out is not None:
            self._on_left_out(self._name(path), f"it is a {_KINDS.get(stat.S_IFMT(facts.st_mode), 'special file')}")

    def _file(self, path: Path, info: tarfile.TarInfo) -> Iterator[bytes]:
        with open(os.open(path, _OPEN), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):  # it was one a moment ago
                self._leave_out(path, facts)
                return
            key = facts.st_dev, facts.st_ino
            if key in self._seen:
                info.type, info.linkname = tarfile.LNKTYPE, self._seen[key]
                yield _header(info)
                return
            info.size = facts.st_size
            yield _header(info)
            yield from self._content(path, file, info.size)
            if facts.st_nlink > 1:
                self._seen[key] = info.name

    def _content(self, path: Path, file: IO[bytes], size: int) -> Iterator[bytes]:
        """Give as many bytes as the header said, whatever becomes of the file meanwhile."""
        left = size
        while left:
            try:
                piece = file.read(min(_PIECE, left))
            except OSError as error:
                self._failed(error, path)
                piece = b""
            piece = piece or bytes(min(_PIECE, left))
            left -= len(piece)
            self._on_bytes(len(piece))
            yield piece
        yield bytes(-size % tarfile.BLOCKSIZE)


def _walk(directory: Path, failed: Callable[[OSError, Path], object] = lambda error, path: None) -> Iterator[Path]:
    pending = [directory]
    while pending:
        place = pending.pop()
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            if place == directory:
                raise
            failed(error, place)
            continue
        for entry in entries:
            path = Path(entry.path)
            yield path
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def size(directory: Path) -> int:
    """Return how many bytes of content a `Packing` will yield, as far as can be known in advance."""
    total = 0
    for path in _walk(directory):
        with contextlib.suppress(OSError):
            facts = path.lstat()
            total += facts.st_size if stat.S_ISREG(facts.st_mode) else 0
    return total


class Budget:
    """Bounds a copy out of a sandbox: the bytes received, and the local disk space used."""

    def __init__(self, place: Path, max_bytes: int | None = None) -> None:
        self._max_bytes = MAX_BYTES if max_bytes is None else max_bytes
        disk = os.statvfs(place)
        self._room = int((disk.f_bavail - disk.f_blocks * _RESERVE) * disk.f_frsize)
        self._came = 0
        self._members = 0

    def came(self, count: int) -> None:
        """Count received bytes, including holes.

        Raises:
            ArchiveRefused: they are too many.
        """
        self._came += count
        if self._came > self._max_bytes:
            raise too_large(self._max_bytes)

    def member(self, size: int) -> None:
        """Count one name, and check its announced size.

        Raises:
            ArchiveRefused: they are too many.
        """
        self._members += 1
        if self._came + size > self._max_bytes:
            raise too_large(self._max_bytes)
        if self._members > _MAX_MEMBERS:
            raise ArchiveRefused(
                f"cannot copy it: it has over {_MAX_MEMBERS} names", reason="too-large", limit=_MAX_MEMBERS
            )

    def written(self, count: int) -> None:
        """Count bytes that take disk space.

        Raises:
            OSError: the disk would be too full (ENOSPC).
        """
        self._room -= count
        if self._room < 0:
            raise OSError(errno.ENOSPC, f"it would leave less than {_RESERVE:.0%} of the disk free")


def too_large(max_bytes: int) -> ArchiveRefused:
    """Return the error for a copy that is larger than its bound."""
    return ArchiveRefused(
        f"cannot copy it: it is over {max_bytes} bytes", reason="too-large", limit=max_bytes, hint="raise the bound"
    )


def write_sparse(file: IO[bytes], pieces: Iterable[bytes], budget: Budget) -> None:
    """Write a new regular file in which runs of zeros take no disk space.

    Raises:
        OSError: the file could not be written.
        ArchiveRefused: the copy is larger than its bound.
    """
    for piece in pieces:
        budget.came(len(piece))
        step = _HOLE if piece.count(0) >= _HOLE else len(piece)
        for start in range(0, len(piece), step or 1):
            block = piece[start : start + step]
            if block.count(0) == len(block):
                file.seek(len(block), os.SEEK_CUR)
            else:
                budget.written(len(block))
                file.write(block)
    file.truncate()


def unpack(
    pieces: Iterable[bytes],
    target: Path,
    on_bytes: Callable[[int], object] = lambda count: None,
    max_bytes: int | None = None,
) -> list[str]:
    """Unpack a sandbox's tar at `target`, merging it into an existing directory; return what was left out.

    Raises:
        ArchiveRefused: the stream is damaged, or larger than `max_bytes` (default: `MAX_BYTES`).
        OSError: a local file could not be written; nothing was moved into the target.
    """
    target = target.absolute()
    left_out: list[str] = []
    budget = Budget(target.parent, max_bytes)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name[:100]}.") as name:
        root = Path(name) / "new"
        root.mkdir()
        links: list[tuple[Path, str]] = []

        source = _Reader(pieces, on_bytes)
        try:
            with tarfile.open(
                fileobj=cast("IO[bytes]", source), mode="r|", encoding="utf-8", errors="surrogateescape"
            ) as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # it would keep every one of them
                    budget.member(member.size)
                    source.allow(member.size)
                    if not _place(archive, member, root, links, budget):
                        left_out.append(member.name)
        except tarfile.TarError as error:
            raise ArchiveRefused(f"cannot unpack the received archive: {error}", reason="damaged") from error
        for path, link in links:
            path.unlink(missing_ok=True)
            path.symlink_to(link)
        _check_merge(root, target)
        _merge(root, target)
    return left_out


class _Reader:
    """The pieces as a file."""

    def __init__(self, pieces: Iterable[bytes], on_bytes: Callable[[int], object]) -> None:
        self._pieces = iter(pieces)
        self._on_bytes = on_bytes
        self._rest = b""
        self._allowed = _MAX_HEADERS

    def allow(self, size: int) -> None:
        """Let that many bytes of content and the headers behind them through, which tarfile keeps in memory."""
        self._allowed = size + _MAX_HEADERS

    def read(self, size: int, /) -> bytes:
        found = bytearray(self._rest)
        while len(found) < size:
            piece = next(self._pieces, b"")
            if not piece:
                break
            self._on_bytes(len(piece))
            self._allowed -= len(piece)
            if self._allowed < 0:
                raise tarfile.ReadError("its headers are too long")
            found += piece
        self._rest = bytes(found[size:])
        return bytes(found[:size])


def _place(
    archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path, links: list[tuple[Path, str]], budget: Budget
) -> bool:
    """Put one member below the new directory; False for one that is left out."""
    name = PurePosixPath(member.name.lstrip("/"))
    if ".." in name.parts or not name.parts or "\0" in member.name:
        return False
    path = root / name
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return True
    if member.issym():
        if not _stays(name, member.linkname):
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        links.append((path, member.linkname))
        return True
    content = archive.extractfile(member) if member.isreg() and not member.issparse() else None
    if content is None or member.size < 0:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        write_sparse(file, _content(content, member.size), budget)
    path.chmod(member.mode & 0o755 | 0o600)
    with contextlib.suppress(OSError, OverflowError, ValueError):  # a time that no calendar has
        os.utime(path, (member.mtime, member.mtime))
    return True


def _content(file: IO[bytes], size: int) -> Iterator[bytes]:
    left = size
    while left:
        piece = file.read(min(_PIECE, left))
        if not piece:
            raise tarfile.ReadError("it is truncated")
        left -= len(piece)
        yield piece


def _stays(name: PurePosixPath, link: str) -> bool:
    """Tell whether a link leads nowhere but into the same copy."""
    parts = PurePosixPath(link).parts
    ups = next((count for count, part in enumerate(parts) if part != ".."), len(parts))
    return (
        bool(link)
        and not link.startswith("/")
        and "\0" not in link
        and ups <= len(name.parts) - 1
        and ".." not in parts[ups:]
    )


def _check_merge(source: Path, target: Path) -> None:
    """Look ahead at what `_merge` will do, so that it does not end in the middle.

    Raises:
        FileExistsError: a directory is in the way of a file, or the other way round.
    """
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise FileExistsError(errno.EEXIST, "it exists and is not a directory", str(target))
    for entry in list(os.scandir(source)):
        below = target / entry.name
        if entry.is_dir(follow_symlinks=False):
            _check_merge(Path(entry.path), below)
        elif below.is_dir() and not below.is_symlink():
            raise FileExistsError(errno.EEXIST, "it exists and is a directory", str(below))


def _merge(source: Path, target: Path) -> None:
    """Move a tree to where another may be: directories are joined, the rest is replaced."""
    if not target.is_dir():
        source.rename(target)
        return
    for entry in list(os.scandir(source)):
        below = target / entry.name
        if entry.is_dir(follow_symlinks=False):
            _merge(Path(entry.path), below)
        else:
            Path(entry.path).replace(below)
