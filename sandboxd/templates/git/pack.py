"""A pack: taken from the network, checked and indexed while it comes, and read.

**Theory of operation.** A pack is a row of objects, each a small header and a zlib stream, most of them deltas to
another object of the pack. To name an object one must inflate it, and a delta's base before it. dulwich's own way is
correct but inflates each object three times and only when the whole pack is there; here it is twice, as in C git's
index-pack: `PackIntake.write` inflates objects while they arrive and names those that are no deltas, `finish` walks the
deltas from their bases up. Applying a delta, and all of the protocol, is dulwich's (its extension in Rust).

**Bounds.** A hostile pack may claim any size. A table row is about 100 bytes an object; an object that must be in
memory is at most `MAX_OBJECT_BYTES` (C git's core.bigFileThreshold; git makes no deltas of larger files), or less by
order; larger ones
only ever pass through. Of the bases that wait for their other children there are at most log2(objects) at a time: the
child with the most descendants goes last, and takes its base's place. What else is spent is the caller's memory limit,
disk limit and timeout to say.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import zlib
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dulwich.errors import ApplyDeltaError
from dulwich.pack import apply_delta

from ...errors import GitProtocolError, GitRefused

COMMIT: Final = 1
TREE: Final = 2
BLOB: Final = 3
TAG: Final = 4
KINDS: Final = {COMMIT: b"commit", TREE: b"tree", BLOB: b"blob", TAG: b"tag"}
MAX_OBJECT_BYTES: Final = 512 * 1024 * 1024
#: Larger ones are never inflated in one piece, but for deltas.
LARGE_BYTES: Final = 1024 * 1024
PIECE_BYTES: Final = 256 * 1024
_CACHE_BYTES: Final = 32 * 1024 * 1024
RECORD: Final = struct.Struct(">20sIQ")


def damaged(why: str) -> GitProtocolError:
    """Return the error for a pack that is none, or a broken one."""
    return GitProtocolError(f"cannot read the pack that the server sent: {why}", reason="damaged-pack")


def too_large(size: int, limit: int) -> GitRefused:
    """Return the error for an object that would have to be in memory, and may not."""
    return GitRefused(
        f"cannot accept an object of {size} bytes: it would have to be in memory",
        reason="object-too-large",
        size=size,
        limit_bytes=limit,
    )


def stream_bound(size: int) -> int:
    """Return how many bytes deflate needs at most for `size` (zlib's compressBound, rounded up)."""
    return size + (size >> 8) + 64


class Table:
    """What is known of each object, in the order of the pack: parallel arrays, so that a row costs 30 bytes."""

    def __init__(self) -> None:
        self.starts = array("Q")
        self.header_bytes = array("B")
        self.sizes = array("Q")
        self.crcs = array("I")
        self.kinds = array("B")
        #: The row of the delta's base, plus 1; 0 for none or not known.
        self.bases = array("I")

    def __len__(self) -> int:
        return len(self.starts)

    def at(self, offset: int) -> int:
        """Return the row of the object that begins at `offset`.

        Raises:
            GitProtocolError: none does.
        """
        row = bisect_left(self.starts, offset)
        if row == len(self.starts) or self.starts[row] != offset:
            raise damaged("a delta's base lies outside it")
        return row


class Pack:
    """A pack on disk with its table; gives objects by name. `close` unmaps it."""

    def __init__(self, path: Path, table: Table, records: list[bytes], checksum: bytes, max_bytes: int) -> None:
        self.path = path
        self.table = table
        self.checksum = checksum
        self.max_bytes = max_bytes
        self._records = records
        self._cache: OrderedDict[int, tuple[int, bytes]] = OrderedDict()
        self._cached_bytes = 0
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._view = memoryview(self._map)

    def __repr__(self) -> str:
        return f"<Pack {self.path} objects={len(self.table)}>"

    def close(self) -> None:
        """Unmap it."""
        self._view.release()
        self._map.close()

    def inflate(self, row: int) -> bytes:
        """Return the bytes of a row as stored: an object, or a delta."""
        table = self.table
        size = table.sizes[row]
        if size > self.max_bytes:
            raise too_large(size, self.max_bytes)
        begin = table.starts[row] + table.header_bytes[row]
        if size <= LARGE_BYTES:
            data = zlib.decompressobj().decompress(self._view[begin : begin + stream_bound(size)], size + 1)
            if len(data) == size:
                return data
        return b"".join(self._pieces(row))

    def _pieces(self, row: int) -> Iterator[bytes]:
        table = self.table
        begin, left = table.starts[row] + table.header_bytes[row], table.sizes[row]
        inflater = zlib.decompressobj()
        fed: bytes | memoryview = b""
        while left:
            fed = inflater.unconsumed_tail
            if not fed:
                fed = self._view[begin : begin + PIECE_BYTES]
                begin += len(fed)
            data = inflater.decompress(fed, PIECE_BYTES)
            if not data and (inflater.eof or not len(fed)):
                raise damaged("an object ends early")
            left -= len(data)
            yield data

    def find(self, name: bytes) -> int | None:
        """Return the row of the object with this binary name, or None."""
        place = bisect_left(self._records, name)
        if place == len(self._records) or self._records[place][:20] != name:
            return None
        return self.table.at(int.from_bytes(self._records[place][24:], "big"))

    def __contains__(self, name: bytes) -> bool:
        return self.find(name) is not None

    def get(self, name: bytes) -> tuple[int, bytes]:
        """Return (kind, bytes) of an object.

        Raises:
            GitProtocolError: the pack lacks it.
        """
        row = self.find(name)
        if row is None:
            raise GitProtocolError(
                f"cannot find object {name.hex()}: the server did not send it", reason="missing-object"
            )
        return self._get(row)

    def _get(self, row: int) -> tuple[int, bytes]:
        chain: list[int] = []
        table = self.table
        while row not in self._cache and table.bases[row]:
            chain.append(row)
            row = table.bases[row] - 1
        found = self._cache.get(row)
        if found is None:
            found = (table.kinds[row], self.inflate(row))
            self._keep(row, found)
            if chain:
                self._keep(row, found)
        kind, data = found
        for step in reversed(chain):
            data = apply(data, self.inflate(step), self.max_bytes)
            self._keep(step, (kind, data))
        return kind, data

    def _keep(self, row: int, found: tuple[int, bytes]) -> None:
        size = len(found[1])
        if size > _CACHE_BYTES // 8:
            return
        self._cache[row] = found
        self._cached_bytes += size
        while self._cached_bytes > _CACHE_BYTES:
            self._cached_bytes -= len(self._cache.popitem(last=False)[1][1])

    def pieces(self, name: bytes) -> tuple[int, Iterator[bytes]]:
        """Return (kind, the object in pieces): large ones that are no deltas are never in memory as a whole."""
        row = self.find(name)
        if row is None or self.table.bases[row] or self.table.sizes[row] <= LARGE_BYTES:
            kind, data = self.get(name)
            return kind, iter((data,) if data else ())
        return self.table.kinds[row], self._pieces(row)

    def write_index(self, path: Path) -> None:
        """Write the index, version 2 (gitformat-pack(5))."""
        records = self._records
        counts = [0] * 256
        for record in records:
            counts[record[0]] += 1
        fan, total = [], 0
        for count in counts:
            total += count
            fan.append(total)
        offsets, far = [], []
        for record in records:
            offset = int.from_bytes(record[24:], "big")
            if offset >= 1 << 31:
                far.append(offset)
                offset = 1 << 31 | len(far) - 1
            offsets.append(offset)
        parts = [
            b"\xfftOc" + struct.pack(">I", 2) + struct.pack(">256I", *fan),
            b"".join([record[:20] for record in records]),
            b"".join([record[20:24] for record in records]),
            struct.pack(f">{len(offsets)}I", *offsets),
            struct.pack(f">{len(far)}Q", *far),
            self.checksum,
        ]
        digest = hashlib.sha1(usedforsecurity=False)
        with path.open("xb") as file:
            for part in parts:
                digest.update(part)
                file.write(part)
            file.write(digest.digest())


def apply(base: bytes, delta: bytes, max_bytes: int) -> bytes:
    """Return what a delta makes of its base.

    Raises:
        GitProtocolError: it does not fit.
        GitRefused: the result would be too large.
    """
    place = 0
    size = shift = 0
    for _ in range(2):  # the base's size, then the result's
        size = shift = 0
        while True:
            if place >= len(delta) or shift > 63:
                raise damaged("a delta's header is cut off")
            byte = delta[place]
            place += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
    if size > max_bytes:
        raise too_large(size, max_bytes)
    try:
        made: list[bytes] = apply_delta(base, delta)
    except ApplyDeltaError as error:
        raise damaged(f"a delta does not fit its base ({error})") from None
    return made[0] if len(made) == 1 else b"".join(made)
