"""A small event loop: descriptors with callbacks, and timers. Nothing that trio gives is needed in pid 1."""

from __future__ import annotations

import heapq
import itertools
import selectors
import time
from collections.abc import Callable
from typing import Final

READ: Final = selectors.EVENT_READ
WRITE: Final = selectors.EVENT_WRITE


class Timer:
    """A callback to come; `cancel` may be called at any time."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Make it never run."""
        self.callback = None


class Loop:
    """Waits for descriptors and timers, and runs what was deferred before it waits again."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._deferred: list[Callable[[], None]] = []

    def watch(self, fd: int, events: int, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `fd` is ready; 0 events stop it. The callback may change or close it."""
        known = fd in self._selector.get_map()
        if not events:
            if known:
                self._selector.unregister(fd)
        elif known:
            self._selector.modify(fd, events, callback)
        else:
            self._selector.register(fd, events, callback)

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
            for key, _ in self._selector.select(self._timeout()):
                # An earlier callback of this turn may have dropped this one.
                if key.fd in self._selector.get_map():
                    key.data()
            self._run_timers()
            while self._deferred:
                deferred, self._deferred = self._deferred, []
                for callback in deferred:
                    callback()

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
