"""The three forms of a command's output: JSON at its end, server-sent events, raw frames."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
import trio
from quart.wrappers.response import ResponseBody

from ..errors import SandboxdError
from ..runtime.logs import STREAMS, TextDecoder
from ..wire import raw, sse, utf8
from . import problems
from .models import ExecOut, Usage

if TYPE_CHECKING:
    from types import TracebackType

    from ..runtime.execution import Execution, Exit
    from ..wire.messages import Event

#: What a JSON answer keeps of each stream; the rest is read and dropped, and `truncated` says so.
MAX_JSON_OUTPUT_BYTES: Final = 8 * 1024 * 1024
#: Proxies close streams that say nothing for 30 to 60 seconds.
KEEP_ALIVE_S: Final = 15.0
_FRAME_OF: Final = {"stdout": raw.STDOUT, "stderr": raw.STDERR}


class Source(Protocol):
    """What an answer follows: a command (`Execution`) or a process' log (`Follow`)."""

    @property
    def process_id(self) -> str:
        """The process' id."""

    @property
    def exit(self) -> Exit | None:
        """How it ended, once that event has come."""

    async def next_batch(self) -> list[Event]:
        """Return the events that are here, waiting for the first; an empty list is the end."""


async def collect(execution: Execution, encoding: str) -> ExecOut:
    """Read a command to its end and return it with its output."""
    kept = {"stdout": bytearray(), "stderr": bytearray()}
    cut: set[str] = set()
    truncated = False
    while batch := await execution.next_batch():
        for event in batch:
            if isinstance(event.data, bytes):
                into = kept[event.type]
                room = MAX_JSON_OUTPUT_BYTES - len(into)
                into += event.data if len(event.data) <= room else event.data[:room]
                if len(event.data) > room:
                    cut.add(event.type)
            elif event.type == "truncated":
                truncated = True
    ended = execution.exit
    assert ended is not None  # noqa: S101 - next_batch ends only after the exit event
    texts = {name: _text(bytes(data), encoding, is_cut=name in cut) for name, data in kept.items()}
    return ExecOut(
        id=execution.process_id,
        exit_code=ended.exit_code,
        signal=ended.signal,
        stdout=texts["stdout"],
        stderr=texts["stderr"],
        duration_s=ended.duration_s,
        timed_out=ended.timed_out,
        oom_killed=ended.oom_killed,
        truncated=truncated or bool(cut),
        usage=Usage(ended.cpu_s, ended.memory_peak_bytes),
        reason=ended.reason,
    )


def _text(data: bytes, encoding: str, *, is_cut: bool) -> str:
    if encoding == "base64":
        return base64.b64encode(data).decode()
    return (utf8.whole(data) if is_cut else data).decode("utf-8", "replace")


class StreamBody(ResponseBody):
    """An answer that follows a source; the call's stack, not this body, owns that."""

    def __init__(self, source: Source) -> None:
        self._source = source
        #: Whether nothing comes after the piece that was given last.
        self.is_over = False

    async def __aenter__(self) -> StreamBody:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing: see the class."""

    def __aiter__(self) -> StreamBody:
        return self

    async def __anext__(self) -> bytes:
        while not self.is_over:
            try:
                batch = await self._next()
            except SandboxdError as error:
                self.is_over = True
                return self._problem(error)
            if batch is None:
                return self._idle()
            self.is_over = not batch or batch[-1].type == "exit"
            data = self._encode(batch)
            if self.is_over:
                data += self._end()
            if data:
                return data
        raise StopAsyncIteration

    async def _next(self) -> list[Event] | None:
        """Return the next events, or None when it is time for a sign of life."""
        return await self._source.next_batch()

    def _idle(self) -> bytes:
        return b""

    def _end(self) -> bytes:
        """Return what goes out at the end of the source."""
        return b""

    def _encode(self, batch: list[Event]) -> bytes:
        raise NotImplementedError

    def _problem(self, error: SandboxdError) -> bytes:
        raise NotImplementedError


class RawBody(StreamBody):
    """Raw frames (wire/raw.py); what came together goes out together."""

    def _encode(self, batch: list[Event]) -> bytes:
        parts: list[bytes] = []
        for event in batch:
            if isinstance(event.data, bytes):
                parts += (raw.header(_FRAME_OF[event.type], len(event.data)), event.data)
            elif event.type == "exit" and self._source.exit is not None:
                shown = {"id": self._source.process_id, "time": event.time, **self._source.exit.to_dict()}
                parts.append(raw.encode(raw.EXIT, msgspec.json.encode(self._exit_facts(event) | shown)))
            else:
                parts += self._other(event)
        return b"".join(parts)

    def _exit_facts(self, event: Event) -> dict[str, Any]:
        return {}

    def _other(self, event: Event) -> list[bytes]:
        """Return the frames of an event that is neither output nor the exit: none, in a command's answer."""
        return []

    def _problem(self, error: SandboxdError) -> bytes:
        return raw.encode(raw.PROBLEM, problems.to_json(error))


class SseBody(StreamBody):
    """Server-sent events; text is decoded per stream, a character cut by an event's end waits for the next."""

    def __init__(self, source: Source, encoding: str, decoder: TextDecoder | None = None) -> None:
        super().__init__(source)
        self._decoder = None if encoding == "base64" else decoder or TextDecoder()
        self._last = dict.fromkeys(STREAMS, 0)

    async def _next(self) -> list[Event] | None:
        with trio.move_on_after(KEEP_ALIVE_S):
            return await self._source.next_batch()
        return None

    def _idle(self) -> bytes:
        return sse.KEEP_ALIVE

    def _encode(self, batch: list[Event]) -> bytes:
        return b"".join(part for event in batch for part in self._parts(event))

    def _parts(self, event: Event) -> list[bytes]:
        if isinstance(event.data, bytes):
            if self._decoder is None:
                return [_sse(event, event.type, {"data_b64": base64.b64encode(event.data).decode()})]
            self._last[event.type] = event.offset
            text = self._decoder.decode(event.type, event.data)
            return [_sse(event, event.type, {"text": text})] if text else []
        if event.type == "exit" and self._source.exit is not None:
            return [*self._rest(event.time), _sse(event, "exit", self._source.exit.to_dict())]
        return [_sse(event, event.type, event_facts(event, self._source.process_id))]

    def _rest(self, time: float) -> list[bytes]:
        """Flush characters that were cut by the end of the output.

        They belong to the last event of their stream, and give the reader no id: a new one would be the exit's,
        and whoever resumes after it would miss the exit.
        """
        found = []
        for name in STREAMS:
            text = self._decoder.rest(name) if self._decoder else ""
            if text:
                data = msgspec.json.encode({"offset": self._last[name], "time": time, "text": text})
                found.append(sse.encode(data, event=name))
        return found

    def _problem(self, error: SandboxdError) -> bytes:
        return sse.encode(problems.to_json(error), event="error")


def event_facts(event: Event, process_id: str) -> dict[str, Any]:
    """Return what a caller sees of a start, a restart or a gap: only fields that were checked."""
    data = event.data if isinstance(event.data, dict) else {}
    if event.type == "start":
        return {"id": process_id, "pid": data["pid"]}
    if event.type == "restart":
        return {name: data.get(name) for name in ("exit_code", "signal", "reason", "delay_s", "count")}
    return {"dropped_bytes": data["dropped_bytes"]}


def _sse(event: Event, name: str, fields: dict[str, Any]) -> bytes:
    data = msgspec.json.encode({"offset": event.offset, "time": event.time, **fields})
    return sse.encode(data, event=name, id=event.offset)
