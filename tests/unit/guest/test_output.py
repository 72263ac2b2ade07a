"""What a command prints, through real pipes: who waits, who loses nothing, and what becomes of the rest."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.guest import output
from sandboxd.guest.followers import Follower
from sandboxd.guest.output import Output
from sandboxd.linux.eventloop import EventLoop
from sandboxd.wire.journal import DEFAULT_CAPACITY
from sandboxd.wire.messages import Event
from tests.support.file_jobs import OWNER

PLENTY = 1 << 40


class Peer:
    """What a follower needs of a daemon's connection."""

    def __init__(self) -> None:
        self.has_room = True
        self.events: list[Event] = []
        self.replies: list[dict[str, Any]] = []

    def send(self, event: Event) -> None:
        self.events.append(event)

    def reply(self, request: int, result: dict[str, Any]) -> None:
        self.replies.append(result)

    @property
    def data(self) -> bytes:
        return b"".join(event.data for event in self.events if isinstance(event.data, bytes))


class Stage:
    """An output with its loop, and the program's ends of its pipes."""

    def __init__(self, *, is_terminal: bool = False) -> None:
        self.loop = EventLoop()
        self.loop.open()
        self.drained = 0
        self.output = Output(self.loop, self._on_drained, is_terminal=is_terminal)
        self.ends: list[int] = []

    def _on_drained(self) -> None:
        self.drained += 1

    def pipe(self, name: str = "stdout") -> int:
        end = self.output.pipe(name, OWNER)
        os.set_blocking(end, False)
        self.ends.append(end)
        return end

    def turn(self) -> None:
        """Let the loop do what there is to do now."""
        while select.select([self.loop._epoll], [], [], 0)[0]:
            self.loop.turn()

    def close(self, end: int) -> None:
        self.ends.remove(end)
        os.close(end)

    def logged(self) -> list[tuple[str, Any]]:
        found = []
        at = self.output.journal.first
        while (entry := self.output.journal.read(at)) is not None:
            found.append((entry.type, entry.data))
            at = entry.offset + 1
        return found

    def follow(self, credit: int = PLENTY, **options: Any) -> tuple[Peer, Follower]:
        peer = Peer()
        follower = Follower(peer, 1, 0, credit, **options)  # type: ignore[arg-type]
        self.output.follow(follower)
        return peer, follower


@contextlib.contextmanager
def staged(*, is_terminal: bool = False) -> Iterator[Stage]:
    before = len(os.listdir("/proc/self/fd"))
    stage = Stage(is_terminal=is_terminal)
    try:
        yield stage
        for end in list(stage.ends):
            stage.close(end)
        stage.turn()
        stage.output.end_sources(keep_reading=False)
        assert not stage.output.is_open
    finally:
        stage.loop.close()
    assert len(os.listdir("/proc/self/fd")) == before, "every pipe is closed"


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged() as made:
        yield made


def fill(end: int, most: int = 1 << 30) -> int:
    """Write to a pipe until it is full; return how many bytes it took."""
    written = 0
    with contextlib.suppress(BlockingIOError):
        while written < most:
            written += os.write(end, b"x" * min(65536, most - written))
    return written


# --- reading -----------------------------------------------------------------------------------------------


def test_what_is_printed_is_logged_by_its_stream(stage: Stage) -> None:
    out, err = stage.pipe(), stage.pipe("stderr")
    os.write(out, b"early")
    stage.turn()
    assert stage.logged() == [], "reading begins with start"
    stage.output.start()
    stage.turn()
    os.write(err, b"oh")
    stage.turn()
    os.write(out, b"late")
    stage.turn()
    assert stage.logged() == [("stdout", b"early"), ("stderr", b"oh"), ("stdout", b"late")]
    assert stage.output.is_open


def test_the_end_of_each_stream_is_told(stage: Stage) -> None:
    out, err = stage.pipe(), stage.pipe("stderr")
    stage.output.start()
    os.write(out, b"last")
    stage.close(out)
    stage.turn()
    assert stage.output.is_open
    assert stage.drained >= 1
    stage.close(err)
    stage.turn()
    assert not stage.output.is_open
    assert stage.logged() == [("stdout", b"last")]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.integers(1, 5000), st.booleans()), max_size=30))
def test_each_stream_is_whole_and_in_order(writes: list[tuple[str, int, bool]]) -> None:
    with staged() as stage:
        ends = {name: stage.pipe(name) for name in ("stdout", "stderr")}
        stage.output.start()
        peer, _ = stage.follow(lossless=True)
        wanted = {name: bytearray() for name in ends}
        for number, (name, size, turns) in enumerate(writes):
            piece = bytes([number]) * size
            os.write(ends[name], piece)
            wanted[name] += piece
            if turns:
                stage.turn()
        stage.turn()
        stage.output.read_what_is_there()
        for name in ends:
            got = b"".join(e.data for e in peer.events if e.type == name and isinstance(e.data, bytes))
            assert got == wanted[name]


# --- who waits for whom ------------------------------------------------------------------------------------


def test_a_background_program_never_waits(stage: Stage) -> None:
    end = stage.pipe()
    stage.output.start()
    slow, _ = stage.follow(0)
    for _ in range(40):
        assert fill(end, 65536) == 65536
        stage.turn()
    assert stage.output.journal.total_bytes == 40 * 65536
    assert stage.output.journal.size <= DEFAULT_CAPACITY
    assert stage.output.journal.dropped_bytes > 0
    assert slow.events == []


