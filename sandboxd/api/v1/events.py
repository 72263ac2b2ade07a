"""GET /events: the events of all sandboxes, as a page or as server-sent events."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import trio
from msgspec import Meta

from ...errors import InvalidRequest
from ...runtime.events import MAX_BATCH, TYPES, Batch, Filter, Happening
from ...wire import sse
from .. import problems
from ..bodies import Input
from ..call import answer, streamed
from ..pieces import follow
from ..query import From, Limit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from quart_trio.wrappers import TrioResponse

    from ...runtime.events import Events
    from ..call import Call

#: Longer than any id or name.
_MAX_NAME: Final = 200
_MAX_DIGITS: Final = 18


class EventsQuery(Input, frozen=True):
    """The events to return."""

    sandbox: Annotated[str | None, Meta(description="a sandbox's id, or the name it had at the time")] = None
    type: Annotated[str | None, Meta(description="event types, separated by commas")] = None
    from_: From = msgspec.field(default=None, name="from")
    limit: Limit = MAX_BATCH


class EventOut(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One event. A denial has a `name` and a `reason`, or an `address`, a `protocol` and a `port`."""

    offset: int
    time: float
    type: str
    sandbox: str
    sandbox_name: str | None
    reason: str | msgspec.UnsetType | None = msgspec.UNSET
    name: str | msgspec.UnsetType = msgspec.UNSET
    address: str | msgspec.UnsetType = msgspec.UNSET
    protocol: str | msgspec.UnsetType = msgspec.UNSET
    port: int | msgspec.UnsetType | None = msgspec.UNSET
    suppressed: int | msgspec.UnsetType = msgspec.UNSET


class EventPage(msgspec.Struct, kw_only=True):
    """Events from an offset on; continue at `next_offset`. `dropped` is null after the daemon restarted."""

    items: list[EventOut]
    next_offset: int
    dropped: int | None


async def show(call: Call, query: EventsQuery) -> TrioResponse:
    """Return the events of sandboxes: a page, or server-sent events as they happen."""
    events, wanted = call.manager.events, _filter(query)
    start = _start(call, query)
    if call.accepts() == "sse":
        headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}
        return streamed(_EventBody(events, wanted, events.first if start is None else start), 200, headers)
    if not 1 <= query.limit <= MAX_BATCH:
        raise InvalidRequest(f"cannot accept limit: it must be 1 to {MAX_BATCH}", field="limit")
    batch = events.read(events.first if start is None else start, wanted, query.limit)
    items = [_event_out(event) for event in batch.events]
    page = EventPage(items=items, next_offset=batch.next_offset, dropped=batch.dropped)
    return answer(page, headers={"Cache-Control": "no-store"})


def _filter(query: EventsQuery) -> Filter:
    sandbox, types = query.sandbox, query.type
    if sandbox is not None and not 1 <= len(sandbox) <= _MAX_NAME:
        raise InvalidRequest("cannot accept sandbox: it is neither an id nor a name", field="sandbox")
    if types is None:
        return Filter(sandbox)
    found = frozenset(types.split(","))
    if not found <= set(TYPES):
        raise InvalidRequest(f"cannot accept type: it must be one of {', '.join(TYPES)}", field="type")
    return Filter(sandbox, found)


def _start(call: Call, query: EventsQuery) -> int | None:
    """Return the offset to start at: `from`, or the one after `Last-Event-ID`; else None."""
    if query.from_ is not None:
        return query.from_
    last = call.request.headers.get("Last-Event-ID")
    if not last:
        return None
    if not (last.isascii() and last.isdigit() and len(last) <= _MAX_DIGITS):
        raise InvalidRequest("cannot accept Last-Event-ID: it is not an offset", field="Last-Event-ID")
    return int(last) + 1


def _event_out(event: Happening) -> EventOut:
    return EventOut(
        offset=event.offset,
        time=event.time,
        type=event.type,
        sandbox=event.sandbox,
        sandbox_name=event.sandbox_name,
        **event.facts,
    )


class _EventBody:
    """The journal from an offset on, until the caller leaves or the daemon stops.

    A slow reader costs only its offset: events that are gone when it reads are reported as `dropped`.
    """

    def __init__(self, events: Events, wanted: Filter, start: int) -> None:
        self._events = events
        self._wanted = wanted
        self._next = min(start, events.next)  # the clock was set back: all that comes is news

    def __aiter__(self) -> AsyncIterator[bytes]:
        # The head goes out with the first piece: the caller knows that nothing from now on is missed.
        return follow(self._next_pieces, problems.to_event, first=sse.KEEP_ALIVE)

    async def _next_pieces(self) -> tuple[Iterable[bytes], bool]:
        while True:
            await trio.lowlevel.checkpoint()
            await self._events.wait(self._next)
            start, batch = self._next, self._events.read(self._next, self._wanted)
            self._next = batch.next_offset
            if batch.events or batch.dropped != 0:
                return _encoded(batch, start), False


def _encoded(batch: Batch, start: int) -> list[bytes]:
    parts = []
    if batch.dropped != 0:
        # Without an id: who comes back goes on where it was.
        facts: dict[str, Any] = {"offset": start, "time": time.time(), "count": batch.dropped}
        parts.append(sse.encode(msgspec.json.encode(facts), event="dropped"))
    parts += [
        sse.encode(msgspec.json.encode(_event_out(event)), event=event.type, id=event.offset) for event in batch.events
    ]
    return parts
