"""How a file job and the daemon speak: frames out, pieces in, over two plain pipes.

Out: the link's frames (`wire/framing.py`), each an array:

    ["rows", [map, …]]      results, many at once
    ["data", bytes]         a piece of a stream
    ["end", map]            how it went; nothing follows
    ["fail", kind, message, facts]

In: `length:u32 big-endian | bytes`, length 0 at the end; an end of file before it is a sender that went away.
"""

from __future__ import annotations

import os
import struct
from typing import Any, Final

from ..errors import InternalError, SandboxdError
from ..wire import framing

#: Rows that go out together, by count and by an estimate of their bytes: far below a frame's bounds.
MAX_ROWS: Final = 256
MAX_ROW_BYTES: Final = 256 * 1024
#: One piece of a stream.
PIECE_BYTES: Final = 256 * 1024
_LENGTH: Final = struct.Struct(">I")


class FrameWriter:
    """Writes a file job's frames; blocks while the daemon does not read."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rows: list[dict[str, Any]] = []
        self._row_bytes = 0
        self._piece = bytearray()

    def row(self, row: dict[str, Any], size: int) -> None:
        """Give one result; `size` is about how many bytes it takes."""
        self._rows.append(row)
        self._row_bytes += size + 64
        if len(self._rows) >= MAX_ROWS or self._row_bytes >= MAX_ROW_BYTES:
            self.flush()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Give bytes of a stream; they go out in pieces. A file's `write`, so that libraries can be given this."""
        self._piece += data
        while len(self._piece) >= PIECE_BYTES:
            self._send(["data", bytes(self._piece[:PIECE_BYTES])])
            del self._piece[:PIECE_BYTES]
        return len(data)

    def flush(self) -> None:
        """Send what waits."""
        if self._rows:
            rows, self._rows, self._row_bytes = self._rows, [], 0
            self._send(["rows", rows])
        if self._piece:
            piece, self._piece = bytes(self._piece), bytearray()
            self._send(["data", piece])

    def end(self, result: dict[str, Any]) -> None:
        """Say how it went."""
        self.flush()
        self._send(["end", result])

    def fail(self, error: SandboxdError) -> None:
        """Say why it could not be done."""
        self._rows, self._piece = [], bytearray()
        self._send(["fail", error.kind, error.message, error.facts])

    def _send(self, message: list[Any]) -> None:
        left = memoryview(framing.encode(message, limit=framing.MAX_REPLY_FRAME))
        while left:
            left = left[os.write(self._fd, left) :]


class ChunkReader:
    """Reads what the daemon feeds a file job; a file's `read`, so that libraries can be given this."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._left = 0
        self._ended = False
        self.count = 0

    def read(self, size: int) -> bytes:
        """Return 1 to `size` bytes, none at the end.

        Raises:
            InternalError: the sender went away before the end.
        """
        if self._ended:
            return b""
        if not self._left:
            (self._left,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
            if not self._left:
                self._ended = True
                return b""
        data = os.read(self._fd, min(size, self._left))
        if not data:
            raise _gone()
        self._left -= len(data)
        self.count += len(data)
        return data

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            data = os.read(self._fd, size - len(found))
            if not data:
                raise _gone()
            found += data
        return found


def _gone() -> InternalError:
    return InternalError("cannot continue: the data was cut off")
