"""Queues of frames and descriptors: order under any cut, bounds, and every descriptor closed exactly once."""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import RemoteProtocolError
from sandboxd.wire.sendqueue import MAX_GATHERED, ReceivedFds, SendQueue, descriptors


def is_open(fd: int) -> bool:
    with contextlib.suppress(OSError):
        os.fstat(fd)
        return True
    return False


def new_fd() -> int:
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


class Wire:
    """A socket that takes so many bytes a call, 0 for none, and notes what it was given."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = iter(sizes)
        self.data = b""
        self.rights: list[tuple[int, int]] = []  # offset in the stream, descriptors
        self.calls: list[int] = []

    def send(self, frame: memoryview) -> int:
        return self.sendmsg([frame])

    def sendmsg(self, buffers: Iterable[memoryview], ancillary: Iterable[tuple[int, int, Any]] = ()) -> int:
        size = next(self.sizes, 1 << 20)
        if size == 0:
            raise BlockingIOError
        for _, _, fds in ancillary:
            assert all(is_open(fd) for fd in fds)
            self.rights.append((len(self.data), len(fds)))
        frames = list(buffers)
        self.calls.append(len(frames))
        taken = b"".join(frames)[:size]
        self.data += taken
        return len(taken)


frames = st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.integers(0, 2)), max_size=40)


@given(frames, st.lists(st.integers(0, 60), max_size=60))
def test_any_cut_gives_the_same_stream_and_descriptors_with_their_frames(
    given_frames: list[tuple[bytes, int]], sizes: list[int]
) -> None:
    queue, wire = SendQueue(100), Wire(sizes)
    fds: list[int] = []
    wanted: list[tuple[int, int]] = []
    whole = b""
    for frame, count in given_frames:
        mine = [new_fd() for _ in range(count)]
        fds += mine
        if mine:
            wanted.append((len(whole), count))
        queue.put(frame, mine)
        whole += frame
    while queue.size:
        before = queue.size
        queue.flush(wire)
        assert queue.size == len(whole) - len(wire.data) <= before
    assert (wire.data, wire.rights) == (whole, wanted)
    assert not any(map(is_open, fds))


def test_waiting_frames_share_a_call_and_descriptors_never_do() -> None:
    queue, wire = SendQueue(100), Wire([])
    for _ in range(MAX_GATHERED + 2):
        queue.put(b"x")
    queue.put(b"y", [new_fd()])
    queue.put(b"z", [new_fd()])
    queue.flush(wire)
    assert wire.calls == [MAX_GATHERED, 2, 1, 1]


def test_bounds() -> None:
    queue = SendQueue(3, 5)
    queue.put(b"12")
    assert queue.has_room
    queue.put(b"3")
    assert not queue.has_room
    queue.put(b"45")
    assert not queue.is_over
    queue.put(b"6")
    assert queue.is_over
    queue.flush(Wire([4, 0]))
    assert (queue.size, queue.has_room, queue.is_over) == (2, True, False)
    assert not SendQueue(0).is_over


def test_the_givers_list_may_change() -> None:
    queue, wire = SendQueue(100), Wire([])
    fds = [new_fd()]
    queue.put(b"frame", fds)
    fds.clear()
    queue.flush(wire)
    assert wire.rights == [(0, 1)]


def test_what_did_not_leave_is_closed_or_handed_over() -> None:
    queue = SendQueue(100)
    first, second, third = new_fd(), new_fd(), new_fd()
    queue.put(b"one", [first])
    queue.put(b"two", [second])
    queue.flush(Wire([1, 2, 0]))
    assert not is_open(first)
    assert queue.take_fds() == [second]
    assert is_open(second)
    assert queue.size == 0
    queue.put(b"three", [third, second])
    queue.close()
    assert not is_open(second)
    assert not is_open(third)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_broken_socket_leaves_the_descriptors_in_the_queue(pair: tuple[socket.socket, socket.socket]) -> None:
    queue, fd = SendQueue(100), new_fd()
    pair[1].close()
    queue.put(b"frame", [fd])
    with pytest.raises(BrokenPipeError):
        queue.flush(pair[0])
    assert queue.take_fds() == [fd]
    os.close(fd)


def test_over_a_real_socket(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.setblocking(False)
    queue, received = SendQueue(1 << 20), ReceivedFds(4)
    inodes = []
    for name in ("a", "b"):
        fd = os.memfd_create(name)
        inodes.append(os.fstat(fd).st_ino)
        queue.put(name.encode() * 300_000, [fd])
    data = b""
    while len(data) < 600_000:
        queue.flush(ours)
        piece, ancillary, _, _ = theirs.recvmsg(100_000, socket.CMSG_SPACE(16))
        data += piece
        received.add(descriptors(ancillary))
    assert data == b"a" * 300_000 + b"b" * 300_000
    assert [os.fstat(fd).st_ino for fd in received.take(2)] == inodes


def test_received_ones_are_owned_until_taken() -> None:
    received = ReceivedFds(3)
    fds = [new_fd() for _ in range(4)]
    received.add(fds[:2])
    assert received.take(1) == fds[:1]
    with pytest.raises(RemoteProtocolError, match="cannot accept 2 descriptors: 1 came"):
        received.take(2)
    with pytest.raises(RemoteProtocolError, match="the limit is 3"):
        received.add([*fds[2:], new_fd()])
    assert len(received) == 4  # they are not lost
    received.close()
    assert is_open(fds[0])
    assert not any(map(is_open, fds[1:]))
    os.close(fds[0])


def test_only_rights_are_descriptors_and_a_cut_message_ends_with_the_last_whole_one() -> None:
    numbers = array.array("i", [7, 8])
    ancillary = [
        (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, bytes(12)),
        (socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers.tobytes() + b"\x01\x02"),
        (socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers.tobytes()),
    ]
    assert list(descriptors(ancillary)) == [7, 8, 7, 8]
