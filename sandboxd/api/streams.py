"""The three forms of a command's output: JSON at its end, server-sent events, raw frames."""

from __future__ import annotations

import base64
import codecs
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio
from quart.wrappers.response import ResponseBody

from ..errors import SandboxdError
from ..wire import raw, sse
from . import problems
from .models import ExecOut, Usage

if TYPE_CHECKING:
    from types import TracebackType

    from ..runtime.execution import Execution
    from ..wire.messages import Event

#: What a JSON answer keeps of each stream; the rest is read and dropped, and `truncated` says so.
MAX_JSON_OUTPUT_BYTES: Final = 8 * 1024 * 1024
#: Proxies close streams that say nothing for 30 to 60 seconds.
KEEP_ALIVE_S: Final = 15.0
_FRAME_OF: Final = {"stdout": raw.STDOUT, "stderr": raw.STDERR}


async def collect(execution: Execution, encoding: str) -> ExecOut:
    """Read a command to its end and return it with its output."""
    kept = {"stdout": bytearray(), "stderr": bytearray()}
    truncated = False
    while batch := await execution.next_batch():
        for event in batch:
            if isinstance(event.data, bytes):
                into = kept[event.type]
                room = MAX_JSON_OUTPUT_BYTES - len(into)
                into += event.data if len(event.data) <= room else event.data[:room]
                truncated = truncated or len(event.data) > room
            elif event.type == "truncated":
                truncated = True
    ended = execution.exit
    assert ended is not None  # noqa: S101 - next_batch ends only after the exit event
    texts = {name: _text(data, encoding) for name, data in kept.items()}
    return ExecOut(
        id=execution.process_id,
        exit_code=ended.exit_code,
        signal=ended.signal,
        stdout=texts["stdout"],
        stderr=texts["stderr"],
        duration_s=ended.duration_s,
        timed_out=ended.timed_out,
        oom_killed=ended.oom_killed,
        truncated=truncated,
        usage=Usage(ended.cpu_s, ended.memory_peak_bytes),
        reason=ended.reason,
    )


def _text(data: bytearray, encoding: str) -> str:
    return base64.b64encode(data).decode() if encoding == "base64" else data.decode("utf-8", "replace")


class _ExecBody(ResponseBody):
    """An answer that follows a command; the call's stack, not this body, owns the execution."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._over = False

    async def __aenter__(self) -> _ExecBody:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing: see the class."""

    def __aiter__(self) -> _ExecBody:
        return self

    async def __anext__(self) -> bytes:
        while not self._over:
            try:
                batch = await self._next()
            except SandboxdError as error:
                self._over = True
                return self._problem(error)
            if batch is None:
                return self._idle()
            self._over = not batch
            data = self._encode(batch)
            if data:
                return data
        raise StopAsyncIteration

    async def _next(self) -> list[Event] | None:
        """Return the next events, or None when it is time for a sign of life."""
        return await self._execution.next_batch()

    def _idle(self) -> bytes:
        return b""

    def _encode(self, batch: list[Event]) -> bytes:
        raise NotImplementedError

    def _problem(self, error: SandboxdError) -> bytes:
        raise NotImplementedError


class RawBody(_ExecBody):
    """Raw frames (wire/raw.py); what came together goes out together."""

    def _encode(self, batch: list[Event]) -> bytes:
        parts: list[bytes] = []
        for event in batch:
            if isinstance(event.data, bytes):
                parts += (raw.header(_FRAME_OF[event.type], len(event.data)), event.data)
            elif event.type == "exit" and self._execution.exit is not None:
                shown = {"id": self._execution.process_id, "time": event.time, **self._execution.exit.to_dict()}
                parts.append(raw.encode(raw.EXIT, msgspec.json.encode(shown)))
        return b"".join(parts)

    def _problem(self, error: SandboxdError) -> bytes:
        return raw.encode(raw.PROBLEM, problems.to_json(error))


class SseBody(_ExecBody):
    """Server-sent events; text is decoded per stream, a character cut by an event's end waits for the next."""

    def __init__(self, execution: Execution, encoding: str) -> None:
        super().__init__(execution)
        make = codecs.getincrementaldecoder("utf-8")
        self._decoders = None if encoding == "base64" else {"stdout": make("replace"), "stderr": make("replace")}
        self._last = {"stdout": 0, "stderr": 0}

    async def _next(self) -> list[Event] | None:
        with trio.move_on_after(KEEP_ALIVE_S):
            return await self._execution.next_batch()
        return None

    def _idle(self) -> bytes:
        return sse.KEEP_ALIVE

    def _encode(self, batch: list[Event]) -> bytes:
        return b"".join(part for event in batch for part in self._parts(event))

    def _parts(self, event: Event) -> list[bytes]:
        if isinstance(event.data, bytes):
            if self._decoders is None:
                return [_sse(event, event.type, {"data_b64": base64.b64encode(event.data).decode()})]
            self._last[event.type] = event.offset
            text = self._decoders[event.type].decode(event.data)
            return [_sse(event, event.type, {"text": text})] if text else []
        if event.type == "exit" and self._execution.exit is not None:
            return [*self._rest(event.time), _sse(event, "exit", self._execution.exit.to_dict())]
        if event.type == "start":
            return [_sse(event, "start", {"id": self._execution.process_id, "pid": event.data["pid"]})]
        return [_sse(event, "truncated", {"dropped_bytes": event.data["dropped_bytes"]})]

    def _rest(self, time: float) -> list[bytes]:
        """Flush characters that were cut by the end of the output.

        They belong to the last event of their stream, and give the reader no id: a new one would be the exit's,
        and whoever resumes after it would miss the exit.
        """
        found = []
        for name, decoder in (self._decoders or {}).items():
            text = decoder.decode(b"", final=True)
            if text:
                data = msgspec.json.encode({"offset": self._last[name], "time": time, "text": text})
                found.append(sse.encode(data, event=name))
        return found

    def _problem(self, error: SandboxdError) -> bytes:
        return sse.encode(problems.to_json(error), event="error")


def _sse(event: Event, name: str, fields: dict[str, Any]) -> bytes:
    data = msgspec.json.encode({"offset": event.offset, "time": event.time, **fields})
    return sse.encode(data, event=name, id=event.offset)
