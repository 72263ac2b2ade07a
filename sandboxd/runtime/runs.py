"""One run of code: what came of it, as a bounded journal that anybody may follow from any offset.

The journal keeps its beginning: what is over a bound is dropped and told (`truncated`), so a flood costs the daemon
no more than the bound, whoever reads. All of it is charged to what the daemon may hold for the sandbox (`budget.py`);
once the run is over and nobody follows it, it is the first to go.

What a program prints in many small pieces is one event as long as nobody has read it: `_open` is the last one, which
may still grow. Readers get only what is closed, and never see an event change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

import trio

from ..wire import utf8
from .budget import UNBOUNDED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..wire import worker as frames
    from .budget import Hold

#: Output of one run that is kept, both streams together.
MAX_OUTPUT_BYTES: Final = 16 * 1024 * 1024
#: Up to which size neighbours of one stream are joined.
JOIN_BYTES: Final = 64 * 1024
#: Events after which readers of a running one get what comes in this long at once: what each costs adds up.
MANY_EVENTS: Final = 16_384
GATHER_S: Final = 0.05
#: Results of one run: their bytes together, and how many.
MAX_RESULT_BYTES: Final = 32 * 1024 * 1024
MAX_RESULTS: Final = 1000
#: What an event holds beside its data.
EVENT_OVERHEAD: Final = 256
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


@dataclasses.dataclass(frozen=True, slots=True)
class RunEvent:
    """One event: bytes for stdout and stderr, a `Result` for result, a map for the rest."""

    offset: int
    time: float
    type: str
    data: bytes | frames.Result | dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes that it holds, about."""
        if isinstance(self.data, bytes):
            return EVENT_OVERHEAD + len(self.data)
        return EVENT_OVERHEAD + (_length(self.data) if isinstance(self.data, dict) else self.data.size)


def _length(value: object) -> int:
    """Return how long the texts in a map are, those of its lists too."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_length, value.values()))
    return sum(map(_length, value)) if isinstance(value, list) else 0


@dataclasses.dataclass(slots=True)
class _Open:
    """The last event, while it may grow: output that nobody has read."""

    stream: str
    time: float
    data: bytearray


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
        self.dropped_bytes = 0
        self.finished = trio.Event()
        self.wants_stop = False
        #: What its context does when it is to stop, while it is the present one.
        self.on_stop: Callable[[], None] | None = None
        #: What it holds in memory; the context that runs it gives one of its sandbox'.
        self.hold: Hold = UNBOUNDED.hold()
        #: Called when others need its room: whoever keeps it forgets it.
        self.on_drop: Callable[[], None] = _nothing
        self.events: list[RunEvent] = []
        self._open: _Open | None = None
        self._followers = 0
        self._is_forgotten = False
        self._began: float | None = None
        self._is_full = False  # whether output was dropped: what comes behind a gap is too
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
    def size(self) -> int:
        """Bytes that it holds."""
        return self.hold.size

    @property
    def is_flooded(self) -> bool:
        """Whether no more output is kept."""
        return self._is_full or self._output_bytes >= MAX_OUTPUT_BYTES

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
        last = self._open
        is_joined = last is not None and last.stream == stream and len(last.data) + len(data) <= JOIN_BYTES
        overhead = 0 if is_joined else EVENT_OVERHEAD
        room = self.hold.grow_some(min(len(data), MAX_OUTPUT_BYTES - self._output_bytes) + overhead) - overhead
        if room < len(data):
            self._is_full = True
            kept = utf8.head(data, max(0, room))
            self.dropped_bytes += len(data) - len(kept)
            data = kept
        if not data:
            return
        self._output_bytes += len(data)
        self._keep(stream, data, is_joined=is_joined)

    def _keep(self, stream: str, data: bytes, *, is_joined: bool) -> None:
        if is_joined and self._open is not None:
            self._open.data += data
        else:
            self._close_open()
            if len(data) > JOIN_BYTES:  # not worth a copy
                self.events.append(RunEvent(len(self.events), time.time(), stream, data))
            else:
                self._open = _Open(stream, time.time(), bytearray(data))
        self._changed.set()

    def _close_open(self) -> None:
        """Let the last event grow no more."""
        if self._open is not None:
            last, self._open = self._open, None
            self.events.append(RunEvent(len(self.events), last.time, last.stream, bytes(last.data)))

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
        self._settle()

    def give_up(self, error: Exception) -> None:
        """End it before it began."""
        if self.status is None and self.failure is None:
            self.failure = error
            self.finished.set()
            self._changed.set()
            self._settle()

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
        self._close_open()
        event = RunEvent(len(self.events), time.time(), kind, data)
        if not is_charged:
            self.hold.force(event.size)  # there are few, and they are told whatever happens
        self.events.append(event)
        self._changed.set()

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
            self._settle()

    def forget(self) -> None:
        """Say that nobody can ask for it again."""
        self._is_forgotten = True
        self._settle()

    def _settle(self) -> None:
        """Say whether what it holds is needed."""
        if self._followers or not self.finished.is_set():
            return
        if self._is_forgotten:
            # Not when the collector comes by: there is much of it, and what it is told is in a cycle with it.
            self.events.clear()
            self.on_drop = _nothing
            self.hold.close()
        else:
            self.hold.make_spare(self.on_drop)

    async def next_batch(self, position: int) -> list[RunEvent]:
        """Return events from `position` on, waiting for the first; none are left when it is over.

        Raises:
            SandboxdError: it was given up before it began.
        """
        while position >= len(self.events):
            if self._open is not None:
                await self._gather()
                break
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

    async def _gather(self) -> None:
        """Close the last event for a reader who has all before it."""
        if len(self.events) >= MANY_EVENTS and not self.finished.is_set():
            with trio.move_on_after(GATHER_S):
                await self.finished.wait()
        self._close_open()


def _nothing() -> None:
    pass
