"""Raw frames: a command's output on the fast path, byte-exact (`Accept: application/octet-stream`).

A stream is frames of `type:u8 | length:u32 big-endian | payload`: any number of stdout (1), stderr (2) and event
(5) frames, then exactly one last frame: exit (3), the exit event as JSON, problem (4), the problem object as JSON
when the stream broke, or end (6), where the reader asked for no more. Nothing may follow it, and a stream that ends
without it was cut.

Event and end frames come in the answer to `logs` only. Theirs are the offsets of a journal: an event frame is JSON
with `type` and `offset`, one for each event that is no output, and at the start one of the type "position" where
the first event is output; each output frame has the next offset. A reader that was cut goes on at the one after.

Sans-I/O: the encoder returns bytes, the decoder takes bytes in any pieces and returns frames. Both refuse what
passes the bounds: the encoder with `LocalProtocolError`, the decoder with `RemoteProtocolError`, after which it
refuses everything.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from sandboxd.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "END",
    "EVENT",
    "EXIT",
    "MAX_CONTROL_BYTES",
    "MAX_PAYLOAD_BYTES",
    "PROBLEM",
    "STDERR",
    "STDOUT",
    "Frame",
    "RawDecoder",
    "encode",
    "header",
    "split",
]

STDOUT: Final = 1
STDERR: Final = 2
EXIT: Final = 3
PROBLEM: Final = 4
EVENT: Final = 5
END: Final = 6

#: The bound of one output frame. A process's whole journal is 1 MiB by default, so a longer frame cannot be one
#: event of it; four times that leaves room for an operator's larger journal and is what a reader may have to hold.
MAX_PAYLOAD_BYTES: Final = 4 * 1024 * 1024
#: The bound of an exit or problem frame: a JSON object of some fields, a kilobyte or two with long messages.
MAX_CONTROL_BYTES: Final = 256 * 1024

_HEADER: Final = struct.Struct(">BI")
_HEADER_BYTES: Final = _HEADER.size
_LIMITS: Final = {
    STDOUT: MAX_PAYLOAD_BYTES,
    STDERR: MAX_PAYLOAD_BYTES,
    EXIT: MAX_CONTROL_BYTES,
    PROBLEM: MAX_CONTROL_BYTES,
    EVENT: MAX_CONTROL_BYTES,
    END: MAX_CONTROL_BYTES,
}
_LAST: Final = frozenset({EXIT, PROBLEM, END})


class Frame(NamedTuple):
    """One frame: its type (`STDOUT`, `STDERR`, `EXIT`, `PROBLEM`, `EVENT` or `END`) and its payload."""

    type: int
    payload: bytes


def header(frame_type: int, length: int) -> bytes:
    """Return the five bytes that go before a payload of `length` bytes, so that the payload need not be copied.

    Raises:
        LocalProtocolError: there is no such type, or the length is over its bound.
    """
    limit = _LIMITS.get(frame_type)
    if limit is None:
        raise LocalProtocolError(f"cannot encode a raw frame: there is no type {frame_type}", type=frame_type)
    if length > limit:
        raise LocalProtocolError(
            f"cannot encode a raw frame: {length} bytes are over the limit of {limit}", limit_bytes=limit
        )
    return _HEADER.pack(frame_type, length)


def encode(frame_type: int, payload: bytes) -> bytes:
    """Return one whole frame; for large payloads write `header(...)` and the payload one after the other.

    Raises:
        LocalProtocolError: there is no such type, or the payload is over its bound.
    """
    return header(frame_type, len(payload)) + payload


def split(payload: bytes) -> Iterator[bytes | memoryview]:
    """Yield `payload` in pieces that each fit one output frame, without a copy."""
    if len(payload) <= MAX_PAYLOAD_BYTES:
        yield payload
        return
    view = memoryview(payload)
    for start in range(0, len(view), MAX_PAYLOAD_BYTES):
        yield view[start : start + MAX_PAYLOAD_BYTES]


class RawDecoder:
    """Turns bytes in any pieces into frames.

    A piece is read where it lies; only a frame that a piece cuts is put together in a buffer, whose size the
    bounds above limit to one frame and one piece. Each byte is copied at most three times whatever the pieces.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._need = _HEADER_BYTES
        self._ended = False
        self._failed = False

    @property
    def ended(self) -> bool:
        """Whether the last frame (exit, problem or end) was seen."""
        return self._ended

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes and return the frames that they complete.

        Raises:
            RemoteProtocolError: an unknown type, a length over its bound, or anything after the last frame.
        """
        if self._failed:
            raise self._fail("it already broke the protocol")
        buffer = self._buffer
        if not buffer:
            frames, used = self._scan(data)
            if used < len(data):
                buffer += data[used:]
            return frames
        buffer += data
        if len(buffer) < self._need:
            return []
        frames, used = self._scan(buffer)
        del buffer[:used]
        return frames

    def close(self) -> None:
        """Say that no more bytes will come.

        Raises:
            RemoteProtocolError: the stream was cut: in a frame, or before the exit frame.
        """
        if self._failed:
            raise self._fail("it already broke the protocol")
        if self._buffer:
            raise self._fail(f"it ended inside a frame, {self._need - len(self._buffer)} bytes short")
        if not self._ended:
            raise self._fail("it ended without an exit frame")

    def _scan(self, data: bytes | bytearray) -> tuple[list[Frame], int]:
        """Return the whole frames at the start of `data`, and how many bytes they take."""
        frames: list[Frame] = []
        position, end = 0, len(data)
        with memoryview(data) as view:
            while end - position >= _HEADER_BYTES:
                frame_type, length = _HEADER.unpack_from(view, position)
                self._check(frame_type, length)
                start = position + _HEADER_BYTES
                if end - start < length:
                    self._need = _HEADER_BYTES + length
                    return frames, position
                position = start + length
                frames.append(Frame(frame_type, bytes(view[start:position])))
                self._ended = frame_type in _LAST
        if self._ended and position < end:
            raise self._fail("there are bytes after its last frame")
        self._need = _HEADER_BYTES
        return frames, position

    def _check(self, frame_type: int, length: int) -> None:
        if self._ended:
            raise self._fail("there are bytes after its last frame")
        limit = _LIMITS.get(frame_type)
        if limit is None:
            raise self._fail(f"there is no type {frame_type}")
        if length > limit:
            raise self._fail(f"a frame of {length} bytes is over the limit of {limit}")

    def _fail(self, why: str) -> RemoteProtocolError:
        self._failed = True
        self._buffer = bytearray()  # not clear(): a view of it may be open
        return RemoteProtocolError(f"cannot read the raw stream: {why}", reason=why)
