"""The requests of …/processes, written once, and what the SDK makes of their answers."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import json
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack

from sandboxd.errors import LocalProtocolError, ProcessNotRunning, RemoteProtocolError
from sandboxd.wire import raw

from .calls import RAW_TYPE, Call, Steps, StreamCall, given, nothing, paged, process_path, sandbox_path
from .exec_calls import text_callback
from .failures import from_problem
from .models import ExitStatus, Json, OutputChunk, Usage, parse_exit, parse_time, read
from .options import CommandOptions, StartOptions, command_json, takes
from .text import Carry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["ProcessInfo", "ProcessLogs", "WaitResult"]

#: How long a log stream tries to reach the daemon again (seconds): a restart takes about one.
RECONNECT_S: Final = 30.0
#: One POST to a process's stdin; larger writes are cut, so that the daemon holds little at a time.
STDIN_CHUNK_BYTES: Final = 1024 * 1024
#: The user's own shell, as the daemon's own default for …/pty.
DEFAULT_SHELL: Final = 'exec "${SHELL:-/bin/sh}"'
#: Between two tries.
RECONNECT_DELAY_S: Final = 0.1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """A process as the daemon described it.

    Attributes:
        id: its id, chosen by the caller or the daemon.
        pid: the pid of its main process in the sandbox, or None.
        status: "running" or "exited".
        command: the string or the argument list it was started with.
        exit_code, signal, reason: how it ended; None while it runs.
        restarts: how often it was restarted.
        terminal: whether it has a terminal.
        usage: resources used by it and everything it started.
        raw: the daemon's object with every field.
    """

    id: str
    pid: int | None
    status: str
    command: str | tuple[str, ...]
    cwd: str
    started_at: dt.datetime
    ended_at: dt.datetime | None
    exit_code: int | None
    signal: str | None
    reason: str | None
    restarts: int
    terminal: bool
    usage: Usage
    raw: dict[str, Any] = dataclasses.field(repr=False, compare=False)

    @property
    def is_running(self) -> bool:
        """Whether it is still running."""
        return self.status == "running"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProcessLogs:
    """What a process has printed so far.

    Attributes:
        next_offset: the offset at which to continue reading.
        dropped_bytes: bytes of output that the log no longer has.
    """

    stdout_bytes: bytes = dataclasses.field(repr=False)
    stderr_bytes: bytes = dataclasses.field(repr=False)
    next_offset: int
    dropped_bytes: int

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are not UTF-8 become U+FFFD."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Standard error as text; bytes that are not UTF-8 become U+FFFD."""
        return self.stderr_bytes.decode("utf-8", "replace")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WaitResult:
    """The outcome of a wait.

    Attributes:
        met: whether the condition was met.
        reason: what ended the wait: "exit", "port", "log" or "timeout".
        exit_code, signal: how the process ended, if it did.
        line: the matching line.
        status: the HTTP status that `watch_port` waited for.
    """

    met: bool
    reason: str
    exit_code: int | None = None
    signal: str | None = None
    line: str | None = None
    status: int | None = None

    def __bool__(self) -> bool:
        return self.met


def parse_process(value: Json) -> ProcessInfo:
    """Read a process object."""
    usage = value.get("usage") or {}
    ended = value.get("ended_at")
    command = value["command"]
    return ProcessInfo(
        id=str(value["id"]),
        pid=value.get("pid"),
        status=str(value["status"]),
        command=command if isinstance(command, str) else tuple(str(word) for word in command),
        cwd=str(value.get("cwd", "/")),
        started_at=parse_time(value["started_at"]),
        ended_at=None if ended is None else parse_time(ended),
        exit_code=value.get("exit_code"),
        signal=value.get("signal"),
        reason=value.get("reason"),
        restarts=int(value.get("restarts") or 0),
        terminal=bool(value.get("terminal")),
        usage=Usage(usage.get("cpu_s"), usage.get("memory_peak_bytes")),
        raw=dict(value),
    )


