"""What a code context's worker says and hears: frames of `length:u32 big-endian | msgpack map`, checked here.

The worker is hostile once a user's code ran in it, so every frame from it is bounded and looked at field by field;
what is allowed but untrue (a result that the user's code forged) is shown as data, like anything that it prints.

To the worker:   begin {language}, first; or park {language}, and begin later (Node's: guest/spares.py)
                 run {run, code, env, json}   complete {run, code, cursor}   inspect {run, code, cursor, detail}
From the worker: parked {files}, which init takes
                 ready {version}        failed {message}
                 result {run, main, formats, note, display_id, update}   clear {run, wait}
                 error {run, ename, evalue, traceback, traceback_ansi}   end {run, status, count}
                 reply {run, value}

`json: true`, else left out, asks Python's for the JSON of a main result that is a dict or list. A worker ignores fields
that it does not know: it may be older than the daemon.

A format's value is text, bytes (png, jpeg, pdf) or the text of a JSON value (json, chart, data); a name with a slash
is a media type that has no name of its own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, Final, Protocol, TypeVar

import msgpack

from ..errors import LocalProtocolError, RemoteProtocolError
from .framing import HEADER

#: What one frame may hold: a result's formats (10 MiB together, which the worker keeps to), and slack.
MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
#: What we send: code, and variables as many as execve(2) takes.
MAX_SENT_BYTES: Final = 4 * 1024 * 1024
MAX_TEXT_CHARS: Final = 1024 * 1024
MAX_LINES: Final = 4096
#: Maps and arrays in one frame; a result has three.
_MAX_CONTAINERS: Final = 16

TEXT_FORMATS: Final = frozenset({"text", "html", "markdown", "svg", "latex", "javascript"})
BINARY_FORMATS: Final = frozenset({"png", "jpeg", "pdf"})
JSON_FORMATS: Final = frozenset({"json", "chart", "data"})
#: Larger values of these are refused: somebody has to parse them.
MAX_JSON_BYTES: Final = 4 * 1024 * 1024
_MEDIA_TYPE: Final = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,99}/[a-z0-9!#$&^_.+-]{1,100}\Z")

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True)
class Ready:
    """The interpreter waits for its first run."""

    version: str


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """The interpreter lacks what the worker needs; it ends now."""

    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """A value that a run shows; `main` is that of its last expression."""

    run: int
    main: bool
    formats: dict[str, str | bytes]
    note: str | None
    display_id: str | None
    update: bool

    @property
    def size(self) -> int:
        """Bytes of its formats, text counted in characters."""
        return sum(len(value) for value in self.formats.values())


@dataclasses.dataclass(frozen=True, slots=True)
class Clear:
    """What was shown so far is to go; with `wait`, once something new comes."""

    run: int
    wait: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Error:
    """An exception that the code did not catch."""

    run: int
    ename: str
    evalue: str
    traceback: list[str]
    traceback_ansi: list[str]


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """A run is over; `count` is its execution count."""

    run: int
    status: str
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What `complete` or `inspect` found: a JSON value's text."""

    run: int
    value: str


@dataclasses.dataclass(frozen=True, slots=True)
class Dropped:
    """A frame of `size` bytes that its reader had no room for: never sent, made by the decoder."""

    size: int


Frame = Ready | Failed | Result | Clear | Error | End | Answer | Dropped


class Room(Protocol):
    """Where a decoder asks for room for a large frame (`runtime/budget.py`)."""

    def grow(self, size: int) -> bool:
        """Return whether there is room for so many bytes more."""

    def close(self) -> None:
        """Take all of it back."""


#: Frames up to this size need no room of their own.
SMALL_BYTES: Final = 256 * 1024


def encode(message: dict[str, Any]) -> bytes:
    """Return the frame of a message to a worker.

    Raises:
        LocalProtocolError: it is over the bound.
    """
    body: bytes = msgpack.packb(message, use_bin_type=True)
    if len(body) > MAX_SENT_BYTES:
        raise LocalProtocolError(f"cannot send a frame of {len(body)} bytes: the limit is {MAX_SENT_BYTES}")
    return HEADER.pack(len(body)) + body


