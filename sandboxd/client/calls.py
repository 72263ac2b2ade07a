"""Each request of the API written once, without I/O: what to send, and how to read the answer.

`Client` and `AsyncClient` send a `Call` and return what its `parse` makes of the answer; a `StreamCall` is
answered by a stream, whose frames `ExecReader` reads.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar
from urllib.parse import quote

from sandboxd.errors import InvalidRequest, LimitExceeded, RemoteProtocolError
from sandboxd.spec import MAX_JSON_BODY_BYTES, IoLimits, Limits
from sandboxd.wire import raw

from .failures import from_problem
from .models import ExitStatus, Json, OutputChunk, SandboxInfo, parse_exit, parse_sandbox, read
from .text import Carry

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence

    import httpx

    Content: TypeAlias = bytes | Iterable[bytes] | AsyncIterable[bytes]

T = TypeVar("T")
Item = TypeVar("Item")

#: How long an answer may take (seconds) where no command's run time is part of it: a hung daemon, told as such.
ANSWER_TIMEOUT_S: Final = 120.0
RAW_TYPE: Final = "application/octet-stream"
PROCESS_HEADER: Final = "Sandboxd-Process"
#: Pieces of uploads: large enough that the cost per piece vanishes, small enough to hold many at once.
UPLOAD_CHUNK_BYTES: Final = 256 * 1024
#: One POST to a process' stdin; larger writes are cut, so that the daemon holds little at a time.
STDIN_CHUNK_BYTES: Final = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class StreamCall:
    """A request whose answer is read as it comes. `timeout_s` bounds each wait for bytes; None waits for ever."""

    method: str
    path: str
    params: Mapping[str, str] | None = None
    body: Json = None  # sent as JSON unless None
    content: Content | None = None  # bytes, or an iterable of them: sent as it is
    accept: str = "application/json"
    timeout_s: float | None = ANSWER_TIMEOUT_S
    extra: Mapping[str, str] | None = None  # headers of its own

    def headers(self) -> dict[str, str]:
        """Return the headers that the request needs beside the client's own."""
        headers = {"Accept": self.accept, **(self.extra or {})}
        if self.body is not None:
            headers["Content-Type"] = "application/json"
        elif self.content is not None:
            headers["Content-Type"] = RAW_TYPE
        return headers

    def payload(self) -> Content | None:
        """Return what goes into the request's body.

        Raises:
            LimitExceeded: the JSON is over the daemon's bound.
            InvalidRequest: a value in it has no JSON form.
        """
        if self.body is None:
            return self.content
        try:
            encoded = json.dumps(self.body, ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:  # a lone surrogate, or a number that JSON has no word for
            raise InvalidRequest(f"cannot send the request as JSON: {error}") from error
        if len(encoded) > MAX_JSON_BODY_BYTES:
            raise LimitExceeded(
                f"cannot send the request: {len(encoded)} bytes of JSON are over the bound of {MAX_JSON_BODY_BYTES}; "
                "large input goes through write_file or exec_stream(stdin=True)",
                limit_bytes=MAX_JSON_BODY_BYTES,
            )
        return encoded


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Call(StreamCall, Generic[T]):
    """A request whose whole answer `parse` reads."""

    what: str
    parse: Callable[[Json], T]

    def read(self, body: bytes) -> T:
        """Return what the answer's body says.

        Raises:
            RemoteProtocolError: it is not what the API promises.
        """
        try:
            value = json.loads(body) if body else None
        except ValueError as error:
            raise RemoteProtocolError(f"cannot understand the daemon's {self.what}: it is no JSON") from error
        return read(self.what, self.parse, value)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextCall(Call[str]):
    """A request that is answered with text, not JSON."""

    what: str = "text"
    parse: Callable[[Json], str] = str

    def read(self, body: bytes) -> str:
        """Return the text.

        Raises:
            RemoteProtocolError: it is none.
        """
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise RemoteProtocolError(f"cannot understand the daemon's {self.what}: it is no UTF-8") from error


class Streamed(Generic[Item, T]):
    """A request whose answer is read as it comes: items, and what they came to. For one use."""

    def __init__(self, call: StreamCall) -> None:
        self.call = call

    def begin(self, response: httpx.Response) -> None:
        """Take the answer's headers."""

    def feed(self, data: bytes) -> Iterable[Item]:
        """Take bytes of the answer's body and return the items that they complete.

        Raises:
            SandboxdError: what the daemon says broke the stream, as its kind.
            RemoteProtocolError: the body is malformed.
        """
        raise NotImplementedError

    def callback(self, item: Item) -> Callable[[], object] | None:
        """Return the call that an item is to make, if somebody wants it."""
        raise NotImplementedError

    def close(self) -> T:
        """Say that the body has ended, and return what it came to.

        Raises:
            RemoteProtocolError: the body was cut.
        """
        raise NotImplementedError


def nothing(_: Json) -> None:
    """Read an answer that says nothing."""
    return None


def sandbox_path(key: str, rest: str = "") -> str:
    """Return the path of a sandbox, by its id or name, and of what is below it."""
    if not key or key in (".", ".."):
        raise InvalidRequest(f"cannot name a sandbox {key!r}", field="id")
    return f"/v1/sandboxes/{quote(key, safe='')}{rest}"


def limits_json(limits: Limits | Mapping[str, Any]) -> dict[str, Any]:
    """Return limits as JSON holds them; of a `Limits` only what it says."""
    if isinstance(limits, Limits):
        limits = {item.name: getattr(limits, item.name) for item in dataclasses.fields(limits)}
        limits = {name: value for name, value in limits.items() if value is not None}
    return {name: _io_json(value) if isinstance(value, IoLimits) else value for name, value in limits.items()}


def _io_json(io: IoLimits) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(io).items() if value is not None}


