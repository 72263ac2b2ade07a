"""GET /events: what to send, and how to read the stream (see `calls`)."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
from typing import TYPE_CHECKING, Any, Final

from sandboxd.errors import InvalidRequest
from sandboxd.wire.sse import SseDecoder

from .calls import StreamCall, read_events
from .models import Json, parse_time, read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: The daemon says something every 15 seconds; one that is silent for so long is gone.
_TIMEOUT_S: Final = 60.0
_COMMON: Final = ("offset", "time", "type", "sandbox", "sandbox_name")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SandboxEvent:
    """An event of a sandbox.

    Attributes:
        type: created, destroyed, failed, frozen, thawed, degraded, network-denied or dropped. `dropped` belongs to no
            sandbox: events were lost before they were read, `facts["count"]` of them (None after the daemon restarted).
        sandbox: the sandbox's id; `sandbox_name` is its name at the time, or None.
        time: when it happened.
        offset: its number; a stream from `offset + 1` continues after it.
        facts: the details of the type. failed: `reason`. degraded: `reason`, None once all works again. network-denied:
            `name` and `reason`, or `address`, `protocol` and `port`; `suppressed` is the number of earlier refusals
            that were not kept.
    """

    type: str
    time: dt.datetime
    offset: int
    sandbox: str | None
    sandbox_name: str | None
    facts: dict[str, Any]


def events(
    _: None, *, sandbox: str | None = None, types: str | Sequence[str] | None = None, start: int | None = None
) -> EventReader:
    """Return a stream of sandbox events: first those kept since offset `start` (default: all), then new ones.

    `sandbox` is an id or a name. `types` is one or more of created, destroyed, failed, frozen, thawed, degraded and
    network-denied.
    """
    params = {}
    if sandbox is not None:
        params["sandbox"] = sandbox
    if types is not None:
        params["type"] = types if isinstance(types, str) else ",".join(types)
    if start is not None:
        if start < 0:
            raise InvalidRequest("cannot accept start: it is not an offset", field="start")
        params["from"] = str(start)
    call = StreamCall("GET", "/v1/events", params, accept="text/event-stream", timeout_s=_TIMEOUT_S)
    return EventReader(call, start)


class EventReader:
    """Reads the stream. `next_offset` is where a new stream would continue; None before the first event."""

    over = False  # it ends with the daemon

    def __init__(self, call: StreamCall, start: int | None) -> None:
        self.call = call
        self._decoder = SseDecoder()
        self.next_offset = start

    def feed(self, data: bytes) -> Iterator[SandboxEvent]:
        """Take bytes of the answer and give the events that they complete.

        Raises:
            SandboxdError: the error with which the daemon ended the stream.
        """
        complaint = "cannot read the events: one is not JSON"
        for kind, value in read_events(self._decoder, data, complaint):
            found = read("event", functools.partial(_parse, kind), value)
            if found.type != "dropped":
                self.next_offset = found.offset + 1
            yield found


def _parse(kind: str, value: Json) -> SandboxEvent:
    facts = {key: item for key, item in value.items() if key not in _COMMON}
    return SandboxEvent(
        type=kind,
        time=parse_time(value["time"]),
        offset=int(value["offset"]),
        sandbox=None if kind == "dropped" else str(value["sandbox"]),
        sandbox_name=value.get("sandbox_name"),
        facts=facts,
    )
