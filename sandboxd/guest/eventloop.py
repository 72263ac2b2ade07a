"""A small event loop: descriptors with callbacks, and timers. Nothing that trio gives is needed in pid 1.

On epoll itself, not on `selectors`: every page of the interpreter's heap that an idle init touches is its own, and
the standard library's layer alone touches some forty.
"""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections.abc import Callable
from typing import Final

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT


class Timer:
    """A callback to come; `cancel` may be called at any time."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Make it never run."""
        self.callback = None


class EventLoop:
    """Waits for descriptors and timers, and runs what was deferred before it waits again."""

    _epoll: select.epoll

    def __init__(self) -> None:
        self._watched: dict[int, tuple[int, Callable[[], None]]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._deferred: list[Callable[[], None]] = []

    def open(self) -> None:
        """Begin; a loop is made before the fork of the process that runs it, and its epoll is not to be shared."""
        self._epoll = select.epoll()

    def watch(self, fd: int, events: int, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `fd` is ready, or at its end; 0 events stop it, which comes before its close."""
        known = self._watched.get(fd)
        if not events:
            if known:
                del self._watched[fd]
                self._epoll.unregister(fd)
            return
        if known is None:
            self._epoll.register(fd, events)
        elif known[0] != events:
            self._epoll.modify(fd, events)
        self._watched[fd] = (events, callback)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` once, `seconds` from now."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def defer(self, callback: Callable[[], None]) -> None:
        """Run `callback` at the end of this turn."""
        self._deferred.append(callback)

    def run(self) -> None:
        """Run for ever."""
        while True:
            self.turn()

    def turn(self) -> None:
        """Wait once, and do what there is to do."""
        for fd, _ in self._epoll.poll(self._timeout()):
            # An earlier callback of this turn may have dropped this one.
            watched = self._watched.get(fd)
            if watched:
                watched[1]()
        self._run_timers()
        while self._deferred:
            deferred, self._deferred = self._deferred, []
            for callback in deferred:
                callback()

    def close(self) -> None:
        """Watch nothing any more; descriptors stay their owners'."""
        self._epoll.close()

    def _timeout(self) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
