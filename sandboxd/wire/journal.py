"""A journal of a process: a bounded log of its events, which drops the oldest (`boundedlog.py`).

What was one event stays one event, so a reader that comes again at an offset gets the same bytes. The journal keeps
the newest `capacity` bytes of them. What has been dropped below a reader's position is told as one `truncated` event
that names the bytes.

Two policies meet here, and the owner picks per append:

- a *background* process must never block on its log: `append` drops the oldest events over the capacity;
- a *foreground* follower must lose nothing: the owner stops reading the pipe while `room(floor)` is 0, where
  `floor` is the oldest position that a lossless reader still needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

from .boundedlog import BoundedLog, WhenFull
from .messages import EVENT_OVERHEAD

#: Bytes kept for one process.
DEFAULT_CAPACITY: Final = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One event: `data` is bytes for output and a map for everything else; `time` is seconds since the epoch.

    `base` counts the bytes of output that came before it in the log, so that a reader that finds a gap can tell
    how many bytes the gap was.
    """

    offset: int
    base: int
    time: float
    type: str
    data: bytes | dict[str, Any]

    @property
    def size(self) -> int:
        """What the entry counts against the capacity."""
        return EVENT_OVERHEAD + self.output_bytes

    @property
    def output_bytes(self) -> int:
        """Bytes of output in it."""
        return len(self.data) if isinstance(self.data, bytes) else 0


class Journal(BoundedLog[Entry]):
    """The log of one process; see the module's theory of operation. It counts bytes, each event's overhead included."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY, on_drop: Callable[[Entry], None] | None = None) -> None:
        super().__init__(capacity, WhenFull.DROP_OLDEST, on_drop=on_drop)
        self._base = 0

    def size_of(self, entry: Entry) -> int:
        """Return what an event counts."""
        return entry.size

    @property
    def dropped_bytes(self) -> int:
        """Bytes of output that are no longer here."""
        return self._entries[0].base if self._entries else self._base

    @property
    def total_bytes(self) -> int:
        """Bytes of output that there ever were."""
        return self._base

    def room(self, floor: int) -> int:
        """Return how many bytes one more output event may have without dropping an event at or above `floor`.

        Two overheads are kept back: that event's own, and the exit event's, which comes without asking.
        """
        oldest_needed = self.read(floor)
        end = self._base if oldest_needed is None else oldest_needed.base
        events = max(0, min(floor, self._next) - self.first)
        freeable = end - self.dropped_bytes + events * EVENT_OVERHEAD
        return max(0, self._bound - self._size + freeable - 2 * EVENT_OVERHEAD)

    def append(self, type: str, data: bytes | dict[str, Any], time: float) -> Entry:  # noqa: A002 - the field's name
        """Add an event and return it.

        A reader that gets one whose offset is above its position has lost what lay between: the event's `base` less
        the end of the last one that it read, in bytes.
        """
        entry = Entry(self._next, self._base, time, type, data)
        self._base += entry.output_bytes
        self.add(entry)
        return entry
