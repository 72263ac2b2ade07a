"""Taking a pack while it comes; see pack.py's theory of operation."""

from __future__ import annotations

import binascii
import hashlib
import zlib
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Final

from .pack import (
    KINDS,
    LARGE_BYTES,
    MAX_OBJECT_BYTES,
    PIECE_BYTES,
    RECORD,
    Pack,
    Table,
    apply,
    damaged,
    stream_bound,
    too_large,
)

_OFS_DELTA: Final = 6
_REF_DELTA: Final = 7
#: Bytes are looked at when so many are there: small enough to work while more come, large enough to be cheap.
_BATCH_BYTES: Final = 256 * 1024
#: A header: a size of 64 bits in groups of 4 and 7, then an offset of the same or a name.
_MAX_HEADER_BYTES: Final = 32
#: How often progress is told, in objects.
_TELL_EVERY: Final = 512

Progress = Callable[[int, int], None]


class PackIntake:
    """Takes a pack as it comes. `write` all of it, then `finish`."""

    def __init__(
        self,
        path: Path,
        on_receive: Callable[[int, int, int], None],
        on_resolve: Progress,
        max_bytes: int = MAX_OBJECT_BYTES,
    ) -> None:
        self._file = path.open("xb")
        self._path = path
        self._on_receive = on_receive
        self._max_bytes = max_bytes
        self._on_resolve = on_resolve
        self._table = Table()
        self._records: list[bytes] = []
        #: The rows of those records.
        self._named = array("I")
        #: Deltas that name their base: rows by that name.
        self._by_name: dict[bytes, list[int]] = {}
        self._digest = hashlib.sha1(usedforsecurity=False)
        self._held = b""
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._rest = b""
        #: The offset in the pack of the first byte of `_rest`.
        self._offset = 0
        self.received_bytes = 0
        self._total: int | None = None
        self._large: _Large | None = None

    def __repr__(self) -> str:
        return f"<PackIntake {self._path} objects={len(self._table)}/{self._total}>"

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def write(self, data: bytes) -> int:
        """Take the next bytes.

        Raises:
            GitProtocolError: they are no pack.
            GitRefused: it has an object too large to be worked on.
            OSError: they cannot be written.
        """
        self._file.write(data)
        held = self._held + data
        self._digest.update(held[:-20])
        self._held = held[-20:]
        self.received_bytes += len(data)
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= _BATCH_BYTES:
            self._look(final=False)
            self._on_receive(len(self._table), self._total or 0, self.received_bytes)
        return len(data)

    def finish(self) -> Pack:
        """Check that it is whole, name every object, and return it.

        Raises:
            As `write`.
        """
        self._look(final=True)
        self._file.close()
        if self._total is None or len(self._table) != self._total or self._large is not None:
            raise damaged(f"it ends after {len(self._table)} of {self._total or 0} objects")
        if len(self._rest) != 20:
            raise damaged(f"{len(self._rest)} bytes follow its objects, not 20")
        if self._digest.digest() != self._held:
            raise damaged("its checksum differs")
        self._on_receive(len(self._table), self._total, self.received_bytes)
        pack = Pack(self._path, self._table, self._records, self._held, self._max_bytes)
        try:
            _Deltas(pack, self._records, self._named, self._by_name, self._on_resolve).resolve()
        except BaseException:
            pack.close()
            raise
        return pack

    # --- objects, as they come ---

    def _look(self, *, final: bool) -> None:
        data = b"".join((self._rest, *self._waiting))
        self._waiting, self._waiting_bytes = [], 0
        place = 0
        try:
            if self._total is None:
                if len(data) < 12 and not final:
                    self._rest = data
                    return
                place = self._header(data)
            if self._large is not None:
                place = self._go_on(data, place)
            if self._large is None:
                place = self._objects(data, place, final=final)
        except IndexError:
            raise damaged("it is cut off") from None
        except zlib.error as error:
            raise damaged(f"an object cannot be inflated ({error})") from None
        self._offset += place
        self._rest = data[place:]
        if len(self._rest) > 20 and len(self._table) == self._total and self._large is None:
            raise damaged("more follows its objects than a checksum")  # and would for ever, if it were kept

    def _header(self, data: bytes) -> int:
        if data[:4] != b"PACK" or data[4:8] not in (b"\0\0\0\2", b"\0\0\0\3") or len(data) < 12:
            raise damaged("it is not a pack")
        self._total = int.from_bytes(data[8:12], "big")
        return 12

    def _objects(self, data: bytes, place: int, *, final: bool) -> int:
        """Take every object that is whole; return where the first begins that is not."""
        table = self._table
        end = len(data)
        with memoryview(data) as view:
            while len(table) != self._total and (final or end - place >= _MAX_HEADER_BYTES):
                kind, size, begin, base, name = _read_header(data, place, self._offset)
                if size > LARGE_BYTES:
                    self._add(place, begin - place, size, kind, base, name)
                    self._large = _Large(kind, size, binascii.crc32(view[place:begin]))
                    place = self._go_on(data, begin)
                    if self._large is not None:
                        break
                    continue
                inflater = zlib.decompressobj()
                fed = view[begin : begin + stream_bound(size)]
                inflated = inflater.decompress(fed, size + 1)
                if not inflater.eof:
                    if len(inflated) <= size and begin + len(fed) == end and not final:
                        break  # more of it will come
                    raise damaged("an object is longer than it says, or cut off")
                if len(inflated) != size:
                    raise damaged("an object is shorter than it says")
                over = begin + len(fed) - len(inflater.unused_data)
                row = self._add(place, begin - place, size, kind, base, name)
                crc = binascii.crc32(view[place:over])
                table.crcs[row] = crc
                if kind < _OFS_DELTA:
                    digest = hashlib.sha1(b"%b %d\0" % (KINDS[kind], size) + inflated, usedforsecurity=False)
                    self._name(row, digest.digest())
                place = over
        return place

    def _go_on(self, data: bytes, place: int) -> int:
        """Feed the large object under way; return where it ends, or the end of the data."""
        assert self._large is not None  # noqa: S101 - callers look
        taken = self._large.feed(data, place)
        if self._large.over:
            row = len(self._table) - 1
            self._table.crcs[row] = self._large.crc
            if self._large.digest is not None:
                self._name(row, self._large.digest.digest())
            self._large = None
        return taken

    def _add(self, place: int, header: int, size: int, kind: int, base: int, name: bytes | None) -> int:
        table = self._table
        row = len(table)
        if kind >= _OFS_DELTA and size > self._max_bytes:
            raise too_large(size, self._max_bytes)
        table.bases.append(table.at(base) + 1 if kind == _OFS_DELTA else 0)
        table.starts.append(self._offset + place)
        table.header_bytes.append(header)
        table.sizes.append(size)
        table.crcs.append(0)
        table.kinds.append(kind)
        if name is not None:
            self._by_name.setdefault(name, []).append(row)
        return row

    def _name(self, row: int, name: bytes) -> None:
        self._records.append(RECORD.pack(name, self._table.crcs[row], self._table.starts[row]))
        self._named.append(row)


