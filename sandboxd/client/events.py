"""`EventStream` and `AsyncEventStream`: what happens to sandboxes, as it happens."""

from __future__ import annotations

from .async_stream import AsyncReaderStream
from .event_calls import EventReader, SandboxEvent
from .stream import ReaderStream


class EventStream(ReaderStream[EventReader, SandboxEvent]):
    """A context manager to iterate over; it begins when it is made, and ends with `close` or the daemon.

    An end that nobody asked for is an error: DaemonUnavailable, or ServerBusy where the daemon stops.
    """

    @property
    def next_offset(self) -> int | None:
        """Where another stream would go on (`start=`); None before the first event."""
        return self._reader.next_offset


class AsyncEventStream(AsyncReaderStream[EventReader, SandboxEvent]):
    """`async with` begins it, `async for` reads; it ends as `EventStream` does."""

    _unopened = "cannot read events: enter the stream first, with 'async with'"

    @property
    def next_offset(self) -> int | None:
        """Where another stream would go on behind what has arrived; None before the first event."""
        return self._pending[0].offset if self._pending else self._reader.next_offset
