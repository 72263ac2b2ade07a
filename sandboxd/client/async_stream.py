"""Streams of the asynchronous SDK: a command's output, and a file's bytes."""

from __future__ import annotations

import contextlib
import inspect
from collections import deque
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import anyio
import httpx

from sandboxd.errors import LocalProtocolError, ProcessNotRunning

from . import calls, process_calls
from .failures import mapped
from .file_calls import ChangeReader
from .models import ExitStatus, OutputChunk
from .stream import closed_stream, size_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

    from .async_client import AsyncClient
    from .exec_calls import ExecRequest
    from .file_calls import FileChange

T = TypeVar("T")
Item = TypeVar("Item")


class Body:
    """An answer's body, and its end.

    httpx reads through five nested async generators. One that is dropped half-way is left to the garbage collector,
    and trio warns of each; so `close` runs them to their end, which is at hand once the connection is closed.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._pieces = response.aiter_raw()
        self._closed = False

    async def read(self) -> bytes | None:
        """Return the next piece, None at the end."""
        return await anext(self._pieces, None)

    async def close(self) -> None:
        """Drop the connection, also in a task that is cancelled; closing waits for nobody."""
        if self._closed:
            return
        self._closed = True
        with anyio.CancelScope(shield=True):
            await self.response.aclose()
            # RuntimeError: another task is reading, and meets the end itself.
            with contextlib.suppress(httpx.HTTPError, httpx.StreamError, RuntimeError):
                async for _ in self._pieces:
                    pass


async def follow(client: AsyncClient, request: calls.Streamed[Item, T]) -> T:
    """Send a request, read its answer as it comes (what callbacks return is awaited if it can be); see `stream`."""
    body = Body(await client.open(request.call))
    try:
        request.begin(body.response)
        while True:
            with mapped(client.address):
                piece = await body.read()
            if piece is None:
                return request.close()
            for item in request.feed(piece):
                await run(request.callback(item))
    finally:
        await body.close()


async def run(call_back: Callable[[], object] | None) -> None:
    """Make a call, if there is one, and await what it returns if that can be awaited."""
    if call_back is not None:
        answer = call_back()
        if inspect.isawaitable(answer):
            await answer


class AsyncClosing:
    """An asynchronous context manager whose block ends with `close`."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give back what it holds."""
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


class AsyncItemStream(AsyncReading, Generic[Item, T]):
    """The items of an answer, and what they come to: `result`."""

    def __init__(self, client: AsyncClient, request: calls.Streamed[Item, T]) -> None:
        super().__init__(client, request.call)
        self._request = request
        self._pending: deque[Item] = deque()
        self._closed = False
        self.result: T | None = None

    async def __aenter__(self) -> Self:
        if self._body is not None:
            raise LocalProtocolError("cannot enter the stream: it was entered before")
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
        """Drop the connection; what still runs is ended (a command killed, code interrupted), unless it is detached."""
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


class AsyncExecStream(AsyncItemStream[OutputChunk, ExitStatus]):
    """A running command: `async with` starts it, `async for` gives its output, `wait` its end.

    Leaving the block before the command has ended (also by cancellation) kills the command unless it is detached,
    so nothing runs on unseen. Reading is what makes a command go on: one whose output nobody reads waits.

    Attributes:
        process_id: the process' id in the sandbox; empty before the block is entered.
        result: how the command ended, once it has.
    """

    def __init__(self, client: AsyncClient, request: ExecRequest) -> None:
        super().__init__(client, request)
        self._sandbox_id = request.sandbox
        self._request: ExecRequest = request

    @property
    def process_id(self) -> str:
        """The process' id in the sandbox; empty before the block is entered."""
        return self._request.process_id

    def __repr__(self) -> str:
        state = self.result.describe() if self.result else "closed" if self._closed else "running"
        return f"<AsyncExecStream {self.process_id or '(not entered)'} {state}>"

    async def wait(self) -> ExitStatus:
        """Read to the end (the callbacks see all of it) and return how the command ended.

        Raises:
            DaemonUnavailable: the connection broke.
            LocalProtocolError: the stream was closed before, or never entered.
        """
        return await self._finish()

    async def write_stdin(self, data: bytes | str) -> None:
        """Write to the command's standard input, which `stdin=True` left open; returns when it is taken.

        Raises:
            ProcessNotRunning: the command has ended, or closed its standard input.
        """
        data = data.encode() if isinstance(data, str) else data
        for call in calls.write_stdin(self._sandbox_id, self.process_id, data):
            await self._client.send(call)

    async def send_signal(self, number: str | int) -> None:
        """Send a signal, a name or a number, to the command's process group; KILL goes to all that it started.

        Raises:
            ProcessNotRunning: the command has ended.
        """
        await self._client.send(process_calls.kill_process(self._sandbox_id, self.process_id, number))

    async def close_stdin(self) -> None:
        """Close the command's standard input: it reads an end of file. One that has ended is no error."""
        with contextlib.suppress(ProcessNotRunning):
            await self._client.send(calls.close_stdin(self._sandbox_id, self.process_id))


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


class AsyncWatchStream(AsyncReading):
    """Changes as they happen: `async with` begins the watch, `async for` reads until what is watched is gone."""

    _unopened = "cannot watch: enter the stream first, with 'async with'"

    def __init__(self, client: AsyncClient, call: calls.StreamCall) -> None:
        super().__init__(client, call)
        self._reader = ChangeReader()
        self._pending: deque[FileChange] = deque()

    def __aiter__(self) -> AsyncIterator[FileChange]:
        return self

    async def __anext__(self) -> FileChange:
        while not self._pending:
            piece = None if self._reader.over else await self._read()
            if piece is None:
                raise StopAsyncIteration
            self._pending.extend(self._reader.feed(piece))
        return self._pending.popleft()
