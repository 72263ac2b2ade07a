"""What happened on this daemon: one bounded journal of all sandboxes' events, which anybody may follow by offset.

Theory of operation. Events are numbered from a base that the daemon takes from the clock when it starts, so offsets
grow over its restarts, and a reader that comes back with the last one that it saw misses nothing in silence. Nothing
waits for a reader: it holds an offset and takes what is there, and is told how many events were dropped before it came.

What is refused by the network is the one event that a sandbox makes as often as it likes. It cannot push out what
others would read: `DENIED_PER_S` of them are kept a second (the next one says how many were not, `suppressed`), and
`MAX_DENIED` altogether, of which the sandbox's own oldest makes room.
"""

from __future__ import annotations

import bisect
import dataclasses
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from ..errors import ServerBusy
from ..wire.boundedlog import BoundedLog, WhenFull
from .news import News

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

TYPES: Final = ("created", "destroyed", "failed", "frozen", "thawed", "degraded", "network-denied")
#: Events that are kept, a few hundred bytes each.
MAX_EVENTS: Final = 8192
#: Those of one sandbox that the network refused something.
MAX_DENIED: Final = 256
#: What is kept of them in a second, and at once after a silence.
DENIED_PER_S: Final = 10.0
DENIED_BURST: Final = 20
#: Events that one `read` looks at.
MAX_BATCH: Final = 256
#: More than a daemon makes in a second, so that one that starts later begins higher; the sum stays below 2**53.
_OFFSETS_PER_S: Final = 1_000_000
#: What is told of a text that came from elsewhere.
_MAX_TEXT: Final = 300


@dataclasses.dataclass(frozen=True, slots=True)
class Happening:
    """One event: `sandbox` is an id, `sandbox_name` what it was called then, `facts` what the type has of its own."""

    offset: int
    time: float
    type: str
    sandbox: str
    sandbox_name: str | None
    facts: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Filter:
    """What a reader wants: None is everything. `sandbox` is an id, or a name that it had at the time."""

    sandbox: str | None = None
    types: Collection[str] | None = None

    def takes(self, event: Happening) -> bool:
        """Return whether the event is wanted."""
        if self.types is not None and event.type not in self.types:
            return False
        return self.sandbox is None or self.sandbox in (event.sandbox, event.sandbox_name)


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """What one `read` found: `dropped` events before or among them are lost; go on at `next_offset`.

    `dropped` is None where it cannot be counted: the daemon was started again meanwhile.
    """

    events: list[Happening]
    next_offset: int
    dropped: int | None = 0


@dataclasses.dataclass(slots=True)
class _Rate:
    """A bucket of tokens, and what was not kept since the last that was."""

    tokens: float
    at: float
    suppressed: int = 0


class _Kept(BoundedLog[Happening]):
    """The events that are kept, with gaps: one may go before older ones."""

    @property
    def first(self) -> int:
        """The oldest offset that is still here."""
        return self._entries[0].offset if self._entries else self._next

    def remove(self, offset: int) -> None:
        """Let go of one event, which is here."""
        del self._entries[self._index(offset)]
        self._size -= 1

    def _index(self, offset: int) -> int:
        return bisect.bisect_left(self._entries, offset, key=lambda event: event.offset)


class Events:
    """The journal. `clock` gives seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.base = int(time.time()) * _OFFSETS_PER_S
        self._clock = clock
        self._kept = _Kept(MAX_EVENTS, WhenFull.DROP_OLDEST, start=self.base, on_drop=self._note_drop)
        self._denied: dict[str, deque[int]] = {}  # the offsets of each sandbox's that are kept
        self._rates: dict[str, _Rate] = {}
        self._news = News()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Events {len(self._kept)} kept, next {self.next}>"

    # --- writing ----------------------------------------------------------------------------------------

    def add(self, kind: str, sandbox: str, sandbox_name: str | None, **facts: Any) -> None:  # noqa: ANN401 - JSON
        """Note an event of one of `TYPES`, but for network-denied."""
        self._append(kind, sandbox, sandbox_name, facts)
        if kind == "destroyed":
            self._rates.pop(sandbox, None)

    def deny(self, sandbox: str, sandbox_name: str | None, facts: dict[str, Any]) -> None:
        """Note that the network refused a sandbox something, if it is not one of too many."""
        now = self._clock()
        rate = self._rates.setdefault(sandbox, _Rate(DENIED_BURST, now))
        rate.tokens = min(DENIED_BURST, rate.tokens + (now - rate.at) * DENIED_PER_S)
        rate.at = now
        if rate.tokens < 1:
            rate.suppressed += 1
            return
        rate.tokens -= 1
        own = self._denied.setdefault(sandbox, deque())
        if len(own) >= MAX_DENIED:
            self._kept.remove(own.popleft())
        own.append(self.next)
        more = {"suppressed": rate.suppressed} if rate.suppressed else {}
        rate.suppressed = 0
        self._append("network-denied", sandbox, sandbox_name, {**facts, **more})

    def _append(self, kind: str, sandbox: str, sandbox_name: str | None, facts: dict[str, Any]) -> None:
        shown = {key: value[:_MAX_TEXT] if isinstance(value, str) else value for key, value in facts.items()}
        self._kept.add(Happening(self.next, time.time(), kind, sandbox, sandbox_name, shown))
        self._news.tell()

    def _note_drop(self, oldest: Happening) -> None:
        if oldest.type == "network-denied":
            own = self._denied[oldest.sandbox]
            own.popleft()
            if not own:
                del self._denied[oldest.sandbox]

    # --- reading ----------------------------------------------------------------------------------------

    @property
    def next(self) -> int:
        """The offset that the next event will have."""
        return self._kept.next

    @property
    def first(self) -> int:
        """The offset of the oldest event that is kept."""
        return self._kept.first

    def read(self, start: int, wanted: Filter, limit: int = MAX_BATCH) -> Batch:
        """Return wanted events from an offset on, `limit` at most; reading goes on at the batch's `next_offset`."""
        start = min(start, self.next)  # of a clock that was set back: what comes is all that there is
        looked = self._kept.slice(start, limit)
        following = looked[-1].offset + 1 if len(looked) == limit else self.next
        dropped = None if start < self.base else following - start - len(looked)
        return Batch([event for event in looked if wanted.takes(event)], following, dropped)

    async def wait(self, offset: int) -> None:
        """Return when there is an event with that offset or a later one.

        Raises:
            ServerBusy: the daemon is stopping.
        """
        while offset >= self.next:
            if self._closed:
                raise ServerBusy("cannot continue: the daemon is stopping")
            await self._news.wait()

    def close(self) -> None:
        """End every reader that has read what there is."""
        self._closed = True
        self._news.tell()
