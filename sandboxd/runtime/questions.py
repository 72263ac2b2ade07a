"""What is asked of an interpreter between two runs: a completion or an inspection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from ..errors import InvalidRequest
from ..spec import check_code

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

    @classmethod
    def complete(cls, code: str, cursor: int | None) -> Question:
        """Return the question what may follow at the cursor, which is the code's end unless it is given.

        Raises:
            InvalidRequest: the code is none, or the cursor is not in it.
        """
        return cls({"op": "complete", "code": check_code(code), "cursor": _check_cursor(code, cursor)})

    @classmethod
    def inspect(cls, code: str, cursor: int | None, *, detail: bool) -> Question:
        """Return the question what the name at the cursor is; raises as `complete`."""
        place = _check_cursor(code, cursor)
        return cls({"op": "inspect", "code": check_code(code), "cursor": place, "detail": int(detail)})

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


def _check_cursor(code: str, cursor: int | None) -> int:
    if cursor is None:
        return len(code)
    if not 0 <= cursor <= len(code):
        raise InvalidRequest(f"cannot accept cursor: it must be 0 to {len(code)}", field="cursor")
    return cursor
