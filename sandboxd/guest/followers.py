"""Streams of a journal to the daemon: each with a position and a credit of its own, so that none waits for another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ..wire.journal import Entry, Journal
from ..wire.messages import Event
from .link_server import LinkServer


def _nothing() -> None:
    pass


@dataclasses.dataclass(slots=True, eq=False)
class Follower:
    """One stream: `position` is the next offset it wants, `credit` what it may still send.

    Attributes:
        lossless: whether the program waits for it.
        viewer: whether it keeps a terminal from being hung up.
        until: an offset at which it ends; None is "with the process".
        seen_bytes: bytes of output that its reader has, or knows to be lost.
        on_done: called once when it has been answered.
    """

    peer: LinkServer
    request: int
    position: int
    credit: int
    lossless: bool = False
    viewer: bool = False
    until: int | None = None
    seen_bytes: int = 0
    on_done: Callable[[], None] = _nothing

    def pump(self, journal: Journal, *, over: bool) -> bool:
        """Send what there is and may be sent; return whether that was all. `over`: nothing will be appended."""
        while not self._is_at_end(journal, over):
            if self.credit <= 0 or not self.peer.has_room:
                return False
            entry = journal.read(self.position)
            if entry is None:
                return False
            if entry.offset > self.position:
                lost = {"dropped_bytes": max(0, entry.base - self.seen_bytes)}
                self._send(Entry(entry.offset - 1, entry.base, entry.time, "truncated", lost))
            if self.until is None or entry.offset < self.until:
                self._send(entry)
        return True

    def finish(self, result: dict[str, Any]) -> None:
        """Answer the request."""
        self.peer.reply(self.request, result)
        on_done, self.on_done = self.on_done, _nothing
        on_done()

    def _is_at_end(self, journal: Journal, over: bool) -> bool:
        if self.until is not None and self.position >= self.until:
            return True
        return over and self.position >= journal.next

    def _send(self, entry: Entry) -> None:
        self.peer.send(Event(self.request, entry.offset, entry.time, entry.type, entry.data))
        self.credit -= entry.size
        self.position = entry.offset + 1
        self.seen_bytes = entry.base + entry.output_bytes
