"""Bounds of HTTP/1.1 heads, held before anybody parses them: how many bytes and fields, no folded lines, no NUL.

Every head of a stranger's goes through here, a caller's of the API and both sides' of the previews: h11 reads a field
in about 5 microseconds, so 64 KiB of the shortest would keep a thread for a tenth of a second. A folded line (RFC 9112,
5.2, obsolete) is refused: two readers may take it for two things.
"""

from __future__ import annotations

import re
from typing import Final

import h11

from ..errors import HeaderTooLarge, InvalidRequest, SandboxdError
from . import h11_parts

#: A head's first line and fields together.
MAX_HEAD_BYTES: Final = 64 * 1024
#: Fields of one head, or of a trailer. Browsers send about 20, and Apache takes 100 as well.
MAX_FIELDS: Final = 100
#: A head as most are, whole and within the bounds: one look instead of ten.
_ORDINARY: Final = re.compile(rb"(?:[!-~][ -~\t]*\r\n){1,%d}\r\n" % (MAX_FIELDS + 1))
_ORDINARY_BYTES: Final = 4096
#: Where the end of a head that is small enough must be.
_REACH: Final = MAX_HEAD_BYTES + 3


def check(data: bytes, *, is_trailer: bool = False) -> None:
    """Look at the head that `data` begins with, whole or not; more may follow it.

    Raises:
        HeaderTooLarge: it has too many bytes or fields.
        InvalidRequest: it has a folded line, or a character that no head has.
    """
    if not is_trailer and (not data or _ORDINARY.match(data, 0, _ORDINARY_BYTES)):
        return
    if is_trailer and data.startswith((b"\r\n", b"\n")):
        return
    end = _end(data)
    head = data[: MAX_HEAD_BYTES + 1] if end is None else data[:end]
    if len(head) > MAX_HEAD_BYTES:
        raise HeaderTooLarge(f"cannot accept a head of over {MAX_HEAD_BYTES} bytes", limit_bytes=MAX_HEAD_BYTES)
    if b"\n " in head or b"\n\t" in head:
        raise InvalidRequest("cannot accept a head with folded lines")
    others = (0 if is_trailer else 1) + (end is not None)  # the first line, and the empty one
    lines = head.split(b"\n", MAX_FIELDS + 3)  # enough to see one too many
    if len(lines) - 1 - others > MAX_FIELDS:
        raise HeaderTooLarge(f"cannot accept a head of over {MAX_FIELDS} fields", limit_fields=MAX_FIELDS)
    # What h11 refuses too, but after a time that grows with the square of the white space before it.
    if b"\0" in head or b"\x0b" in head or b"\x0c" in head or any(b"\r" in line[:-1] for line in lines):
        raise InvalidRequest("cannot accept a head with control characters")


def _end(data: bytes) -> int | None:
    """Return where a head ends as h11 sees it: behind an empty line, which may lack its CR."""
    ends = [at + len(mark) for mark in (b"\n\r\n", b"\n\n") if (at := data.find(mark, 0, _REACH)) >= 0]
    return min(ends, default=None)


def bound_trailer(connection: h11.Connection) -> None:
    """Hold the trailer of a body in chunks to the same bounds; to be called when its head was read."""
    h11_parts.check_trailer(connection, _check_trailer)


def _check_trailer(data: bytes) -> None:
    try:
        check(data, is_trailer=True)
    except SandboxdError as error:
        raise h11.LocalProtocolError(error.message) from None