def process_id(process: str | ProcessInfo) -> str:
    """Return the id of a process that is given as an object or as an id."""
    return process.id if isinstance(process, ProcessInfo) else process


def write_stdin(key: str, process: str | ProcessInfo, data: bytes | str) -> Steps:
    """Write to the standard input of a process started with `stdin=True`; returns once the data is accepted.

    Raises:
        ProcessNotFound, ProcessNotRunning: as their names say.
    """
    path = process_path(key, process_id(process), "/stdin")
    whole = data.encode() if isinstance(data, str) else data
    pieces = (whole[start : start + STDIN_CHUNK_BYTES] for start in range(0, len(whole), STDIN_CHUNK_BYTES))
    # No time bound: a program that does not read makes us wait.
    return Steps(Call("POST", path, content=piece, timeout_s=None, what="answer", parse=nothing) for piece in pieces)


def close_stdin(key: str, process: str | ProcessInfo) -> Steps:
    """Close a process's standard input, so that it reads end of file. Does nothing if the process has ended."""
    path = process_path(key, process_id(process), "/stdin/close")
    return Steps([Call("POST", path, what="answer", parse=nothing)], (ProcessNotRunning,))


@takes(CommandOptions, keep_orphans=False)
def start_process(
    key: str,
    command: str | Sequence[str],
    *,
    id: str | None = None,  # noqa: A002 - the API's own name
    stdin: bytes | str | bool | None = None,
    restart: Literal["never", "on-failure"] | None = None,
    **options: Unpack[CommandOptions],
) -> Call[ProcessInfo]:
    """Start a command in the background, and return its process.

    Args as of `exec`, and:
        id: an id of your choice, unique in the sandbox; default: the daemon chooses one.
        stdin: True leaves it open for `write_stdin`.
        restart: "on-failure" restarts it on failure with exponential backoff, at most 10 times in a row.

    Raises:
        InvalidRequest: a value is wrong; `field` names it.
        NameTaken: another process has that id.
    """
    return start(key, command_json(command, options, stdin=stdin), id=id, restart=restart)


def start(key: str, command: Mapping[str, Any], **fields: Json) -> Call[ProcessInfo]:
    """POST …/processes; `command_json` makes `command`, and `fields` are those that only a process has."""
    body = {**command, **given(**fields)}
    return Call("POST", sandbox_path(key, "/processes"), body=body, what="process", parse=parse_process)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TerminalRequest:
    """A terminal to view: that of an existing process, or of one to start first."""

    sandbox: str
    process: str | ProcessInfo | Call[ProcessInfo]
    cols: int
    rows: int
    on_gap: Callable[[int], object] | None

    def query(self, process: str | ProcessInfo) -> dict[str, str]:
        """Return the query of WS …/pty that looks at the process's terminal."""
        found = {"process": process_id(process), "cols": str(self.cols), "rows": str(self.rows)}
        return {**found, "fresh": "true"} if isinstance(self.process, Call) else found


@takes(StartOptions)
def open_pty(
    key: str,
    command: str | Sequence[str] | None = None,
    *,
    process: str | ProcessInfo | None = None,
    cols: int = 80,
    rows: int = 24,
    id: str | None = None,  # noqa: A002 - the API's own name
    linger: float | None = 300.0,
    on_gap: Callable[[int], object] | None = None,
    **options: Unpack[StartOptions],
) -> TerminalRequest:
    """Open a terminal, or reconnect to one. Use it as a context manager.

    In asynchronous code `async with` opens it.

    Args:
        command: a string for `sh -c`, or a list of program and arguments; default: the user's shell.
        process: the `process_id` of an existing terminal; only `cols` and `rows` have an effect then.
        cols: columns, 1 to 2000.
        rows: rows, 1 to 2000.
        id: an id of your choice for its process.
        linger: how many seconds it keeps running without a viewer; None: without a limit.
        on_gap: called with the number of bytes that a slow viewer missed, before the screen is redrawn.
        options: those of `StartOptions`.

    Raises:
        InvalidRequest: a value is wrong; `field` names it.
        ProcessNotFound: the sandbox has no such `process`.
        LimitExceeded: the sandbox has reached its limit of terminals.
    """
    if process is not None:
        return TerminalRequest(sandbox=key, process=process, cols=cols, rows=rows, on_gap=on_gap)
    body = command_json(DEFAULT_SHELL if command is None else command, options)
    return new_terminal(key, body, cols=cols, rows=rows, on_gap=on_gap, id=id, linger=linger)


