"""Read a stranger's bytes: bounded, forward only, hashed; compressed or not; as tar members.

`tarfile` parses the headers, over a `Tape` that bounds what one header may ask for and never goes back, so neither a
huge pax header nor a negative size does more than end the import. Nothing here writes.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

__all__ = ["Budget", "Hashing", "ImageRefused", "Pipe", "Pushback", "Reader", "Region", "Tape", "decompressed"]
__all__ += ["members", "shown"]

#: One read or write of file data.
CHUNK: Final = 256 * 1024
#: What one extended header (a long name, extended attributes) may hold; real ones hold some kilobytes.
MAX_HEADER: Final = 1024 * 1024
_BLOCK: Final = 512
_MAX_SHOWN: Final = 200


class ImageRefused(Exception):
    """The image cannot be imported: `why`, and `facts` for programs."""

    def __init__(self, why: str, **facts: object) -> None:
        super().__init__(why)
        self.why = why
        self.facts = facts


class Reader(Protocol):
    """Something to read from."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, none at the end."""
        ...


@dataclass(slots=True)
class Budget:
    """What is left of the bounds of an import."""

    max_bytes: int
    max_entries: int
    bytes: int = 0
    entries: int = 0

    def take_bytes(self, count: int) -> None:
        """Count unpacked bytes."""
        self.bytes += count
        if self.bytes > self.max_bytes:
            raise ImageRefused(
                f"unpacked it is over {self.max_bytes} bytes (--max-size)", reason="too-large", limit=self.max_bytes
            )

    def take_entry(self) -> None:
        """Count a member."""
        self.entries += 1
        if self.entries > self.max_entries:
            raise ImageRefused(f"it has over {self.max_entries} members", reason="too-many", limit=self.max_entries)


class Region:
    """A part of a regular file; other readers of the same descriptor do not matter."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd = fd
        self._offset = offset
        self._left = size

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes."""
        data = os.pread(self._fd, min(size, self._left), self._offset)
        self.skip(len(data))
        return data

    def skip(self, size: int) -> None:
        """Go forward without reading."""
        size = min(size, self._left)
        self._offset += size
        self._left -= size


class Pipe:
    """A descriptor that can be read once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes."""
        return os.read(self._fd, min(size, CHUNK))


class Pushback:
    """A reader whose first bytes can be looked at."""

    def __init__(self, raw: Reader) -> None:
        self._raw = raw
        self._head = b""

    def peek(self, size: int) -> bytes:
        """Return the first `size` bytes, fewer where there are no more, and keep them."""
        while len(self._head) < size:
            data = self._raw.read(size - len(self._head))
            if not data:
                break
            self._head += data
        return self._head[:size]

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes."""
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return self._raw.read(size)


class Hashing:
    """A reader that hashes what it read; `read_bytes` counts it."""

    def __init__(self, raw: Reader) -> None:
        self._raw = raw
        self._hash = hashlib.sha256()
        self.read_bytes = 0

    def read(self, size: int = CHUNK, /) -> bytes:
        """Return at most `size` bytes."""
        data = self._raw.read(size if size >= 0 else CHUNK)
        self._hash.update(data)
        self.read_bytes += len(data)
        return data

    def finish(self) -> str:
        """Read to the end; return the digest of all."""
        while self.read(CHUNK):
            pass
        return f"sha256:{self._hash.hexdigest()}"


def decompressed(raw: Reader) -> tuple[Reader, bool]:
    """Return a reader of what `raw` compresses, found by its first bytes, and whether it was compressed."""
    source = Pushback(raw)
    readable: Any = source  # these three only read from it, whatever their types say
    head = source.peek(6)
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=readable, mode="rb"), True
    if head == b"\xfd7zXZ\0":
        return lzma.LZMAFile(readable), True
    if head.startswith(b"BZh"):
        return bz2.BZ2File(readable), True
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        raise ImageRefused(
            "it is compressed with zstd, which Python 3.11 cannot read; make it plain or gzip (zstd -d, or skopeo copy"
            " --dest-compress-format gzip)",
            reason="zstd",
        )
    return source, False


class Tape:
    """An archive as `tarfile` sees it: read once, forward, within `budget`; hashed unless `hashed` is false."""

    def __init__(self, raw: Reader, budget: Budget, *, hashed: bool = True) -> None:
        self._raw = raw
        self._budget = budget
        self._hash = hashlib.sha256() if hashed else None
        self._position = 0
        self.last_block = b""

    def tell(self) -> int:
        """Return how far it has been read."""
        return self._position

    def read(self, size: int) -> bytes:
        """Return `size` bytes of headers, fewer only at the end."""
        if not 0 <= size <= MAX_HEADER:
            raise ImageRefused(f"a header of it has {size} bytes (at most {MAX_HEADER})", reason="header")
        parts = []
        wanted = size
        while size and (data := self._take(size)):
            parts.append(data)
            size -= len(data)
        whole = b"".join(parts)
        if wanted == _BLOCK:
            self.last_block = whole
        return whole

    def _take(self, size: int) -> bytes:
        data = self._raw.read(min(size, CHUNK))
        self._budget.take_bytes(len(data))
        self._position += len(data)
        if self._hash is not None:
            self._hash.update(data)
        return data

    def seek(self, position: int) -> None:
        """Go forward to `position`, or to the end."""
        if position < self._position:
            raise ImageRefused("its headers point backwards", reason="header")
        if self._hash is None and isinstance(self._raw, Region):
            self._raw.skip(position - self._position)
            self._position = position
        while self._position < position and self._take(position - self._position):
            pass

    def data(self, size: int) -> Iterator[bytes]:
        """Return the `size` bytes of a member's data in chunks."""
        while size:
            data = self._take(size)
            if not data:
                raise ImageRefused("it is cut off in the middle of a file", reason="truncated")
            size -= len(data)
            yield data

    def finish(self) -> str:
        """Read to the end; return the digest of all."""
        assert self._hash is not None  # noqa: S101
        while self._take(CHUNK):
            pass
        return f"sha256:{self._hash.hexdigest()}"


def members(tape: Tape, *, marked: bool) -> Iterator[tarfile.TarInfo]:
    """Return the members of a tar archive, each before its data is read from `tape`.

    `marked` asks for the end-of-archive mark, without which a cut-off archive cannot be told from a whole one.
    """
    file: Any = tape  # it reads, seeks forward and tells, which is all that is needed
    try:
        archive: Any = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="surrogateescape")
    except tarfile.TarError as error:
        raise ImageRefused(f"it is no tar archive ({error})", reason="no-archive") from None
    while (member := archive.next()) is not None:
        archive.members.clear()  # it would keep them all
        yield member
    # tarfile takes a broken header for the end.
    if tape.last_block.strip(b"\0") or (marked and len(tape.last_block) != _BLOCK):
        raise ImageRefused("it is cut off or damaged: a header is broken or the end mark missing", reason="truncated")


def names(head: bytes) -> Iterator[str]:
    """Return the names of the members that begin in `head`, the first bytes of an archive."""
    budget = Budget(len(head), len(head))
    for member in members(Tape(io.BytesIO(head), budget, hashed=False), marked=False):
        yield member.name


def shown(name: str) -> str:
    """Return a stranger's name fit for a terminal and a log."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
