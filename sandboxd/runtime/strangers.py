"""Limits what untrusted peers can use: turns of the daemon's loop, and a share of its descriptors.

Theory of operation. trio runs one task until it waits. So code that parses untrusted bytes keeps every other task
waiting, and a peer can make that long with the smallest legal units (chunks of one byte, empty frames). Every loop over
untrusted bytes therefore has a `Turn`, and calls `rest` between two units: when the turn is over, `rest` lets the other
tasks run. A turn is a time, not a count, because the sender decides what a unit costs.

Connections that share a `Lane` go on one at a time once their turns are over, so that a thousand busy ones take no more
of each round of the loop than one; their turns are not renewed by waiting for more bytes, so that what many small
pieces cost is added up. The lanes: who has shown no token, a listener's; the ports of a sandbox, that sandbox's.
"""

from __future__ import annotations

import resource
import time
from typing import Final

import trio

#: How long one stranger's bytes may keep the loop before the other tasks run.
TURN_S: Final = 0.001


class Lane:
    """Those whose turns are over and who go on one at a time, in the order of their coming."""

    def __init__(self) -> None:
        self._lock = trio.Lock()

    def __repr__(self) -> str:
        return f"<Lane, {self._lock.statistics().tasks_waiting} wait>"

    async def wait(self) -> None:
        """Let the other tasks run, and those of this lane who came before."""
        async with self._lock:  # a checkpoint; whoever comes next gets it in the loop's next round
            pass


class Turn:
    """The time of one stranger. `begin` it after a wait, and `rest` between two units of work.

    Args:
        lane: with whom it goes on when it is over; None for one that shares with nobody.
    """

    __slots__ = ("_left", "_since", "lane")

    def __init__(self, lane: Lane | None = None) -> None:
        self.lane = lane
        self._left = TURN_S
        self._since = time.monotonic()

    def __repr__(self) -> str:
        return f"<Turn, {self._left * 1000:.2f} ms left>"

    def begin(self) -> None:
        """Count from now: the time before was spent waiting."""
        self._since = time.monotonic()
        if self.lane is None:
            self._left = TURN_S

    async def rest(self) -> None:
        """Let the other tasks run if the turn is over; a checkpoint only then."""
        now = time.monotonic()
        self._left -= now - self._since
        self._since = now
        if self._left > 0:
            return
        if self.lane is None:
            await trio.lowlevel.checkpoint()
        else:
            await self.lane.wait()
        self._left = TURN_S
        self._since = time.monotonic()


def share_of_descriptors(wanted: int, parts: int) -> int:
    """Return `wanted`, or one of `parts` equal parts of the descriptors that this process may have, where that is less.

    Each listener has a bound of its own: a full one must leave descriptors for the others, and for the sandboxes.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft // parts))