def new_terminal(
    key: str,
    command: Mapping[str, Any],
    *,
    cols: int,
    rows: int,
    on_gap: Callable[[int], object] | None,
    id: str | None,  # noqa: A002 - the API's own name
    linger: float | None,
) -> TerminalRequest:
    """POST …/processes, then WS …/pty; `command_json` makes `command`."""
    call = start(key, command, id=id, terminal={"cols": cols, "rows": rows}, linger_s=linger)
    return TerminalRequest(sandbox=key, process=call, cols=cols, rows=rows, on_gap=on_gap)


def get_process(key: str, process: str | ProcessInfo) -> Call[ProcessInfo]:
    """Return a process as it is now.

    Raises:
        ProcessNotFound: no such process.
    """
    return Call("GET", process_path(key, process_id(process), ""), what="process", parse=parse_process)


def page(key: str, cursor: str | None) -> Call[tuple[list[ProcessInfo], str | None]]:
    """GET …/processes: one page, and the cursor of the next page if there is one."""
    params = None if cursor is None else {"cursor": cursor}
    return Call("GET", sandbox_path(key, "/processes"), params, what="list of processes", parse=paged(parse_process))


def remove_process(key: str, process: str | ProcessInfo) -> Call[None]:
    """Kill a process and everything it started, and drop its log.

    Raises:
        ProcessNotFound: no such process.
    """
    return Call("DELETE", process_path(key, process_id(process), ""), what="answer", parse=nothing)


def kill_all_processes(key: str) -> Call[None]:
    """Kill every process and everything they started, and drop every log."""
    return Call("DELETE", sandbox_path(key, "/processes"), what="answer", parse=nothing)


def kill_process(key: str, process: str | ProcessInfo, signal: str | int = "TERM") -> Call[None]:
    """Send a signal (default: TERM) to a process's group; TERM and KILL reach everything it started.

    Raises:
        ProcessNotFound, ProcessNotRunning: as their names say.
    """
    path = process_path(key, process_id(process), "/signal")
    return Call("POST", path, body={"signal": signal}, what="answer", parse=nothing)


def get_process_logs(
    key: str, process: str | ProcessInfo, *, start: int = 0, tail: int | None = None
) -> Call[ProcessLogs]:
    """Return what a process has printed from the offset `start` on, or only the last `tail` lines of it.

    Raises:
        ProcessNotFound: no such process.
    """

    def parse(value: Json) -> ProcessLogs:
        return ProcessLogs(
            stdout_bytes=base64.b64decode(value["stdout"]),
            stderr_bytes=base64.b64decode(value["stderr"]),
            next_offset=int(value["next_offset"]),
            dropped_bytes=int(value["dropped_bytes"]),
        )

    params = {"encoding": "base64", "from": str(start), **({} if tail is None else {"tail": str(tail)})}
    return Call("GET", process_path(key, process_id(process), "/logs"), params, what="log", parse=parse)