def _read_header(data: bytes, place: int, offset: int) -> tuple[int, int, int, int, bytes | None]:
    """Return (kind, size, where its stream begins, its base's offset, its base's name)."""
    start = place
    byte = data[place]
    place += 1
    kind, size, shift = byte >> 4 & 7, byte & 15, 4
    while byte & 0x80:
        byte = data[place]
        place += 1
        size |= (byte & 0x7F) << shift
        shift += 7
    if size >= 1 << 63 or shift > 70:
        raise damaged("an object's size is not a number")
    if kind == _OFS_DELTA:
        byte = data[place]
        place += 1
        back = byte & 0x7F
        while byte & 0x80:
            byte = data[place]
            place += 1
            back = back + 1 << 7 | byte & 0x7F
        if not 0 < back <= offset + start:
            raise damaged("a delta's base lies outside it")
        return kind, size, place, offset + start - back, None
    if kind == _REF_DELTA:
        name = data[place : place + 20]
        if len(name) != 20:
            raise IndexError
        return kind, size, place + 20, 0, name
    if kind not in KINDS:
        raise damaged(f"an object is of kind {kind}")
    return kind, size, place, 0, None


class _Large:
    """An object that passes through in pieces: counted, and hashed where it is no delta."""

    def __init__(self, kind: int, size: int, crc: int) -> None:
        self.crc = crc
        self.over = False
        self.digest = None
        if kind < _OFS_DELTA:
            self.digest = hashlib.sha1(b"%b %d\0" % (KINDS[kind], size), usedforsecurity=False)
        self._left = size
        self._inflater = zlib.decompressobj()

    def feed(self, data: bytes, place: int) -> int:
        """Take bytes from `place` on; return where it stopped."""
        with memoryview(data) as view:
            while place < len(data) and not self.over:
                fed = view[place : place + PIECE_BYTES]
                rest: bytes | memoryview = fed
                while rest:
                    piece = self._inflater.decompress(rest, PIECE_BYTES)
                    rest = self._inflater.unconsumed_tail
                    self._left -= len(piece)
                    if self.digest is not None:
                        self.digest.update(piece)
                    if self._left < 0:
                        raise damaged("an object is longer than it says")
                    if self._inflater.eof:
                        self.over = True
                        break
                used = len(fed) - len(self._inflater.unused_data)
                self.crc = binascii.crc32(fed[:used], self.crc)
                place += used
        if self.over and self._left:
            raise damaged("an object is shorter than it says")
        return place


