"""One run of code: what came of it, as a bounded journal that anybody may follow from any offset.

The journal keeps its beginning: what is over a bound is dropped and told (`truncated`), so a flood costs the daemon
no more than the bound, whoever reads.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

import trio

from ..wire import utf8

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..wire import worker as frames

#: Output of one run that is kept, both streams together.
MAX_OUTPUT_BYTES: Final = 16 * 1024 * 1024
#: Results of one run: their bytes together, and how many.
MAX_RESULT_BYTES: Final = 32 * 1024 * 1024
MAX_RESULTS: Final = 1000
#: What an event counts beside its data, so that a flood of small ones is bounded too.
EVENT_OVERHEAD: Final = 256
#: Events that one `next_batch` returns, and about how many bytes.
MAX_BATCH: Final = 256
BATCH_BYTES: Final = 1024 * 1024

_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"


def new_run_id() -> str:
    """Return a fresh id of a run: 50 bits, unique among the few that a context keeps."""
    return "r-" + "".join(_LETTERS[byte & 31] for byte in secrets.token_bytes(10))


@dataclasses.dataclass(frozen=True, slots=True)
class RunEvent:
    """One event: bytes for stdout and stderr, a `Result` for result, a map for the rest."""

    offset: int
    time: float
    type: str
    data: bytes | frames.Result | dict[str, Any]

    @property
    def size(self) -> int:
        """What it counts against a bound."""
        if isinstance(self.data, bytes):
            return EVENT_OVERHEAD + len(self.data)
        return EVENT_OVERHEAD + (0 if isinstance(self.data, dict) else self.data.size)


class Run:
    """One run, waiting, under way or over.

    Attributes:
        wants_json: whether the value of the last expression is wanted as JSON too, where it is a dict or list.
        status: None until it is over; then ok, error, timeout, exited or oom.
        finished: set when it is over.
        failure: why it was given up before it began, if so.
    """

    def __init__(
        self, code: str, timeout_s: float | None, env: dict[str, str], *, detach: bool, wants_json: bool = False
    ) -> None:
        self.id = new_run_id()
        self.code = code
        self.timeout_s = timeout_s
        self.env = env
        self.detach = detach
        self.wants_json = wants_json
        self.status: str | None = None
        self.restarted = False
        self.execution_count = 0
        self.duration_s = 0.0
        self.error: dict[str, Any] | None = None
        self.failure: Exception | None = None
        self.dropped_bytes = 0
        self.finished = trio.Event()
        self.wants_stop = False
        #: What its context does when it is to stop, while it is the present one.
        self.on_stop: Callable[[], None] | None = None
        self.size = 0
        self.events: list[RunEvent] = []
        self._began: float | None = None
        self._output_bytes = 0
        self._result_bytes = 0
        self._results = 0
        self._dropped_results = 0
        self._changed = trio.Event()

    def __repr__(self) -> str:
        return f"<Run {self.id} {self.status or ('running' if self._began else 'waiting')}, {len(self.events)} events>"

    @property
    def has_begun(self) -> bool:
        """Whether its code was handed to the interpreter."""
        return self._began is not None

    @property
    def is_flooded(self) -> bool:
        """Whether no more output is kept."""
        return self._output_bytes >= MAX_OUTPUT_BYTES

    @property
    def truncated(self) -> bool:
        """Whether anything was dropped."""
        return self.dropped_bytes > 0 or self._dropped_results > 0

    def begin(self) -> None:
        """Say that its code is on its way to the interpreter."""
        self._began = time.monotonic()

    # --- what comes of it ---

    def add_output(self, stream: str, data: bytes) -> None:
        """Take what the program printed."""
        if self.is_flooded:
            self.dropped_bytes += len(data)
            return
        room = MAX_OUTPUT_BYTES - self._output_bytes
        if len(data) > room:
            kept = utf8.head(data, room)
            self.dropped_bytes += len(data) - len(kept)
            self._output_bytes = MAX_OUTPUT_BYTES  # what is cut off by itself may have left some room
            data = kept
        self._output_bytes += len(data) + EVENT_OVERHEAD
        self._append(stream, data)

    def add_result(self, result: frames.Result) -> None:
        """Take a value that it shows; one that is over the run's bound is dropped and told at the end."""
        size = result.size + EVENT_OVERHEAD
        if self._results >= MAX_RESULTS or self._result_bytes + size > MAX_RESULT_BYTES:
            self._dropped_results += 1
            return
        self._results += 1
        self._result_bytes += size
        self._append("result", result)

    def add_clear(self, *, wait: bool) -> None:
        """Take note that what was shown is to go."""
        if self._results < MAX_RESULTS:
            self._results += 1
            self._append("clear", {"wait": wait})

    def add_error(self, error: dict[str, Any]) -> None:
        """Take the exception that ended it; the first stands."""
        if self.error is None:
            self.error = error
            self._append("error", error)

    def finish(self, status: str, *, restarted: bool = False, execution_count: int = 0) -> None:
        """Say how it ended."""
        if self.status is not None:
            return
        if self.truncated:
            self._append("truncated", {"dropped_bytes": self.dropped_bytes, "dropped_results": self._dropped_results})
        self.status = status
        self.restarted = restarted
        self.execution_count = execution_count
        self.duration_s = 0.0 if self._began is None else round(time.monotonic() - self._began, 6)
        self._append("end", self.summary())
        self.finished.set()

    def give_up(self, error: Exception) -> None:
        """End it before it began."""
        if self.status is None and self.failure is None:
            self.failure = error
            self.finished.set()
            self._changed.set()

    def summary(self) -> dict[str, Any]:
        """Return the `end` event's fields."""
        return {
            "status": self.status,
            "restarted": self.restarted,
            "execution_count": self.execution_count,
            "duration_s": self.duration_s,
            "truncated": self.truncated,
        }

    def _append(self, kind: str, data: bytes | frames.Result | dict[str, Any]) -> None:
        event = RunEvent(len(self.events), time.time(), kind, data)
        self.events.append(event)
        self.size += event.size
        self._changed.set()

    # --- who follows ---

    def stop(self) -> None:
        """Ask for its end: it is interrupted, or given up if it waits."""
        self.wants_stop = True
        if self.on_stop is not None:
            self.on_stop()

    async def next_batch(self, position: int) -> list[RunEvent]:
        """Return events from `position` on, waiting for the first; none are left when it is over.

        Raises:
            SandboxdError: it was given up before it began.
        """
        while position >= len(self.events):
            if self.failure is not None:
                raise self.failure
            if self.finished.is_set():
                return []
            if self._changed.is_set():
                self._changed = trio.Event()
            await self._changed.wait()
        batch: list[RunEvent] = []
        size = 0
        for event in self.events[position : position + MAX_BATCH]:
            size += event.size
            if batch and size > BATCH_BYTES:
                break
            batch.append(event)
        await trio.lowlevel.checkpoint()
        return batch
