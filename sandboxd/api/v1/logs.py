"""GET …/processes/{p}/logs: a process's past and future output, from any offset on."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from quart_trio.wrappers import TrioResponse

from ...errors import InvalidRequest
from ...runtime import logs
from ...spec import check_process_id
from ...wire import raw
from ..bodies import Input
from ..call import streamed
from ..pieces import answer_in_pieces
from ..query import From
from .process_models import LogsOut
from .streams import RawBody, SseBody, StreamBody, event_facts

if TYPE_CHECKING:
    import contextlib

    from ...errors import SandboxdError
    from ...runtime.budget import Hold
    from ...runtime.execution import Exit
    from ...runtime.logs import Snapshot, TextDecoder
    from ...runtime.processes import Processes
    from ...runtime.sandbox import Sandbox
    from ...wire.messages import Event
    from ..call import Call
    from .streams import Source

#: More lines than a log can hold.
MAX_TAIL: Final = 1_000_000
_OCTETS: Final = "application/octet-stream"


class LogsQuery(Input, frozen=True):
    """The part of a log to return."""

    follow: Annotated[bool, Meta(description="true: follow the log until the process ends")] = False
    from_: From = msgspec.field(default=None, name="from")
    tail: Annotated[int | None, Meta(description="start with this many of the last lines")] = None
    encoding: Annotated[Literal["utf-8", "base64"], Meta(description="how JSON and events encode the output")] = "utf-8"
    seen_bytes: Annotated[
        int, Meta(description="bytes that the reader had received before `from`, so that a gap is reported exactly")
    ] = 0


async def show(call: Call, sandbox: Sandbox, process: str, query: LogsQuery) -> TrioResponse:
    """Return a process's output so far, or follow it."""
    processes = sandbox.processes
    check_process_id(process, "process")
    encoding, follow, seen = query.encoding, query.follow, query.seen_bytes
    start = _start(call, query)
    tail = -1 if query.tail is None else query.tail
    if tail > MAX_TAIL:
        raise InvalidRequest(f"cannot accept query parameter 'tail': it must be at most {MAX_TAIL}", field="tail")
    form = _form(call, follow=follow)
    if not follow:
        return await _snapshot(call, processes, process, _Wanted(start, seen, tail, encoding), form)
    await processes.get(process)  # one that does not exist is a 404, not the end of a stream
    source: Source
    if tail >= 0:
        hold = call.hold(processes.sandbox)
        found = await logs.read(processes, process, start, seen_bytes=seen, hold=hold)
        source = await _Tail(found, tail, process, hold).open(call.stack, processes, seen)
    else:
        source = await call.stack.enter_async_context(processes.follow(process, start, seen_bytes=seen))
    headers = {"Cache-Control": "no-store"}
    body: StreamBody
    if form == "raw":
        headers["Content-Type"] = _OCTETS
        body = LogRawBody(source, start)
    elif form == "text":
        headers["Content-Type"] = "text/plain; charset=utf-8"
        body = TextBody(source)
    else:
        headers["Content-Type"] = "text/event-stream; charset=utf-8"
        # One that begins in the middle of a character has read its beginning.
        decoder = await logs.decoder_at(processes, process, start) if encoding == "utf-8" and tail < 0 else None
        body = SseBody(source, encoding, decoder)
    return streamed(body, 200, headers)


class _Wanted:
    """The part that a reader asked for."""

    def __init__(self, start: int, seen_bytes: int, tail: int, encoding: str) -> None:
        self.start = start
        self.seen_bytes = seen_bytes
        self.tail = tail
        self.encoding = encoding


async def _snapshot(call: Call, processes: Processes, process: str, wanted: _Wanted, form: str) -> TrioResponse:
    hold = call.hold(processes.sandbox)
    found = await logs.read(processes, process, wanted.start, seen_bytes=wanted.seen_bytes, hold=hold)
    events = found.events if wanted.tail < 0 else logs.last_lines(found.events, wanted.tail)
    headers = {
        "Sandboxd-Next-Offset": str(found.next_offset),
        "Sandboxd-Dropped-Bytes": str(found.dropped_bytes),
        "Cache-Control": "no-store",
    }
    if form == "raw":
        return TrioResponse(_raw_snapshot(events, found, process, wanted.start), 200, headers, content_type=_OCTETS)
    if form == "text":
        body = b"".join(event.data for event in events if isinstance(event.data, bytes))
        return TrioResponse(body, 200, headers, content_type="text/plain; charset=utf-8")
    texts: dict[str, str] = {}
    carried = await logs.decoder_at(processes, process, wanted.start if wanted.tail < 0 else 0)
    for name in logs.STREAMS:
        data = [event.data for event in events if event.type == name and isinstance(event.data, bytes)]
        if wanted.encoding == "base64":
            texts[name] = base64.b64encode(b"".join(data)).decode()
        else:
            texts[name] = _text(carried, name, data, is_over=not found.running)
    shown = LogsOut(texts["stdout"], texts["stderr"], found.next_offset, found.dropped_bytes)
    return answer_in_pieces(shown, headers=headers)


