"""The runs of one context that can be asked for: those that wait or run, and of those that are over the newest few."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .budget import Share
    from .runs import Run

#: Ended runs whose journals are kept for those who come again, and their bytes together.
MAX_KEPT_RUNS: Final = 16
MAX_KEPT_BYTES: Final = 24 * 1024 * 1024


class KeptRuns:
    """Made by its context; what it keeps is charged to `share`."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._runs: dict[str, Run] = {}

    def __repr__(self) -> str:
        return f"<KeptRuns {len(self._runs)}>"

    def get(self, run_id: str) -> Run | None:
        """Return a run, or None."""
        return self._runs.get(run_id)

    def charge(self, run: Run) -> None:
        """Take note of what a run holds from now on.

        Raises:
            ServerBusy: there is no room for its code.
        """
        run.hold = self._share.hold()
        run.hold.take(len(run.code), "run code")

    def add(self, run: Run) -> None:
        """Keep a run that was charged; old ones go."""
        run.on_drop = lambda: self._drop(run)
        ended = [one for one in self._runs.values() if one.finished.is_set()]
        size = sum(one.size for one in ended)
        while ended and (len(ended) >= MAX_KEPT_RUNS or size > MAX_KEPT_BYTES):
            gone = ended.pop(0)
            size -= gone.size
            self._drop(gone)
        self._runs[run.id] = run

    def clear(self) -> None:
        """Forget all of them; who follows one goes on to its end."""
        runs, self._runs = self._runs, {}
        for run in runs.values():
            run.forget()

    def _drop(self, run: Run) -> None:
        self._runs.pop(run.id, None)
        run.forget()