def health() -> Call[None]:
    """GET /health: nothing, or an error."""
    return Call("GET", "/v1/health", what="health", parse=nothing)


def info() -> Call[dict[str, Any]]:
    """GET /info: the daemon's version and more."""
    return Call("GET", "/v1/info", what="info", parse=dict)


def metrics(*, sandboxes: bool) -> TextCall:
    """GET /metrics: the Prometheus text format."""
    return TextCall("GET", f"/v1/metrics?sandboxes={str(sandboxes).lower()}", accept="text/plain", what="metrics")


def network_json(network: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return what the API takes: a mode alone is that of a network that has nothing else to say."""
    return {"mode": network} if isinstance(network, str) else dict(network)


def create(  # noqa: PLR0913 - the fields of a sandbox, all by keyword
    *,
    name: str | None,
    rootfs: str | None,
    env: Mapping[str, str] | None,
    cwd: str | None,
    user: str | int | None,
    limits: Limits | Mapping[str, Any] | None,
    labels: Mapping[str, str] | None,
    network: str | Mapping[str, Any] | None,
    seccomp: str | None,
) -> Call[SandboxInfo]:
    """POST /sandboxes: only what was given is sent, the daemon's defaults are the daemon's."""
    fields = {
        "name": name,
        "rootfs": rootfs,
        "env": None if env is None else dict(env),
        "cwd": cwd,
        "user": user,
        "limits": None if limits is None else limits_json(limits),
        "labels": None if labels is None else dict(labels),
        "network": None if network is None else network_json(network),
        "seccomp": seccomp,
    }
    body = {key: value for key, value in fields.items() if value is not None}
    return Call("POST", "/v1/sandboxes", body=body, what="sandbox", parse=parse_sandbox)


def get(key: str) -> Call[SandboxInfo]:
    """GET /sandboxes/{id or name}."""
    return Call("GET", sandbox_path(key), what="sandbox", parse=parse_sandbox)


def refresh(key: str) -> Call[SandboxInfo]:
    """Ask the daemon how the sandbox is, keep the answer in `info` and return it."""
    return get(key)


def page(cursor: str | None) -> Call[tuple[list[SandboxInfo], str | None]]:
    """GET /sandboxes: one page, and the cursor of the next where there is one."""

    def parse(value: Json) -> tuple[list[SandboxInfo], str | None]:
        following = value.get("next")
        return [parse_sandbox(item) for item in value["items"]], None if following is None else str(following)

    params = None if cursor is None else {"cursor": cursor}
    return Call("GET", "/v1/sandboxes", params, what="list of sandboxes", parse=parse)


def destroy(key: str) -> Call[None]:
    """DELETE /sandboxes/{id or name}."""
    return Call("DELETE", sandbox_path(key), what="answer", parse=nothing)


def exec_raw(  # noqa: PLR0913 - the fields of a command, all by keyword
    key: str,
    command: str | Sequence[str],
    *,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    user: str | int | None = None,
    stdin: bytes | str | bool | None = None,
    timeout: float | None = None,
    detach: bool = False,
    keep_orphans: bool | None = False,
    session: str | None = None,
) -> StreamCall:
    """POST …/exec, answered by raw frames. Waits for ever: a command may be silent for as long as it likes."""
    body = command_body(
        command,
        cwd=cwd,
        env=env,
        user=user,
        stdin=stdin,
        timeout=timeout,
        keep_orphans=keep_orphans,
        session=session,
    )
    if detach:
        body["detach"] = True
    return StreamCall("POST", sandbox_path(key, "/exec"), body=body, accept=RAW_TYPE, timeout_s=None)


def command_body(
    command: str | Sequence[str],
    *,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    user: str | int | None = None,
    stdin: bytes | str | bool | None = None,
    timeout: float | None = None,
    keep_orphans: bool | None = False,
    session: str | None = None,
) -> dict[str, Any]:
    """Return the JSON of a command: only what was given. In a session `keep_orphans=None` is the daemon's default."""
    body: dict[str, Any] = {"command": command if isinstance(command, str) else list(command)}
    if cwd is not None:
        body["cwd"] = cwd
    if env:
        body["env"] = dict(env)
    if user is not None:
        body["user"] = user
    if timeout is not None:
        body["timeout_s"] = timeout
    if keep_orphans:
        body["orphans"] = "keep"
    if session is not None:
        body["session"] = session
        if keep_orphans is False:
            body["orphans"] = "kill"
    if isinstance(stdin, bytes | bytearray | memoryview):
        # JSON holds text only; the encoding says nothing about the answer here, whose frames are bytes anyway.
        body["stdin"] = base64.b64encode(stdin).decode("ascii")
        body["encoding"] = "base64"
    elif stdin is not None and stdin is not False:
        body["stdin"] = stdin
    return body


def process_path(key: str, process: str, rest: str) -> str:
    """Return the path of a process, or of what is below it."""
    if not process or process in (".", ".."):
        raise InvalidRequest(f"cannot name a process {process!r}", field="process")
    return sandbox_path(key, f"/processes/{quote(process, safe='')}{rest}")


def write_stdin(key: str, process: str, data: bytes) -> Iterator[Call[None]]:
    """POST …/stdin, as often as the data needs. No time bound: a program that does not read makes us wait."""
    path = process_path(key, process, "/stdin")
    for start in range(0, len(data), STDIN_CHUNK_BYTES):
        piece = data[start : start + STDIN_CHUNK_BYTES]
        yield Call("POST", path, content=piece, timeout_s=None, what="answer", parse=nothing)


def close_stdin(key: str, process: str) -> Call[None]:
    """POST …/stdin/close: the program reads its end of file."""
    return Call("POST", process_path(key, process, "/stdin/close"), what="answer", parse=nothing)


class ExecReader:
    """Reads the raw frames of one exec: output as it comes, then how it ended.

    Attributes:
        result: how the command ended; None before its exit frame.
    """

    def __init__(self, process_id: str) -> None:
        self.process_id = process_id
        self.result: ExitStatus | None = None
        self._decoder = raw.RawDecoder()
        self._carries = {"stdout": Carry(), "stderr": Carry()}

    def feed(self, data: bytes) -> list[OutputChunk]:
        """Take bytes of the answer's body and return the output that they complete.

        Raises:
            SandboxdError: what the daemon says broke the stream, as its kind.
            RemoteProtocolError: the frames are malformed.
        """
        chunks: list[OutputChunk] = []
        for frame_type, payload in self._decoder.feed(data):
            if frame_type == raw.STDOUT:
                chunks.append(OutputChunk("stdout", payload, *self._carries["stdout"].take(payload)))
            elif frame_type == raw.STDERR:
                chunks.append(OutputChunk("stderr", payload, *self._carries["stderr"].take(payload)))
            else:
                chunks += self._end(frame_type, payload)
        return chunks

    def close(self) -> ExitStatus:
        """Say that the body has ended, and return how the command ended.

        Raises:
            RemoteProtocolError: the body was cut.
        """
        self._decoder.close()
        if self.result is None:
            raise RemoteProtocolError("cannot read the raw stream: it ended without an exit frame")
        return self.result

    def _end(self, frame_type: int, payload: bytes) -> Iterator[OutputChunk]:
        try:
            value = json.loads(payload)
        except ValueError as error:
            raise RemoteProtocolError("cannot read the raw stream: its last frame is no JSON") from error
        if frame_type == raw.PROBLEM:
            raise from_problem(value)
        self.result = read("exit event", lambda item: parse_exit(self.process_id, item), value)
        # Half a character at the very end has no piece that finishes it: it gets one of its own.
        stdout, stderr = self._carries["stdout"].finish(), self._carries["stderr"].finish()
        if stdout:
            yield OutputChunk("stdout", b"", stdout)
        if stderr:
            yield OutputChunk("stderr", b"", stderr)
