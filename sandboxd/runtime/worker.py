"""One interpreter of a code context, seen from the daemon: its life from the start to its exit event.

Everything that it says is checked: events as any init's, frames as any hostile worker's. Breaking the rules of
frames costs the worker its life, not the sandbox. `worker_states.py` has the states.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any, Protocol

import trio

from ..errors import (
    ContextNotFound,
    LimitExceeded,
    ProcessNotRunning,
    ProtocolError,
    RemoteProtocolError,
    SandboxdError,
)
from ..wire import worker as frames
from . import checks
from .child_stream import ChildStream
from .execution import Exit, parse_exit
from .handoff import MAX_LEAF_CHARS
from .worker_states import TRANSITIONS, State
from .worker_states import Event as LifeEvent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..spec import ContextSpec
    from ..wire.messages import Event
    from .handoff import Handoff
    from .link_client import Stream

_log = logging.getLogger(__name__)

#: One event of output or frames: init reads at most 256 KiB at once.
MAX_EVENT_BYTES = 512 * 1024


class Link(Protocol):
    """What a worker needs of its sandbox."""

    async def ask(self, op: str, /, **params: object) -> dict[str, Any]:
        """Ask init."""
        ...

    def stream(self, op: str, params: dict[str, Any], *, fds: Iterable[int] = ()) -> Stream:
        """Return a stream of init's."""
        ...

    def handoff(self, spec: ContextSpec) -> Handoff | None:
        """Return where a template's child may come; None where there is to be none."""
        ...

    def bring(self, handoff: Handoff, leaf: str) -> None:
        """Have a template's child come."""
        ...

    def declined(self, why: str) -> None:
        """Hear that a template's child would not do here."""
        ...

    async def why_broken(self, error: ProtocolError) -> SandboxdError:
        """Return what a broken link means."""
        ...


class Listener(Protocol):
    """Who is told what a worker says."""

    def on_output(self, stream: str, data: bytes) -> None:
        """It printed."""
        ...

    def on_frame(self, frame: frames.Frame) -> None:
        """It said something."""
        ...

    def on_gone(self, worker: Worker) -> None:
        """It has ended; `exit`, `failure` and `violation` say how."""
        ...


