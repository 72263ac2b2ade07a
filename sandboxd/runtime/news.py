"""Wakes everybody who waits for the next piece of news."""

from __future__ import annotations

import trio


class News:
    """One who waits looks first whether there is something already, and waits without a checkpoint in between."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def tell(self) -> None:
        """Wake who waits. Nothing is kept for those who come later: they can see for themselves."""
        self._event.set()

    async def wait(self) -> None:
        """Return when there is news after this call."""
        if self._event.is_set():
            self._event = trio.Event()
        await self._event.wait()
