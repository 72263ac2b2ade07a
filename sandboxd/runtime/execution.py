"""One command that runs in a sandbox, seen from the daemon: a stream of checked events."""

from __future__ import annotations

import dataclasses
import secrets
import string
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import ProtocolError, RemoteProtocolError, SandboxdError
from ..wire.link import DEFAULT_WINDOW
from . import checks

if TYPE_CHECKING:
    from types import TracebackType

    from ..spec import StartSpec
    from ..wire.messages import Event
    from .link_client import Stream
    from .sandbox import Sandbox

#: 32 letters, so that five bits pick one without bias.
_LETTERS: Final = string.ascii_lowercase + "234567"
#: One event of output: init reads at most 256 KiB at once; the frame's own bound is 1 MiB.
MAX_OUTPUT_BYTES: Final = 1024 * 1024
MAX_DURATION_S: Final = 1e9
#: What a caller who wants the output at the end only lets come together: a part of the window, so credit flows.
PATIENCE_BYTES: Final = DEFAULT_WINDOW // 4


def new_process_id() -> str:
    """Return a fresh id of a process: unique within a sandbox with 50 bits to spare."""
    # One call for all letters: `secrets.choice` asks the kernel for each, and this is on every exec's path.
    return "p-" + "".join(_LETTERS[byte & 31] for byte in secrets.token_bytes(10))


@dataclasses.dataclass(frozen=True, slots=True)
class Exit:
    """How a command ended; every named end is a field."""

    exit_code: int | None
    signal: str | None
    duration_s: float
    timed_out: bool
    oom_killed: bool
    cpu_s: float
    memory_peak_bytes: int | None
    reason: str

    @property
    def end(self) -> str:
        """How it ended, as one of few words: what `reason` says is init's own text."""
        if self.timed_out:
            return "timeout"
        if self.oom_killed:
            return "oom"
        return "exit" if self.signal is None else "signal"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as the API shows them."""
        return {
            "exit_code": self.exit_code,
            "signal": self.signal,
            "duration_s": self.duration_s,
            "timed_out": self.timed_out,
            "oom_killed": self.oom_killed,
            "usage": {"cpu_s": self.cpu_s, "memory_peak_bytes": self.memory_peak_bytes},
            "reason": self.reason,
        }


def parse_exit(data: dict[str, Any]) -> Exit:
    """Check an exit event's data.

    Raises:
        RemoteProtocolError: a field is missing or out of its bounds.
    """
    usage = checks.table(data, "usage")
    code, signal, peak = data.get("exit_code"), data.get("signal"), usage.get("memory_peak_bytes")
    return Exit(
        exit_code=None if code is None else checks.integer(data, "exit_code", high=255),
        signal=None if signal is None else checks.text(data, "signal", limit=32),
        duration_s=checks.number(data, "duration_s", high=MAX_DURATION_S),
        timed_out=checks.flag(data, "timed_out"),
        oom_killed=checks.flag(data, "oom_killed"),
        cpu_s=checks.number(usage, "cpu_s", high=MAX_DURATION_S),
        memory_peak_bytes=None if peak is None else checks.integer(usage, "memory_peak_bytes"),
        reason=checks.text(data, "reason", limit=200),
    )


class EventCheck:
    """Holds a process's events to their order: start (unless it follows a running one), output, exit, nothing.

    A process that is restarted gives `restart` and then `start` again.
    """

    def __init__(self, *, started: bool) -> None:
        self._started = started
        self._last = -1
        self._exited = False

    def __call__(self, event: Event) -> None:
        """Look at the next event as it arrives.

        Raises:
            RemoteProtocolError: it has the wrong type, order or size.
        """
        if self._exited or event.offset <= self._last or not 0 <= event.time < 1e11:
            raise RemoteProtocolError(f"cannot accept event {event.offset} of type {event.type[:20]!r}: out of order")
        self._last = event.offset
        if event.type in ("stdout", "stderr"):
            if not self._started or not isinstance(event.data, bytes) or len(event.data) > MAX_OUTPUT_BYTES:
                raise RemoteProtocolError(f"cannot accept a {event.type} event: it is early, not bytes, or too large")
            return
        if not isinstance(event.data, dict):
            raise RemoteProtocolError(f"cannot accept a {event.type[:20]!r} event: its data is not a map")
        if event.type == "start":
            checks.integer(event.data, "pid", high=1 << 31)
            checks.text(event.data, "id", limit=64)
            self._started = True
        elif event.type == "exit":
            parse_exit(event.data)
            self._exited = True
        elif event.type == "truncated":
            checks.integer(event.data, "dropped_bytes")
        elif event.type == "restart" and self._started:
            _check_restart(event.data)
        else:
            raise RemoteProtocolError(f"cannot accept an event of type {event.type[:20]!r}")


def _check_restart(data: dict[str, Any]) -> None:
    if data.get("exit_code") is not None:
        checks.integer(data, "exit_code", high=255)
    if data.get("signal") is not None:
        checks.text(data, "signal", limit=32)
    checks.text(data, "reason", limit=200)
    checks.number(data, "delay_s", high=MAX_DURATION_S)
    checks.integer(data, "count")


class Execution:
    """A command under way. Made by `Sandbox.execute`; an async context manager whose end cancels the command.

    `start` must be called first; then `next_batch` gives events until an empty list.
    """

    def __init__(self, sandbox: Sandbox, command: StartSpec, stream: Stream, process_id: str, *, batched: bool) -> None:
        self._sandbox = sandbox
        self._command = command
        self._stream = stream
        self._first: list[Event] = []
        self.process_id = process_id
        self.pid: int | None = None
        self.exit: Exit | None = None
        stream.check = EventCheck(started=False)
        if batched:
            stream.patience = PATIENCE_BYTES

    def __repr__(self) -> str:
        return f"<Execution {self.process_id} pid={self.pid} exit={self.exit}>"

    async def __aenter__(self) -> Execution:
        counters, began = self._sandbox.services.counters, trio.current_time()
        try:
            await self._begin()
        except SandboxdError as error:
            counters.exec_failures[error.kind] += 1
            raise
        counters.exec_starts.add(trio.current_time() - began)
        return self

    async def _begin(self) -> None:
        try:
            await self._sandbox.check_fields(self._command)
            await self._stream.__aenter__()
            self._first = await self._stream.next_batch()
        except ProtocolError as error:
            self._stream.close()
            raise await self._sandbox.why_broken(error) from error
        except BaseException:
            self._stream.close()
            raise
        if not self._first:
            self._stream.close()
            raise await self._sandbox.why_broken(RemoteProtocolError("the command gave no start event"))
        data = self._first[0].data
        self.pid = data["pid"] if isinstance(data, dict) and "pid" in data else None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close(cancel=self.exit is None)  # after its exit the answer is on its way

    async def next_batch(self) -> list[Event]:
        """Return the events that are here, waiting for the first; an empty list is the end.

        Raises:
            SandboxFailed, SandboxGone: the sandbox ended under the command.
        """
        if self._first:
            batch, self._first = self._first, []
        elif self.exit is not None:
            return []
        else:
            try:
                batch = await self._stream.next_batch()
            except ProtocolError as error:
                raise await self._sandbox.why_broken(error) from error
            if not batch:
                raise await self._sandbox.why_broken(RemoteProtocolError("the command gave no exit event"))
        last = batch[-1]
        if last.type == "exit" and isinstance(last.data, dict):
            self.exit = parse_exit(last.data)
            self._sandbox.services.counters.exec_ends[self.exit.end] += 1
        return batch
