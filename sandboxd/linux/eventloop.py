"""The event loop of every process that has no trio: init, the launcher and the network process.

Theory of operation. One thread, and one epoll: descriptors have callbacks, which never wait. A turn waits once, and
then runs, in this order: the callback of each ready descriptor, once; the timers that are due; what these deferred.
Watching is level-triggered, so a callback reads a bounded amount and returns: what is left makes its descriptor
ready again in the next turn, after all others had theirs. That is the fair turn of each descriptor.

The loop is on epoll itself, not on `selectors`: every page of the interpreter's heap that an idle init touches is its
own, and the standard library's layer alone touches some forty. epoll takes descriptors above 1023, as select(2) does
not, and what the loop holds is bounded by what is watched and by the timers that are still to run.
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
#: The longest that the loop waits at once: epoll_wait(2) counts milliseconds in an int, and timers may be years away.
_LONGEST_WAIT_S: Final = 86_400.0
#: Cancelled timers that may wait for their time; above it, no more than there are others.
_MAX_CANCELLED: Final = 64


class WatchRefused(OSError):
    """The kernel does not watch a descriptor; not a SyscallError, whose module is much for the network process."""

    syscall = "epoll_ctl"


class Timer:
    """A callback to come; `cancel` may be called at any time."""

    __slots__ = ("_loop", "callback")

    def __init__(self, loop: EventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Make it never run."""
        if self.callback is not None:
            self.callback = None
            self._loop.note_cancelled()


class EventLoop:
    """Waits for descriptors and timers, and runs what was deferred before it waits again."""

    _epoll: select.epoll

    def __init__(self) -> None:
        #: Events, callback, and the turn in which it began to be watched.
        self._watched: dict[int, tuple[int, Callable[[], None], int]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._deferred: list[Callable[[], None]] = []
        self._cancelled = 0
        self._turn = 0

    def open(self) -> None:
        """Begin; a loop is made before the fork of the process that runs it, and its epoll is not to be shared."""
        self._epoll = select.epoll()

    def watch(self, fd: int, events: int, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `fd` is ready for `events`, or at its end.

        Raises:
            WatchRefused: the kernel takes no more, which ENOSPC says of fs.epoll.max_user_watches. That counts a
                user's, and init shares its user with the sandbox's root.
        """
        known = self._watched.get(fd)
        if known is None:
            try:
                self._epoll.register(fd, events)
            except OSError as error:
                raise WatchRefused(*error.args) from None
        elif known[0] != events:
            self._epoll.modify(fd, events)
        self._watched[fd] = (events, callback, self._turn if known is None else known[2])

    def unwatch(self, fd: int) -> None:
        """Watch `fd` no longer, which comes before its close; no error where it is not watched."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` once, `seconds` from now."""
        return self.call_at(time.monotonic() + seconds, callback)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` once, when the monotonic clock shows `when`."""
        timer = Timer(self, callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def defer(self, callback: Callable[[], None]) -> None:
        """Run `callback` at the end of this turn."""
        self._deferred.append(callback)

    def run(self) -> None:
        """Run for ever."""
        while True:
            self.turn()

    def run_while(self, condition: Callable[[], bool], seconds: float) -> None:
        """Run as long as `condition` holds, but no longer than `seconds`."""
        end = self.call_later(seconds, _nothing)  # what the last turn wakes up for
        while end.callback is not None and condition():
            self.turn()
        end.cancel()

    def turn(self) -> bool:
        """Wait once, and do what there is to do; return whether any descriptor was ready."""
        ready = self._epoll.poll(self._timeout())
        self._turn += 1
        for fd, _ in ready:
            watched = self._watched.get(fd)
            # An earlier callback of this turn may have dropped this one, or given its number to another.
            if watched is not None and watched[2] != self._turn:
                watched[1]()
        self._run_timers()
        while self._deferred:
            deferred, self._deferred = self._deferred, []
            for callback in deferred:
                callback()
        return bool(ready)

    def close(self) -> None:
        """Watch nothing any more; descriptors stay their owners'."""
        self._epoll.close()

    def note_cancelled(self) -> None:
        """Note that a timer was cancelled; most are, long before their time, and none is kept until then."""
        self._cancelled += 1
        if self._cancelled > max(_MAX_CANCELLED, len(self._timers) // 2):
            self._timers = [item for item in self._timers if item[2].callback is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def _timeout(self) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            self._pop()
        if not self._timers:
            return None
        return min(_LONGEST_WAIT_S, max(0.0, self._timers[0][0] - time.monotonic()))

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = self._pop()
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()

    def _pop(self) -> Timer:
        timer = heapq.heappop(self._timers)[2]
        if timer.callback is None:
            self._cancelled -= 1
        return timer


class Alarm:
    """A callback that looks at what is due, and asks for the next time; asking often costs next to nothing."""

    def __init__(self, loop: EventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._timer: Timer | None = None
        self._when = 0.0

    @property
    def is_set(self) -> bool:
        """Whether it is going to ring."""
        return self._timer is not None

    def by(self, when: float) -> None:
        """Ring when the monotonic clock shows `when`, or earlier where that was asked for."""
        if self._timer is not None:
            if self._when <= when:
                return
            self.cancel()
        self._when = when
        self._timer = self._loop.call_at(when, self._ring)

    def after(self, seconds: float) -> None:
        """Ring `seconds` from now, or earlier where that was asked for."""
        self.by(time.monotonic() + seconds)

    def cancel(self) -> None:
        """Do not ring."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        self._callback()


def is_readable(fd: int) -> bool:
    """Return whether there is something to read, or the end; for a pidfd, whether the process has ended."""
    poll = select.poll()  # select(2) takes no descriptor above 1023
    poll.register(fd, READ)
    return bool(poll.poll(0))


def _nothing() -> None:
    """End the wait of a turn."""
