"""Streams of the asynchronous SDK: their common base, a file's bytes, and file changes."""

from __future__ import annotations

import contextlib
import inspect
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import anyio
import httpx

from sandboxd.errors import LocalProtocolError, SandboxdError

from .failures import mapped
from .file_calls import ChangeReader, FileChange
from .shield import cleanup_scope
from .stream import closed_stream, size_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

    from . import calls
    from .async_client import AsyncClient

T = TypeVar("T")
Item = TypeVar("Item")
Q = TypeVar("Q", bound="calls.Streamed[Any, Any]")
Endless = TypeVar("Endless", bound="calls.Reader[Any]")


class Body:
    """An answer's body, and its close.

    httpx reads through five nested async generators. One that is dropped half-way is left to the garbage collector,
    and trio warns of each; so `close` runs them to their end, which is at hand once the connection is closed.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._pieces = response.aiter_raw()
        self._closed = False

    async def read(self) -> bytes | None:
        """Return the next piece, None at the end."""
        return await anext(self._pieces, None)

    async def close(self) -> None:
        """Drop the connection, even in a cancelled task; closing does not wait."""
        if self._closed:
            return
        self._closed = True
        with anyio.CancelScope(shield=True):
            await self._response.aclose()
            # RuntimeError: another task is reading, and meets the end itself.
            with contextlib.suppress(httpx.HTTPError, httpx.StreamError, RuntimeError):
                async for _ in self._pieces:
                    pass


async def run(call_back: Callable[[], object] | None) -> None:
    """Make a call, if there is one, and await its result if that is awaitable."""
    if call_back is not None:
        answer = call_back()
        if inspect.isawaitable(answer):
            await answer


class AsyncEnding:
    """An asynchronous context manager, as `stream.Ending`; also in a task that is cancelled."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with cleanup_scope():
                await self._end()
        except SandboxdError as failure:
            if error is None:
                raise
            error.add_note(f"and {self!r} could not be destroyed: {failure}")

    async def _end(self) -> None:
        raise NotImplementedError


class AsyncClosing:
    """An asynchronous context manager whose block ends with `close`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Release its resources."""
        raise NotImplementedError


class AsyncReading(AsyncClosing):
    """An answer that is read as it comes: `async with` sends the request."""

    _unopened = "cannot read the stream: enter it first, with 'async with'"

    def __init__(self, client: AsyncClient, call: calls.StreamCall) -> None:
        self._client = client
        self._call = call
        self._body: Body | None = None

    async def __aenter__(self) -> Self:
        response = await self._client.open(self._call)
        self._body = Body(response)
        try:
            self._begin(response)
        except BaseException:
            await self.close()
            raise
        return self

    def _begin(self, response: httpx.Response) -> None:
        """Take the answer's headers."""

    async def _read(self) -> bytes | None:
        if self._body is None:
            raise LocalProtocolError(self._unopened)
        with mapped(self._client.address):
            return await self._body.read()

    async def close(self) -> None:
        """Drop the connection, also before the end."""
        if self._body is not None:
            await self._body.close()


class AsyncItemStream(AsyncReading, Generic[Q, Item, T]):
    """The items of an answer, and the final `result`."""

    def __init__(self, client: AsyncClient, request: Q) -> None:
        super().__init__(client, request.call)
        self._request = request
        self._pending: deque[Item] = deque()
        self._closed = False
        self.result: T | None = None

    async def __aenter__(self) -> Self:
        if self._body is not None:
            raise LocalProtocolError("cannot enter the stream: it was entered already")
        return await super().__aenter__()

    def _begin(self, response: httpx.Response) -> None:
        self._request.begin(response)

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        while not self._pending:
            if self.result is not None:
                raise StopAsyncIteration
            await self._advance()
        item = self._pending.popleft()
        await run(self._request.callback(item))
        return item

    async def close(self) -> None:
        """Drop the connection. Unless detached, a running command is killed and running code is interrupted."""
        self._closed = True
        await super().close()

    async def _finish(self) -> T:
        async for _ in self:
            pass
        if self.result is None:
            raise closed_stream()
        return self.result

    async def _advance(self) -> None:
        if self._body is None:
            raise LocalProtocolError(self._unopened)
        if self._closed:
            raise closed_stream()
        try:
            piece = await self._read()
            if piece is None:
                self.result = self._request.close()
                await self.close()
            else:
                self._pending.extend(self._request.feed(piece))
        except BaseException:
            await self.close()
            raise


async def follow(client: AsyncClient, request: calls.Streamed[Item, T]) -> T:
    """Send a request, read its answer as it comes, and return the result."""
    stream: AsyncItemStream[calls.Streamed[Item, T], Item, T] = AsyncItemStream(client, request)
    async with stream:
        return await stream._finish()


class AsyncFileStream(AsyncReading):
    """A file's bytes as they arrive: `async with` opens it, `async for` reads. `size` is in bytes or None."""

    _unopened = "cannot read the file: enter the stream first, with 'async with'"
    size: int | None = None

    def _begin(self, response: httpx.Response) -> None:
        self.size = size_of(response)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._read()
        if piece is None:
            raise StopAsyncIteration
        return piece


class AsyncReaderStream(AsyncReading, Generic[Endless, Item]):
    """The items of an endless answer."""

    def __init__(self, client: AsyncClient, reader: Endless) -> None:
        super().__init__(client, reader.call)
        self._reader = reader
        self._pending: deque[Item] = deque()

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        while not self._pending:
            piece = None if self._reader.over else await self._read()
            if piece is None:
                raise StopAsyncIteration
            self._pending.extend(self._reader.feed(piece))
        return self._pending.popleft()


class AsyncWatchStream(AsyncReaderStream[ChangeReader, FileChange]):
    """File changes as they happen: `async with` starts the watch, `async for` yields until the watched path is gone."""

    _unopened = "cannot watch: enter the stream first, with 'async with'"
