"""What a `Sandbox` can do with processes, for synchronous code."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from sandboxd.errors import DaemonUnavailable, ProcessNotRunning, ServerBusy

from . import calls, process_calls
from .failures import mapped
from .process_calls import RECONNECT_DELAY_S, LogState, process_id
from .pty import Pty
from .stream import Closing
from .verbs import Part, stream_verb, sync_verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from .client import Client
    from .models import ExitStatus, OutputChunk
    from .process_calls import LogReader, ProcessInfo


class LogStream(LogState, Closing):
    """A process' log: iterate over it for its output, or `wait` for the process' end; it is a context manager.

    A connection that breaks is made again where it was, with nothing lost or doubled, also over a restart of the
    daemon. Leaving it does nothing to the process, which never waits for a reader; what its log dropped before we came
    to it is counted.

    Attributes:
        process_id: the process' id.
        result: how the process ended, once it has; None also at the end of a stream that began behind the end.
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
        chunk, call_back = self._take()
        if call_back is not None:
            call_back()
        return chunk

    def wait(self) -> ExitStatus | None:
        """Read to the end (the callbacks see all of it) and return how the process ended.

        Raises:
            DaemonUnavailable: the connection broke and could not be made again in time.
            LocalProtocolError: the stream was closed before.
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
    wait_for_exit = sync_verb(process_calls.wait_for_exit)
    wait_for_port = sync_verb(process_calls.wait_for_port)
    wait_for_log = sync_verb(process_calls.wait_for_log)
    open_pty = stream_verb(process_calls.open_pty, Pty)

    def list_processes(self) -> list[ProcessInfo]:
        """Return the processes that run, and those that have ended and are still known."""
        found: list[ProcessInfo] = []
        cursor: str | None = None
        while True:
            items, cursor = self.client.send(process_calls.page(self.id, cursor))
            found += items
            if cursor is None:
                return found

    def write_stdin(self, process: str | ProcessInfo, data: bytes | str) -> None:
        """Write to the standard input of a process that was started with `stdin=True`; returns when it is taken.

        Raises:
            ProcessNotFound, ProcessNotRunning: as their names say.
        """
        data = data.encode() if isinstance(data, str) else data
        for call in calls.write_stdin(self.id, process_id(process), data):
            self.client.send(call)

    def close_stdin(self, process: str | ProcessInfo) -> None:
        """Let a process read the end of its standard input. One that has ended is no error."""
        with contextlib.suppress(ProcessNotRunning):
            self.client.send(calls.close_stdin(self.id, process_id(process)))
