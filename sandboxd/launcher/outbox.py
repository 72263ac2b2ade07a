"""What waits to be sent to the daemon: frames in order, each with the descriptors that go with it."""

from __future__ import annotations

import collections
import os
import socket


class Outbox:
    """A queue of frames; `len` is its bytes. Descriptors are its own until they have left."""

    def __init__(self) -> None:
        self._items: collections.deque[tuple[memoryview, list[int]]] = collections.deque()
        self._bytes = 0

    def __len__(self) -> int:
        return self._bytes

    def put(self, frame: bytes, fds: list[int] | None = None) -> None:
        """Queue a frame."""
        self._items.append((memoryview(frame), fds or []))
        self._bytes += len(frame)

    def flush(self, connection: socket.socket) -> None:
        """Send what the socket takes.

        Raises:
            OSError: as the socket does; BlockingIOError too.
        """
        while self._items:
            frame, fds = self._items[0]
            sent = socket.send_fds(connection, [frame], fds) if fds else connection.send(frame)
            self._bytes -= sent
            for fd in fds:
                os.close(fd)
            if sent == len(frame):
                self._items.popleft()
            else:
                self._items[0] = (frame[sent:], [])
