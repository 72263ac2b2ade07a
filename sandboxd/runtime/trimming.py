"""Gives memory back to the host after the daemon has let go of much of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from .budget import Budget

#: How much must have been let go of since the last time, and how long it is left to gather.
WORTH_BYTES: Final = 8 * 1024 * 1024
GATHER_S: Final = 0.5


class Trimmer:
    """Watches a budget; its owner runs `run`. `trim` is called in a thread."""

    def __init__(self, budget: Budget, trim: Callable[[], None]) -> None:
        self._trim = trim
        self._freed = 0
        self._is_worth_it = trio.Event()
        budget.freed = self._on_freed

    def __repr__(self) -> str:
        return f"<Trimmer {self._freed} bytes freed>"

    def _on_freed(self, size: int) -> None:
        self._freed += size
        if self._freed >= WORTH_BYTES:
            self._is_worth_it.set()

    async def run(self) -> None:
        """Trim for ever."""
        while True:
            await self._is_worth_it.wait()
            await trio.sleep(GATHER_S)  # what was let go of is freed when its last user has gone
            self._freed = 0
            self._is_worth_it = trio.Event()
            await trio.to_thread.run_sync(self._trim)
