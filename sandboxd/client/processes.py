"""The process methods of `Sandbox`, for synchronous code."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from sandboxd.errors import DaemonUnavailable, ServerBusy

from . import command_calls, process_calls
from .exec_calls import ExecRequest
from .failures import mapped
from .models import ExitStatus, OutputChunk
from .process_calls import RECONNECT_DELAY_S, LogState
from .pty import Pty
from .stream import Closing, ItemStream
from .verbs import Part, stream_verb, sync_steps, sync_verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from .client import Client
    from .command_calls import ProcessKey
    from .process_calls import LogReader, ProcessInfo


class ExecStream(ItemStream[ExecRequest, OutputChunk, ExitStatus]):
    """A running command: iterate over it for its output, or `wait` for its end.

    It is a context manager. Leaving the block before the command has ended kills the command, unless it is detached.
    The command waits while nobody reads its output.

    Attributes:
        process_id: the id of the process.
        result: how the command ended, once it has.
    """

    @property
    def process_id(self) -> str:
        """The id of the process."""
        return self._request.process_id

    @property
    def _target(self) -> tuple[Client, ProcessKey]:
        return self._client, (self._request.sandbox, self.process_id)

    def __repr__(self) -> str:
        state = self.result.describe() if self.result else "closed" if self._closed else "running"
        return f"<ExecStream {self.process_id} {state}>"

    def wait(self) -> ExitStatus:
        """Read to the end, calling the callbacks, and return how the command ended.

        Raises:
            DaemonUnavailable: the connection broke.
            LocalProtocolError: the stream was already closed.
        """
        return self._finish()

    write_stdin = sync_steps(command_calls.write_stdin)
    send_signal = sync_verb(command_calls.send_signal)
    close_stdin = sync_steps(command_calls.close_stdin)


class LogStream(LogState, Closing):
    """The log of a process: iterate over it for the output, or `wait` for the process to end. A context manager.

    If the connection breaks, even because the daemon restarts, the stream reconnects and continues without losing or
    repeating output. Closing it does not affect the process, which never waits for a reader; `dropped_bytes` counts the
    output that the log dropped before it could be read.

    Attributes:
        process_id: the id of the process.
        result: how the process ended, once it has; stays None if the stream started past the end.
    """

    def __init__(self, client: Client, reader: LogReader) -> None:
        super().__init__(reader)
        self._client = client
        self._open()

    def _open(self) -> None:
        self._response: httpx.Response = self._client.open(self._reader.call())
        self._pieces = self._response.iter_raw()

    def __iter__(self) -> Iterator[OutputChunk]:
        return self

    def __next__(self) -> OutputChunk:
        while not self._pending:
            if self._reader.ended:
                self.close()
                raise StopIteration
            self._advance()
        chunk, call_back = self._take_chunk()
        if call_back is not None:
            call_back()
        return chunk

    def wait(self) -> ExitStatus | None:
        """Read to the end, calling the callbacks, and return how the process ended.

        Raises:
            DaemonUnavailable: the connection broke and could not be restored in time.
            LocalProtocolError: the stream was already closed.
        """
        for _ in self:
            pass
        return self.result

    def close(self) -> None:
        """Drop the connection."""
        self._closed = True
        self._response.close()

    def _advance(self) -> None:
        self._check_open()
        try:
            with mapped(self._client.address):
                piece = next(self._pieces, None)
            self._feed(piece)
        except (DaemonUnavailable, ServerBusy) as error:
            self._reconnect(error)
        except BaseException:
            self.close()
            raise

    def _reconnect(self, error: DaemonUnavailable | ServerBusy) -> None:
        self._response.close()
        deadline = time.monotonic() + self._reader.reconnect_s
        pause = threading.Event()
        while True:
            if time.monotonic() >= deadline:
                self.close()
                raise error
            pause.wait(RECONNECT_DELAY_S)
            if not self._client.address.may_answer():
                continue
            try:
                self._open()
            except (DaemonUnavailable, ServerBusy) as again:
                error = again
            except BaseException:
                self._closed = True
                raise
            else:
                return


class ProcessPart(Part):
    """The process verbs of `Sandbox`."""

    start_process = sync_verb(process_calls.start_process)
    get_process = sync_verb(process_calls.get_process)
    kill_process = sync_verb(process_calls.kill_process)
    remove_process = sync_verb(process_calls.remove_process)
    kill_all_processes = sync_verb(process_calls.kill_all_processes)
    get_process_logs = sync_verb(process_calls.get_process_logs)
    stream_process_logs = stream_verb(process_calls.stream_process_logs, LogStream)
    write_stdin = sync_steps(process_calls.write_stdin)
    close_stdin = sync_steps(process_calls.close_stdin)
    wait_for_exit = sync_verb(process_calls.wait_for_exit)
    wait_for_port = sync_verb(process_calls.wait_for_port)
    wait_for_log = sync_verb(process_calls.wait_for_log)
    open_pty = stream_verb(process_calls.open_pty, Pty)

    def list_processes(self) -> list[ProcessInfo]:
        """Return the running processes, and the ended ones that the daemon still lists."""
        found: list[ProcessInfo] = []
        cursor: str | None = None
        while True:
            items, cursor = self.client.send(process_calls.page(self.id, cursor))
            found += items
            if cursor is None:
                return found