class Worker:
    """One worker; its owner runs `serve` in a nursery.

    Attributes:
        ready: set when it said that it waits for code, or is gone.
        gone: set when it has ended, or its sandbox has.
        exit: how it ended, where init could say.
        failure: why the sandbox can tell nothing of it.
        refusal: which limit of the sandbox's let it not begin.
        violation: which rule of frames it broke.
        missing: what it said that it lacks.
        left_unread: whether it ended before it had read its last message.
        seen: set when init has said which process it is, or it is gone.
        was_spare: whether that process waited before for a context to come.
    """

    def __init__(self, link: Link, name: str, listener: Listener, room: frames.Room | None = None) -> None:
        self.name = name
        self.state = State.ASKED
        self.version = ""
        self.ready = trio.Event()
        self.gone = trio.Event()
        self.seen = trio.Event()
        self.was_spare = False
        self.exit: Exit | None = None
        self.failure: SandboxdError | None = None
        self.refusal: LimitExceeded | None = None
        self.violation: str | None = None
        self.missing: str | None = None
        self.left_unread = False
        self._link = link
        self._listener = listener
        self._decoder = frames.WorkerDecoder(room)
        self._child = ChildStream[frames.Frame](link, self._decoder.feed)
        self._handoff: Handoff | None = None
        self._begin: bytes | None = None
        self._last_offset = -1

    def __repr__(self) -> str:
        return f"<Worker {self.name} {self.state.value}>"

    @property
    def is_ready(self) -> bool:
        """Whether it takes code."""
        return self.state is State.READY

    @property
    def is_gone(self) -> bool:
        """Whether it has ended, or its sandbox has."""
        return self.state is State.GONE

    def _move(self, event: LifeEvent) -> None:
        """Take an event and wake who waits for what it means.

        Raises:
            RemoteProtocolError: it cannot happen now, so whoever said so breaks the protocol.
        """
        new = TRANSITIONS[self.state].get(event)
        if new is None:
            raise RemoteProtocolError(f"cannot accept event {event} of a worker that is {self.state}")
        self.state = new
        if event is LifeEvent.START or self.is_gone:
            self.seen.set()
        if new is State.READY or self.is_gone:
            self.ready.set()
        if self.is_gone:
            self.gone.set()

    def take_over(self) -> None:
        """Know that it takes code: it did so for an earlier daemon."""
        self._move(LifeEvent.READY)

    @property
    def reason(self) -> str:
        """Why it has ended, in a word or two."""
        if self.violation is not None:
            return "protocol error"
        return self.exit.reason if self.exit is not None else "gone"

    def how_it_ended(self) -> str:
        """Return how it has ended, in words."""
        if self.violation is not None:
            return f"its interpreter broke the protocol and was ended ({self.violation})"
        ended = self.exit
        if ended is None:
            return "its interpreter is gone"
        if ended.oom_killed:
            return "its interpreter ran out of memory"
        how = f"exit code {ended.exit_code}" if ended.signal is None else ended.signal
        return f"its interpreter has ended ({how}{'' if ended.reason in ('exit', 'signal') else ', ' + ended.reason})"

    async def serve(self, op: str, params: dict[str, Any], handoff: Handoff | None = None) -> None:
        """Follow it to its end. With `handoff`, a template's child may be it. Never raises but Cancelled."""
        self._handoff = handoff
        self._begin = params.get("begin")
        params = {**params, "context": self.name, **({} if handoff is None else {"entrant": True})}
        ask = functools.partial(self._ask, op, params)
        try:
            await self._child.open(ask, [] if handoff is None else [handoff.for_init])
            await self._child.follow(self._on_event)
            if self.state is not State.EXITED:
                raise RemoteProtocolError("the worker gave no exit event")
            await self._forget()
        except ProtocolError as error:
            self.failure = await self._link.why_broken(error)
        except LimitExceeded as error:
            self.refusal = error  # the sandbox has no room for it, and goes on
            await self._forget()
        except SandboxdError as error:
            self.failure = error
        finally:
            self._child.close()
            if handoff is not None:
                handoff.close()
            self._decoder.close()
            self._move(LifeEvent.END)
            self._listener.on_gone(self)

    def _ask(self, op: str, params: dict[str, Any], fds: list[int]) -> Stream:
        return self._link.stream(op, params, fds=fds)

    async def _forget(self) -> None:
        try:
            await self._link.ask("context_forget", context=self.name)
        except SandboxdError as error:
            _log.debug("Cannot forget worker %s: %s", self.name, error)

    async def _on_event(self, event: Event) -> None:
        if event.offset <= self._last_offset or self.state is State.EXITED:
            raise RemoteProtocolError(f"cannot accept event {event.offset} of a worker: out of order")
        self._last_offset = event.offset
        if isinstance(event.data, bytes):
            if len(event.data) > MAX_EVENT_BYTES or event.type not in ("stdout", "stderr", "frame"):
                raise RemoteProtocolError(f"cannot accept a {event.type[:20]!r} event of {len(event.data)} bytes")
            if event.type == "frame":
                await self._take_frames(event.data)
            else:
                self._listener.on_output(event.type, event.data)
        elif event.type == "exit":
            self.exit = parse_exit(event.data)
            self._move(LifeEvent.EXIT)
            self.left_unread = event.data.get("unread") is True  # an init of an older version does not say
        elif event.type == "expecting" and self._handoff is not None:
            handoff, self._handoff = self._handoff, None
            self._link.bring(handoff, checks.text(event.data, "leaf", limit=MAX_LEAF_CHARS))
        elif event.type == "declined":
            self._link.declined(checks.text(event.data, "why", limit=1000))
        elif event.type == "absent":
            _log.debug("No child of a template is worker %s: %s", self.name, checks.text(event.data, "why", limit=1000))
        elif event.type == "start":
            self.was_spare = event.data.get("spare") is True
            if self._begin and "spare" not in event.data:  # an init of an older version: it left that to us
                await self._quietly("context_send", data=self._begin)
            self._move(LifeEvent.START)
        else:
            raise RemoteProtocolError(f"cannot accept a worker's event of type {event.type[:20]!r}")

    async def _take_frames(self, data: bytes) -> None:
        if self.state is State.BROKEN:
            return
        try:
            await self._child.take_frames(data, self._take_frame)
        except RemoteProtocolError as error:
            # The user's code wrote to the worker's pipe: that interpreter cannot be understood any more.
            self.violation = str(error)
            self._move(LifeEvent.VIOLATE)
            await self.kill()

    def _take_frame(self, frame: frames.Frame) -> None:
        if isinstance(frame, frames.Ready):
            self.version = frame.version
            self._move(LifeEvent.READY)
        elif isinstance(frame, frames.Failed):
            self.missing = frame.message
        else:
            self._listener.on_frame(frame)

    async def send(self, message: dict[str, Any]) -> None:
        """Give it a frame; returns when it has been taken.

        Raises:
            ProcessNotRunning: it has ended.
        """
        await self._link.ask("context_send", context=self.name, data=frames.encode(message))

    async def interrupt(self, run: int) -> None:
        """Ctrl-C for that run, also if it has not begun yet; a worker that has ended is no error."""
        await self._quietly("context_interrupt", run=run)

    async def kill(self) -> None:
        """End it with all that it started; one that has ended is no error."""
        await self._quietly("context_kill")

    async def mute(self, *, on: bool) -> int:
        """Drop what it prints from now on, or no longer; return how many bytes were dropped since the last time."""
        try:
            answer = await self._link.ask("context_mute", context=self.name, on=on)
        except (ContextNotFound, ProcessNotRunning):
            return 0
        dropped = answer.get("dropped_bytes")
        return dropped if isinstance(dropped, int) and not isinstance(dropped, bool) and dropped >= 0 else 0

    async def _quietly(self, op: str, **params: object) -> None:
        try:
            await self._link.ask(op, context=self.name, **params)
        except (ContextNotFound, ProcessNotRunning):
            return
