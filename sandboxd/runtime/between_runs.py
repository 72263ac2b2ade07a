"""What an interpreter prints between two runs (threads, background processes), kept to be shown with the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..wire import utf8

if TYPE_CHECKING:
    from .runs import Run

MAX_BYTES: Final = 64 * 1024
#: What of it an error message quotes.
_TOLD_BYTES: Final = 2000
_TOLD_CHARS: Final = 500


class BetweenRuns:
    """Output that belongs to no run yet, by stream: its beginning, up to the bound, whoever does not stop sending."""

    def __init__(self) -> None:
        self._pieces: list[tuple[str, bytearray]] = []
        self._size = 0
        self._dropped_bytes = 0

    def __repr__(self) -> str:
        return f"<BetweenRuns {self._size} bytes>"

    @property
    def is_full(self) -> bool:
        """Whether there was more than the bound."""
        return self._dropped_bytes > 0

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
        """Keep what was printed, or what there is room for."""
        kept = b"" if self.is_full else utf8.head(data, MAX_BYTES - self._size)
        self._dropped_bytes += len(data) - len(kept)
        self._size += len(kept)
        if self._pieces and self._pieces[-1][0] == stream:
            self._pieces[-1][1].extend(kept)
        elif kept:
            self._pieces.append((stream, bytearray(kept)))

    def clear(self) -> None:
        """Drop all of it."""
        self._pieces, self._size, self._dropped_bytes = [], 0, 0

    def move_to(self, run: Run) -> None:
        """Give all of it to a run."""
        pieces, dropped = self._pieces, self._dropped_bytes
        self.clear()
        for stream, data in pieces:
            run.add_output(stream, bytes(data))
        run.dropped_bytes += dropped
