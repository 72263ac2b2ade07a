"""The memory that the daemon holds for its callers, in bytes: one bound for all sandboxes, and a share for each.

Code that collects data (a command's output for a JSON answer, a run's journal, a log, a file in one piece) has a
`Hold`, and asks it for room *before* it keeps a piece. The hold is closed when the data is dropped. Data that is kept
only in case a caller asks again (the journal of a finished run) is *spare*: it is dropped, oldest first, before any
request is refused. Nothing here does I/O or knows what the bytes are.

Without a `Share` (tests, a tool) there is no bound: `UNBOUNDED` gives holds that never refuse.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from ..errors import ServerBusy

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

#: What one sandbox may have held, and all together.
SHARE_BYTES: Final = 80 * 1024 * 1024
TOTAL_BYTES: Final = 512 * 1024 * 1024
#: What a hold keeps without asking: small answers cost nothing here, and a full budget refuses none of them.
FREE_BYTES: Final = 64 * 1024
#: A hold asks for this much at once, so that many small pieces cost little.
STEP_BYTES: Final = 64 * 1024


class Budget:
    """The bound of all; `freed` is called with each number of bytes that went back."""

    def __init__(self, total: float = TOTAL_BYTES, each: float = SHARE_BYTES) -> None:
        self.total = total
        self.each = each
        self.held = 0
        self.freed: Callable[[int], None] = lambda _: None
        #: Spare holds of all shares, the oldest first (a dict keeps its order).
        self._spare: dict[Hold, None] = {}

    def __repr__(self) -> str:
        return f"<Budget {self.held} of {self.total} bytes, {len(self._spare)} spare>"

    def share(self) -> Share:
        """Return the share of one sandbox."""
        return Share(self)

    def _make_room(self, size: int, share: Share) -> bool:
        """Drop what is spare until `size` more bytes fit; return whether they do."""
        while share.held + size > self.each:
            if not self._drop_oldest(share._spare):
                return False
        while self.held + size > self.total:
            if not self._drop_oldest(self._spare):
                return False
        return True

    @staticmethod
    def _drop_oldest(spare: dict[Hold, None]) -> bool:
        hold = next(iter(spare), None)
        if hold is None:
            return False
        hold.drop()
        return True


class Share:
    """What one sandbox may have held."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.held = 0
        self._spare: dict[Hold, None] = {}

    def __repr__(self) -> str:
        return f"<Share {self.held} of {self.budget.each} bytes>"

    def hold(self) -> Hold:
        """Return a hold of nothing yet."""
        return Hold(self)


class Hold:
    """Bytes that are kept for one purpose; a context manager that gives them back."""

    __slots__ = ("_asked", "_on_drop", "_share", "size")

    def __init__(self, share: Share) -> None:
        self.size = 0
        self._share = share
        self._asked = FREE_BYTES
        self._on_drop: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<Hold {self.size} bytes>"

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def grow(self, size: int) -> bool:
        """Take note of `size` more bytes; False when there is no room for them, and nothing was noted."""
        if self.size + size > self._asked and not self._ask(self.size + size - self._asked):
            return False
        self.size += size
        return True

    def grow_some(self, size: int) -> int:
        """Take note of as many of `size` bytes as there is room for, and return how many those are."""
        if self.grow(size):
            return size
        share, budget = self._share, self._share.budget
        room = int(min(share.budget.each - share.held, budget.total - budget.held))  # nothing spare is left
        size = min(size, self._asked - self.size + max(0, room))
        return size if self.grow(size) else 0

    def force(self, size: int) -> None:
        """Take note of what cannot be left out, room or not."""
        if not self.grow(size):
            self._note(size)
            self.size += size

    def take(self, size: int, what: str) -> None:
        """Take note of `size` more bytes.

        Raises:
            ServerBusy: there is no room for them; `what` completes "cannot …".
        """
        if not self.grow(size):
            bound = self._share.budget.each
            why = "the daemon already holds as much data as it may for callers of this sandbox, or of all sandboxes"
            raise ServerBusy(f"cannot {what}: {why}", bound_bytes=bound, held_bytes=self._share.held)

    def _ask(self, size: int) -> bool:
        share, budget = self._share, self._share.budget
        # With slack where there is some; to the byte at the bound.
        slack = size + STEP_BYTES
        if share.held + slack <= budget.each and budget.held + slack <= budget.total:
            size = slack
        elif not budget._make_room(size, share):
            return False
        self._note(size)
        return True

    def _note(self, size: int) -> None:
        self._asked += size
        self._share.held += size
        self._share.budget.held += size

    def make_spare(self, on_drop: Callable[[], None]) -> None:
        """Say that it may go when others need room: `on_drop` must let go of what it stands for."""
        self._on_drop = on_drop
        self._share._spare[self] = None
        self._share.budget._spare[self] = None

    def make_needed(self) -> None:
        """Say that it must stay after all."""
        self._on_drop = None
        self._share._spare.pop(self, None)
        self._share.budget._spare.pop(self, None)

    def drop(self) -> None:
        """Let go of something spare."""
        on_drop = self._on_drop
        self.close()
        if on_drop is not None:
            on_drop()

    def close(self) -> None:
        """Give all of it back; twice is fine."""
        self.make_needed()
        gone, self._asked, self.size = self._asked - FREE_BYTES, FREE_BYTES, 0
        if gone:
            self._share.held -= gone
            self._share.budget.held -= gone
            self._share.budget.freed(gone)


#: For whoever has no sandbox: it never refuses.
UNBOUNDED: Final = Budget(math.inf, math.inf).share()
