"""One connection to the launcher or to an init, under trio: requests, replies, streams, descriptors.

Theory of operation. `LinkClient.run` is the only reader: it receives into one scratch buffer that all peers share (trio
runs one task at a time and `feed` copies), and hands every message to the call that it belongs to. Writing is
synchronous: a frame is queued and flushed as far as the socket takes it, and only what is left waits for
`_write_loop`; so the usual request costs no task switch, and a Cancel can be sent from a cancelled task. The
queue is bounded: requests wait while more than `HIGH_WATER` bytes are queued, and a peer that lets Credit and
Cancel frames pile up over `MAX_QUEUED` does not read at all and is dropped.

A call whose waiter went away stays in the table until the peer has answered it: late events are dropped
and late descriptors closed, and it counts against `MAX_CALLS` so that nobody can open streams without end.

Nothing that a peer passed is closed in the loop's thread, nor is its link: the last close of a TCP socket with
SO_LINGER waits as long as its maker likes, and so does that of a unix socket in whose queue one lies. `discard`
closes in threads of its own, few, which hold nobody else up. And no peer keeps the loop for long: the
messages of one receive are handled one by one, and the other tasks run when they took more than a `Turn`.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import logging
import math
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import LocalProtocolError, ProtocolError, RemoteProtocolError, SandboxdError, ServerBusy
from ..wire.link import DEFAULT_WINDOW, LinkConnection, Role
from ..wire.messages import Cancel, Credit, Event, Failure, Reply, Request
from ..wire.sendqueue import SendQueue, descriptors
from . import checks
from .strangers import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterable
    from types import TracebackType

    from ..wire.messages import Message

_log = logging.getLogger(__name__)

#: One recvmsg: a unix socket holds about 208 KiB by default, and a larger read costs nothing.
RECEIVE_BYTES: Final = 512 * 1024
#: Requests wait while this much is unsent; one frame may pass it.
HIGH_WATER: Final = 1024 * 1024
#: Nothing may pass this: HIGH_WATER, the largest frame, and slack for Credit and Cancel.
MAX_QUEUED: Final = 8 * 1024 * 1024
#: Calls open on one connection, streams included.
MAX_CALLS: Final = 512

#: Events that one `next_batch` returns.
MAX_BATCH: Final = 512
#: Threads that close what peers passed.
CLOSERS: Final = 4
#: How long a peer's next message waits for the closing of what it should not have passed.
CLOSE_TIMEOUT_S: Final = 5.0
#: The kernel's SCM_MAX_FD. With less room it would close the rest within recvmsg, in the loop's thread.
_MAX_FDS: Final = 253
#: Descriptors that are looked for in the queues of sockets that are closed.
_MAX_BURIED: Final = 4096

_SCRATCH: Final = bytearray(RECEIVE_BYTES)
_SCRATCH_VIEW: Final = memoryview(_SCRATCH)
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_MAX_FDS * 4)


class _Closer:
    """Closes descriptors in at most `CLOSERS` threads; they are daemons, so that they never keep a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: collections.deque[tuple[list[int], Callable[[], object] | None]] = collections.deque()
        self._threads = 0

    def __repr__(self) -> str:
        return f"<_Closer {len(self._jobs)} jobs, {self._threads} threads>"

    def submit(self, fds: list[int], then: Callable[[], object] | None) -> None:
        with self._lock:
            self._jobs.append((fds, then))
            if self._threads >= CLOSERS:
                return
            self._threads += 1
        trio.lowlevel.start_thread_soon(self._work, lambda _: None, "sandboxd-closer")

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._threads -= 1
                    return
                fds, then = self._jobs.popleft()
            _close_all(fds)
            if then is not None:
                with contextlib.suppress(trio.RunFinishedError):
                    then()


_closer: Final = _Closer()


def discard(fds: Iterable[int]) -> None:
    """Close descriptors that a peer passed, in a thread; returns at once."""
    owned = list(fds)
    if owned:
        _closer.submit(owned, None)


async def discarded(fds: Iterable[int]) -> None:
    """Close descriptors that a peer passed, in a thread, and wait for it, but not for ever."""
    done = trio.Event()
    token = trio.lowlevel.current_trio_token()
    _closer.submit(list(fds), lambda: token.run_sync_soon(done.set))
    with trio.move_on_after(CLOSE_TIMEOUT_S):
        await done.wait()


