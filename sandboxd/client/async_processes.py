"""The process methods of `AsyncSandbox`, for code on trio or asyncio."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

import anyio

from sandboxd.errors import DaemonUnavailable, LocalProtocolError, ServerBusy

from . import command_calls, process_calls
from .async_pty import AsyncPty
from .async_stream import AsyncClosing, AsyncItemStream, Body, run
from .exec_calls import ExecRequest
from .failures import mapped
from .models import ExitStatus, OutputChunk
from .process_calls import RECONNECT_DELAY_S, LogState
from .verbs import AsyncPart, async_steps, async_verb, stream_verb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .async_client import AsyncClient
    from .command_calls import ProcessKey
    from .process_calls import LogReader, ProcessInfo


class AsyncExecStream(AsyncItemStream[ExecRequest, OutputChunk, ExitStatus]):
    """A running command: `async with` starts it, `async for` yields its output, `wait` waits for its end.

    Leaving the block before the command has ended (also by cancellation) kills the command, unless it is detached. The
    command waits while nobody reads its output.

    Attributes:
        process_id: the id of the process; empty before the block is entered.
        result: how the command ended, once it has.
    """

    @property
    def process_id(self) -> str:
        """The id of the process; empty before the block is entered."""
        return self._request.process_id

    @property
    def _target(self) -> tuple[AsyncClient, ProcessKey]:
        return self._client, (self._request.sandbox, self.process_id)

    def __repr__(self) -> str:
        state = self.result.describe() if self.result else "closed" if self._closed else "running"
        return f"<AsyncExecStream {self.process_id or '(not entered)'} {state}>"

    async def wait(self) -> ExitStatus:
        """Read to the end, calling the callbacks, and return how the command ended.

        Raises:
            DaemonUnavailable: the connection broke.
            LocalProtocolError: the stream was already closed, or never entered.
        """
        return await self._finish()

    write_stdin = async_steps(command_calls.write_stdin)
    send_signal = async_verb(command_calls.send_signal)
    close_stdin = async_steps(command_calls.close_stdin)


class AsyncLogStream(LogState, AsyncClosing):
    """The log of a process: `async with` opens it, `async for` yields the output, `wait` waits for the process to end.

    If the connection breaks, even because the daemon restarts, the stream reconnects and continues without losing or
    repeating output. Closing it does not affect the process, which never waits for a reader; `dropped_bytes` counts the
    output that the log dropped before it could be read.

    Attributes:
        process_id: the id of the process.
        result: how the process ended, once it has; stays None if the stream started past the end.
    """

    def __init__(self, client: AsyncClient, reader: LogReader) -> None:
        super().__init__(reader)
        self._client = client
        self._body: Body | None = None

    async def _open(self) -> None:
        self._body = Body(await self._client.open(self._reader.call()))

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    def __aiter__(self) -> AsyncIterator[OutputChunk]:
        return self

    async def __anext__(self) -> OutputChunk:
        while not self._pending:
            if self._reader.ended:
                await self.close()
                raise StopAsyncIteration
            await self._advance()
        chunk, call_back = self._take_chunk()
        await run(call_back)
        return chunk

    async def wait(self) -> ExitStatus | None:
        """Read to the end, calling the callbacks, and return how the process ended.

        Raises:
            DaemonUnavailable: the connection broke and could not be restored in time.
            LocalProtocolError: the stream was already closed.
        """
        async for _ in self:
            pass
        return self.result

    async def close(self) -> None:
        """Drop the connection."""
        self._closed = True
        if self._body is not None:
            await self._body.close()

    async def _advance(self) -> None:
        if self._body is None:
            raise LocalProtocolError("cannot read the stream: enter it first, with 'async with'")
        self._check_open()
        try:
            with mapped(self._client.address):
                piece = await self._body.read()
            self._feed(piece)
        except (DaemonUnavailable, ServerBusy) as error:
            await self._reconnect(error)
        except BaseException:
            await self.close()
            raise

    async def _reconnect(self, error: DaemonUnavailable | ServerBusy) -> None:
        if self._body is not None:
            await self._body.close()
        deadline = time.monotonic() + self._reader.reconnect_s
        while True:
            if time.monotonic() >= deadline:
                await self.close()
                raise error
            await anyio.sleep(RECONNECT_DELAY_S)
            if not self._client.address.may_answer():
                continue
            try:
                await self._open()
            except (DaemonUnavailable, ServerBusy) as again:
                error = again
            except BaseException:
                self._closed = True
                raise
            else:
                return


class AsyncProcessPart(AsyncPart):
    """The process verbs of `AsyncSandbox`."""

    start_process = async_verb(process_calls.start_process)
    get_process = async_verb(process_calls.get_process)
    kill_process = async_verb(process_calls.kill_process)
    remove_process = async_verb(process_calls.remove_process)
    kill_all_processes = async_verb(process_calls.kill_all_processes)
    get_process_logs = async_verb(process_calls.get_process_logs)
    stream_process_logs = stream_verb(process_calls.stream_process_logs, AsyncLogStream)
    write_stdin = async_steps(process_calls.write_stdin)
    close_stdin = async_steps(process_calls.close_stdin)
    wait_for_exit = async_verb(process_calls.wait_for_exit)
    wait_for_port = async_verb(process_calls.wait_for_port)
    wait_for_log = async_verb(process_calls.wait_for_log)
    open_pty = stream_verb(process_calls.open_pty, AsyncPty)

    async def list_processes(self) -> list[ProcessInfo]:
        """Return the running processes, and the ended ones that the daemon still lists."""
        found: list[ProcessInfo] = []
        cursor: str | None = None
        while True:
            items, cursor = await self.client.send(process_calls.page(self.id, cursor))
            found += items
            if cursor is None:
                return found
