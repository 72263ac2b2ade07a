"""Folders of this machine as tar streams, both ways.

What comes out of a sandbox may have been made by whoever took it over, so it is unpacked as a stranger's: into a new
folder where nothing is yet, the links last of all, so that no name can lead anywhere else; then moved into its place.
Names and links that lead outside, devices and what has no business in a copy are left out and told.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

from sandboxd.errors import ArchiveRefused

_PIECE: Final = 256 * 1024


def pack(folder: Path, on_bytes: Callable[[int], object] = lambda count: None) -> Iterator[bytes]:
    """Give a tar of what is in `folder`; links stay links, sockets, FIFOs and devices are left out.

    Raises:
        OSError: something cannot be read.
    """
    for path in _walk(folder):
        facts = path.lstat()
        info = tarfile.TarInfo(str(path.relative_to(folder)))
        info.mode, info.mtime = stat.S_IMODE(facts.st_mode), int(facts.st_mtime)
        if stat.S_ISLNK(facts.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
        elif stat.S_ISDIR(facts.st_mode):
            info.type = tarfile.DIRTYPE
        elif not stat.S_ISREG(facts.st_mode):
            continue
        if not info.isreg():
            yield _header(info)
            continue
        with path.open("rb") as file:
            info.size = left = os.fstat(file.fileno()).st_size
            yield _header(info)
            while left:
                # What the header said, whatever becomes of the file meanwhile.
                piece = file.read(min(_PIECE, left)) or bytes(min(_PIECE, left))
                left -= len(piece)
                on_bytes(len(piece))
                yield piece
            yield bytes(-info.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _walk(folder: Path) -> Iterator[Path]:
    pending = [folder]
    while pending:
        for entry in sorted(os.scandir(pending.pop()), key=lambda entry: entry.name):
            path = Path(entry.path)
            yield path
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def size(folder: Path) -> int:
    """Return how many bytes of content `pack` will give."""
    return sum(facts.st_size for path in _walk(folder) if stat.S_ISREG((facts := path.lstat()).st_mode))


def unpack(pieces: Iterable[bytes], target: Path, on_bytes: Callable[[int], object] = lambda count: None) -> list[str]:
    """Put a sandbox's tar at `target`, merged into the folder that may be there; return what was left out.

    Raises:
        ArchiveRefused: the stream is damaged.
        OSError: this machine refuses it.
    """
    target = target.absolute()
    left_out: list[str] = []
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name[:100]}.") as name:
        root = Path(name) / "new"
        root.mkdir()
        links: list[tuple[Path, str]] = []
        source: Any = _Reader(pieces, on_bytes)
        try:
            with tarfile.open(fileobj=source, mode="r|", encoding="utf-8", errors="surrogateescape") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # it would keep every one of them
                    if not _place(archive, member, root, links):
                        left_out.append(member.name)
        except tarfile.TarError as error:
            raise ArchiveRefused(f"cannot unpack what came: {error}", reason="damaged") from error
        for path, link in links:
            path.unlink(missing_ok=True)
            path.symlink_to(link)
        _merge(root, target)
    return left_out


class _Reader:
    """The pieces as a file."""

    def __init__(self, pieces: Iterable[bytes], on_bytes: Callable[[int], object]) -> None:
        self._pieces = iter(pieces)
        self._on_bytes = on_bytes
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        found = bytearray(self._rest)
        while len(found) < size:
            piece = next(self._pieces, b"")
            if not piece:
                break
            self._on_bytes(len(piece))
            found += piece
        self._rest = bytes(found[size:])
        return bytes(found[:size])


def _place(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path, links: list[tuple[Path, str]]) -> bool:
    """Put one member below the new folder; False for one that is left out."""
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
    left = member.size
    with path.open("wb") as file:
        while left:
            piece = content.read(min(_PIECE, left))
            if not piece:
                raise tarfile.ReadError("it ends too early")
            left -= len(piece)
            file.write(piece)
    path.chmod(member.mode & 0o755 | 0o600)
    with contextlib.suppress(OSError, OverflowError, ValueError):  # a time that this machine has no word for
        os.utime(path, (member.mtime, member.mtime))
    return True


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


def _merge(source: Path, target: Path) -> None:
    """Move a tree to where another may be: folders are joined, the rest is replaced."""
    if not target.is_dir() or target.is_symlink():
        if target.is_symlink() or target.exists():
            raise FileExistsError(f"{target} is there and is no folder")
        source.rename(target)
        return
    for entry in list(os.scandir(source)):
        below = target / entry.name
        if entry.is_dir(follow_symlinks=False):
            _merge(Path(entry.path), below)
        else:
            Path(entry.path).replace(below)
