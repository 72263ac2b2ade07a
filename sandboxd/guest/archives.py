"""Packs a directory and unpacks an untrusted archive, as file jobs: tar, tar.gz and zip, streamed.

The formats are the standard library's (`tarfile`, `zipfile`, `zlib`); their convenience look-ups (of user names,
through nss and the rootfs's libraries) are never used. `safe_extract.py` decides what a member may do. A tar is
unpacked as it arrives. A zip has its table at its end, so it is kept in an unnamed file until it is complete. A header
that requests excessive memory runs into the file job's own bound.
"""

from __future__ import annotations

import codecs
import datetime
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, Final, Protocol

from ..errors import ArchiveRefused, InvalidRequest
from .file_operations import followed
from .frames import ChunkReader
from .jobs import Deps, Function
from .path_filter import Ignores, PathFilter
from .paths import TEMPORARY, mapped, open_directory, path_of, require
from .safe_extract import SafeExtract, refuse
from .tree import Entry, walk
from .zipnames import Member, name_of

FORMATS: Final = ("tar", "tar.gz", "zip")
_PIECE: Final = 256 * 1024
#: Fast: what a link to the sandbox carries costs less than the last percent of size.
_GZIP_LEVEL: Final = 4
_GZIP_WINDOW: Final = 31  # zlib's word for "with a gzip header"
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
#: What zip can say of a time: two seconds from 1980 to 2107.
_ZIP_YEARS: Final = (1980, 2107)
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZIP_MAGIC: Final = (b"PK\x03\x04", b"PK\x05\x06")
#: xz and zstd.
_NOT_TAKEN: Final = (b"\xfd7zX", b"\x28\xb5\x2f\xfd")
#: zip's flag of an encrypted member.
_ENCRYPTED: Final = 1
#: What the libraries raise for an archive that is none. The last line is what they did not think of: offsets and
#: lengths that no file has, names that are not in their encoding.
_DAMAGED: Final = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError),
    *(ValueError, OverflowError, IndexError, struct.error),
)


class _Sink(Protocol):
    def write(self, data: bytes, /) -> int: ...


# --- packing ---


def pack(deps: Deps, params: dict[str, Any]) -> dict[str, Any]:
    """Give the bytes of an archive of `path`: what is in a directory, or the one file. Links stay links.

    Sockets, FIFOs and devices are left out; the result counts them (`skipped`) and the `entries`. `exclude` are
    patterns of what else is, and with `gitignore` what git ignores there.
    """
    path = path_of(params)
    with mapped(path, "pack"):
        directory, name, facts = followed(deps.kernel, path)
        if stat.S_ISDIR(facts.st_mode):
            root = open_directory(deps.kernel, path)
            entries = PathFilter(params).pick(walk(root))
            if params.get("gitignore"):
                entries = Ignores(root).pick(entries)
        else:
            require(path, facts.st_mode, stat.S_IFREG, "pack")
            entries = iter([Entry(directory, name, path.rpartition("/")[2], facts)])
        if params["format"] == "zip":
            return _pack_zip(entries, deps.writer)
        if params["format"] == "tar.gz":
            with _Gzip(deps.writer) as sink:
                return _pack_tar(entries, sink)
        return _pack_tar(entries, deps.writer)


class _Gzip:
    """Compresses what is written to it."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        self._compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)

    def __enter__(self) -> _Gzip:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._sink.write(self._compressor.flush())

    def write(self, data: bytes, /) -> int:
        self._sink.write(self._compressor.compress(data))
        return len(data)


def _pack_tar(entries: Iterator[Entry], sink: _Sink) -> dict[str, Any]:
    packed = skipped = 0
    # The headers are tarfile's; the stream is written here, since its TarFile would keep every member.
    for entry in entries:
        info = tarfile.TarInfo(entry.path)
        fd = _describe(entry, info)
        if fd is None:
            skipped += 1
            continue
        try:
            sink.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
            if fd >= 0:
                for piece in _exactly(fd, info.size):
                    sink.write(piece)
                sink.write(bytes(-info.size % tarfile.BLOCKSIZE))
        finally:
            if fd >= 0:
                os.close(fd)
        packed += 1
    sink.write(bytes(2 * tarfile.BLOCKSIZE))
    return {"entries": packed, "skipped": skipped}


def _describe(entry: Entry, info: tarfile.TarInfo) -> int | None:
    """Fill in a header; return a descriptor of a file, -1 for what has no content, None for what is left out."""
    facts = entry.facts
    fd = -1
    try:
        if stat.S_ISREG(facts.st_mode):
            fd = os.open(entry.name, _OPEN, dir_fd=entry.directory)
            facts = os.fstat(fd)
            if not stat.S_ISREG(facts.st_mode):
                os.close(fd)
                return None
            info.size = facts.st_size
        elif stat.S_ISLNK(facts.st_mode):
            info.type = tarfile.SYMTYPE
            info.linkname = os.readlink(entry.name, dir_fd=entry.directory)
        elif stat.S_ISDIR(facts.st_mode):
            info.type = tarfile.DIRTYPE
        else:
            return None
    except FileNotFoundError:
        return None
    info.mode = stat.S_IMODE(facts.st_mode)
    info.uid, info.gid = facts.st_uid, facts.st_gid
    info.mtime = int(facts.st_mtime)
    return fd


def _exactly(fd: int, size: int) -> Iterator[bytes]:
    """Give `size` bytes of a file whatever it grows or shrinks to: the header has said how many."""
    left = size
    while left:
        piece = os.read(fd, min(_PIECE, left)) or bytes(min(_PIECE, left))
        yield piece
        left -= len(piece)


class _Unseekable:
    """What zipfile takes for a pipe: it then writes sizes behind the data."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink

    def write(self, data: bytes, /) -> int:
        return self._sink.write(data)

    def flush(self) -> None:
        pass


