"""Names in zip archives, as those who write them mean them.

The format (APPNOTE.TXT 4.4.4 and appendix D) knows two encodings: cp437, and UTF-8 where flag 0x800 says so. What is
found in the wild, and what `zipfile` does not know, is this:

- Info-ZIP's `zip`, and macOS, write the bytes of a Unix name as they are, without the flag. Info-ZIP adds an extra
  field (0x7075, APPNOTE 4.6.9) with the name in UTF-8, which holds where its checksum is that of the name beside it.
- Some programs of Windows part directories by backslashes, against 4.4.17; no name there can have one.

So a name without the flag is the extra field's, or UTF-8 where it is some; else it is cp437 where a system that has
such code pages wrote it, and plain bytes where Unix did. What such a name may lead to is asked of the result only.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from typing import Final

_UTF_8: Final = 0x800
_UNICODE_PATH: Final = 0x7075
_HEAD: Final = struct.Struct("<HH")
_UNICODE_HEAD: Final = struct.Struct("<BI")
#: Who made it (4.4.2.2): MS-DOS and FAT, OS/2's HPFS, Windows' NTFS, VFAT.
_CODE_PAGED: Final = frozenset((0, 6, 10, 14))


def name_of(member: zipfile.ZipInfo) -> str:
    """Return a member's name as text that `os.fsencode` takes; it may be empty, absolute or anything else."""
    if member.flag_bits & _UTF_8:
        name = member.orig_filename
    else:
        raw = member.orig_filename.encode("cp437")  # which zipfile took it for, and which has all 256
        name = _extra_name(member.extra, raw) or _decode(raw, has_code_page=member.create_system in _CODE_PAGED)
    return name.replace("\\", "/") if member.create_system in _CODE_PAGED else name


def _decode(raw: bytes, *, has_code_page: bool) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp437") if has_code_page else os.fsdecode(raw)


def _extra_name(extra: bytes, raw: bytes) -> str | None:
    """Return the name of a Unicode Path field, if it is whole and was made for the name that stands in the header."""
    while len(extra) >= _HEAD.size:
        kind, size = _HEAD.unpack_from(extra)
        field, extra = extra[_HEAD.size : _HEAD.size + size], extra[_HEAD.size + size :]
        if kind != _UNICODE_PATH or len(field) < _UNICODE_HEAD.size:
            continue
        version, checksum = _UNICODE_HEAD.unpack_from(field)
        if version == 1 and checksum == zlib.crc32(raw):
            try:
                return field[_UNICODE_HEAD.size :].decode()
            except UnicodeDecodeError:
                return None
    return None


class Member(zipfile.ZipInfo):
    """A member to write; a name that is no UTF-8 goes out as its bytes, without the flag, as Unix' programs do it."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # zipfile's own, which it asks twice for each member
        raw = os.fsencode(self.filename)
        try:
            raw.decode()
        except UnicodeDecodeError:
            return raw, self.flag_bits
        return raw, self.flag_bits if raw.isascii() else self.flag_bits | _UTF_8
