"""What an interpreter prints between two runs (threads, background processes), kept to be shown with the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .runs import Run

MAX_BYTES: Final = 64 * 1024
#: What of it an error message quotes.
_TOLD_BYTES: Final = 2000
_TOLD_CHARS: Final = 500


class BetweenRuns:
    """Output that belongs to no run yet, by stream."""

    def __init__(self) -> None:
        self._pieces: list[tuple[str, bytes]] = []
        self._size = 0

    def __repr__(self) -> str:
        return f"<BetweenRuns {self._size} bytes>"

    @property
    def is_full(self) -> bool:
        """Whether there is more than the bound."""
        return self._size > MAX_BYTES

    @property
    def text(self) -> str:
        """The end of it, for a message."""
        found = b"".join(data for _, data in self._pieces)[-_TOLD_BYTES:].decode("utf-8", "replace").strip()
        return found.removeprefix("sandboxd: ")

    @property
    def quoted(self) -> str:
        """A colon and the end of it, to be put behind a message; nothing if there is none."""
        text = self.text
        return f": {text[-_TOLD_CHARS:]}" if text else ""

    def add(self, stream: str, data: bytes) -> None:
        """Keep what was printed."""
        self._pieces.append((stream, data))
        self._size += len(data)

    def clear(self) -> None:
        """Drop all of it."""
        self._pieces, self._size = [], 0

    def move_to(self, run: Run) -> None:
        """Give all of it to a run."""
        pieces = self._pieces
        self.clear()
        for stream, data in pieces:
            run.add_output(stream, data)