class _Deltas:
    """Names every delta, from the bases up."""

    def __init__(
        self, pack: Pack, records: list[bytes], named: array[int], by_name: dict[bytes, list[int]], tell: Progress
    ) -> None:
        self._pack = pack
        self._table = pack.table
        self._records = records
        self._roots = named
        self._by_name = by_name
        self._tell = tell
        rows = len(self._table)
        self._first = array("I", bytes(4 * rows))
        self._next = array("I", bytes(4 * rows))
        self._weight = array("I", bytes(4 * rows))
        bases = self._table.bases
        for row in range(rows - 1, -1, -1):  # a base comes before its deltas, so these have their weight
            base = bases[row]
            if base:
                self._weight[base - 1] += self._weight[row] + 1
                self._next[row] = self._first[base - 1]
                self._first[base - 1] = row + 1

    def resolve(self) -> None:
        """Name all, and put the records in order."""
        rows = len(self._table)
        for place in range(len(self._roots)):
            self._grow(self._roots[place], self._records[place][:20])
        if len(self._records) != rows:
            raise damaged(f"the bases of {rows - len(self._records)} objects are not in it")
        self._records.sort()
        self._tell(rows, rows)

    def _children(self, row: int, name: bytes) -> list[int]:
        children = []
        child = self._first[row]
        while child:
            children.append(child - 1)
            child = self._next[child - 1]
        if self._by_name:
            for child in self._by_name.pop(name, ()):
                self._table.bases[child] = row + 1
                children.append(child)
        if len(children) > 1:
            children.sort(key=self._weight.__getitem__, reverse=True)  # the last of the list goes first
        return children

    def _grow(self, root: int, name: bytes) -> None:
        children = self._children(root, name)
        if not children:
            return
        table, records = self._table, self._records
        head = KINDS[table.kinds[root]]
        data = self._pack.inflate(root)
        stack = [(child, data) for child in children]
        while stack:
            row, data = stack.pop()
            data = apply(data, self._pack.inflate(row), self._pack.max_bytes)
            digest = hashlib.sha1(b"%b %d\0" % (head, len(data)) + data, usedforsecurity=False).digest()
            records.append(RECORD.pack(digest, table.crcs[row], table.starts[row]))
            if len(records) % _TELL_EVERY == 0:
                self._tell(len(records), len(table))
            for child in self._children(row, digest):
                stack.append((child, data))
