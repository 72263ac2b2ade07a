"""What is asked of an interpreter between two runs: a completion or an inspection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Callable


class Question:
    """A completion or inspection that waits for its answer (a JSON value's text)."""

    def __init__(self, message: dict[str, Any]) -> None:
        self.message = message
        self.answer: str | None = None
        self.failure: Exception | None = None
        self.done = trio.Event()
        self.on_stop: Callable[[], None] | None = None

    @property
    def wants_stop(self) -> bool:
        """Whether nobody waits for the answer."""
        return self.failure is not None

    def give_up(self, error: Exception) -> None:
        """Say that there will be no answer, or that nobody waits for it."""
        if not self.done.is_set():
            self.failure = error
            self.done.set()
            if self.on_stop is not None:
                self.on_stop()
