"""What one side of a stream socket keeps: frames that wait to be sent, and descriptors that came and wait to be taken.

Both own their descriptors. One that is sent is closed here once a message has a copy of it; one that is taken is the
taker's; what is left over is closed, or handed to a caller whose own thread must not wait for a close.

    put(frame, fds) --> SendQueue --flush(sock)--> the peer
    sock.recvmsg --descriptors(ancillary)--> ReceivedFds --take(count)--> whoever the message is for
"""

from __future__ import annotations

import array
import collections
import os
import socket
from collections.abc import Iterable
from typing import Any, Final, Protocol

from ..errors import RemoteProtocolError

#: Frames that go out with one system call; more of them save nothing that one could measure.
MAX_GATHERED: Final = 16


class Sender(Protocol):
    """What sends: a socket that does not block."""

    def send(self, data: memoryview, /) -> int:
        """Send some of it; returns how many bytes."""
        ...

    def sendmsg(self, buffers: Iterable[memoryview], ancillary: Iterable[tuple[int, int, Any]] = ..., /) -> int:
        """Send some of them, with descriptors; returns how many bytes."""
        ...


class SendQueue:
    """Frames in order, each with the descriptors that go with it.

    Args:
        high_water: from so many bytes on it `has_room` for nothing that can wait; it still takes frames.
        most: above so many bytes it `is_over`: its peer does not read, and its owner drops the connection.

    Attributes:
        size: the bytes that wait.
    """

    __slots__ = ("_frames", "_high_water", "_most", "size")

    def __init__(self, high_water: int, most: int | None = None) -> None:
        self._frames: collections.deque[tuple[memoryview, tuple[int, ...]]] = collections.deque()
        self.size = 0
        self._high_water = high_water
        self._most = most

    def __repr__(self) -> str:
        return f"<SendQueue {self.size} bytes in {len(self._frames)} frames>"

    @property
    def has_room(self) -> bool:
        """Whether less than the high-water mark waits."""
        return self.size < self._high_water

    @property
    def is_over(self) -> bool:
        """Whether more waits than the bound."""
        return self._most is not None and self.size > self._most

    def put(self, frame: bytes, fds: Iterable[int] = ()) -> None:
        """Queue a frame, which is not empty; the descriptors that go with it belong to the queue from now on."""
        self._frames.append((memoryview(frame), tuple(fds) if fds else ()))
        self.size += len(frame)

    def flush(self, sock: Sender) -> None:
        """Send what the socket takes.

        Raises:
            OSError: as the socket does, but BlockingIOError, which means that it is full.
        """
        frames = self._frames
        while frames:
            frame, fds = frames[0]
            try:
                if fds:
                    sent = sock.sendmsg([frame], [rights(fds)])
                elif len(frames) > 1:
                    sent = sock.sendmsg(self._gather())
                else:
                    sent = sock.send(frame)  # the usual case, and the cheaper call
            except BlockingIOError:
                return
            if fds:
                # They left with the first byte, and the message has copies of them.
                frames[0] = (frame, ())
                _close(fds)
            self._drop(sent)

    def _gather(self) -> list[memoryview]:
        """Return the frames up to the next one that has descriptors: a message carries those of one frame."""
        gathered: list[memoryview] = []
        for frame, fds in self._frames:
            if fds or len(gathered) == MAX_GATHERED:
                break
            gathered.append(frame)
        return gathered

    def _drop(self, sent: int) -> None:
        """Forget the first bytes."""
        self.size -= sent
        frames = self._frames
        while sent:
            frame, fds = frames[0]
            if sent < len(frame):
                frames[0] = (frame[sent:], fds)
                return
            sent -= len(frame)
            frames.popleft()

    def take_fds(self) -> list[int]:
        """Forget everything that waits; return the descriptors that did not leave, which are the caller's."""
        left = [fd for _, fds in self._frames for fd in fds]
        self._frames.clear()
        self.size = 0
        return left

    def close(self) -> None:
        """Forget everything that waits, and close the descriptors that did not leave."""
        _close(self.take_fds())


class ReceivedFds:
    """Descriptors that came with a stream, oldest first, each owned until it is taken. `len` is how many wait.

    The kernel delivers them no later than the first byte of the frame that they belong to, so a frame that announces
    some finds its own at the front.
    """

    __slots__ = ("_fds", "_most")

    def __init__(self, most: int) -> None:
        self._fds: collections.deque[int] = collections.deque()
        self._most = most

    def __repr__(self) -> str:
        return f"<ReceivedFds {len(self._fds)} of {self._most}>"

    def __len__(self) -> int:
        return len(self._fds)

    def add(self, fds: Iterable[int]) -> None:
        """Own what came with one message.

        Raises:
            RemoteProtocolError: more wait than any frame may announce; they are owned all the same.
        """
        self._fds.extend(fds)
        if len(self._fds) > self._most:
            raise RemoteProtocolError(f"cannot accept {len(self._fds)} pending descriptors: the limit is {self._most}")

    def take(self, count: int) -> list[int]:
        """Hand over the `count` oldest; the caller owns them now.

        Raises:
            RemoteProtocolError: fewer came.
        """
        if count > len(self._fds):
            raise RemoteProtocolError(f"cannot accept {count} descriptors: {len(self._fds)} came")
        return [self._fds.popleft() for _ in range(count)]

    def close(self) -> None:
        """Close those that nobody took."""
        while self._fds:
            os.close(self._fds.popleft())


def rights(fds: Iterable[int]) -> tuple[int, int, array.array[int]]:
    """Return the ancillary data that passes descriptors with a message."""
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds)


def descriptors(ancillary: Iterable[tuple[int, int, Any]]) -> array.array[int]:
    """Return the descriptors that came with a message, from the ancillary data that `recvmsg` returned."""
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            # A message that was cut may end within a number.
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