def stream_process_logs(
    key: str,
    process: str | ProcessInfo,
    *,
    start: int = 0,
    tail: int | None = None,
    on_stdout: Callable[[str], object] | None = None,
    on_stderr: Callable[[str], object] | None = None,
    reconnect_s: float = RECONNECT_S,
) -> LogReader:
    """Follow a process's output: iterate over it, or `wait()`. Use it as a context manager.

    In asynchronous code, `async with` opens it, and callbacks may be coroutine functions.

    Args:
        process: the process, or its id.
        start: the offset to start at: `offset` of an earlier stream, or `next_offset` of `get_process_logs`.
        tail: start with this many of the last lines.
        on_stdout: called with each piece of standard output as text, while you iterate or wait.
        on_stderr: the same for standard error.
        reconnect_s: how many seconds to keep trying to reconnect when the connection breaks; 0 raises at once.

    Raises:
        ProcessNotFound: no such process.
    """
    reader = LogReader(key, process_id(process), start, tail)
    reader.callbacks = {"stdout": on_stdout, "stderr": on_stderr}
    reader.reconnect_s = reconnect_s
    return reader


class LogReader:
    """Reads the raw frames of a log, over as many connections as necessary.

    Attributes:
        offset: the offset of the next event, at which to continue.
        dropped_bytes: bytes of output that the log had dropped before they could be read.
        restarts: how often the process was restarted during the reading.
        result: how the process ended; None before its exit frame.
        ended: whether the daemon said that the log is complete.
        callbacks: the function that gets each stream's text, by the stream's name.
        reconnect_s: how many seconds to keep trying to reconnect.
    """

    def __init__(self, key: str, process: str, start: int, tail: int | None) -> None:
        self.process_id = process
        self.offset = start
        self.dropped_bytes = 0
        self.restarts = 0
        self.result: ExitStatus | None = None
        self.ended = False
        self.callbacks: Mapping[str, Callable[[str], object] | None] = {}
        self.reconnect_s = RECONNECT_S
        self._path = process_path(key, process, "/logs")
        self._tail = tail
        self._seen_bytes = 0
        self._decoder = raw.RawDecoder()
        self._carries = {"stdout": Carry(), "stderr": Carry()}
        self._has_begun = False

    def call(self) -> StreamCall:
        """Return the request that continues at the current offset."""
        self._decoder = raw.RawDecoder()
        params = {"follow": "true", "from": str(self.offset), "seen_bytes": str(self._seen_bytes)}
        if self._tail is not None and not self._has_begun:
            params["tail"] = str(self._tail)
        return StreamCall("GET", self._path, params, accept=RAW_TYPE, timeout_s=None)

    def feed(self, data: bytes) -> list[tuple[OutputChunk, int]]:
        """Take bytes of an answer's body and return the output that they complete, each with the offset after it.

        Raises:
            SandboxdError: what the daemon says broke the stream, as its kind.
            RemoteProtocolError: the frames are malformed.
        """
        chunks: list[tuple[OutputChunk, int]] = []
        for frame_type, payload in self._decoder.feed(data):
            self._has_begun = True
            if frame_type in (raw.STDOUT, raw.STDERR):
                stream: Literal["stdout", "stderr"] = "stdout" if frame_type == raw.STDOUT else "stderr"
                self.offset += 1
                self._seen_bytes += len(payload)
                chunks.append((OutputChunk(stream, payload, *self._carries[stream].take(payload)), self.offset))
            else:
                chunks += ((chunk, self.offset) for chunk in self._take_frame(frame_type, payload))
        return chunks

    def close(self) -> None:
        """Note that an answer's body has ended.

        Raises:
            RemoteProtocolError: it was cut.
        """
        self._decoder.close()

    def _take_frame(self, frame_type: int, payload: bytes) -> Iterator[OutputChunk]:
        try:
            value = json.loads(payload)
        except ValueError as error:
            raise RemoteProtocolError("cannot read the raw stream: a frame is not JSON") from error
        if frame_type == raw.PROBLEM:
            raise from_problem(value)
        if frame_type == raw.EVENT:
            self.offset = int(value["offset"]) + 1
            if value["type"] == "truncated":
                self.dropped_bytes += int(value["dropped_bytes"])
                self._seen_bytes += int(value["dropped_bytes"])
            self.restarts += value["type"] == "restart"
            return
        if frame_type == raw.EXIT:
            self.result = read("exit event", lambda item: parse_exit(self.process_id, item), value)
            self.offset = int(value.get("offset", self.offset)) + 1
        self.ended = True
        for stream, carry in self._carries.items():
            if left := carry.finish():
                yield OutputChunk("stdout" if stream == "stdout" else "stderr", b"", left)


