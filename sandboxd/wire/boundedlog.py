"""A bounded log: entries in the order in which they came, each addressed by an offset that never changes.

Every journal is one of these: what a process printed (`journal.py`, in init), what came of a run of code, and what
happened on the daemon (`runtime/`). Each of them makes its own entries, says what one of them counts, and adds what is
special to it. A log holds no readers: a reader keeps an offset, and asks for what is there from it on.

There are two policies for a log that is full:

- DROP_OLDEST: whoever writes never waits and is never refused; the oldest entries go. A reader that finds an entry
  above the offset that it asked for has lost what lies between.
- REFUSE_NEWEST: the beginning is kept, and it has no gap: once something was refused, so is all that comes behind it.
  Whoever writes looks at what is `left` first, since output that is over the bound is cut and not refused whole. It
  claims what it keeps, refuses the rest, and adds an entry when that is whole.
"""

from __future__ import annotations

import collections
import enum
from collections.abc import Callable, Iterator, MutableSequence
from typing import Generic, TypeVar

Entry = TypeVar("Entry")


class WhenFull(enum.Enum):
    """What becomes of an entry that there is no room for."""

    DROP_OLDEST = "drop-oldest"
    REFUSE_NEWEST = "refuse-newest"


class BoundedLog(Generic[Entry]):
    """See the module's description.

    Args:
        bound: what the entries may count together.
        when_full: the policy.
        start: the offset of the first entry.
        on_drop: sees each entry that DROP_OLDEST drops.

    Attributes:
        refused: what REFUSE_NEWEST did not take, in what entries count.
    """

    def __init__(
        self, bound: int, when_full: WhenFull, *, start: int = 0, on_drop: Callable[[Entry], None] | None = None
    ) -> None:
        self.refused = 0
        self._bound = bound
        self._keeps_oldest = when_full is WhenFull.REFUSE_NEWEST
        self._on_drop = on_drop
        #: What is never dropped is a list, in whose middle many readers look fast; the other gives its oldest up fast.
        self._entries: MutableSequence[Entry] = [] if self._keeps_oldest else collections.deque()
        self._size = 0
        self._next = start

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.first}..{self._next}, {self._size} of {self._bound}>"

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def size_of(self, entry: Entry) -> int:
        """Return what an entry of a log that drops the oldest counts: one, where nothing else is said."""
        return 1

    @property
    def first(self) -> int:
        """The oldest offset that is still here."""
        return self._next - len(self._entries)

    @property
    def next(self) -> int:
        """The offset that the next entry gets."""
        return self._next

    @property
    def size(self) -> int:
        """What all entries count together."""
        return self._size

    @property
    def left(self) -> int:
        """How much may still be claimed."""
        return 0 if self.refused else max(0, self._bound - self._size)

    def add(self, entry: Entry) -> None:
        """Add an entry, whose offset is `next`.

        DROP_OLDEST drops what is over the bound, but never the newest; with REFUSE_NEWEST what counts was claimed.
        """
        self._entries.append(entry)
        self._next += 1
        if not self._keeps_oldest:
            self._size += self.size_of(entry)
            self._drop(keep=1)

    def claim(self, size: int) -> None:
        """Count what will be added, no more than is left."""
        self._size += size

    def refuse(self, size: int) -> None:
        """Note that so much was not taken; nothing is left from now on."""
        self.refused += size

    def read(self, offset: int) -> Entry | None:
        """Return the entry at an offset, or the oldest above it; None when there is none yet."""
        index = self._index(offset)
        return self._entries[index] if index < len(self._entries) else None

    def slice(self, offset: int, limit: int | None = None) -> list[Entry]:
        """Return the entries from an offset on, `limit` at most."""
        index = self._index(offset)
        end = len(self._entries) if limit is None else min(index + limit, len(self._entries))
        return [self._entries[at] for at in range(index, end)]

    def shrink(self, bound: int) -> None:
        """Lower the bound, dropping the oldest entries over it."""
        self._bound = bound
        self._drop(keep=0)

    def clear(self) -> None:
        """Let go of every entry; offsets go on."""
        self._entries.clear()
        self._size = 0

    def _index(self, offset: int) -> int:
        """Return where the entry with that offset is, or the first one above it."""
        return max(0, offset - self.first)

    def _drop(self, *, keep: int) -> None:
        while self._size > self._bound and len(self._entries) > keep:
            entry = self._entries[0]
            del self._entries[0]
            self._size -= self.size_of(entry)
            if self._on_drop is not None:
                self._on_drop(entry)
