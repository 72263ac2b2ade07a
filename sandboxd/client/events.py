"""`EventStream` and `AsyncEventStream`: what happens to sandboxes, as it happens."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Self

from sandboxd.errors import LocalProtocolError

from .async_stream import Body
from .event_calls import EventReader, SandboxEvent
from .failures import mapped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from types import TracebackType

    from .async_client import AsyncClient
    from .calls import StreamCall
    from .client import Client


class EventStream:
    """A context manager to iterate over; it begins when it is made, and ends with `close` or the daemon.

    An end that nobody asked for is an error: DaemonUnavailable, or ServerBusy where the daemon stops.
    """

    def __init__(self, client: Client, call: StreamCall, start: int | None) -> None:
        self._client = client
        self._reader = EventReader(start)
        self._response = client.open(call)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[SandboxEvent]:
        with contextlib.closing(self._response), mapped(self._client.address):
            for piece in self._response.iter_raw():
                yield from self._reader.feed(piece)

    @property
    def next_offset(self) -> int | None:
        """Where another stream would go on (`start=`); None before the first event."""
        return self._reader.next_offset

    def close(self) -> None:
        """Stop reading."""
        self._response.close()


class AsyncEventStream:
    """`async with` begins it, `async for` reads; it ends as `EventStream` does."""

    def __init__(self, client: AsyncClient, call: StreamCall, start: int | None) -> None:
        self._client = client
        self._call = call
        self._reader = EventReader(start)
        self._pending: deque[SandboxEvent] = deque()
        self._body: Body | None = None

    async def __aenter__(self) -> Self:
        self._body = Body(await self._client.open(self._call))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[SandboxEvent]:
        return self

    async def __anext__(self) -> SandboxEvent:
        if self._body is None:
            raise LocalProtocolError("cannot read events: enter the stream first, with 'async with'")
        while not self._pending:
            with mapped(self._client.address):
                piece = await self._body.read()
            if piece is None:
                raise StopAsyncIteration
            self._pending.extend(self._reader.feed(piece))
        return self._pending.popleft()

    @property
    def next_offset(self) -> int | None:
        """Where another stream would go on behind what has arrived; None before the first event."""
        return self._pending[0].offset if self._pending else self._reader.next_offset

    async def close(self) -> None:
        """Stop reading."""
        if self._body is not None:
            await self._body.close()
