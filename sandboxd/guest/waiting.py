"""Waits for a TCP port of the sandbox: one timer for all of them, one cheap question to the kernel for each.

A wait that names an HTTP path goes on from there: once somebody listens, it asks for the path again and again until
the status is good. All of it is non-blocking; what answers is the sandbox's own program, and may be hostile.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from typing import Final

from ..errors import ServerBusy
from ..linux.eventloop import READ, WRITE, EventLoop, Timer
from ..linux.sockdiag import Listener, ListenerQuery

#: A port is noticed within this time and a turn of the loop, under the 50 ms that the API promises; a look costs 50 to
#: 200 us, so less than 1 % of a processor.
INTERVAL_S: Final = 0.03
#: After this long a wait is looked at less often.
EAGER_S: Final = 10.0
BATCH_INTERVAL_S: Final = 0.04
MAX_WAITS: Final = 64
#: One HTTP request: the status line comes in its first bytes, or the program is too slow for this try.
PROBE_TIMEOUT_S: Final = 2.0
PROBE_PAUSE_S: Final = 0.1
_STATUS_LINE_BYTES: Final = 64
#: The statuses that are good where nothing else is asked for.
GOOD_STATUSES: Final = (200, 399)

#: Told the status of the HTTP answer; None where no path was asked for.
Met = Callable[[int | None], None]


class PortWait:
    """One wait; made by `PortWaits`. `on_met` is called once, with the status of the answer, unless it is cancelled."""

    def __init__(self, port: int, path: str | None, statuses: tuple[int, int], on_met: Met) -> None:
        self.port = port
        self.path = path
        self.statuses = statuses
        self.on_met = on_met
        self.began = time.monotonic()
        self.not_before = 0.0
        self.probe: _Probe | None = None


class PortWaits:
    """Every wait of the sandbox."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._query: ListenerQuery | None = None
        self._waits: list[PortWait] = []
        self._timer: Timer | None = None

    def add(self, port: int, path: str | None, on_met: Met, statuses: tuple[int, int] = GOOD_STATUSES) -> PortWait:
        """Begin to wait; `on_met` may be called before this returns.

        Raises:
            ServerBusy: `MAX_WAITS` wait.
        """
        if len(self._waits) >= MAX_WAITS:
            raise ServerBusy(f"cannot wait for port {port}: {MAX_WAITS} waits are open already", bound=MAX_WAITS)
        if self._query is None:
            self._query = ListenerQuery()
        wait = PortWait(port, path, statuses, on_met)
        self._waits.append(wait)
        self._look(wait, {})
        self._go_on()
        return wait

    def cancel(self, wait: PortWait) -> None:
        """Wait no more; one that was met is no error."""
        if wait in self._waits:
            self._waits.remove(wait)
            if wait.probe is not None:
                wait.probe.close()
        self._go_on()

    def _go_on(self) -> None:
        """Have the timer run while somebody waits, and nothing held while nobody does."""
        if self._waits:
            if self._timer is None:
                eager = any(time.monotonic() - wait.began < EAGER_S for wait in self._waits)
                self._timer = self._loop.call_later(INTERVAL_S if eager else BATCH_INTERVAL_S, self._tick)
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._query is not None:
            self._query.close()
            self._query = None

    def _tick(self) -> None:
        self._timer = None
        known: dict[int, Listener | None] = {}
        for wait in list(self._waits):
            if wait in self._waits:
                self._look(wait, known)
        self._go_on()

    def _look(self, wait: PortWait, known: dict[int, Listener | None]) -> None:
        if wait.probe is not None or time.monotonic() < wait.not_before:
            return
        if wait.port not in known:
            known[wait.port] = self._query.find(wait.port) if self._query is not None else None
        listener = known[wait.port]
        if listener is None:
            return
        if wait.path is None:
            self._met(wait, None)
        else:
            try:
                probe = _Probe(self._loop, listener, wait.port, wait.path, lambda status: self._probed(wait, status))
            except OSError:
                return  # no descriptors just now: this is a timer's, and must not be init's end
            wait.probe = probe
            probe.start()

    def _probed(self, wait: PortWait, status: int | None) -> None:
        wait.probe = None
        wait.not_before = time.monotonic() + PROBE_PAUSE_S
        if status is not None and wait.statuses[0] <= status <= wait.statuses[1]:
            self._met(wait, status)
            self._go_on()

    def _met(self, wait: PortWait, status: int | None) -> None:
        if wait in self._waits:
            self._waits.remove(wait)
            wait.on_met(status)


class _Probe:
    """One GET; `done` is told the status of the answer, None where there was none in time."""

    def __init__(self, loop: EventLoop, listener: Listener, port: int, path: str, done: Met) -> None:
        self._loop = loop
        self._done = done
        self._address = (_reachable(listener.address), port)
        self._request = f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n".encode()
        self._answer = b""
        self._socket = socket.socket(listener.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._timer = loop.call_later(PROBE_TIMEOUT_S, lambda: self._end(None))

    def start(self) -> None:
        """Connect."""
        try:
            self._socket.connect(self._address)
        except BlockingIOError:
            pass
        except OSError:
            self._loop.defer(lambda: self._end(None))
            return
        self._loop.watch(self._socket.fileno(), WRITE, self._send)

    def close(self) -> None:
        """Give up without a word."""
        self._timer.cancel()
        if self._socket.fileno() >= 0:
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()

    def _send(self) -> None:
        try:
            sent = self._socket.send(self._request)
        except BlockingIOError:
            return
        except OSError:
            self._end(None)
            return
        self._request = self._request[sent:]
        if not self._request:
            self._loop.watch(self._socket.fileno(), READ, self._receive)

    def _receive(self) -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = self._socket.recv(_STATUS_LINE_BYTES - len(self._answer))
        self._answer += data
        if not data or len(self._answer) >= 12:
            self._end(status_of(self._answer))

    def _end(self, status: int | None) -> None:
        if self._socket.fileno() >= 0:
            self.close()
            self._done(status)


def status_of(answer: bytes) -> int | None:
    """Return the status in the beginning of an HTTP/1 answer; None where that is something else."""
    status = answer[9:12]
    is_answer = answer[:7] == b"HTTP/1." and answer[8:9] == b" " and len(status) == 3 and status.isdigit()
    return int(status) if is_answer else None


def _reachable(address: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - what listens, not what we bind
