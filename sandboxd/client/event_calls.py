"""GET /events: what to send, and how to read the stream (see `calls`)."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from typing import TYPE_CHECKING, Any, Final

from sandboxd.errors import InvalidRequest, RemoteProtocolError
from sandboxd.wire.sse import SseDecoder

from .calls import StreamCall
from .failures import from_problem
from .models import Json, parse_time, read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: The daemon says something every 15 seconds; one that is silent for so long is gone.
_TIMEOUT_S: Final = 60.0
_COMMON: Final = ("offset", "time", "type", "sandbox", "sandbox_name")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SandboxEvent:
    """What happened to a sandbox.

    Attributes:
        type: created, destroyed, failed, frozen, thawed, degraded, network-denied; or dropped, where events were lost
            before they were read: `facts["count"]` of them, None after a restart of the daemon. It is of no sandbox.
        time: when.
        offset: its number; a stream from `offset + 1` goes on behind it.
        sandbox: the sandbox's id; `sandbox_name` is its name then, None where it had none.
        facts: what the type has of its own: `reason` of failed; of degraded, None where all works again; of
            network-denied `name` and `reason`, or `address`, `protocol` and `port`, and `suppressed` where so many
            more before it were not kept.
    """

    type: str
    time: dt.datetime
    offset: int
    sandbox: str | None
    sandbox_name: str | None
    facts: dict[str, Any]


def events(*, sandbox: str | None, types: str | Sequence[str] | None, start: int | None) -> StreamCall:
    """GET /events, answered by server-sent events."""
    params = {}
    if sandbox is not None:
        params["sandbox"] = sandbox
    if types is not None:
        params["type"] = types if isinstance(types, str) else ",".join(types)
    if start is not None:
        if start < 0:
            raise InvalidRequest("cannot accept start: it is no offset", field="start")
        params["from"] = str(start)
    return StreamCall("GET", "/v1/events", params, accept="text/event-stream", timeout_s=_TIMEOUT_S)


class EventReader:
    """Reads the stream. `next_offset` is where another one would go on; None before the first event."""

    def __init__(self, start: int | None) -> None:
        self._decoder = SseDecoder()
        self.next_offset = start

    def feed(self, data: bytes) -> Iterator[SandboxEvent]:
        """Take bytes of the answer and give the events that they complete.

        Raises:
            SandboxdError: why the daemon ended the stream, as its kind.
        """
        for event in self._decoder.feed(data):
            try:
                value = json.loads(event.data)
            except ValueError as error:
                raise RemoteProtocolError("cannot read the events: one is no JSON") from error
            if event.event == "problem":
                raise from_problem(value)
            found = read("event", lambda item, kind=event.event: _parse(kind, item), value)  # type: ignore[misc]
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