class LogState:
    """The attributes that both kinds of log streams share."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader
        self._pending: deque[tuple[OutputChunk, int]] = deque()
        self._offset = reader.offset
        self._closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.process_id} at {self.offset}>"

    @property
    def process_id(self) -> str:
        """The process's id."""
        return self._reader.process_id

    @property
    def result(self) -> ExitStatus | None:
        """How the process ended, once it has."""
        return self._reader.result

    @property
    def offset(self) -> int:
        """The offset at which a new stream would continue: `start=` of `stream_process_logs`."""
        return self._offset if self._pending else self._reader.offset

    @property
    def dropped_bytes(self) -> int:
        """Bytes of output that the log had dropped before they could be read."""
        return self._reader.dropped_bytes

    def _take_chunk(self) -> tuple[OutputChunk, Callable[[], object] | None]:
        """Return what is next, and the call that it is to make."""
        chunk, self._offset = self._pending.popleft()
        return chunk, text_callback(chunk, self._reader.callbacks)

    def _check_open(self) -> None:
        if self._closed:
            raise LocalProtocolError("cannot read the stream: it was closed before the process's end")

    def _feed(self, piece: bytes | None) -> None:
        """Take bytes of the answer, or its end."""
        if piece is None:
            self._reader.close()
        else:
            self._pending.extend(self._reader.feed(piece))


def parse_wait(value: Json) -> WaitResult:
    """Read the outcome of a wait."""
    return WaitResult(
        met=bool(value["met"]),
        reason=str(value["reason"]),
        exit_code=value.get("exit_code"),
        signal=value.get("signal"),
        line=value.get("line"),
        status=value.get("status"),
    )


def wait_for_exit(key: str, process: str | ProcessInfo, *, timeout: float | None = None) -> Call[WaitResult]:
    """Wait until a process has ended, for at most `timeout` seconds.

    Raises:
        ProcessNotFound: no such process.
    """
    return _wait(key, process, "exit", timeout_s=timeout)


def wait_for_port(
    key: str, process: str | ProcessInfo, port: int, *, path: str | None = None, timeout: float | None = None
) -> Call[WaitResult]:
    """Wait until something in the sandbox listens on a TCP port, or until the process ends.

    Args:
        process: a process whose exit also ends the wait.
        port: 1 to 65535, on any of the sandbox's addresses, IPv4 or IPv6.
        path: a path, such as "/health", to which a GET must answer with a status from 200 to 399.
        timeout: seconds; default: forever.

    Raises:
        ProcessNotFound: no such process.
    """
    return _wait(key, process, "port", port=port, path=path, timeout_s=timeout)


def wait_for_log(
    key: str, process: str | ProcessInfo, pattern: str, *, timeout: float | None = None
) -> Call[WaitResult]:
    """Wait until a line of a process's output matches, or until the process ends. Earlier lines count too.

    Args:
        process: the process, or its id.
        pattern: a regular expression in RE2 syntax, searched for in each line.
        timeout: seconds; default: forever.

    Raises:
        ProcessNotFound: no such process.
        InvalidRequest: the pattern is not a valid regular expression.
    """
    return _wait(key, process, "log", pattern=pattern, timeout_s=timeout)


def _wait(key: str, process: str | ProcessInfo, condition: str, **fields: object) -> Call[WaitResult]:
    body = {"for": condition, **given(**fields)}
    path = process_path(key, process_id(process), "/wait")
    # No time bound: it waits as long as the daemon does.
    return Call("POST", path, body=body, timeout_s=None, what="answer", parse=parse_wait)
