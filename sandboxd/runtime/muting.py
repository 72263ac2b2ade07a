"""Who listens to what an interpreter prints: nobody, once there is more of it than anybody will be told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from .worker import Worker


class Muting:
    """Whether init is to drop what the present interpreter prints. It is told one thing at a time, the last last.

    `is_on` is what is wanted, from the moment on; init hears of it when its turn comes.
    """

    def __init__(self) -> None:
        self.is_on = False
        self._turn = trio.Lock()

    def __repr__(self) -> str:
        return f"<Muting {'on' if self.is_on else 'off'}>"

    async def begin(self, worker: Worker) -> None:
        """Have init drop it, unless it is wanted again by then: the run that it was too much for may have ended."""
        async with self._turn:
            if self.is_on:
                await worker.mute(on=True)

    async def end(self, worker: Worker) -> int:
        """Hear it again; returns how many bytes were dropped."""
        self.is_on = False
        async with self._turn:
            return await worker.mute(on=False)