def test_a_program_waits_for_a_lossless_follower_and_loses_nothing(stage: Stage) -> None:
    end = stage.pipe()
    stage.output.start()
    peer, follower = stage.follow(0, lossless=True)
    written = 0
    for _ in range(100):
        written += fill(end, 65536)
        stage.turn()
    assert written < DEFAULT_CAPACITY + (1 << 20), "the pipe is full and the program waits"
    assert stage.output.journal.dropped_bytes == 0
    follower.credit = PLENTY
    stage.output.wake()
    stage.turn()
    assert fill(end, 65536) == 65536, "there is room again"
    stage.turn()
    assert len(peer.data) == written + 65536
    assert all(event.type == "stdout" for event in peer.events)


def test_the_program_goes_on_when_its_slow_follower_leaves(stage: Stage) -> None:
    end = stage.pipe()
    stage.output.start()
    _, follower = stage.follow(0, lossless=True)
    for _ in range(100):
        fill(end, 65536)
        stage.turn()
    assert fill(end, 65536) < 65536
    stage.output.unfollow(follower)
    stage.output.unfollow(follower)
    stage.turn()
    for _ in range(40):
        assert fill(end, 65536) == 65536
        stage.turn()


def test_a_terminal_is_only_a_little_ahead_of_its_furthest_viewer() -> None:
    with staged(is_terminal=True) as stage:
        end = stage.pipe("terminal")
        stage.output.start()
        _, slow = stage.follow(0, viewer=True)
        quick, reader = stage.follow(PLENTY, viewer=True)
        for _ in range(60):
            assert fill(end, 65536) == 65536, "a slow viewer beside holds back nobody"
            stage.turn()
        assert len(quick.data) == 60 * 65536
        reader.credit = 0
        before = stage.output.journal.total_bytes
        for _ in range(60):
            fill(end, 65536)
            stage.turn()
        assert stage.output.journal.total_bytes - before <= output.VIEW_AHEAD_BYTES
        stage.output.unfollow(reader)
        stage.output.unfollow(slow)
        stage.turn()
        assert fill(end, 65536) == 65536, "with nobody looking it never waits"


# --- ends --------------------------------------------------------------------------------------------------


def test_the_rest_is_read_when_the_program_has_ended(stage: Stage) -> None:
    """Somebody else still holds the pipe open: what is there is taken, and the pipe let go."""
    end = stage.pipe()
    stage.output.start()
    size = fill(end, 1 << 18)
    stage.output.end_sources(keep_reading=False)
    assert not stage.output.is_open
    assert stage.output.journal.total_bytes == size
    with pytest.raises(BrokenPipeError):
        os.write(end, b"late")


def test_an_orphan_may_go_on_writing_to_nobody(stage: Stage) -> None:
    end = stage.pipe()
    stage.output.start()
    os.write(end, b"mine")
    stage.output.end_sources(keep_reading=True)
    assert not stage.output.is_open
    for _ in range(20):
        assert fill(end, 65536) == 65536
        stage.turn()
    assert stage.logged() == [("stdout", b"mine")]
    stage.close(end)
    stage.turn()


def test_what_a_lossless_follower_has_no_room_for_waits_for_it_after_the_end(stage: Stage) -> None:
    end = stage.pipe()
    stage.output.start()
    peer, follower = stage.follow(0, lossless=True)
    written = 0
    for _ in range(100):
        written += fill(end, 65536)
        stage.turn()
    stage.output.end_sources(keep_reading=False)
    assert stage.output.is_open
    follower.credit = PLENTY
    stage.output.wake()
    stage.turn()
    assert not stage.output.is_open
    assert len(peer.data) == written


def test_followers_are_answered_at_the_end(stage: Stage) -> None:
    end = stage.pipe()
    stage.output.start()
    peer, _ = stage.follow()
    slow, follower = stage.follow(0)
    bounded, _ = stage.follow(until=1)
    os.write(end, b"x")
    stage.turn()
    assert bounded.replies == [{"next": 1, "running": True}]
    assert peer.replies == []
    stage.output.append("exit", {"exit_code": 0})
    stage.output.finish()
    assert peer.replies == [{"next": 2, "running": False}]
    assert [event.type for event in peer.events] == ["stdout", "exit"]
    assert slow.replies == []
    follower.credit = PLENTY
    stage.output.wake()
    assert slow.replies == [{"next": 2, "running": False}]
    assert stage.output.followers == []
    late, _ = stage.follow()
    assert (late.data, late.replies) == (b"x", [{"next": 2, "running": False}])


def test_nobody_is_called_after_the_end(stage: Stage) -> None:
    end = stage.pipe()
    stage.output.start()
    stage.output.finish()
    before = stage.drained
    os.write(end, b"x")
    stage.turn()
    assert stage.drained == before


def test_a_terminals_viewer_is_told_the_modes_of_what_is_gone() -> None:
    with staged(is_terminal=True) as stage:
        stage.output.append("terminal", b"\x1b[?1049h\x1b[?2004h")
        for _ in range(DEFAULT_CAPACITY // 65536 + 2):
            stage.output.append("terminal", b"x" * 65536)
        stage.output.finish()
        peer, _ = stage.follow()
        assert peer.events[0].type == "truncated"
        assert peer.replies[0]["modes"] == stage.output._modes.to_dict()  # type: ignore[union-attr]
        assert peer.replies[0]["modes"] != Output(stage.loop, lambda: None, is_terminal=True)._modes.to_dict()  # type: ignore[union-attr]


def test_over_the_users_pipe_budget_a_pipe_of_the_default_size_serves(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(1, "over the budget")

    monkeypatch.setattr("fcntl.fcntl", refuse)
    end = stage.pipe()
    stage.output.start()
    os.write(end, b"x")
    stage.turn()
    assert stage.logged() == [("stdout", b"x")]
