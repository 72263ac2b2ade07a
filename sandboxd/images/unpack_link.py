"""What the unpacking process says to its parent, and asks of it: one JSON packet each over one socket.

To the parent: `unshared`; `locked`; `open` (a file of the image's directory: the answer carries a descriptor or none);
`progress`; and in the end `done` or `refused`.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sandboxd.images.readers import Budget, Reader

__all__ = ["Link", "Metered", "Progress"]

_PROGRESS_EVERY_S: Final = 0.1


class Link:
    """The socket to the parent."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._sock.fileno()

    def send(self, kind: str, **facts: object) -> None:
        """Send a packet."""
        self._sock.send(json.dumps({"kind": kind, **facts}).encode())

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """Return a packet and its descriptors; ends the program when the parent is gone."""
        data, fds, _, _ = socket.recv_fds(self._sock, 65536, 2)
        if not data:
            sys.exit(1)
        return json.loads(data), fds

    def ask(self, name: str) -> tuple[int, int] | None:
        """Ask for a file of the image's directory; return its descriptor and size."""
        self.send("open", name=name)
        answer, fds = self.receive()
        return (fds[0], int(answer["size"])) if fds else None


class Metered:
    """A reader that tells the parent how far it is."""

    def __init__(self, raw: Reader, report: Progress) -> None:
        self._raw = raw
        self._report = report

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes."""
        data = self._raw.read(size)
        self._report.add(len(data))
        return data


class Progress:
    """Sends `progress` packets, not too often."""

    def __init__(self, link: Link, budget: Budget) -> None:
        self._link = link
        self._budget = budget
        self._next = 0.0
        self._read = 0
        self._layer = (1, 1)

    def begin(self, number: int, total: int) -> None:
        """Tell that a layer begins."""
        self._layer = (number, total)
        self._next = 0.0
        self.add(0)

    def add(self, count: int) -> None:
        """Count bytes read of the source."""
        self._read += count
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PROGRESS_EVERY_S
            number, total = self._layer
            self._link.send("progress", layer=number, layers=total, read=self._read, entries=self._budget.entries)
