"""The requests of …/processes, written once, and what the SDK makes of their answers."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import json
from typing import TYPE_CHECKING, Any, Final, Literal

from sandboxd.errors import RemoteProtocolError
from sandboxd.wire import raw

from .calls import RAW_TYPE, Call, StreamCall, command_body, nothing, process_path, sandbox_path
from .failures import from_problem
from .models import ExitStatus, Json, OutputChunk, Usage, parse_exit, parse_time, read
from .text import Carry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["ProcessInfo", "ProcessLogs", "WaitResult"]

#: How long a log stream tries to reach the daemon again (seconds): a restart takes about one.
RECONNECT_S: Final = 30.0
#: The user's own shell, as the daemon's own default for …/pty.
DEFAULT_SHELL: Final = 'exec "${SHELL:-/bin/sh}"'
#: Between two tries.
RECONNECT_DELAY_S: Final = 0.1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """A process as the daemon described it.

    Attributes:
        id: its name in the sandbox, the caller's own or the daemon's.
        pid: its main process' in the sandbox; None when it has none.
        status: "running" or "exited".
        command: the line or the words it was started with.
        exit_code, signal, reason: how it ended; None while it runs.
        restarts: how often it was started again.
        terminal: whether it has one.
        usage: what it and all that it started have used.
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
        """Whether it has not ended."""
        return self.status == "running"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProcessLogs:
    """What a process has printed so far.

    Attributes:
        next_offset: where to go on reading.
        dropped_bytes: output that its log no longer has.
    """

    stdout_bytes: bytes = dataclasses.field(repr=False)
    stderr_bytes: bytes = dataclasses.field(repr=False)
    next_offset: int
    dropped_bytes: int

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are no UTF-8 become U+FFFD."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Standard error as text; bytes that are no UTF-8 become U+FFFD."""
        return self.stderr_bytes.decode("utf-8", "replace")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WaitResult:
    """What a wait came to.

    Attributes:
        met: whether what was waited for has come.
        reason: what ended the wait: "exit", "port", "log" or "timeout".
        exit_code, signal: how the process ended, where it did.
        line: the line that matched.
        status: that of the HTTP answer that `watch_port` waited for.
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
    """Return the id of a process that is named either way."""
    return process.id if isinstance(process, ProcessInfo) else process


def start(
    key: str,
    command: str | Sequence[str],
    *,
    id: str | None,  # noqa: A002 - the API's own name
    restart: str | None,
    **options: Any,  # noqa: ANN401 - those of a command
) -> Call[ProcessInfo]:
    """POST …/processes."""
    body = command_body(command, **options)
    if id is not None:
        body["id"] = id
    if restart is not None:
        body["restart"] = restart
    return Call("POST", sandbox_path(key, "/processes"), body=body, what="process", parse=parse_process)


def start_terminal(
    key: str,
    command: str | Sequence[str] | None,
    *,
    size: tuple[int, int],
    linger: float | None,
    id: str | None,  # noqa: A002 - the API's own name
    **options: Any,  # noqa: ANN401 - those of a command
) -> Call[ProcessInfo]:
    """POST …/processes, with a terminal of that many columns and rows."""
    call = start(key, DEFAULT_SHELL if command is None else command, id=id, restart=None, **options)
    terminal = {"terminal": {"cols": size[0], "rows": size[1]}, **({} if linger is None else {"linger_s": linger})}
    return dataclasses.replace(call, body={**call.body, **terminal})


def pty_query(process: str | ProcessInfo, cols: int, rows: int, *, fresh: bool) -> dict[str, str]:
    """Return the query of WS …/pty that looks at a terminal; `fresh` where it has just been made."""
    found = {"process": process_id(process), "cols": str(cols), "rows": str(rows)}
    return {**found, "fresh": "true"} if fresh else found


def get(key: str, process: str | ProcessInfo) -> Call[ProcessInfo]:
    """GET …/processes/{p}."""
    return Call("GET", process_path(key, process_id(process), ""), what="process", parse=parse_process)


def page(key: str, cursor: str | None) -> Call[tuple[list[ProcessInfo], str | None]]:
    """GET …/processes: one page, and the cursor of the next where there is one."""

    def parse(value: Json) -> tuple[list[ProcessInfo], str | None]:
        following = value.get("next")
        return [parse_process(item) for item in value["items"]], None if following is None else str(following)

    params = None if cursor is None else {"cursor": cursor}
    return Call("GET", sandbox_path(key, "/processes"), params, what="list of processes", parse=parse)


def remove(key: str, process: str | ProcessInfo) -> Call[None]:
    """DELETE …/processes/{p}."""
    return Call("DELETE", process_path(key, process_id(process), ""), what="answer", parse=nothing)


def remove_all(key: str) -> Call[None]:
    """DELETE …/processes."""
    return Call("DELETE", sandbox_path(key, "/processes"), what="answer", parse=nothing)


def signal(key: str, process: str | ProcessInfo, number: str | int) -> Call[None]:
    """POST …/signal."""
    path = process_path(key, process_id(process), "/signal")
    return Call("POST", path, body={"signal": number}, what="answer", parse=nothing)


def logs(key: str, process: str | ProcessInfo, start: int, tail: int | None) -> Call[ProcessLogs]:
    """GET …/logs: what there is."""

    def parse(value: Json) -> ProcessLogs:
        return ProcessLogs(
            stdout_bytes=base64.b64decode(value["stdout"]),
            stderr_bytes=base64.b64decode(value["stderr"]),
            next_offset=int(value["next_offset"]),
            dropped_bytes=int(value["dropped_bytes"]),
        )

    params = {"encoding": "base64", "from": str(start), **({} if tail is None else {"tail": str(tail)})}
    return Call("GET", process_path(key, process_id(process), "/logs"), params, what="log", parse=parse)


class LogReader:
    """Reads the raw frames of a log, over as many connections as it takes.

    Attributes:
        offset: the offset of the event that comes next: where to go on.
        dropped_bytes: output that the log no longer had when we came to it.
        restarts: how often the process was started again while we read.
        result: how the process ended; None before its exit frame.
        ended: whether the daemon said that nothing more comes.
    """

    def __init__(self, key: str, process: str, start: int, tail: int | None) -> None:
        self.process_id = process
        self.offset = start
        self.dropped_bytes = 0
        self.restarts = 0
        self.result: ExitStatus | None = None
        self.ended = False
        self._path = process_path(key, process, "/logs")
        self._tail = tail
        self._seen_bytes = 0
        self._decoder = raw.RawDecoder()
        self._carries = {"stdout": Carry(), "stderr": Carry()}
        self._has_begun = False

    def call(self) -> StreamCall:
        """Return the request that goes on where we are."""
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
                chunks += ((chunk, self.offset) for chunk in self._take(frame_type, payload))
        return chunks

    def close(self) -> None:
        """Say that an answer's body has ended.

        Raises:
            RemoteProtocolError: it was cut.
        """
        self._decoder.close()

    def _take(self, frame_type: int, payload: bytes) -> Iterator[OutputChunk]:
        try:
            value = json.loads(payload)
        except ValueError as error:
            raise RemoteProtocolError("cannot read the raw stream: a frame is no JSON") from error
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


def parse_wait(value: Json) -> WaitResult:
    """Read what a wait came to."""
    return WaitResult(
        met=bool(value["met"]),
        reason=str(value["reason"]),
        exit_code=value.get("exit_code"),
        signal=value.get("signal"),
        line=value.get("line"),
        status=value.get("status"),
    )


def wait(
    key: str,
    process: str | ProcessInfo,
    condition: str,
    *,
    timeout: float | None,
    **fields: Any,  # noqa: ANN401 - those of the condition
) -> Call[WaitResult]:
    """POST …/wait; waits as long as the daemon does."""
    body: Mapping[str, Any] = {"for": condition, "timeout_s": timeout, **fields}
    body = {name: value for name, value in body.items() if value is not None}
    path = process_path(key, process_id(process), "/wait")
    return Call("POST", path, body=body, timeout_s=None, what="answer", parse=parse_wait)
