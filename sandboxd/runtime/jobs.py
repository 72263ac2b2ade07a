"""One file job of a sandbox's init (`guest/jobs.py`), seen from the daemon: a child with pipes (`child_stream.py`).

A file job is a fork of init. So when it breaks the rules, init loses its link.
"""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, Any, Final

from ..errors import RemoteProtocolError
from ..wire import framing
from . import checks
from .child_stream import PipedChild

if TYPE_CHECKING:
    from types import TracebackType

    from ..wire.messages import Event
    from .link_client import LinkClient, Stream
    from .sandbox import Sandbox

_LENGTH: Final = struct.Struct(">I")
#: One frame of rows and of a stream, as `guest/frames.py` makes them.
MAX_ROWS: Final = 256
MAX_PIECE_BYTES: Final = 512 * 1024
#: A feed goes out in pieces of this; the length before it is how the other side tells the end from a broken pipe.
FEED_BYTES: Final = 1024 * 1024


def _no_events(event: Event) -> None:
    raise RemoteProtocolError(f"cannot accept an event of type {event.type[:20]!r}: a file job has no such event")


class FileJob:
    """A file job under way. Made by `Sandbox.job`; an async context manager whose end kills it.

    `next_rows` and `next_piece` give what it finds, until `result` says how it went.
    """

    def __init__(self, sandbox: Sandbox, peer: LinkClient, asked: dict[str, Any]) -> None:
        self._sandbox = sandbox
        self._peer = peer
        self._asked = asked
        self._child = PipedChild[dict[str, Any]](
            sandbox,
            limit=framing.MAX_REPLY_FRAME,
            parse_end=lambda result: result,
            parse_failure=functools.partial(checks.failure, allowed=checks.INIT_KINDS),
            fail_protocol=sandbox.why_broken,
        )

    def __repr__(self) -> str:
        return f"<File job {self._asked['do']} of {self._sandbox!r} result={self.result}>"

    @property
    def result(self) -> dict[str, Any] | None:
        """What it said at its end: nothing where it failed, None before."""
        return {} if self._child.has_ended and self._child.result is None else self._child.result

    async def __aenter__(self) -> FileJob:
        await self._child.start(self._ask, [], has_input=self._asked["feed"])
        return self

    def _ask(self, fds: list[int]) -> Stream:
        stream = self._peer.stream("errand", self._asked, window=0, fds=fds)
        stream.check = _no_events
        return stream

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.close(cancel=not self._child.has_ended)
        await self._child.close_pipes()

    # --- in ---

    async def feed(self, data: bytes | bytearray | memoryview) -> bool:
        """Give it data; False when it takes no more (it has failed: `next_rows` or `finish` tells why)."""
        with memoryview(data) as view:
            for start in range(0, len(view), FEED_BYTES):
                piece = view[start : start + FEED_BYTES]
                if not (await self._child.send(_LENGTH.pack(len(piece))) and await self._child.send(piece)):
                    return False
        return True

    async def end_feed(self) -> None:
        """Say that all of the data was given."""
        await self._child.send(_LENGTH.pack(0))

    # --- out ---

    async def next_rows(self) -> list[dict[str, Any]]:
        """Return the next results; an empty list is the end, and `result` is set.

        Raises:
            SandboxdError: why the file job failed.
        """
        frame = await self._child.next_frame("rows")
        if frame is None:
            return []
        rows = frame[1]
        if not isinstance(rows, list) or not 0 < len(rows) <= MAX_ROWS or not all(isinstance(r, dict) for r in rows):
            raise await self._child.broken("rows that are not a short list of maps")
        return rows

    async def next_piece(self) -> bytes:
        """Return the next piece of the stream; no bytes are the end, and `result` is set.

        Raises:
            SandboxdError: why the file job failed.
        """
        frame = await self._child.next_frame("data")
        if frame is None:
            return b""
        piece = frame[1]
        if not isinstance(piece, bytes) or not 0 < len(piece) <= MAX_PIECE_BYTES:
            raise await self._child.broken("a piece that is not bytes, or is too large")
        return piece

    async def finish(self) -> dict[str, Any]:
        """Wait for the result of a file job that gives nothing else.

        Raises:
            SandboxdError: why the file job failed.
        """
        if await self._child.next_frame("nothing") is not None or self.result is None:
            raise await self._child.broken("results where none were asked for")
        return self.result
