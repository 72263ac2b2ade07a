"""Zips that no library would write, byte by byte."""

from __future__ import annotations

import struct
import zlib

#: The flag of a name in UTF-8.
UTF_8 = 0x800


def extra(name: str | bytes, raw: bytes, *, version: int = 1, wrong: int = 0) -> bytes:
    """Return an Info-ZIP Unicode Path field behind another field."""
    text = name.encode() if isinstance(name, str) else name
    field = struct.pack("<BI", version, zlib.crc32(raw) ^ wrong) + text
    return struct.pack("<HHB", 0x7875, 1, 0) + struct.pack("<HH", 0x7075, len(field)) + field


def raw_zip(
    raw: bytes, *, system: int, flags: int = 0, more: bytes = b"", mode: int = 0, data: bytes = b"x", offset: int = 0
) -> bytes:
    """Return a zip of one member, its name as these bytes, which no library would write."""
    crc, size = zlib.crc32(data), len(data)
    shared = struct.pack("<HHHHIII", flags, 0, 0, 0x21, crc, size, size)
    lengths = struct.pack("<HH", len(raw), len(more))
    local = b"PK\3\4" + struct.pack("<H", 20) + shared + lengths + raw + more + data
    central = b"PK\1\2" + struct.pack("<BBH", 20, system, 20) + shared + lengths
    central += struct.pack("<HHHII", 0, 0, 0, mode << 16, offset) + raw + more
    return local + central + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
