"""The two processes that make veths and rules (netd), what is asked of them, and what becomes of it.

    launcher ── orders, state ──▶ the process: in the host's network ── commands ──▶ its hand: runs nft in the router's

They hold nothing that is not known here, so they may end at any time: both are started anew and told everything, and
what was asked of them meanwhile is asked again. The rules in the kernel stay, and what they do not name does not pass.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, Final

import msgpack

from ..errors import NetworkUnavailable, SandboxdError
from ..linux.eventloop import READ, Alarm, EventLoop
from ..linux.kernel import CLONE_NEWIPC, CLONE_NEWNS, CLONE_NEWUTS, Kernel
from . import template_start
from .router import Router
from .template_start import Start

log = logging.getLogger("sandboxd.launcher")

#: CAP_NET_ADMIN.
_CAPABILITIES: Final = 1 << 12
_NAMESPACES: Final = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS
#: Loading pyroute2 takes a part of a second, an order some milliseconds; both on a machine that is busy with others.
_START_TIMEOUT_S: Final = 30.0
_ORDER_TIMEOUT_S: Final = 60.0
#: How long after one that failed was started the next is.
_REST_S: Final = 1.0
#: How long one that has nothing to do is kept; it holds some 30 MiB.
_IDLE_S: Final = 300.0
#: How often an order may be lost with the process, and how long it may wait for one, before it fails: it may be what
#: ends them.
_MAX_LOSSES: Final = 10
_GIVE_UP_S: Final = 45.0
#: How long the launcher's own end may wait for the last network's.
_SHUTDOWN_S: Final = 5.0
_ANSWER_BYTES: Final = 64 * 1024

Done = Callable[[SandboxdError | None], None]


@dataclasses.dataclass(slots=True)
class _NetworkRequest:
    """What is asked of the process; `fds` are ours until it is done, and `again` says whether it is asked again."""

    operation: str
    params: dict[str, Any]
    fds: list[int]
    done: Done
    again: bool = True
    losses: int = 0
    asked_at: float = dataclasses.field(default_factory=time.monotonic)
    deadline: float = 0.0

    def finish(self, error: SandboxdError | None) -> None:
        """Close what is ours, and say what became of it."""
        while self.fds:
            os.close(self.fds.pop())
        self.done(error)

    def is_lost(self) -> bool:
        """Whether it was asked for long enough."""
        return self.losses >= _MAX_LOSSES or time.monotonic() > self.asked_at + _GIVE_UP_S


@dataclasses.dataclass(frozen=True, slots=True)
class Deps:
    """What the processes stand on.

    Attributes:
        stage: an empty directory to mount at.
        router: the namespace that veths end in.
        needed: says whether there are networks to keep.
        state: returns all there is: the host's, and each sandbox's.
        denied: is told of packets that were refused.
    """

    stage: str
    router: Router
    needed: Callable[[], bool]
    state: Callable[[], tuple[dict[str, Any], list[dict[str, Any]]]]
    denied: Callable[[dict[str, Any]], None]


class NetworkProcess:
    """Starts the processes when they are needed, and asks them."""

    def __init__(self, loop: EventLoop, kernel: Kernel, deps: Deps) -> None:
        self._loop = loop
        self._alarm = Alarm(loop, self._advance)
        self._kernel = kernel
        self._deps = deps
        self._connection: socket.socket | None = None
        self._hand: socket.socket | None = None  # the process's end of its hand's, until it is sent
        self._pidfds: list[int] = []
        self._is_ready = False
        self._has_table = False
        self._started_at = -_REST_S
        self._idle_at = 0.0
        self._sequence = 0
        # Not a SendQueue: each is a packet of its own, and keeps its descriptors until it is answered, since the next
        # process is asked again for what this one has not done.
        self._waiting: collections.deque[_NetworkRequest] = collections.deque()
        self._sent: dict[int, _NetworkRequest] = {}

    @property
    def is_busy(self) -> bool:
        """Whether anything that was asked has no answer yet."""
        return bool(self._waiting or self._sent)

    def ask(self, operation: str, params: dict[str, Any], fds: list[int], done: Done) -> None:
        """Ask for something; `fds` are the process's from now on."""
        self._waiting.append(_NetworkRequest(operation, params, fds, done))
        self.start()
        self._send_orders()

    def start(self) -> None:
        """Start it where it does not run, but not at once after one that was started just now: `advance` does then."""
        if self._connection is not None or time.monotonic() < self._started_at + _REST_S:
            return
        self._started_at = time.monotonic()
        try:
            self._start()
        except OSError as error:
            log.warning("Cannot start the process that makes veths: %s", error)
            self._end_processes()
            self._ask_again(f"cannot start the network process: {error}")
        self._set_alarm()

    def close(self) -> None:
        """Let it end; the rules stay. What the last network leaves is taken away first."""
        self._loop.run_while(lambda: self._is_ending, _SHUTDOWN_S)
        self._started_at = math.inf  # never again
        for order in [*self._sent.values(), *self._waiting]:
            order.losses = _MAX_LOSSES
        self._drop("")

    @property
    def _is_ending(self) -> bool:
        return any(order.operation == "end" for order in (*self._sent.values(), *self._waiting))

    # --- time ---

    def _advance(self) -> None:
        """End a process that does not answer, and start it again where sandboxes need it."""
        due = self._due()
        if due is not None and time.monotonic() >= due:
            if self._connection is None:
                self.start()
            elif self._is_idle:
                self._drop("")
            else:
                self._drop("it does not answer")
        self._set_alarm()

    def _set_alarm(self) -> None:
        due = self._due()
        if due is not None:
            self._alarm.by(due)

    def _due(self) -> float | None:
        if self._connection is None:
            # Without it, what names were answered with would not lapse.
            return self._started_at + _REST_S if self._waiting or self._deps.needed() else None
        if self._is_idle:
            return self._idle_at + _IDLE_S
        if not self._is_ready:
            return self._started_at + _START_TIMEOUT_S
        return min((order.deadline for order in self._sent.values()), default=None)

    @property
    def _is_idle(self) -> bool:
        return self._is_ready and not self._has_table and not self.is_busy

    # --- the processes ---

    def _start(self) -> None:
        network = self._deps.router.open()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._hand, hand = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._spawn("sandboxd.netd", theirs)
            self._spawn("sandboxd.netd.nft", hand, network)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            hand.close()
        ours.setblocking(False)
        self._connection, self._is_ready = ours, False
        self._loop.watch(ours.fileno(), READ, self._on_answer)
        self._loop.watch(self._pidfds[1], READ, lambda: self._drop("its helper process ended"))

    def _spawn(self, module: str, connection: socket.socket, network: int = -1) -> None:
        start = Start(
            argv=(template_start.INTERPRETER, "-I", "-B", "-m", module),
            tree=None,
            directories=template_start.host_directories(),
            stage=self._deps.stage,
            filters=(),
            capabilities=_CAPABILITIES,
            namespaces=_NAMESPACES,
            network=network,
        )
        pid, pidfd = self._kernel.clone3(0)
        if pid == 0:
            template_start.run(self._kernel, start, connection.fileno(), lambda *what: _tell(connection, *what))
        self._pidfds.append(pidfd)

    def _end_processes(self) -> None:
        for pidfd in self._pidfds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)
        self._pidfds.clear()
        if self._hand is not None:
            self._hand.close()
            self._hand = None

    def _drop(self, why: str) -> None:
        """Let go of the processes; what was asked of them is asked of the next."""
        if self._connection is not None:
            if why:
                log.warning("The process that makes veths is let go: %s", why)
            self._loop.unwatch(self._connection.fileno())
            self._loop.unwatch(self._pidfds[1])
            self._connection.close()
        self._connection, self._is_ready, self._has_table = None, False, False
        self._end_processes()
        if not self._deps.router.is_kept:
            self._deps.router.close()
        self._ask_again(why or "it was stopped")
        self._set_alarm()

    def _ask_again(self, why: str) -> None:
        for order in self._sent.values():
            order.losses += 1
        asked = [*self._sent.values(), *self._waiting]
        kept = [order.again and not order.is_lost() for order in asked]
        self._sent.clear()
        self._waiting = collections.deque(order for order, is_kept in zip(asked, kept, strict=True) if is_kept)
        for order, is_kept in zip(asked, kept, strict=True):
            if not is_kept:
                order.finish(NetworkUnavailable(f"cannot {order.operation} a network: {why}"))

    # --- orders and answers ---

    def _begin(self) -> None:
        """Tell the process everything there is, in one message, before what is asked."""
        self._deps.router.open()  # keeps it, where the last network's end let go of it
        host, states = self._deps.state()
        file = os.memfd_create("networks", os.MFD_CLOEXEC)
        with open(file, "wb", closefd=False) as writer:
            writer.write(msgpack.packb(states))
        first = [_NetworkRequest("begin", host, [file], _or_log("begin"), again=False)]
        if self._hand is not None:
            fds = [*self._deps.router.sockets(), os.dup(self._deps.router.namespace), self._hand.detach()]
            self._hand = None
            first.insert(0, _NetworkRequest("router", {}, fds, _or_log("router"), again=False))
        self._has_table = True
        self._waiting.extendleft(reversed(first))

    def _send_orders(self) -> None:
        try:
            while self._is_ready and self._waiting and self._connection is not None:
                if not self._has_table:
                    self._begin()
                order = self._waiting[0]
                message = msgpack.packb([self._sequence + 1, order.operation, order.params])
                socket.send_fds(self._connection, [message], order.fds)
                self._sequence += 1
                self._waiting.popleft()
                order.deadline = time.monotonic() + _ORDER_TIMEOUT_S
                self._sent[self._sequence] = order
                if order.operation == "end":
                    self._has_table = False
                    self._idle_at = time.monotonic()
        except BlockingIOError:
            pass  # its answers will wake us
        except OSError as error:
            self._drop(str(error))
        self._set_alarm()

    def _on_answer(self) -> None:
        if self._connection is None:
            return
        try:
            answer = self._connection.recv(_ANSWER_BYTES)
        except BlockingIOError:
            return
        except OSError:
            answer = b""
        if not answer:
            self._drop("it ended")
        elif answer == b"ready" and not self._is_ready:
            self._is_ready = True
            if self._deps.needed():
                self._begin_at_once()
            self._send_orders()
        elif not self._is_ready:
            self._drop(answer.decode(errors="replace")[:300])
        else:
            self._take_answer(answer)
            self._send_orders()

    def _begin_at_once(self) -> None:
        try:
            self._begin()
        except OSError as error:
            self._drop(str(error))

    def _take_answer(self, answer: bytes) -> None:
        try:
            sequence, told, *more = msgpack.unpackb(answer)
            attempt = _attempt(more[0]) if sequence == 0 else None
            refused = "" if told is None else _text(told)
            left_out = [_text(line) for line in more[0]] if sequence and more else []
            order = self._sent.pop(sequence, None)  # last: what is not understood is asked of the next one
        except (ValueError, TypeError, IndexError, KeyError, msgpack.UnpackException):
            # It reads what sandboxes sent, so it may be taken over; it must not take the launcher with it.
            self._drop("it sent an invalid message")
            return
        if attempt:
            self._deps.denied(attempt)
        elif order is not None:
            for line in left_out:
                log.error("The network of a sandbox is shut: %s", line)
            why = f"cannot {order.operation} a network: {refused}"
            if not refused:
                self._acknowledge(order.operation)
            order.finish(NetworkUnavailable(why) if refused else None)
            if refused and not order.again:
                self._drop(why)

    def _acknowledge(self, operation: str) -> None:
        """Have the router forward once its rules are there, and let it go when nothing is in it."""
        try:
            if operation == "begin":
                self._deps.router.forward(True)
            elif operation == "end" and not self._has_table:
                self._deps.router.forget()
        except OSError as error:
            log.error("Cannot open or let go of the router: %s", error)


def _attempt(told: object) -> dict[str, Any]:
    """Return a packet that was refused as it is told: what goes on to the daemon, and from there to callers.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    if not isinstance(told, dict):
        raise TypeError
    port = told["port"]
    if port is not None and not (isinstance(port, int) and 0 <= port <= 65_535):
        raise ValueError
    return {**{name: _text(told[name], 64) for name in ("id", "address", "protocol")}, "port": port}


def _text(told: object, most: int = 400) -> str:
    """Return the beginning of a text; anything else is not even looked into, since it may be of any depth.

    Raises:
        TypeError: it is no text.
    """
    if not isinstance(told, str):
        raise TypeError
    return told[:most]


def _or_log(what: str) -> Done:
    def done(error: SandboxdError | None) -> None:
        if error:
            log.error("Cannot %s the network: %s", what, error)

    return done


def _tell(connection: socket.socket, step: str, error: OSError) -> None:
    with contextlib.suppress(OSError):
        connection.send(f"step {step}: {error}".encode()[:300])
