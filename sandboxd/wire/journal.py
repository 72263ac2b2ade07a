"""A journal: a bounded, append-only log of events, each addressed by its offset.

Offsets count events from 0 and never change; what was one event stays one event, so a reader that comes again
at an offset gets the same bytes. Readers keep their own position (`read`); the journal keeps at least the newest
`capacity` bytes of them. What has been dropped below a reader's position is told as one `truncated` event that
names the bytes.

Two policies meet here, and the owner picks per append:

- a *background* process must never block on its log: `append` drops the oldest events over the capacity;
- a *foreground* follower must lose nothing: the owner stops reading the pipe while `room(floor)` is 0, where
  `floor` is the oldest position that a lossless reader still needs.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any, Final

from .messages import EVENT_OVERHEAD

#: Bytes kept for one process.
DEFAULT_CAPACITY: Final = 1024 * 1024
#: No single read of a pipe takes more, so `room` looks no further.
ENOUGH_ROOM: Final = 256 * 1024


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


class Journal:
    """A bounded event log; see the module's theory of operation. `on_drop` sees each event that leaves it."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY, on_drop: Callable[[Entry], None] | None = None) -> None:
        self._capacity = capacity
        self._on_drop = on_drop
        self._entries: collections.deque[Entry] = collections.deque()
        self._size = 0
        self._next = 0
        self._base = 0

    def __repr__(self) -> str:
        return f"<Journal {self.first}..{self._next}, {self._size} bytes, {self.dropped_bytes} dropped>"

    @property
    def first(self) -> int:
        """The oldest offset that is still here."""
        return self._entries[0].offset if self._entries else self._next

    @property
    def next(self) -> int:
        """The offset that the next event gets."""
        return self._next

    @property
    def size(self) -> int:
        """Bytes kept, each event's overhead included."""
        return self._size

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
        freeable = self._capacity - self._size - 2 * EVENT_OVERHEAD
        for entry in self._entries:
            # Stopping at the first byte of room would make the next event as small as the oldest one, for ever.
            if entry.offset >= floor or freeable >= ENOUGH_ROOM:
                break
            freeable += entry.size
        return max(0, freeable)

    def append(self, type: str, data: bytes | dict[str, Any], time: float) -> Entry:  # noqa: A002 - the field's name
        """Add an event, drop the oldest ones over the capacity (never the new one), and return it."""
        entry = Entry(self._next, self._base, time, type, data)
        self._next += 1
        self._base += entry.output_bytes
        self._entries.append(entry)
        self._size += entry.size
        self._drop(keep=1)
        return entry

    def read(self, position: int) -> Entry | None:
        """Return the event at `position`, or the oldest above it; None when there is none yet.

        A caller that gets an entry whose offset is above its position has lost what lay between: the new entry's
        `base` less the end of the last entry it read, in bytes.
        """
        if not self._entries or position >= self._next:
            return None
        return self._entries[max(0, position - self.first)]

    def shrink(self, capacity: int) -> None:
        """Lower the capacity (an ended process' log), dropping the oldest events over it."""
        self._capacity = capacity
        self._drop(keep=0)

    def _drop(self, *, keep: int) -> None:
        while self._size > self._capacity and len(self._entries) > keep:
            entry = self._entries.popleft()
            self._size -= entry.size
            if self._on_drop is not None:
                self._on_drop(entry)
