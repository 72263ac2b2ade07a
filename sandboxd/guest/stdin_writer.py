"""A command's standard input: what waits to be written, bounded, in order."""

from __future__ import annotations

import collections
import fcntl
import os
import sys
import termios
from collections.abc import Callable
from typing import Final

from ..errors import ProcessNotRunning, ServerBusy
from ..linux.eventloop import WRITE, EventLoop

#: Pieces that may wait for the program; each is at most 256 KiB.
MAX_PIECES: Final = 16
Done = Callable[[ProcessNotRunning | None], None]


class StdinWriter:
    """Writes to a pipe or a terminal as far as it takes it; owns the descriptor."""

    def __init__(self, loop: EventLoop, process_id: str, fd: int, *, close_after: bool = False) -> None:
        self._loop = loop
        self._id = process_id
        self._fd: int | None = fd
        self._queue: collections.deque[tuple[memoryview, Done | None]] = collections.deque()
        self._close_after = close_after
        os.set_blocking(fd, False)

    @property
    def is_open(self) -> bool:
        """Whether more may be written."""
        return self._fd is not None and not self._close_after

    @property
    def unread(self) -> int:
        """Bytes in the pipe that nobody has read; 0 where it is closed."""
        if self._fd is None:
            return 0
        found = fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4))
        return int.from_bytes(found, sys.byteorder)

    def put(self, data: bytes) -> None:
        """Queue the first piece, which nobody waits for."""
        self._queue.append((memoryview(data), None))
        self._write()

    def write(self, data: bytes, done: Done) -> None:
        """Queue a piece; `done` is called when all of it has been taken, or with why it will not be.

        Raises:
            ProcessNotRunning: it is closed.
            ServerBusy: as much as may wait waits already; nothing of `data` was taken.
        """
        if not self.is_open:
            raise ProcessNotRunning(f"cannot write to process {self._id}: it has no open stdin", id=self._id)
        if len(self._queue) >= MAX_PIECES:
            raise ServerBusy(
                f"cannot write to process {self._id}: {MAX_PIECES} writes are waiting already", id=self._id
            )
        self._queue.append((memoryview(data), done))
        self._write()

    def close_when_written(self) -> None:
        """Give the program end-of-file after what is queued."""
        self._close_after = True
        self._write()

    def close(self) -> None:
        """Close now; what still waits will not arrive."""
        if self._fd is not None:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = None
        while self._queue:
            done = self._queue.popleft()[1]
            if done:
                done(ProcessNotRunning(f"cannot write to process {self._id}: it closed its stdin", id=self._id))

    def _write(self) -> None:
        if self._fd is None:
            return
        try:
            while self._queue:
                view, done = self._queue[0]
                written = os.write(self._fd, view) if view else 0
                if written < len(view):
                    self._queue[0] = (view[written:], done)
                    continue
                self._queue.popleft()
                if done:
                    done(None)
        except BlockingIOError:
            self._loop.watch(self._fd, WRITE, self._write)
            return
        except OSError:
            self.close()
            return
        self._loop.unwatch(self._fd)
        if self._close_after:
            self.close()