class WorkerDecoder:
    """Turns what came through a worker's pipe into frames; a hostile one costs at most `MAX_FRAME_BYTES`.

    `room` is asked before more of a large frame is kept: for what has come, not for what was announced, which costs its
    sender nothing. One that it has no room for is passed over, and told as `Dropped`.
    """

    def __init__(self, room: Room | None = None) -> None:
        self._buffer = bytearray()
        self._room = room
        self._charged = 0
        self._skipping = 0

    def __repr__(self) -> str:
        return f"<WorkerDecoder {len(self._buffer)} bytes>"

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take bytes and return the frames that they complete, each read when it is asked for.

        Raises:
            RemoteProtocolError: of the iterator, a frame is malformed.
        """
        if self._skipping:
            gone = min(self._skipping, len(data))
            self._skipping -= gone
            data = data[gone:]
        self._buffer += data
        return self._frames()

    def _frames(self) -> Iterator[Frame]:
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            (size,) = HEADER.unpack_from(self._buffer, start)
            if not 0 < size <= MAX_FRAME_BYTES:
                raise RemoteProtocolError(f"cannot accept a frame of {size} bytes: the limit is {MAX_FRAME_BYTES}")
            come = min(HEADER.size + size, len(self._buffer) - start)
            if size > SMALL_BYTES and not self._has_room(come):
                self._give_back()
                self._skipping = HEADER.size + size - come
                start += come
                yield Dropped(size)
                continue
            if len(self._buffer) - start < HEADER.size + size:
                break
            begin = start + HEADER.size
            start = begin + size
            with memoryview(self._buffer) as whole, whole[begin:start] as body:
                frame = parse(_unpack(body))
            if self._charged:
                self._give_back()
            yield frame
        del self._buffer[:start]

    def close(self) -> None:
        """Let go of what is unfinished."""
        self._buffer = bytearray()
        self._give_back()

    def _has_room(self, come: int) -> bool:
        """Return whether there is room for as much of the present frame as has come."""
        if self._room is not None and not self._room.grow(come - self._charged):
            return False
        self._charged = come
        return True

    def _give_back(self) -> None:
        self._charged = 0
        if self._room is not None:
            self._room.close()


def _unpack(body: memoryview) -> dict[str, Any]:
    left = _MAX_CONTAINERS

    def count(container: _T) -> _T:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError("it holds too many containers")
        return container

    try:
        message = msgpack.unpackb(
            body,
            raw=False,
            max_map_len=64,
            max_array_len=MAX_LINES,
            max_ext_len=0,
            list_hook=count,
            object_hook=count,
        )
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise RemoteProtocolError(f"cannot read a frame of {len(body)} bytes: {str(error)[:200]}") from error
    if not isinstance(message, dict):
        raise RemoteProtocolError(f"cannot read a frame that holds a {type(message).__name__}, not a map")
    return message


def parse(message: dict[str, Any]) -> Frame:
    """Return what a frame says.

    Raises:
        RemoteProtocolError: no such message, or a field of the wrong type or size.
    """
    op = message.get("op")
    if op == "ready":
        return Ready(_text(message, "version", limit=200))
    if op == "failed":
        return Failed(_text(message, "message", limit=4000))
    run = _number(message, "run")
    if op == "result":
        note, display_id = message.get("note"), message.get("display_id")
        return Result(
            run,
            _flag(message, "main"),
            _formats(message.get("formats")),
            None if note is None else _text(message, "note", limit=4000),
            None if display_id is None else _text(message, "display_id", limit=1000),
            _flag(message, "update"),
        )
    if op == "clear":
        return Clear(run, _flag(message, "wait"))
    if op == "error":
        ename, evalue = _text(message, "ename", limit=1000), _text(message, "evalue")
        return Error(run, ename, evalue, _lines(message, "traceback"), _lines(message, "traceback_ansi"))
    if op == "end" and message.get("status") in ("ok", "error"):
        return End(run, message["status"], _number(message, "count"))
    if op == "reply":
        return Answer(run, _text(message, "value", limit=MAX_JSON_BYTES))
    raise RemoteProtocolError(f"cannot read a frame of op {op!r:.40}")


def _text(message: dict[str, Any], name: str, *, limit: int = MAX_TEXT_CHARS) -> str:
    value = message.get(name)
    if not isinstance(value, str) or len(value) > limit:
        raise RemoteProtocolError(f"cannot accept field {name!r}: it is not text of at most {limit} characters")
    return value


def _number(message: dict[str, Any], name: str) -> int:
    value = message.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
        raise RemoteProtocolError(f"cannot accept field {name!r}: it must be a whole number")
    return value


def _flag(message: dict[str, Any], name: str) -> bool:
    value = message.get(name)
    if not isinstance(value, bool):
        raise RemoteProtocolError(f"cannot accept field {name!r}: it is not a boolean")
    return value


def _lines(message: dict[str, Any], name: str) -> list[str]:
    value = message.get(name)
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise RemoteProtocolError(f"cannot accept field {name!r}: it is not a list of text")
    if sum(map(len, value)) > 2 * MAX_TEXT_CHARS:
        raise RemoteProtocolError(f"cannot accept field {name!r}: it is too long")
    return value


def _formats(value: object) -> dict[str, str | bytes]:
    if not isinstance(value, dict):
        raise RemoteProtocolError("cannot accept a result: its formats are not a map")
    for name, data in value.items():
        if not isinstance(name, str):
            raise RemoteProtocolError("cannot accept a result: a format has no name")
        if name in BINARY_FORMATS:
            good = isinstance(data, bytes)
        elif name in TEXT_FORMATS:
            good = isinstance(data, str)
        elif name in JSON_FORMATS:
            good = isinstance(data, str) and len(data) <= MAX_JSON_BYTES
        else:
            good = isinstance(data, str | bytes) and bool(_MEDIA_TYPE.match(name))
        if not good:
            raise RemoteProtocolError(
                f"cannot accept a result: its format {name[:60]!r} is unknown or has the wrong type"
            )
    return value
