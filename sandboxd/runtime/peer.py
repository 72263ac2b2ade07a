"""One connection to the launcher or to an init, under trio: requests, replies, streams, descriptors.

Theory of operation. `Peer.run` is the only reader: it receives into one scratch buffer that all peers share (trio
runs one task at a time and `feed` copies), and hands every message to the call that it belongs to. Writing is
synchronous: a frame is queued and flushed as far as the socket takes it, and only what is left waits for
`_write_loop`; so the usual request costs no task switch, and a Cancel can be sent from a cancelled task. The
queue is bounded: requests wait while more than `HIGH_WATER` bytes are queued, and a peer that lets Credit and
Cancel frames pile up over `MAX_QUEUED` does not read at all and is dropped.

A call whose waiter went away stays in the table until the peer has answered it: late events are dropped
and late descriptors closed, and it counts against `MAX_CALLS` so that nobody can open streams without end.
"""

from __future__ import annotations

import array
import collections
import itertools
import logging
import os
import socket
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import LocalProtocolError, ProtocolError, RemoteProtocolError, SandboxdError, ServerBusy
from ..wire.framing import MAX_PENDING_FDS
from ..wire.link import DEFAULT_WINDOW, LinkConnection, Role
from ..wire.messages import Cancel, Credit, Event, Failure, Reply, Request
from . import checks

if TYPE_CHECKING:
    from collections.abc import Callable
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

_SCRATCH: Final = bytearray(RECEIVE_BYTES)
_SCRATCH_VIEW: Final = memoryview(_SCRATCH)
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(MAX_PENDING_FDS * 4)


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