def _pack_zip(entries: Iterator[Entry], sink: _Sink) -> dict[str, Any]:
    packed = skipped = 0
    target: Any = _Unseekable(sink)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=_GZIP_LEVEL) as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.path)
            fd = _describe(entry, info)
            if fd is None:
                skipped += 1
                continue
            try:
                _add_zip(archive, info, fd)
            finally:
                if fd >= 0:
                    os.close(fd)
            packed += 1
    return {"entries": packed, "skipped": skipped}


def _add_zip(archive: zipfile.ZipFile, info: tarfile.TarInfo, fd: int) -> None:
    """Add one member."""
    when = datetime.datetime.fromtimestamp(max(0, min(info.mtime, 1 << 32)), datetime.UTC)
    year = min(max(when.year, _ZIP_YEARS[0]), _ZIP_YEARS[1])
    kinds = {tarfile.DIRTYPE: stat.S_IFDIR, tarfile.SYMTYPE: stat.S_IFLNK}
    member = Member(
        info.name + ("/" if info.isdir() else ""), (year, when.month, when.day, when.hour, when.minute, when.second)
    )
    member.create_system = 3  # Unix: the attributes below are a mode
    member.external_attr = (kinds.get(info.type, stat.S_IFREG) | info.mode) << 16
    if info.isdir():
        member.external_attr |= 0x10
        archive.writestr(member, b"", zipfile.ZIP_STORED)
    elif info.issym():
        archive.writestr(member, os.fsencode(info.linkname), zipfile.ZIP_STORED)
    else:
        member.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(member, "w", force_zip64=info.size >= 1 << 31) as out:
            for piece in _exactly(fd, info.size):
                out.write(piece)


# --- unpacking ---


def unpack(deps: Deps, params: dict[str, Any]) -> dict[str, Any]:
    """Unpack what is fed into the directory `path`, which is made; `format` None looks at the first bytes.

    The result counts `entries` and `bytes`. At most `max_bytes` are unpacked. What was put before a refusal stays.
    """
    assert deps.chunks is not None  # noqa: S101 - the request says so
    path = path_of(params)
    with mapped(path, "unpack into"):
        root = open_directory(deps.kernel, path, owner=deps.owner)
    extract = SafeExtract(deps.kernel, root, deps.owner, int(params["max_bytes"]))
    source = _Source(deps.chunks)
    head = source.peek(4)
    name = params["format"] or _format_of(head)
    with mapped(path, "unpack into"):
        try:
            if name == "zip":
                with _spooled(root, source, extract) as file:
                    _unpack_zip(file, extract)
            else:
                _unpack_tar(_Gunzip(source) if name == "tar.gz" else source, extract)
                while source.read(_PIECE):
                    pass  # what follows a tar's end is nothing, but the sender must be rid of it
        except NotImplementedError as error:  # before the others: it is a RuntimeError
            raise ArchiveRefused(f"cannot unpack: {error}", reason="method") from None
        except _DAMAGED as error:
            raise ArchiveRefused(f"cannot unpack: the archive is damaged ({error})", reason="damaged") from None
    return {"entries": extract.entries, "bytes": extract.bytes}


def _format_of(head: bytes) -> str:
    if head in _ZIP_MAGIC:
        return "zip"
    if head[:2] == _GZIP_MAGIC:
        return "tar.gz"
    if head[:3] == b"BZh" or head in _NOT_TAKEN:
        raise InvalidRequest("cannot unpack: it must be tar, tar.gz or zip", field="format")
    return "tar"