def _close_all(fds: list[int]) -> None:
    """Close descriptors, and what lies in the queues of unix sockets among them, without lingering."""
    pending = collections.deque(fds)
    seen = 0
    while pending:
        fd = pending.popleft()
        seen += 1
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.close(fd)
            continue
        with contextlib.suppress(OSError), sock:
            # The last close of the sender must not wait for a reader that is closed after it, or never.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
            if sock.family == socket.AF_UNIX:
                sock.shutdown(socket.SHUT_RDWR)  # no more can be queued
                while seen + len(pending) < _MAX_BURIED:
                    data, ancillary, _, _ = sock.recvmsg(RECEIVE_BYTES, _ANCILLARY_BYTES, socket.MSG_DONTWAIT)
                    pending.extend(found := descriptors(ancillary))
                    if not data and not found:
                        break


class _Call:
    """A request that is open."""

    __slots__ = ("abandoned", "done", "error", "fds", "result", "stream")

    def __init__(self, stream: Stream | None = None) -> None:
        self.stream = stream
        self.done = trio.Event()
        self.result: dict[str, Any] | None = None
        self.error: SandboxdError | None = None
        self.fds: list[int] = []
        self.abandoned = False


class LinkClient:
    """The asker's side of one connection. Made by its owner, which must also run `run` in a nursery.

    Args:
        sock: a connected unix stream socket; the peer owns it from now on.
        name: what log lines call it.
        failure_kinds: the kinds that its failures may have; None allows all (the launcher).
    """

    def __init__(self, sock: socket.socket, name: str, *, failure_kinds: frozenset[str] | None = None) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.name = name
        self._kinds = failure_kinds
        self._wire = LinkConnection(Role.ASKER)
        self._ids = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._out = SendQueue(HIGH_WATER, MAX_QUEUED)
        self._unsent = trio.Event()
        self._drained = trio.Event()
        self._drained.set()
        self._ended: SandboxdError | None = None
        self.broke_protocol = False  # whether it ended because the peer broke a rule
        self._scope = trio.CancelScope()
        self._turn = Turn()
        self._unwanted: list[int] = []  # late descriptors; the next read waits until they are closed
        self._post(self._wire.greet())

    def __repr__(self) -> str:
        state = f"ended: {self._ended}" if self._ended else self._wire.state.value
        return f"<LinkClient {self.name} {state}, {len(self._calls)} calls, {self._out.size} bytes queued>"

    def statistics(self) -> dict[str, int]:
        """Return how many calls are open and how many bytes are queued."""
        return {"calls": len(self._calls), "queued_bytes": self._out.size}

    @property
    def ended(self) -> SandboxdError | None:
        """Why the connection is over, or None."""
        return self._ended

    # --- its life ---------------------------------------------------------------------------------------

    async def run(self) -> SandboxdError:
        """Read and write until the connection is over; return why. Never raises but Cancelled."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_loop)
                    await self._read_loop()
                    nursery.cancel_scope.cancel()
        finally:
            self.abort(RemoteProtocolError("the connection was closed"))
        assert self._ended is not None  # noqa: S101 - abort set it
        return self._ended

    def abort(self, error: SandboxdError) -> None:
        """End the connection now: every open call fails with `error`. The first reason stands."""
        if self._ended is None:
            self._ended = error
            unwanted, self._unwanted = self._unwanted, []
            with contextlib.suppress(RemoteProtocolError):
                while True:
                    unwanted += self._wire.take_fds(1)
            self._wire.close()
            unwanted += self._out.take_fds()
            self._drained.set()
            calls, self._calls = self._calls, {}
            for call in calls.values():
                call.error = error
                self._finish(call)
            trio.lowlevel.notify_closing(self._sock)
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)  # the peer hears of it now, whenever it is closed
            discard([*unwanted, self._sock.detach()])
        self._scope.cancel()

    def fail_protocol(self, error: ProtocolError) -> None:
        """End the connection because the peer broke a rule."""
        if self._ended is None:
            _log.warning("Dropping %s: %s", self.name, error)
            self.broke_protocol = True
        self.abort(error)

    async def _read_loop(self) -> None:
        try:
            while self._ended is None:
                await trio.lowlevel.wait_readable(self._sock)
                if not await self._receive():
                    self.abort(RemoteProtocolError("the peer closed the connection"))
                if self._unwanted:
                    unwanted, self._unwanted = self._unwanted, []
                    await discarded(unwanted)
        except ProtocolError as error:
            self.fail_protocol(error)
        except (OSError, trio.ClosedResourceError) as error:
            self.abort(RemoteProtocolError(f"the connection broke: {error}"))

    async def _receive(self) -> bool:
        """Take what has come; return False at the end of file. A checkpoint only when there is much to do."""
        try:
            size, ancillary, flags, _ = self._sock.recvmsg_into(
                [_SCRATCH_VIEW], _ANCILLARY_BYTES, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return True
        fds = descriptors(ancillary)
        if flags & socket.MSG_CTRUNC:
            self._unwanted += fds
            raise RemoteProtocolError("cannot accept more descriptors than a message may announce")
        if size == 0:
            self._unwanted += fds
            return False
        self._turn.begin()
        self._wire.feed(_SCRATCH_VIEW[:size], fds)
        while self._ended is None and (message := self._wire.next_message()) is not None:
            self._deliver(message)
            await self._turn.rest()
        return True

    def _deliver(self, message: Message) -> None:
        if isinstance(message, Event):
            call = self._calls[message.id]
            if call.stream is None:
                raise RemoteProtocolError(f"cannot accept an event of request {message.id}: it is not a stream")
            if not math.isfinite(message.time):
                raise RemoteProtocolError(f"cannot accept an event of request {message.id}: its time is not a number")
            if not call.abandoned:
                call.stream._on_event(message)
            return
        if not isinstance(message, Reply | Failure):
            return  # the connection lets nothing else through
        fds = self._wire.take_fds(message.fds) if isinstance(message, Reply) and message.fds else []
        call = self._calls.pop(message.id)
        try:
            if isinstance(message, Failure):
                facts = {name: fact for name, fact in message.facts.items() if _is_json(fact)}
                call.error = checks.failure(message.kind, message.message, facts, allowed=self._kinds)
            elif fds and call.stream is not None:
                self._unwanted += fds
                raise RemoteProtocolError(f"cannot accept descriptors with the end of stream {message.id}")
            elif call.abandoned:
                self._unwanted += fds
            else:
                call.result = message.result
                call.fds = fds
        except RemoteProtocolError as error:
            call.error = error
            self._finish(call)
            raise
        self._finish(call)

    @staticmethod
    def _finish(call: _Call) -> None:
        if call.abandoned:
            discard(call.fds)
            call.fds = []
        call.done.set()
        if call.stream is not None:
            call.stream._wake()

    # --- writing ----------------------------------------------------------------------------------------

    def _post(self, frame: bytes, fds: Iterable[int] = ()) -> None:
        """Queue a frame; the descriptors that go with it are the peer's from now on."""
        self._out.put(frame, fds)
        self._flush()
        if self._out.size:
            self._unsent.set()
            if not self._out.has_room and self._drained.is_set():
                self._drained = trio.Event()
            if self._out.is_over:
                self.fail_protocol(RemoteProtocolError("the peer does not read"))

    def _flush(self) -> None:
        try:
            self._out.flush(self._sock)
        except OSError as error:
            self.abort(RemoteProtocolError(f"the connection broke: {error.strerror}"))
        if self._out.has_room:
            self._drained.set()

    async def _write_loop(self) -> None:
        try:
            while self._ended is None:
                await self._unsent.wait()
                while self._out.size and self._ended is None:
                    await trio.lowlevel.wait_writable(self._sock)
                    self._flush()
                self._unsent = trio.Event()
        except (OSError, trio.ClosedResourceError):
            return

    # --- asking -----------------------------------------------------------------------------------------

    def _open(
        self, op: str, params: dict[str, Any], stream: Stream | None, fds: Iterable[int] = ()
    ) -> tuple[int, _Call]:
        if self._ended is not None:
            raise self._ended
        if len(self._calls) >= MAX_CALLS:
            raise ServerBusy(f"cannot ask {self.name}: {MAX_CALLS} requests are open", bound=MAX_CALLS)
        number = next(self._ids)
        frame = self._wire.send(Request(number, op, params))
        call = self._calls[number] = _Call(stream)
        self._post(frame, fds)
        return number, call

    async def request(
        self, op: str, params: dict[str, Any], *, fds: int = 0, passing: Collection[int] = ()
    ) -> tuple[dict[str, Any], list[int]]:
        """Ask and wait for the answer; `fds` descriptors must come with it, and the caller owns them.

        Those of `passing` go with the request: they are the peer's from now on, and are closed if nothing can be asked.

        Raises:
            SandboxdError: what the peer answered, or why the connection ended.
        """
        try:
            await self._drained.wait()
            answer = self.begin(op, params, fds=fds, passing=passing)
        except BaseException:
            discard(passing)  # they never left
            raise
        return await answer()

    def begin(
        self, op: str, params: dict[str, Any], *, fds: int = 0, passing: Collection[int] = ()
    ) -> Callable[[], Coroutine[Any, Any, tuple[dict[str, Any], list[int]]]]:
        """Ask now, before whatever is asked next; what is returned must be called, and waits as `request` does.

        Raises:
            SandboxdError: why the connection ended.
        """
        number, call = self._open(op, params, None, passing)
        return functools.partial(self._answer, op, number, call, fds)

    async def _answer(self, op: str, number: int, call: _Call, fds: int) -> tuple[dict[str, Any], list[int]]:
        try:
            await call.done.wait()
        except BaseException:
            self._abandon(number, call)
            raise
        if call.error is None and len(call.fds) != fds:
            error = RemoteProtocolError(f"cannot accept {len(call.fds)} descriptors for {op}: it gives {fds}")
            self.fail_protocol(error)
            discard(call.fds)
            raise error
        if call.error is not None:
            raise call.error
        assert call.result is not None  # noqa: S101 - done without an error
        return call.result, call.fds

    def stream(
        self, op: str, params: dict[str, Any], *, window: int = DEFAULT_WINDOW, fds: Iterable[int] = ()
    ) -> Stream:
        """Return the stream of `op`'s events, an async context manager; entering it asks.

        `fds` go with the request and are the peer's once it was entered.
        """
        return Stream(self, op, params, window, fds)

    def _abandon(self, number: int, call: _Call, *, cancel: bool = True) -> None:
        """Nobody waits any more: tell the peer unless its answer is on its way, and drop what still comes."""
        call.abandoned = True
        # An answer that came with descriptors stands for something that the peer keeps open: it must hear of it too.
        unheard = not call.done.is_set() or bool(call.fds)
        if call.done.is_set():
            self._finish(call)
        if unheard and cancel and self._ended is None:
            self._post(self._wire.send(Cancel(number)))


