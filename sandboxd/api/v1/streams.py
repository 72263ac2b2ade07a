"""The three forms of a command's output: JSON at its end, server-sent events, raw frames."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from ...runtime.headtail import Collected, collect
from ...runtime.logs import STREAMS, TextDecoder
from ...wire import raw, sse
from .. import problems
from ..call import answer
from ..pieces import STEP, Text, answer_in_pieces, follow
from .models import ExecOut, Gap, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from quart_trio.wrappers import TrioResponse

    from ...errors import SandboxdError
    from ...runtime.budget import Hold
    from ...runtime.execution import Execution, Exit
    from ...wire.messages import Event

#: What a JSON answer keeps of each stream: half of it from the beginning, half from the end; `gaps` tell the rest.
MAX_JSON_OUTPUT_BYTES: Final = 8 * 1024 * 1024
_FRAME_OF: Final = {"stdout": raw.STDOUT, "stderr": raw.STDERR}


class Source(Protocol):
    """The source of a stream: a command (`Execution`) or a process's log (`Follow`)."""

    @property
    def process_id(self) -> str:
        """The process's id."""

    @property
    def exit(self) -> Exit | None:
        """How it ended, once the exit event has arrived."""

    async def next_batch(self) -> list[Event]:
        """Wait for an event, and return all that are available; an empty list is the end."""


async def answer_at_end(execution: Execution, encoding: str, hold: Hold, headers: dict[str, str]) -> TrioResponse:
    """Read a command to its end and answer with its output; `hold` must last until the answer is sent."""
    found = await collect(execution, MAX_JSON_OUTPUT_BYTES, hold)
    texts = {name: Text(stream.parts, encoding) for name, stream in found.output.items()}
    is_small = found.size <= STEP
    ended = found.exit
    shown = ExecOut(
        id=execution.process_id,
        exit_code=ended.exit_code,
        signal=ended.signal,
        stdout=str(texts["stdout"]) if is_small else "",
        stderr=str(texts["stderr"]) if is_small else "",
        duration_s=ended.duration_s,
        timed_out=ended.timed_out,
        oom_killed=ended.oom_killed,
        truncated=found.dropped_bytes > 0,
        dropped_bytes=found.dropped_bytes,
        gaps=_gaps(found),
        usage=Usage(ended.cpu_s, ended.memory_peak_bytes),
        reason=ended.reason,
    )
    if is_small:
        return answer(shown, headers=headers)
    return answer_in_pieces({**msgspec.structs.asdict(shown), **texts}, headers=headers)


def _gaps(found: Collected) -> list[Gap]:
    return [
        Gap(name, len(stream.parts[0]), stream.dropped_bytes)
        for name, stream in found.output.items()
        if stream.dropped_bytes
    ]


class StreamBody:
    """The pieces of an answer that follows a source; the call's stack owns the source."""

    #: What goes out when the source has long said nothing.
    idle = b""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __aiter__(self) -> AsyncIterator[bytes]:
        return follow(self._next_pieces, self._problem, idle=self.idle)

    async def _next_pieces(self) -> tuple[Iterable[bytes], bool]:
        batch = await self._source.next_batch()
        is_last = not batch or batch[-1].type == "exit"
        return self._parts_of(batch, is_last=is_last), is_last

    def _parts_of(self, batch: list[Event], *, is_last: bool) -> Iterable[bytes]:
        """Yield a batch's output, in parts that are cheap to make."""
        yield self._encode(batch)
        if is_last:
            yield self._end()

    def _end(self) -> bytes:
        """Return the output that ends the stream."""
        return b""

    def _encode(self, batch: list[Event]) -> bytes:
        raise NotImplementedError

    def _problem(self, error: SandboxdError) -> bytes:
        raise NotImplementedError


class RawBody(StreamBody):
    """Raw frames (wire/raw.py); events that arrive together are sent together."""

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
        """Return the frames of an event that is neither output nor the exit; a command's answer has none."""
        return []

    def _problem(self, error: SandboxdError) -> bytes:
        return raw.encode(raw.PROBLEM, problems.to_json(error))


class SseBody(StreamBody):
    """Server-sent events; text is decoded per stream, and a character cut by an event's end waits for the next."""

    idle = sse.KEEP_ALIVE

    def __init__(self, source: Source, encoding: str, decoder: TextDecoder | None = None) -> None:
        super().__init__(source)
        self._decoder = None if encoding == "base64" else decoder or TextDecoder()
        self._last = dict.fromkeys(STREAMS, 0)

    def _parts_of(self, batch: list[Event], *, is_last: bool) -> Iterable[bytes]:
        del is_last
        for event in batch:
            yield from self._parts(event)

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

        They belong to the last event of their stream and carry no id: a new id would be the exit's, and a reader that
        resumes after it would miss the exit.
        """
        found = []
        for name in STREAMS:
            text = self._decoder.rest(name) if self._decoder else ""
            if text:
                data = msgspec.json.encode({"offset": self._last[name], "time": time, "text": text})
                found.append(sse.encode(data, event=name))
        return found

    def _problem(self, error: SandboxdError) -> bytes:
        return problems.to_event(error)


def event_facts(event: Event, process_id: str) -> dict[str, Any]:
    """Return a start, a restart or a gap as callers see it: only checked fields."""
    data = event.data if isinstance(event.data, dict) else {}
    if event.type == "start":
        return {"id": process_id, "pid": data["pid"]}
    if event.type == "restart":
        return {name: data.get(name) for name in ("exit_code", "signal", "reason", "delay_s", "count")}
    return {"dropped_bytes": data["dropped_bytes"]}


def _sse(event: Event, name: str, fields: dict[str, Any]) -> bytes:
    data = msgspec.json.encode({"offset": event.offset, "time": event.time, **fields})
    return sse.encode(data, event=name, id=event.offset)