class _Source:
    """The fed bytes, with a look ahead; `read` gives as many as were asked for, fewer at the end only."""

    def __init__(self, chunks: ChunkReader) -> None:
        self._chunks = chunks
        self._ahead = b""

    def peek(self, size: int) -> bytes:
        self._ahead = self.read(size)
        return self._ahead

    def read(self, size: int, /) -> bytes:
        found = bytearray(self._ahead[:size])
        self._ahead = self._ahead[size:]
        while len(found) < size:
            data = self._chunks.read(size - len(found))
            if not data:
                break
            found += data
        return bytes(found)


class _Gunzip:
    """Decompresses a source as it is read: at most what was asked for, whatever the ratio."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._expander = zlib.decompressobj(_GZIP_WINDOW)
        self._raw = b""

    def read(self, size: int, /) -> bytes:
        found = bytearray()
        while len(found) < size:
            if self._expander.eof:
                # Another member may follow (as after `cat a.gz b.gz`); zeroes and the like are padding.
                rest = (self._expander.unused_data + self._raw).lstrip(b"\0") or self._source.read(_PIECE).lstrip(b"\0")
                if rest[:2] != _GZIP_MAGIC:
                    break
                self._raw, self._expander = rest, zlib.decompressobj(_GZIP_WINDOW)
            raw = self._raw or self._source.read(_PIECE)
            if not raw:
                raise EOFError("it is truncated")
            found += self._expander.decompress(raw, size - len(found))
            self._raw = self._expander.unconsumed_tail
        return bytes(found)


def _unpack_tar(source: _Source | _Gunzip, extract: SafeExtract) -> None:
    file: Any = source
    with tarfile.open(fileobj=file, mode="r|", bufsize=_PIECE, encoding="utf-8", errors="surrogateescape") as archive:
        member = archive.next()
        while member is not None:
            archive.members = []  # type: ignore[attr-defined]  # it would keep every one of them
            _place_tar(archive, member, extract)
            member = _next_member(archive)


def _next_member(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    """Return the next member, None at the end. tarfile's own `next` takes a damaged header for the end."""
    stream: Any = archive.fileobj
    if archive.offset != stream.tell():
        stream.seek(archive.offset - 1)
        if not stream.read(1):
            raise EOFError("it is truncated")
    try:
        return tarfile.TarInfo.fromtarfile(archive)
    except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
        return None


def _place_tar(archive: tarfile.TarFile, member: tarfile.TarInfo, extract: SafeExtract) -> None:
    name = member.name
    if member.isdir():
        extract.directory(name)
    elif member.issym():
        extract.link(name, member.linkname)
    elif member.islnk():
        extract.hard_link(name, member.linkname)
    elif member.isreg() and not member.issparse():
        content = archive.extractfile(member)
        if content is None or member.size < 0:
            raise refuse(name, "kind", "has no content")
        extract.file(name, member.mode, float(member.mtime), _content(content, member.size))
    else:
        raise refuse(name, "kind", "is a device, a FIFO, a sparse file or of an unknown kind")


def _content(file: IO[bytes], size: int) -> Iterator[bytes]:
    left = size
    while left:
        piece = file.read(min(_PIECE, left))
        if not piece:
            raise EOFError("it is truncated")
        left -= len(piece)
        yield piece


def _spooled(directory: int, source: _Source, extract: SafeExtract) -> IO[bytes]:
    """Keep the fed bytes in a file without a name, on the disk that they are unpacked to."""
    name = f"{TEMPORARY}{os.urandom(8).hex()}"
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    os.unlink(name, dir_fd=directory)
    file = open(fd, "w+b")  # noqa: SIM115 - the caller closes it
    try:
        while piece := source.read(_PIECE):
            file.write(piece)
            extract.spooled(len(piece))
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _unpack_zip(file: IO[bytes], extract: SafeExtract) -> None:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            name = name_of(member)
            mode = member.external_attr >> 16
            kind = stat.S_IFMT(mode) if member.create_system == 3 else 0
            if member.flag_bits & _ENCRYPTED:
                raise refuse(name, "encrypted", "is encrypted")
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                raise refuse(name, "kind", "is a device, a FIFO or a socket")
            if name.endswith("/") or kind == stat.S_IFDIR:
                extract.directory(name)
                continue
            with archive.open(member) as content:
                if kind == stat.S_IFLNK:
                    extract.link(name, os.fsdecode(content.read(4096)))
                else:
                    mode = stat.S_IMODE(mode) if kind else 0o644
                    extract.file(name, mode, _zip_time(member), iter(lambda: content.read(_PIECE), b""))


def _zip_time(member: zipfile.ZipInfo) -> float:
    try:
        return datetime.datetime(*member.date_time, tzinfo=datetime.UTC).timestamp()
    except ValueError:
        return 0.0


def preload() -> None:
    """Load the codec of zip's old names: it is a module, and nothing is imported after the creation."""
    codecs.lookup("cp437")


FUNCTIONS: Final[dict[str, Function]] = {"pack": pack, "unpack": unpack}
