"""What an interpreter prints between two runs (threads, background processes), kept to be shown with the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .run_log import RunLog

if TYPE_CHECKING:
    from .runs import Run

MAX_BYTES: Final = 64 * 1024
#: What of it an error message quotes.
_TOLD_BYTES: Final = 2000
_TOLD_CHARS: Final = 500


class BetweenRuns:
    """Output that belongs to no run yet, by stream: its beginning, up to the bound, whoever does not stop sending."""

    def __init__(self) -> None:
        self._log = RunLog(MAX_BYTES)

    def __repr__(self) -> str:
        return f"<BetweenRuns {self._log.size} bytes>"

    @property
    def is_full(self) -> bool:
        """Whether there was more than the bound."""
        return self._log.refused > 0

    @property
    def text(self) -> str:
        """The end of it, for a message."""
        found = b"".join(data for _, data in self._log.output())[-_TOLD_BYTES:].decode("utf-8", "replace").strip()
        return found.removeprefix("sandboxd: ")

    @property
    def quoted(self) -> str:
        """A colon and the end of it, to be put behind a message; nothing if there is none."""
        text = self.text
        return f": {text[-_TOLD_CHARS:]}" if text else ""

    def add(self, stream: str, data: bytes) -> None:
        """Keep what was printed, or what there is room for."""
        self._log.add_output(stream, data)

    def clear(self) -> None:
        """Drop all of it."""
        self._log = RunLog(MAX_BYTES)

    def move_to(self, run: Run) -> None:
        """Give all of it to a run."""
        log = self._log
        self.clear()
        for stream, data in log.output():
            run.add_output(stream, data)
        run.miss(log.refused)
