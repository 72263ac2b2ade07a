"""One run of code: what came of it, as a bounded journal that anybody may follow from any offset.

The journal keeps its beginning: what is over a bound is dropped and told (`truncated`), so a flood costs the daemon
no more than the bound, whoever reads. All of it is charged to what the daemon may hold for the sandbox (`budget.py`);
once the run is over and nobody follows it, it is the first to go.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

import trio

from .budget import UNBOUNDED
from .news import News
from .run_log import EVENT_OVERHEAD, RunEvent, RunLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..wire import worker as frames
    from .budget import Hold

#: Output of one run that is kept, both streams together.
MAX_OUTPUT_BYTES: Final = 16 * 1024 * 1024
#: Events after which readers of a running one get what comes in this long at once: what each costs adds up.
MANY_EVENTS: Final = 16_384
GATHER_S: Final = 0.05
#: Results of one run: their bytes together, and how many.
MAX_RESULT_BYTES: Final = 32 * 1024 * 1024
MAX_RESULTS: Final = 1000
#: Events that one `next_batch` returns, and about how many bytes.
MAX_BATCH: Final = 256
BATCH_BYTES: Final = 1024 * 1024

_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"


def new_run_id() -> str:
    """Return a fresh id of a run: 50 bits, unique among the few that a context keeps."""
    return "r-" + "".join(_LETTERS[byte & 31] for byte in secrets.token_bytes(10))


def error_of(ename: str, evalue: str) -> dict[str, Any]:
    """Return an error that no traceback goes with."""
    return {"ename": ename, "evalue": evalue, "traceback": [], "traceback_ansi": []}


class Run:
    """One run, waiting, under way or over.

    Attributes:
        wants_json: whether the value of the last expression is wanted as JSON too, where it is a dict or list.
        restarted: whether the state is lost: the interpreter began anew for this run, or was killed to end it.
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
        self.finished = trio.Event()
        self.wants_stop = False
        #: What its context does when it is to stop, while it is the present one.
        self.on_stop: Callable[[], None] | None = None
        #: What it holds in memory; the context that runs it gives one of its sandbox'.
        self.hold: Hold = UNBOUNDED.hold()
        #: Called when others need its room: whoever keeps it forgets it.
        self.on_drop: Callable[[], None] = _nothing
        self._log = RunLog(MAX_OUTPUT_BYTES)
        self._followers = 0
        self._is_forgotten = False
        self._began: float | None = None
        self._missed_bytes = 0
        self._result_bytes = 0
        self._results = 0
        self._dropped_results = 0
        self._news = News()

    def __repr__(self) -> str:
        return f"<Run {self.id} {self.status or ('running' if self._began else 'waiting')}, {len(self._log)} events>"

    @property
    def has_begun(self) -> bool:
        """Whether its code was handed to the interpreter."""
        return self._began is not None

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return self.hold.size

    @property
    def is_flooded(self) -> bool:
        """Whether no more output is kept."""
        return not self._log.left

    @property
    def dropped_bytes(self) -> int:
        """Bytes of output that are not here."""
        return self._missed_bytes + self._log.refused

    @property
    def events(self) -> list[RunEvent]:
        """All that readers may have now."""
        return list(self._log)

    def before(self, position: int, limit: int) -> list[RunEvent]:
        """Return the last events before a position, `limit` at most."""
        start = max(0, position - limit)
        return self._log.slice(start, position - start)

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
        if self._log.add_output(stream, data, self.hold):
            self._news.tell()

    def miss(self, size: int) -> None:
        """Take note of output that was dropped before it came here."""
        self._missed_bytes += size

    def add_result(self, result: frames.Result) -> None:
        """Take a value that it shows; one that is over the run's bound is dropped and told at the end."""
        size = result.size + EVENT_OVERHEAD
        if self._results >= MAX_RESULTS or self._result_bytes + size > MAX_RESULT_BYTES or not self.hold.grow(size):
            self._dropped_results += 1
            return
        self._results += 1
        self._result_bytes += size
        self._append("result", result)

    def drop_result(self) -> None:
        """Take note of a value that there was no room for."""
        self._dropped_results += 1

    def add_clear(self, *, wait: bool) -> None:
        """Take note that what was shown is to go."""
        if self._results < MAX_RESULTS:
            self._results += 1
            self._append("clear", {"wait": wait}, is_charged=False)

    def add_error(self, error: dict[str, Any]) -> None:
        """Take the exception that ended it; the first stands."""
        if self.error is None:
            self.error = error
            self._append("error", error, is_charged=False)

    def finish(self, status: str, *, restarted: bool = False, execution_count: int = 0) -> None:
        """Say how it ended."""
        if self.status is not None:
            return
        if self.truncated:
            dropped = {"dropped_bytes": self.dropped_bytes, "dropped_results": self._dropped_results}
            self._append("truncated", dropped, is_charged=False)
        self.status = status
        self.restarted = self.restarted or restarted
        self.execution_count = execution_count
        self.duration_s = 0.0 if self._began is None else round(time.monotonic() - self._began, 6)
        self._append("end", self.summary(), is_charged=False)
        self.finished.set()
        self._update_hold()

    def give_up(self, error: Exception) -> None:
        """End it before it began."""
        if self.status is None and self.failure is None:
            self.failure = error
            self.finished.set()
            self._news.tell()
            self._update_hold()

    def summary(self) -> dict[str, Any]:
        """Return the `end` event's fields."""
        return {
            "status": self.status,
            "restarted": self.restarted,
            "execution_count": self.execution_count,
            "duration_s": self.duration_s,
            "truncated": self.truncated,
        }

    def _append(self, kind: str, data: frames.Result | dict[str, Any], *, is_charged: bool = True) -> None:
        event = self._log.add_event(kind, data)
        if not is_charged:
            self.hold.force(event.size)  # there are few, and they are told whatever happens
        self._news.tell()

    # --- who follows ---

    def stop(self) -> None:
        """Ask for its end: it is interrupted, or given up if it waits."""
        self.wants_stop = True
        if self.on_stop is not None:
            self.on_stop()

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Keep it while somebody reads it."""
        self._followers += 1
        self.hold.make_needed()
        try:
            yield
        finally:
            self._followers -= 1
            self._update_hold()

    def forget(self) -> None:
        """Say that nobody can ask for it again."""
        self._is_forgotten = True
        self._update_hold()

    def _update_hold(self) -> None:
        """Say whether what it holds is needed."""
        if self._followers or not self.finished.is_set():
            return
        if self._is_forgotten:
            # Not when the collector comes by: there is much of it, and what it is told is in a cycle with it.
            self._log.clear()
            self.on_drop = _nothing
            self.hold.close()
        else:
            self.hold.make_spare(self.on_drop)

    async def next_batch(self, position: int) -> list[RunEvent]:
        """Return events from `position` on, waiting for the first; none are left when it is over.

        Raises:
            SandboxdError: it was given up before it began.
        """
        while position >= self._log.next:
            if self._log.is_growing:
                await self._gather()
                break
            if self.failure is not None:
                raise self.failure
            if self.finished.is_set():
                return []
            await self._news.wait()
        batch: list[RunEvent] = []
        size = 0
        for event in self._log.slice(position, MAX_BATCH):
            size += event.size
            if batch and size > BATCH_BYTES:
                break
            batch.append(event)
        await trio.lowlevel.checkpoint()
        return batch

    async def _gather(self) -> None:
        """Close the last event for a reader who has all before it."""
        if len(self._log) >= MANY_EVENTS and not self.finished.is_set():
            with trio.move_on_after(GATHER_S):
                await self.finished.wait()
        self._log.close_open()


def _nothing() -> None:
    pass
