"""UTF-8 in pieces, lazily: where a piece is cut so that its text can be decoded when somebody asks for it.

An incremental decoder would decode every piece at once, also those that nobody reads as text, and binary data
decodes far slower than it arrives. A cut before an unfinished character gives the same text as no cut.
"""

from __future__ import annotations

from sandboxd.wire.utf8 import unfinished


def decode_between(carried: bytes, data: bytes, held: int) -> str:
    """Return the text of `data` after `carried` from the piece before, without the last `held` bytes of both."""
    whole = carried + data if carried else data
    return (whole[: len(whole) - held] if held else whole).decode("utf-8", "replace")


class Carry:
    """Remembers the unfinished character at the end of one stream's last piece."""

    def __init__(self) -> None:
        self._bytes = b""

    def take(self, data: bytes) -> tuple[bytes, int]:
        """Return what the piece before left over, and how many bytes at the end of both stay for the next."""
        before = self._bytes
        tail = (before + data[-3:] if len(data) < 3 else data[-3:]) if before else data[-3:]
        held = unfinished(tail)
        self._bytes = tail[len(tail) - held :] if held else b""
        return before, held

    def finish(self) -> bytes:
        """Return what is left over at the end of the stream."""
        left, self._bytes = self._bytes, b""
        return left
