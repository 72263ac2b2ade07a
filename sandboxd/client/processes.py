"""What a `Sandbox` can do with processes, for synchronous code."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Literal, Self

from sandboxd.errors import DaemonUnavailable, LocalProtocolError, ProcessNotRunning, ServerBusy

from . import calls, process_calls
from .failures import mapped
from .process_calls import RECONNECT_DELAY_S, RECONNECT_S, LogReader, ProcessInfo, ProcessLogs, WaitResult, process_id
from .pty import Pty

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    import httpx

    from .client import Client
    from .models import ExitStatus, OutputChunk


class LogStream:
    """A process' log: iterate over it for its output, or `wait` for the process' end; it is a context manager.

    A connection that breaks is made again where it was, with nothing lost or doubled, also over a restart of the
    daemon. Leaving it does nothing to the process, which never waits for a reader; what its log dropped before we came
    to it is counted.

    Attributes:
        process_id: the process' id.
        result: how the process ended, once it has; None also at the end of a stream that began behind the end.
    """

    def __init__(
        self,
        client: Client,
        reader: LogReader,
        on_stdout: Callable[[str], object] | None = None,
        on_stderr: Callable[[str], object] | None = None,
        reconnect_s: float = RECONNECT_S,
    ) -> None:
        self._client = client
        self._reader = reader
        self._callbacks = {"stdout": on_stdout, "stderr": on_stderr}
        self._reconnect_s = reconnect_s
        self._pending: deque[tuple[OutputChunk, int]] = deque()
        self._offset = reader.offset
        self._closed = False
        self._open()

    def _open(self) -> None:
        self._response: httpx.Response = self._client.open(self._reader.call())
        self._pieces = self._response.iter_raw()

    def __repr__(self) -> str:
        return f"<LogStream {self.process_id} at {self.offset}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def process_id(self) -> str:
        """The process' id."""
        return self._reader.process_id

    @property
    def result(self) -> ExitStatus | None:
        """How the process ended, once it has."""
        return self._reader.result

    @property
    def offset(self) -> int:
        """Where another stream would go on after what this one has given: `start=` of `stream_process_logs`."""
        return self._offset if self._pending else self._reader.offset

    @property
    def dropped_bytes(self) -> int:
        """Output that the log no longer had when we came to it."""
        return self._reader.dropped_bytes

    def __iter__(self) -> Iterator[OutputChunk]:
        return self

    def __next__(self) -> OutputChunk:
        while not self._pending:
            if self._reader.ended:
                self.close()
                raise StopIteration
            self._advance()
        chunk, self._offset = self._pending.popleft()
        callback = self._callbacks[chunk.stream]
        if callback is not None and (text := chunk.text):
            callback(text)
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
        if self._closed:
            raise LocalProtocolError("cannot read the stream: it was closed before the process' end")
        try:
            with mapped(self._client.address):
                piece = next(self._pieces, None)
            if piece is None:
                self._reader.close()
            else:
                self._pending.extend(self._reader.feed(piece))
        except (DaemonUnavailable, ServerBusy) as error:
            self._reconnect(error)
        except BaseException:
            self.close()
            raise

    def _reconnect(self, error: DaemonUnavailable | ServerBusy) -> None:
        self._response.close()
        deadline = time.monotonic() + self._reconnect_s
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


