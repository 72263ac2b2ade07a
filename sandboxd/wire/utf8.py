"""Where UTF-8 text may be cut: at the end of a character.

Output comes in pieces that end anywhere. A piece that is shown as text by itself ends at a character where it can: the
beginning of one that is not whole waits for its rest. What can no longer become a character does not wait.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

#: A character has four bytes at most, so that is how much of one can be unfinished.
_MOST_UNFINISHED = 3


def unfinished(data: bytes | bytearray) -> int:
    """Return how many bytes at the end of `data` begin a character that is not complete (0 to 3)."""
    tail = bytes(data[-_MOST_UNFINISHED:])
    # The tail may begin within a character: those bytes are none to the decoder, and taken.
    return len(tail) - codecs.utf_8_decode(tail, "replace", False)[1]


def whole(data: bytes) -> bytes:
    """Return `data` without a character that its end cuts."""
    held = unfinished(data)
    return data[: len(data) - held] if held else data


def whole_parts(parts: Sequence[bytes | bytearray]) -> list[bytes | bytearray]:
    """Return the parts of a text without a character that its end cuts."""
    found = list(parts)
    left = unfinished(b"".join(bytes(part[-_MOST_UNFINISHED:]) for part in found[-_MOST_UNFINISHED:]))
    while left and found:
        last = found.pop()
        if len(last) > left:
            found.append(last[: len(last) - left])
        left = max(0, left - len(last))
    return found


def head(data: bytes, limit: int) -> bytes:
    """Return the beginning of `data`, of at most `limit` bytes, without a character that this cuts."""
    return whole(data[:limit]) if len(data) > limit else data


class Pieces:
    """The pieces of some streams, cut anew so that each ends at a character."""

    def __init__(self, streams: Iterable[str]) -> None:
        self._held = dict.fromkeys(streams, b"")

    def feed(self, stream: str, data: bytes) -> bytes:
        """Return what is whole of a stream's next piece, with what was held back before."""
        both = self._held[stream] + data
        found = whole(both)
        self._held[stream] = both[len(found) :]
        return found

    def rest(self, stream: str) -> bytes:
        """Return what is held back, at the end of a stream."""
        held, self._held[stream] = self._held[stream], b""
        return held
