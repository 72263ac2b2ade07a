"""Each request of the API written once, without I/O: what to send, and how to read the answer.

`Client` and `AsyncClient` send a `Call` and return what its `parse` makes of the answer; a `StreamCall` is
answered by a stream, which a `Streamed` reads.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeAlias, TypeVar
from urllib.parse import quote

from sandboxd.errors import InvalidRequest, LimitExceeded, RemoteProtocolError, SandboxdError
from sandboxd.spec import MAX_JSON_BODY_BYTES, IoLimits, Limits

from .failures import from_problem
from .models import Json, SandboxInfo, parse_sandbox, read

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping

    import httpx

    from sandboxd.wire.sse import SseDecoder

    from .options import SandboxOptions

    Content: TypeAlias = bytes | Iterable[bytes] | AsyncIterable[bytes]

T = TypeVar("T")
Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)

#: How long an answer may take (seconds) where no command's run time is part of it: a hung daemon, told as such.
ANSWER_TIMEOUT_S: Final = 120.0
RAW_TYPE: Final = "application/octet-stream"
#: Pieces of uploads: large enough that the cost per piece vanishes, small enough to hold many at once.
UPLOAD_CHUNK_BYTES: Final = 256 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class StreamCall:
    """A request whose answer is read as it comes. `timeout_s` bounds each wait for bytes; None: no timeout."""

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
                f"cannot send the request: {len(encoded)} bytes of JSON are over the limit of {MAX_JSON_BODY_BYTES}; "
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
            raise RemoteProtocolError(f"cannot understand the daemon's {self.what}: it is not JSON") from error
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
            raise RemoteProtocolError(f"cannot understand the daemon's {self.what}: it is not valid UTF-8") from error


class Streamed(Generic[Item, T]):
    """A request whose answer is read as it comes: items, then a result. For one use."""

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
        return None

    def close(self) -> T:
        """Say that the body has ended, and return what it came to.

        Raises:
            RemoteProtocolError: the body was cut.
        """
        raise NotImplementedError


class Reader(Protocol[Item_co]):
    """A request whose answer is endless, and the reader of its items."""

    call: StreamCall
    #: Whether nothing more comes.
    over: bool

    def feed(self, data: bytes) -> Iterable[Item_co]:
        """Take bytes of the answer's body and return the items that they complete.

        Raises:
            SandboxdError: what the daemon says broke the stream, as its kind.
        """


@dataclasses.dataclass(frozen=True, slots=True)
class Steps:
    """Requests that are sent one after the other, and the errors to ignore."""

    calls: Iterable[Call[None]]
    ignored: tuple[type[SandboxdError], ...] = ()


#: What a verb's builder returns: a request, and T is the verb's answer.
Request: TypeAlias = Call[T] | Streamed[Any, T]


def given(**fields: Json) -> dict[str, Any]:
    """Return a body with the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def listed(parse: Callable[[Json], T]) -> Callable[[Json], list[T]]:
    """Return a parser for an answer with items."""
    return lambda value: [parse(item) for item in value["items"]]


def paged(parse: Callable[[Json], T]) -> Callable[[Json], tuple[list[T], str | None]]:
    """Return a parser for a page: the items, and the cursor of the next page if there is one."""

    def parse_page(value: Json) -> tuple[list[T], str | None]:
        following = value.get("next")
        return listed(parse)(value), None if following is None else str(following)

    return parse_page


def read_events(decoder: SseDecoder, data: bytes, complaint: str) -> Iterator[tuple[str, Json]]:
    """Take bytes of a stream and yield the events that they complete, each with its kind.

    Raises:
        SandboxdError: the error with which the daemon ended the stream.
        RemoteProtocolError: an event is not JSON; its message is `complaint`.
    """
    for event in decoder.feed(data):
        try:
            value = json.loads(event.data)
        except ValueError as error:
            raise RemoteProtocolError(complaint) from error
        if event.event == "problem":
            raise from_problem(value)
        yield event.event, value


def nothing(_: Json) -> None:
    """Read an answer without content."""
    return None


def sandbox_path(key: str, rest: str = "") -> str:
    """Return the path of a sandbox, by its id or name, and of what is below it."""
    if not key or key in (".", ".."):
        raise InvalidRequest(f"{key!r} is not a valid sandbox id or name", field="id")
    return f"/v1/sandboxes/{quote(key, safe='')}{rest}"


def limits_json(limits: Limits | Mapping[str, Any]) -> dict[str, Any]:
    """Return limits as JSON; of a `Limits`, only the fields that are set."""
    if isinstance(limits, Limits):
        limits = given(**{item.name: getattr(limits, item.name) for item in dataclasses.fields(limits)})
    return {name: _io_json(value) if isinstance(value, IoLimits) else value for name, value in limits.items()}


def _io_json(io: IoLimits) -> dict[str, Any]:
    return given(**dataclasses.asdict(io))


def health(_: None) -> Call[None]:
    """Return normally if the daemon answers.

    Raises:
        DaemonUnavailable: no daemon answers.
    """
    return Call("GET", "/v1/health", what="health", parse=nothing)


def info(_: None) -> Call[dict[str, Any]]:
    """Return the daemon's description of itself, including its `version`."""
    return Call("GET", "/v1/info", what="info", parse=dict)


def metrics(_: None, *, sandboxes: bool = True) -> Call[str]:
    """Return the daemon's metrics in the Prometheus text format, with those of each sandbox if `sandboxes` is true."""
    return TextCall("GET", f"/v1/metrics?sandboxes={str(sandboxes).lower()}", accept="text/plain", what="metrics")


def network_json(network: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return the network as the API takes it; a mode alone becomes an object."""
    return {"mode": network} if isinstance(network, str) else dict(network)


#: Options of a sandbox whose values JSON does not know.
_AS_JSON: Final[Mapping[str, Callable[[Any], Any]]] = {
    "env": dict,
    "labels": dict,
    "limits": limits_json,
    "network": network_json,
}


def create(options: SandboxOptions) -> Call[SandboxInfo]:
    """POST /sandboxes: only what was given is sent, the daemon's defaults are the daemon's."""
    body = {name: _AS_JSON[name](value) if name in _AS_JSON else value for name, value in given(**options).items()}
    return Call("POST", "/v1/sandboxes", body=body, what="sandbox", parse=parse_sandbox)


def get(key: str) -> Call[SandboxInfo]:
    """GET /sandboxes/{id or name}."""
    return Call("GET", sandbox_path(key), what="sandbox", parse=parse_sandbox)


def refresh(key: str) -> Call[SandboxInfo]:
    """Fetch the sandbox's current state, store it in `info` and return it."""
    return get(key)


def page(cursor: str | None) -> Call[tuple[list[SandboxInfo], str | None]]:
    """GET /sandboxes: one page, and the cursor of the next where there is one."""
    params = None if cursor is None else {"cursor": cursor}
    return Call("GET", "/v1/sandboxes", params, what="list of sandboxes", parse=paged(parse_sandbox))


def destroy(key: str) -> Call[None]:
    """DELETE /sandboxes/{id or name}."""
    return Call("DELETE", sandbox_path(key), what="answer", parse=nothing)


def process_path(key: str, process: str, rest: str) -> str:
    """Return the path of a process, or of what is below it."""
    if not process or process in (".", ".."):
        raise InvalidRequest(f"{process!r} is not a valid process id", field="process")
    return sandbox_path(key, f"/processes/{quote(process, safe='')}{rest}")