class ProcessPart:
    """The process verbs of `Sandbox`."""

    if TYPE_CHECKING:

        @property
        def id(self) -> str:
            """The sandbox's id."""

        @property
        def client(self) -> Client:
            """Its connections."""

    def start_process(  # noqa: PLR0913 - the fields of a process, all by keyword
        self,
        command: str | Sequence[str],
        *,
        id: str | None = None,  # noqa: A002 - the API's own name
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | int | None = None,
        stdin: bytes | str | bool | None = None,
        timeout: float | None = None,
        keep_orphans: bool = False,
        restart: Literal["never", "on-failure"] | None = None,
    ) -> ProcessInfo:
        """Start a command that goes on by itself, and return it.

        Args as of `exec`, and:
            id: a name of your own for it, unique in the sandbox.
            stdin: True leaves it open for `write_stdin`.
            restart: "on-failure" starts it again, ever later, when it fails; ten times in a row at most.

        Raises:
            InvalidRequest: a value is wrong; `field` names it.
            NameTaken: another process has that id.
        """
        call = process_calls.start(
            self.id,
            command,
            id=id,
            restart=restart,
            cwd=cwd,
            env=env,
            user=user,
            stdin=stdin,
            timeout=timeout,
            keep_orphans=keep_orphans,
        )
        return self.client.send(call)

    def list_processes(self) -> builtins.list[ProcessInfo]:
        """Return the processes that run, and those that have ended and are still known."""
        found: builtins.list[ProcessInfo] = []
        cursor: str | None = None
        while True:
            items, cursor = self.client.send(process_calls.page(self.id, cursor))
            found += items
            if cursor is None:
                return found

    def get_process(self, process: str | ProcessInfo) -> ProcessInfo:
        """Return a process as it is now.

        Raises:
            ProcessNotFound: there is none.
        """
        return self.client.send(process_calls.get(self.id, process))

    def kill_process(self, process: str | ProcessInfo, signal: str | int = "TERM") -> None:
        """Send a signal, TERM if not said otherwise, to a process' group; TERM and KILL go to all that it started.

        Raises:
            ProcessNotFound, ProcessNotRunning: as their names say.
        """
        self.client.send(process_calls.signal(self.id, process, signal))

    def remove_process(self, process: str | ProcessInfo) -> None:
        """End a process with all that it started, and drop its log.

        Raises:
            ProcessNotFound: there is none.
        """
        self.client.send(process_calls.remove(self.id, process))

    def kill_all_processes(self) -> None:
        """End every process with all that it started, and drop every log."""
        self.client.send(process_calls.remove_all(self.id))

    def get_process_logs(self, process: str | ProcessInfo, *, start: int = 0, tail: int | None = None) -> ProcessLogs:
        """Return what a process has printed, from the offset `start` on, or the last `tail` lines of that.

        Raises:
            ProcessNotFound: there is none.
        """
        return self.client.send(process_calls.logs(self.id, process, start, tail))

    def stream_process_logs(
        self,
        process: str | ProcessInfo,
        *,
        start: int = 0,
        tail: int | None = None,
        on_stdout: Callable[[str], object] | None = None,
        on_stderr: Callable[[str], object] | None = None,
        reconnect_s: float = RECONNECT_S,
    ) -> LogStream:
        """Follow what a process prints: iterate over it, or `wait()`; use it as a context manager.

        Args:
            process: which.
            start: the offset to begin at: `offset` of an earlier stream, or `next_offset` of `get_process_logs`.
            tail: begin with the last so many lines.
            on_stdout: called with each piece of standard output as text, while somebody iterates or waits.
            on_stderr: the same for standard error.
            reconnect_s: how long a daemon that went away is tried again; 0 raises at once.

        Raises:
            ProcessNotFound: there is none.
        """
        reader = LogReader(self.id, process_id(process), start, tail)
        return LogStream(self.client, reader, on_stdout, on_stderr, reconnect_s)

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

    def wait_for_exit(self, process: str | ProcessInfo, *, timeout: float | None = None) -> WaitResult:
        """Wait until a process has ended, for `timeout` seconds at most.

        Raises:
            ProcessNotFound: there is none.
        """
        return self.client.send(process_calls.wait(self.id, process, "exit", timeout=timeout))

    def wait_for_port(
        self, process: str | ProcessInfo, port: int, *, path: str | None = None, timeout: float | None = None
    ) -> WaitResult:
        """Wait until something in the sandbox accepts on a TCP port, or the process ends before.

        Args:
            process: whose end ends the wait.
            port: 1 to 65535, on any of the sandbox's addresses, IPv4 or IPv6.
            path: where a GET must be answered with a status of 200 to 399, such as "/health".
            timeout: seconds, else for ever.

        Raises:
            ProcessNotFound: there is none.
        """
        call = process_calls.wait(self.id, process, "port", port=port, path=path, timeout=timeout)
        return self.client.send(call)

    def wait_for_log(self, process: str | ProcessInfo, pattern: str, *, timeout: float | None = None) -> WaitResult:
        """Wait until a line of a process' output matches, or the process ends before; old lines count.

        Args:
            process: whose output.
            pattern: a regular expression of RE2's syntax, searched in each line.
            timeout: seconds, else for ever.

        Raises:
            ProcessNotFound: there is none.
            InvalidRequest: the pattern is none.
        """
        return self.client.send(process_calls.wait(self.id, process, "log", pattern=pattern, timeout=timeout))

    def open_pty(  # noqa: PLR0913 - the fields of a terminal, all by keyword
        self,
        command: str | Sequence[str] | None = None,
        *,
        process: str | ProcessInfo | None = None,
        cols: int = 80,
        rows: int = 24,
        id: str | None = None,  # noqa: A002 - the API's own name
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | int | None = None,
        linger: float | None = 300.0,
        on_gap: Callable[[int], object] | None = None,
    ) -> Pty:
        """Open a terminal and look at it, or come back to one: a context manager.

        Args:
            command: a line for `sh -c`, or a list of program and arguments; else the user's own shell.
            process: the `process_id` of a terminal that is there already; then only `cols` and `rows` mean something.
            cols: columns, 1 to 2000.
            rows: rows, 1 to 2000.
            id: a name of your own for its process.
            cwd: where it starts, absolute; else the sandbox's.
            env: variables on top of the sandbox's.
            user: name or uid; else the sandbox's.
            linger: how many seconds it goes on without a viewer; None is for ever.
            on_gap: called with a number of bytes where a slow viewer has missed some; its screen is shown anew.

        Raises:
            InvalidRequest: a value is wrong; `field` names it.
            ProcessNotFound: there is no such `process`.
            LimitExceeded: the sandbox has as many terminals as it may.
        """
        found = process
        if found is None:
            call = process_calls.start_terminal(
                self.id, command, id=id, size=(cols, rows), linger=linger, cwd=cwd, env=env, user=user
            )
            found = self.client.send(call)
        query = process_calls.pty_query(found, cols, rows, fresh=process is None)
        return Pty(self.client.address, self.id, query, on_gap)