class Peer:
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
        self._out: collections.deque[memoryview] = collections.deque()
        self._queued = 0
        self._unsent = trio.Event()
        self._drained = trio.Event()
        self._drained.set()
        self._ended: SandboxdError | None = None
        self.blamed = False  # whether it ended because the peer broke a rule
        self._scope = trio.CancelScope()
        self._post(self._wire.greet())

    def __repr__(self) -> str:
        state = f"ended: {self._ended}" if self._ended else self._wire.state.value
        return f"<Peer {self.name} {state}, {len(self._calls)} calls, {self._queued} bytes queued>"

    def statistics(self) -> dict[str, int]:
        """Return how many calls are open and how many bytes are queued."""
        return {"calls": len(self._calls), "queued_bytes": self._queued}

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
            self._wire.close()
            self._out.clear()
            self._drained.set()
            calls, self._calls = self._calls, {}
            for call in calls.values():
                call.error = error
                self._finish(call)
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
        self._scope.cancel()

    def blame(self, error: ProtocolError) -> None:
        """End the connection because the peer broke a rule."""
        if self._ended is None:
            _log.warning("Dropping %s: %s", self.name, error)
            self.blamed = True
        self.abort(error)

    async def _read_loop(self) -> None:
        try:
            while self._ended is None:
                await trio.lowlevel.wait_readable(self._sock)
                if not self._receive():
                    self.abort(RemoteProtocolError("the peer closed the connection"))
        except ProtocolError as error:
            self.blame(error)
        except (OSError, trio.ClosedResourceError) as error:
            self.abort(RemoteProtocolError(f"the connection broke: {error}"))

    def _receive(self) -> bool:
        """Take what has come; return False at the end of file."""
        try:
            size, ancillary, flags, _ = self._sock.recvmsg_into(
                [_SCRATCH_VIEW], _ANCILLARY_BYTES, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return True
        fds = _descriptors(ancillary)
        if flags & socket.MSG_CTRUNC:
            for fd in fds:
                os.close(fd)
            raise RemoteProtocolError("cannot take more descriptors than a message may announce")
        if size == 0:
            for fd in fds:
                os.close(fd)
            return False
        for message in self._wire.receive(_SCRATCH_VIEW[:size], fds):
            self._deliver(message)
            if self._ended is not None:
                break
        return True

    def _deliver(self, message: Message) -> None:
        if isinstance(message, Event):
            call = self._calls[message.id]
            if call.stream is None:
                raise RemoteProtocolError(f"cannot take an event of request {message.id}: it is no stream")
            if not call.abandoned:
                call.stream._take(message)
            return
        if not isinstance(message, Reply | Failure):
            return  # the connection lets nothing else through
        fds = self._wire.take_fds(message.fds) if isinstance(message, Reply) and message.fds else []
        call = self._calls.pop(message.id)
        call.fds = fds
        try:
            if isinstance(message, Reply):
                call.result = message.result
            else:
                call.error = checks.failure(message.kind, message.message, message.facts, allowed=self._kinds)
        except RemoteProtocolError as error:
            call.error = error
            self._finish(call)
            raise
        self._finish(call)

    @staticmethod
    def _finish(call: _Call) -> None:
        if call.abandoned:
            for fd in call.fds:
                os.close(fd)
            call.fds = []
        call.done.set()
        if call.stream is not None:
            call.stream._wake()

    # --- writing ----------------------------------------------------------------------------------------

    def _post(self, frame: bytes) -> None:
        self._out.append(memoryview(frame))
        self._queued += len(frame)
        self._flush()
        if self._out:
            self._unsent.set()
            if self._queued > HIGH_WATER and self._drained.is_set():
                self._drained = trio.Event()
            if self._queued > MAX_QUEUED:
                self.blame(RemoteProtocolError("the peer does not read"))

    def _flush(self) -> None:
        try:
            while self._out:
                sent = self._sock.send(self._out[0])
                self._queued -= sent
                if sent == len(self._out[0]):
                    self._out.popleft()
                else:
                    self._out[0] = self._out[0][sent:]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self.abort(RemoteProtocolError(f"the connection broke: {error.strerror}"))
        if self._queued <= HIGH_WATER:
            self._drained.set()

    async def _write_loop(self) -> None:
        try:
            while self._ended is None:
                await self._unsent.wait()
                while self._out and self._ended is None:
                    await trio.lowlevel.wait_writable(self._sock)
                    self._flush()
                self._unsent = trio.Event()
        except (OSError, trio.ClosedResourceError):
            return

    # --- asking -----------------------------------------------------------------------------------------

    def _open(self, op: str, params: dict[str, Any], stream: Stream | None) -> tuple[int, _Call]:
        if self._ended is not None:
            raise self._ended
        if len(self._calls) >= MAX_CALLS:
            raise ServerBusy(f"cannot ask {self.name}: {MAX_CALLS} requests are open", bound=MAX_CALLS)
        number = next(self._ids)
        frame = self._wire.send(Request(number, op, params))
        call = self._calls[number] = _Call(stream)
        self._post(frame)
        return number, call

    async def request(self, op: str, params: dict[str, Any], *, fds: int = 0) -> tuple[dict[str, Any], list[int]]:
        """Ask and wait for the answer; `fds` descriptors must come with it, and the caller owns them.

        Raises:
            SandboxdError: what the peer answered, or why the connection ended.
        """
        await self._drained.wait()
        number, call = self._open(op, params, None)
        try:
            await call.done.wait()
        except BaseException:
            self._abandon(number, call)
            raise
        if call.error is None and len(call.fds) != fds:
            for fd in call.fds:
                os.close(fd)
            error = RemoteProtocolError(f"cannot take {len(call.fds)} descriptors for {op}: it gives {fds}")
            self.blame(error)
            raise error
        if call.error is not None:
            raise call.error
        assert call.result is not None  # noqa: S101 - done without an error
        return call.result, call.fds

    def stream(self, op: str, params: dict[str, Any], *, window: int = DEFAULT_WINDOW) -> Stream:
        """Return the stream of `op`'s events, an async context manager; entering it asks."""
        return Stream(self, op, params, window)

    def _abandon(self, number: int, call: _Call, *, cancel: bool = True) -> None:
        """Nobody waits any more: tell the peer unless its answer is on its way, and drop what still comes."""
        call.abandoned = True
        if call.done.is_set():
            self._finish(call)
        elif cancel and self._ended is None:
            self._post(self._wire.send(Cancel(number)))


class Stream:
    """A request's events in order. Made by `Peer.stream`; leaving it before its end cancels the request.

    Credit goes back to the peer as events are taken, so that one that nobody takes stops its own source only.
    """

    def __init__(self, peer: Peer, op: str, params: dict[str, Any], window: int) -> None:
        self._peer = peer
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

    def __repr__(self) -> str:
        return f"<Stream {self._op} of {self._peer.name}, {len(self._queue)} events queued>"

    async def __aenter__(self) -> Stream:
        await self._peer._drained.wait()
        self._number, self._call = self._peer._open(self._op, {**self._params, "credit": self._window}, self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self, *, cancel: bool = True) -> None:
        """Take no more events; cancels the request if it is open and `cancel` is true. Needs no await."""
        if self._call is not None:
            if not self._call.abandoned:
                self._peer._abandon(self._number, self._call, cancel=cancel)
            self._queue.clear()

    def _take(self, event: Event) -> None:
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
        if not self._queue:
            raise StopAsyncIteration
        event = self._queue.popleft()
        self._queued -= event.cost
        self._give_back(event.cost)
        return event

    async def next_batch(self) -> list[Event]:
        """Wait for events and return all that are here; an empty list is the end.

        Raises:
            SandboxdError: what the peer answered, or why the connection ended.
        """
        if not self._queue:
            await self._wait()
        else:
            await trio.lowlevel.checkpoint()
        batch = list(self._queue)
        self._queue.clear()
        cost, self._queued = self._queued, 0
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


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)
