"""One file job of a sandbox's init (`guest/jobs.py`), seen from the daemon.

The daemon makes the pipes and keeps its own ends: an end is an open file description of its own, so nothing that
the other side does to its end (O_NONBLOCK, O_ASYNC) reaches ours, and a read that has nothing waits in the loop as
any other. Frames are bounded and checked like the link's, whose request stays open until the file job has ended.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import InternalError, ProtocolError, RemoteProtocolError
from ..wire import framing
from . import checks
from .link_client import LinkClient, Stream, discard

if TYPE_CHECKING:
    from types import TracebackType

    from ..wire.messages import Event
    from .sandbox import Sandbox

#: One read of the pipe, which holds 64 KiB until it is made larger.
_RECEIVE_BYTES: Final = 256 * 1024
_LENGTH: Final = struct.Struct(">I")
#: One frame of rows and of a stream, as `guest/frames.py` makes them.
MAX_ROWS: Final = 256
MAX_PIECE_BYTES: Final = 512 * 1024
#: A feed goes out in pieces of this; the length before it is how the other side tells the end from a broken pipe.
FEED_BYTES: Final = 1024 * 1024


def _no_events(event: Event) -> None:
    raise RemoteProtocolError(f"cannot take an event of type {event.type[:20]!r}: a file job has no such event")


class FileJob:
    """A file job under way. Made by `Sandbox.job`; an async context manager whose end kills it.

    `next_rows` and `next_piece` give what it finds, until `result` says how it went.
    """

    def __init__(self, sandbox: Sandbox, peer: LinkClient, asked: dict[str, Any]) -> None:
        self._sandbox = sandbox
        self._peer = peer
        self._asked = asked
        self._decoder = framing.FrameDecoder(limit=framing.MAX_REPLY_FRAME)
        self._stream: Stream
        self._out: trio.lowlevel.FdStream
        self._feed: trio.lowlevel.FdStream | None = None
        self.result: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<File job {self._asked['do']} of {self._sandbox!r} result={self.result}>"

    async def __aenter__(self) -> FileJob:
        given, out, into = _pipes(feed=self._asked["feed"])
        self._out = trio.lowlevel.FdStream(out)
        if into is not None:
            self._feed = trio.lowlevel.FdStream(into)
        self._stream = self._peer.stream("errand", self._asked, window=0, fds=given)
        self._stream.check = _no_events
        try:
            await self._stream.__aenter__()
        except BaseException as error:
            discard(given)  # they never left
            await self._close()
            if isinstance(error, ProtocolError):
                raise await self._sandbox.why_broken(error) from error
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close(cancel=self.result is None)
        await self._close()

    async def _close(self) -> None:
        with trio.CancelScope(shield=True):
            await self._out.aclose()
            if self._feed is not None:
                await self._feed.aclose()

    # --- in ---

    async def feed(self, data: bytes | bytearray | memoryview) -> bool:
        """Give it data; False when it takes no more (it has failed: `next_rows` or `finish` tells why)."""
        assert self._feed is not None  # noqa: S101 - whoever feeds has asked for it
        try:
            with memoryview(data) as view:
                for start in range(0, len(view), FEED_BYTES):
                    piece = view[start : start + FEED_BYTES]
                    await self._feed.send_all(_LENGTH.pack(len(piece)))
                    await self._feed.send_all(piece)
        except trio.BrokenResourceError:
            return False
        return True

    async def end_feed(self) -> None:
        """Say that all of the data was given."""
        assert self._feed is not None  # noqa: S101 - as in `feed`
        try:
            await self._feed.send_all(_LENGTH.pack(0))
        except trio.BrokenResourceError:
            return

    # --- out ---

    async def next_rows(self) -> list[dict[str, Any]]:
        """Return the next results; an empty list is the end, and `result` is set.

        Raises:
            SandboxdError: why the file job failed.
        """
        frame = await self._next("rows")
        if frame is None:
            return []
        rows = frame[1]
        if not isinstance(rows, list) or not 0 < len(rows) <= MAX_ROWS or not all(isinstance(r, dict) for r in rows):
            raise await self._fail_protocol("rows that are no short list of maps")
        return rows

    async def next_piece(self) -> bytes:
        """Return the next piece of the stream; no bytes are the end, and `result` is set.

        Raises:
            SandboxdError: why the file job failed.
        """
        frame = await self._next("data")
        if frame is None:
            return b""
        piece = frame[1]
        if not isinstance(piece, bytes) or not 0 < len(piece) <= MAX_PIECE_BYTES:
            raise await self._fail_protocol("a piece that is no bytes, or too large")
        return piece

    async def finish(self) -> dict[str, Any]:
        """Wait for the result of a file job that gives nothing else.

        Raises:
            SandboxdError: why the file job failed.
        """
        if await self._next("nothing") is not None or self.result is None:
            raise await self._fail_protocol("results where none were asked for")
        return self.result

    async def _next(self, wanted: str) -> list[Any] | None:
        """Return the next frame of the wanted kind; None after the end."""
        if self.result is not None:
            return None
        await trio.lowlevel.checkpoint()  # a flood of tiny frames keeps nobody else waiting
        while (frame := self._decode()) is None:
            await self._receive()
        if len(frame) == 2 and frame[0] == wanted:
            return frame
        if len(frame) == 2 and frame[0] == "end" and isinstance(frame[1], dict):
            self.result = frame[1]
            return None
        if len(frame) == 4 and frame[0] == "fail":
            kind, message, facts = frame[1:]
            if isinstance(kind, str) and isinstance(message, str) and isinstance(facts, dict):
                try:
                    failure = checks.failure(kind, message, facts, allowed=checks.INIT_KINDS)
                except RemoteProtocolError:
                    raise await self._fail_protocol(f"a failure of kind {kind[:40]!r}") from None
                self.result = {}  # it has ended by itself
                raise failure
        raise await self._fail_protocol("a frame of an unknown kind")

    async def _receive(self) -> None:
        try:
            data = await self._out.receive_some(_RECEIVE_BYTES)
        except (trio.BrokenResourceError, OSError) as error:
            raise InternalError(f"cannot read what the operation found: {error}") from error
        if not data:
            raise await self._early_end()
        self._decoder.feed(data)

    def _decode(self) -> list[Any] | None:
        try:
            return self._decoder.next_message()
        except RemoteProtocolError as error:
            self._peer.fail_protocol(error)
            raise

    async def _early_end(self) -> BaseException:
        """Return why the file job ended without a result: init knows."""
        try:
            await self._stream.next_batch()
        except ProtocolError as error:
            return await self._sandbox.why_broken(error)
        except Exception as error:
            return error
        return await self._fail_protocol("no result")

    async def _fail_protocol(self, what: str) -> BaseException:
        """Give up an init whose file job broke the rules; return what to tell the caller."""
        return await self._sandbox.why_broken(RemoteProtocolError(f"a file job gave {what}"))


def _pipes(*, feed: bool) -> tuple[list[int], int, int | None]:
    """Return (what to pass, our end of what comes out, our end of what goes in)."""
    made: list[int] = []
    try:
        made += os.pipe2(os.O_CLOEXEC)
        if feed:
            made += os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        discard(made)
        raise InternalError(f"cannot make a pipe: {error.strerror}") from error
    out, theirs = made[:2]
    if not feed:
        return [theirs], out, None
    return [theirs, made[2]], out, made[3]
