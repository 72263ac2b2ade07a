"""`EventStream` and `AsyncEventStream`: the events of sandboxes, as they happen."""

from __future__ import annotations

from .async_stream import AsyncReaderStream
from .event_calls import EventReader, SandboxEvent
from .stream import ReaderStream


class EventStream(ReaderStream[EventReader, SandboxEvent]):
    """A stream of events: a context manager to iterate over. It is open once created; `close` ends it.

    If the stream ends otherwise, it raises DaemonUnavailable, or ServerBusy if the daemon is stopping.
    """

    @property
    def next_offset(self) -> int | None:
        """The offset at which a new stream would continue (`start=`); None before the first event."""
        return self._reader.next_offset


class AsyncEventStream(AsyncReaderStream[EventReader, SandboxEvent]):
    """`async with` starts it, `async for` reads it; it ends as `EventStream` does."""

    _unopened = "cannot read events: enter the stream first, with 'async with'"

    @property
    def next_offset(self) -> int | None:
        """The offset at which a new stream would continue; None before the first event."""
        return self._pending[0].offset if self._pending else self._reader.next_offset
