"""Read a stranger's tar archive: bounded, forward only, hashed.

`tarfile` parses the headers, over a `Tape` that bounds what one header may ask for and never goes back, so neither a
huge pax header nor a negative size does more than end the import.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from typing import Any, Final

from sandboxd.images.readers import CHUNK, Budget, ImageRefused, Reader, Region

__all__ = ["Tape", "members", "names", "shown"]

#: What one extended header (a long name, extended attributes) may hold; real ones hold some kilobytes.
MAX_HEADER: Final = 1024 * 1024
_BLOCK: Final = 512
_MAX_SHOWN: Final = 200


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
            raise ImageRefused(f"one of its headers has {size} bytes (at most {MAX_HEADER})", reason="header")
        parts = []
        wanted = size
        while size and (data := self._take_bytes(size)):
            parts.append(data)
            size -= len(data)
        whole = b"".join(parts)
        if wanted == _BLOCK:
            self.last_block = whole
        return whole

    def _take_bytes(self, size: int) -> bytes:
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
        while self._position < position and self._take_bytes(position - self._position):
            pass

    def data(self, size: int) -> Iterator[bytes]:
        """Return the `size` bytes of a member's data in chunks."""
        while size:
            data = self._take_bytes(size)
            if not data:
                raise ImageRefused("it is truncated in the middle of a file", reason="truncated")
            size -= len(data)
            yield data

    def finish(self) -> str:
        """Read to the end; return the digest of all."""
        assert self._hash is not None  # noqa: S101
        while self._take_bytes(CHUNK):
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
        raise ImageRefused(f"it is not a tar archive ({error})", reason="no-archive") from None
    while (member := archive.next()) is not None:
        archive.members.clear()  # it would keep them all
        yield member
    # tarfile takes a broken header for the end.
    if tape.last_block.strip(b"\0") or (marked and len(tape.last_block) != _BLOCK):
        raise ImageRefused(
            "it is truncated or damaged: a header is broken or the end marker is missing", reason="truncated"
        )


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