def _text(decoder: TextDecoder, stream: str, pieces: list[bytes], *, is_over: bool) -> str:
    """Decode a stream's output; a character cut by its end comes with the next snapshot, unless there is none."""
    text = "".join(decoder.decode(stream, piece) for piece in pieces)
    return text + decoder.rest(stream) if is_over else text


def _start(call: Call, query: LogsQuery) -> int:
    """Return the offset to start at: `from`, or the one after `Last-Event-ID`."""
    last = call.request.headers.get("Last-Event-ID")
    if last is None or query.from_ is not None:
        return query.from_ or 0
    if not (last.isascii() and last.isdigit() and len(last) <= 18):
        raise InvalidRequest("cannot accept Last-Event-ID: it is not an offset", field="Last-Event-ID")
    return int(last) + 1


def _form(call: Call, *, follow: bool) -> str:
    accept = call.request.headers.get("Accept", "")
    for media_type, form in ((_OCTETS, "raw"), ("text/plain", "text"), ("text/event-stream", "sse")):
        if media_type in accept and (follow or form != "sse"):
            return form
    return "sse" if follow else "json"


class _Tail:
    """A log from its last lines on: first the existing output, then new output.

    A reader may follow for days, so the existing output and its `hold` are released once it is sent.
    """

    def __init__(self, found: Snapshot, count: int, process: str, hold: Hold) -> None:
        self._first = list(logs.last_lines(found.events, count))
        self._start = found.next_offset
        self._passed = found.dropped_bytes + sum(len(one.data) for one in found.events if isinstance(one.data, bytes))
        self._hold = hold
        self.process_id = process

    async def open(self, stack: contextlib.AsyncExitStack, processes: Processes, seen_bytes: int) -> _Tail:
        """Begin to follow."""
        # The exit event is the follower's to read: it knows how to check it.
        if self._first and self._first[-1].type == "exit":
            self._start = self._first.pop().offset
        follow = processes.follow(self.process_id, self._start, seen_bytes=seen_bytes + self._passed)
        self._follow = await stack.enter_async_context(follow)
        return self

    @property
    def exit(self) -> Exit | None:
        """How the process ended."""
        return self._follow.exit

    async def next_batch(self) -> list[Event]:
        """Return the next events."""
        if self._first:
            batch, self._first = self._first, []
            return batch
        self._hold.close()
        return await self._follow.next_batch()


class LogRawBody(RawBody):
    """Raw frames with offsets (wire/raw.py)."""

    def __init__(self, source: Source, start: int) -> None:
        super().__init__(source)
        self._next_offset: int | None = None if start else 0

    def _encode(self, batch: list[Event]) -> bytes:
        parts: list[bytes] = []
        begun = 0
        for index, event in enumerate(batch):
            if isinstance(event.data, bytes) and event.offset != self._next_offset:
                parts.append(super()._encode(batch[begun:index]))
                parts.append(_event_frame({"type": "position", "offset": event.offset - 1}))
                begun = index
            self._next_offset = event.offset + 1
        parts.append(super()._encode(batch[begun:]))
        return b"".join(parts) if len(parts) > 1 else parts[0]

    def _exit_facts(self, event: Event) -> dict[str, Any]:
        return {"offset": event.offset}

    def _other(self, event: Event) -> list[bytes]:
        facts = event_facts(event, self._source.process_id)
        return [_event_frame({"type": event.type, "offset": event.offset, "time": event.time, **facts})]

    def _end(self) -> bytes:
        """A follower that started after the exit event sees none, but its stream needs an end."""
        if self._source.exit is not None:
            return b""
        return raw.encode(raw.END, msgspec.json.encode({"next_offset": self._next_offset or 0}))


class TextBody(StreamBody):
    """Both streams as they come, without framing."""

    def _encode(self, batch: list[Event]) -> bytes:
        return b"".join(event.data for event in batch if isinstance(event.data, bytes))

    def _problem(self, error: SandboxdError) -> bytes:
        raise error  # the connection is cut: text has no place for it


def _event_frame(facts: dict[str, Any]) -> bytes:
    return raw.encode(raw.EVENT, msgspec.json.encode(facts))


def _raw_snapshot(events: tuple[Event, ...], found: Snapshot, process: str, start: int) -> bytes:
    body = LogRawBody(_Nothing(process), start)
    frames = body._encode([event for event in events if event.type != "exit"])
    return frames + raw.encode(
        raw.END, msgspec.json.encode({"next_offset": found.next_offset, "running": found.running})
    )


class _Nothing:
    """A source that has ended."""

    exit: Exit | None = None

    def __init__(self, process_id: str) -> None:
        self.process_id = process_id

    async def next_batch(self) -> list[Event]:
        """Return the end."""
        return []