class Stream:
    """A request's events in order. Made by `LinkClient.stream`; leaving it before its end cancels the request.

    Credit goes back to the peer as events are taken, so that one that nobody takes stops its own source only.
    """

    def __init__(self, peer: LinkClient, op: str, params: dict[str, Any], window: int, fds: Iterable[int] = ()) -> None:
        self._peer = peer
        self._fds = fds
        self._op = op
        self._params = params
        self._window = window
        self._queue: collections.deque[Event] = collections.deque()
        self._ready = trio.Event()
        self._consumed = 0
        self._number = 0
        self._call: _Call | None = None
        self.check: Callable[[Event], None] | None = None
        #: Events wait until there are this many bytes of them, or the last one: for readers who want all at once.
        self.patience = 0
        self._queued = 0
        self._turn = Turn()

    def __repr__(self) -> str:
        return f"<Stream {self._op} of {self._peer.name}, {len(self._queue)} events queued>"

    async def __aenter__(self) -> Stream:
        await self._peer._drained.wait()
        params = {**self._params, "credit": self._window}
        self._number, self._call = self._peer._open(self._op, params, self, self._fds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def result(self) -> dict[str, Any] | None:
        """What the peer answered at the end of the stream; None before, and where it failed."""
        return None if self._call is None else self._call.result

    def close(self, *, cancel: bool = True) -> None:
        """Take no more events; cancels the request if it is open and `cancel` is true. Needs no await."""
        if self._call is not None:
            if not self._call.abandoned:
                self._peer._abandon(self._number, self._call, cancel=cancel)
            self._queue.clear()

    def _on_event(self, event: Event) -> None:
        if self.check is not None:
            self.check(event)
        self._queue.append(event)
        self._queued += event.cost
        if self._queued > self.patience or event.type == "exit":
            self._ready.set()

    def _wake(self) -> None:
        self._ready.set()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Event:
        if not self._queue:
            await self._wait()
            self._turn.begin()
        await self._turn.rest()
        if not self._queue:
            raise StopAsyncIteration
        event = self._queue.popleft()
        self._queued -= event.cost
        self._give_back(event.cost)
        return event

    async def next_batch(self) -> list[Event]:
        """Wait for events and return what is here, `MAX_BATCH` at most; an empty list is the end.

        Raises:
            SandboxdError: what the peer answered, or why the connection ended.
        """
        if not self._queue:
            await self._wait()
        else:
            await trio.lowlevel.checkpoint()
        if len(self._queue) <= MAX_BATCH:
            batch = list(self._queue)
            self._queue.clear()
            cost = self._queued
        else:
            batch = [self._queue.popleft() for _ in range(MAX_BATCH)]
            cost = sum(event.cost for event in batch)
        self._queued -= cost
        self._give_back(cost)
        return batch

    async def _wait(self) -> None:
        """Wait until there are events or the request has ended; raises what ended it."""
        call = self._call
        if call is None:
            raise LocalProtocolError("cannot read a stream that was not entered")
        if not call.done.is_set():
            self._ready = trio.Event()
            await self._ready.wait()
        if not self._queue and call.error is not None:
            raise call.error

    def _give_back(self, cost: int) -> None:
        self._consumed += cost
        call = self._call
        if self._consumed * 4 < self._window or call is None or call.done.is_set() or self._peer._ended is not None:
            return
        self._peer._post(self._peer._wire.send(Credit(self._number, self._consumed)))
        self._consumed = 0


def _is_json(fact: object) -> bool:
    return not isinstance(fact, float) or math.isfinite(fact)
