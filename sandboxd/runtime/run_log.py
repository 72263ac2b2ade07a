"""The log of a run: a bounded log that keeps its beginning, and joins what comes in small pieces.

What a program prints in many small pieces is one event as long as nobody has read it: `_open` is the last one, which
may still grow. Readers get only what is closed, and never see an event change.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any, Final

from ..wire import utf8
from ..wire.boundedlog import BoundedLog, WhenFull

if TYPE_CHECKING:
    from ..wire import worker as frames
    from .budget import Hold

#: Up to which size neighbours of one stream are joined.
JOIN_BYTES: Final = 64 * 1024
#: What an event holds beside its data.
EVENT_OVERHEAD: Final = 256


@dataclasses.dataclass(frozen=True, slots=True)
class RunEvent:
    """One event: bytes for stdout and stderr, a `Result` for result, a map for the rest."""

    offset: int
    time: float
    type: str
    data: bytes | frames.Result | dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes that it holds, about."""
        if isinstance(self.data, bytes):
            return EVENT_OVERHEAD + len(self.data)
        return EVENT_OVERHEAD + (_length(self.data) if isinstance(self.data, dict) else self.data.size)


def _length(value: object) -> int:
    """Return how long the texts in a map are, those of its lists too."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_length, value.values()))
    return sum(map(_length, value)) if isinstance(value, list) else 0


@dataclasses.dataclass(slots=True)
class _Open:
    """The last event, while it may grow: output that nobody has read."""

    stream: str
    time: float
    data: bytearray


class RunLog(BoundedLog[RunEvent]):
    """Events of which only output counts, in bytes; whatever else there is has bounds of its own."""

    def __init__(self, bound: int) -> None:
        super().__init__(bound, WhenFull.REFUSE_NEWEST)
        self._open: _Open | None = None

    @property
    def is_growing(self) -> bool:
        """Whether there is output that readers get when it is closed."""
        return self._open is not None

    def add_output(self, stream: str, data: bytes, hold: Hold | None = None) -> bool:
        """Keep what was printed or its beginning, as far as the bound and the hold have room; return whether any is."""
        if not self.left:
            self.refuse(len(data))
            return False
        last = self._open
        is_joined = last is not None and last.stream == stream and len(last.data) + len(data) <= JOIN_BYTES
        overhead = 0 if is_joined else EVENT_OVERHEAD
        room = min(len(data), self.left)
        if hold is not None:
            room = hold.grow_some(room + overhead) - overhead
        if room < len(data):
            kept = utf8.head(data, max(0, room))
            self.refuse(len(data) - len(kept))
            data = kept
        self.claim(len(data))
        if last is not None and is_joined:
            last.data += data
        elif data:
            self.close_open()
            if len(data) > JOIN_BYTES:  # not worth a copy
                self.add(RunEvent(self.next, time.time(), stream, data))
            else:
                self._open = _Open(stream, time.time(), bytearray(data))
        return bool(data)

    def add_event(self, kind: str, data: frames.Result | dict[str, Any]) -> RunEvent:
        """Add an event that is not output, and return it."""
        self.close_open()
        event = RunEvent(self.next, time.time(), kind, data)
        self.add(event)
        return event

    def output(self) -> list[tuple[str, bytes]]:
        """Return all output, each event's stream and data."""
        self.close_open()
        return [(event.type, event.data) for event in self if isinstance(event.data, bytes)]

    def close_open(self) -> None:
        """Let the last event grow no more."""
        if self._open is not None:
            last, self._open = self._open, None
            self.add(RunEvent(self.next, last.time, last.stream, bytes(last.data)))
