"""Read a stranger's bytes: bounded, hashed, compressed or not. Nothing here writes, and no reader goes back."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import lzma
import os
import select
from dataclasses import dataclass
from typing import Any, Final, Protocol

__all__ = ["CHUNK", "Budget", "Hashing", "ImageRefused", "Pipe", "Pushback", "Reader", "Region", "decompressed"]

#: One read or write of file data.
CHUNK: Final = 256 * 1024


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
                f"unpacked, it is over {self.max_bytes} bytes (--max-size)", reason="too-large", limit=self.max_bytes
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
    """A descriptor that can be read once, while whoever is at the other end of the socket `peer` lives."""

    def __init__(self, fd: int, peer: int) -> None:
        self._fd = fd
        self._peer = peer
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._poll.register(peer, 0)  # its end is always told

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; raises BrokenPipeError when the peer is gone."""
        if any(fd == self._peer for fd, _ in self._poll.poll()):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
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
