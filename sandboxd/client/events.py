"""`EventStream` and `AsyncEventStream`: what happens to sandboxes, as it happens."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING

from .async_stream import AsyncReading
from .event_calls import EventReader, SandboxEvent
from .failures import mapped
from .stream import Reading

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from .async_client import AsyncClient
    from .calls import StreamCall
    from .client import Client


class EventStream(Reading):
    """A context manager to iterate over; it begins when it is made, and ends with `close` or the daemon.

    An end that nobody asked for is an error: DaemonUnavailable, or ServerBusy where the daemon stops.
    """

    def __init__(self, client: Client, call: StreamCall, start: int | None) -> None:
        super().__init__(client, call)
        self._reader = EventReader(start)

    def __iter__(self) -> Iterator[SandboxEvent]:
        with contextlib.closing(self._response), mapped(self._client.address):
            for piece in self._response.iter_raw():
                yield from self._reader.feed(piece)

    @property
    def next_offset(self) -> int | None:
        """Where another stream would go on (`start=`); None before the first event."""
        return self._reader.next_offset


class AsyncEventStream(AsyncReading):
    """`async with` begins it, `async for` reads; it ends as `EventStream` does."""

    _unopened = "cannot read events: enter the stream first, with 'async with'"

    def __init__(self, client: AsyncClient, call: StreamCall, start: int | None) -> None:
        super().__init__(client, call)
        self._reader = EventReader(start)
        self._pending: deque[SandboxEvent] = deque()

    def __aiter__(self) -> AsyncIterator[SandboxEvent]:
        return self

    async def __anext__(self) -> SandboxEvent:
        while not self._pending:
            piece = await self._read()
            if piece is None:
                raise StopAsyncIteration
            self._pending.extend(self._reader.feed(piece))
        return self._pending.popleft()

    @property
    def next_offset(self) -> int | None:
        """Where another stream would go on behind what has arrived; None before the first event."""
        return self._pending[0].offset if self._pending else self._reader.next_offset
