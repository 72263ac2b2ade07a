"""The event loop: its order of work, a fair turn for each descriptor, and timers that nobody keeps too long."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from sandboxd.linux import eventloop
from sandboxd.linux.eventloop import READ, WRITE, Alarm, EventLoop, WatchRefused
from sandboxd.wire.exhausted import known


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    found = EventLoop()
    found.open()
    yield found
    found.close()


@pytest.fixture
def pipes() -> Iterator[list[tuple[int, int]]]:
    found = [os.pipe2(os.O_NONBLOCK) for _ in range(3)]
    yield found
    for fd in (fd for pair in found for fd in pair):
        try:
            os.close(fd)
        except OSError:
            continue


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until a test moves it."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return clock


def test_the_order_of_a_turn(loop: EventLoop, pipes: list[tuple[int, int]], now: list[float]) -> None:
    seen: list[str] = []

    def on_ready() -> None:
        seen.append("descriptor")
        loop.defer(lambda: seen.append("deferred"))

    def on_time() -> None:
        seen.append("timer")
        loop.defer(lambda: loop.defer(lambda: seen.append("deferred by what was deferred")))

    loop.watch(pipes[0][0], READ, on_ready)
    loop.call_later(0, on_time)
    os.write(pipes[0][1], b"x")
    assert loop.turn()
    assert seen == ["descriptor", "timer", "deferred", "deferred by what was deferred"]


def test_each_descriptor_has_one_call_a_turn_however_much_there_is(
    loop: EventLoop, pipes: list[tuple[int, int]]
) -> None:
    seen: list[int] = []

    def read_one(fd: int) -> None:
        seen.append(fd)
        os.read(fd, 1)

    for read, write in pipes:
        os.write(write, b"x" * 100)
        loop.watch(read, READ, lambda read=read: read_one(read))  # type: ignore[misc]
    for _ in range(5):
        loop.turn()
    assert sorted(seen) == sorted([read for read, _ in pipes] * 5)
    assert all(len(set(seen[at : at + 3])) == 3 for at in range(0, 15, 3))


def test_one_that_an_earlier_callback_dropped_is_not_called(loop: EventLoop, pipes: list[tuple[int, int]]) -> None:
    seen: list[int] = []

    def drop_the_others(fd: int) -> None:
        seen.append(fd)
        for other, _ in pipes:
            if other != fd:
                loop.unwatch(other)

    for read, write in pipes:
        os.write(write, b"x")
        loop.watch(read, READ, lambda read=read: drop_the_others(read))  # type: ignore[misc]
    loop.turn()
    assert len(seen) == 1


def test_one_whose_number_another_got_meanwhile_is_not_called(loop: EventLoop, pipes: list[tuple[int, int]]) -> None:
    """A callback may close a ready descriptor and watch a new one of the same number: that one is not ready."""
    seen: list[str] = []
    (first, wake_first), (second, wake_second), (empty, _) = pipes

    def replace(own: int, other: int) -> None:
        seen.append("first")
        os.read(own, 1)
        loop.unwatch(other)
        os.dup2(empty, other)
        loop.watch(other, READ, lambda: seen.append("replaced"))

    loop.watch(first, READ, lambda: replace(first, second))
    loop.watch(second, READ, lambda: replace(second, first))
    os.write(wake_first, b"x")
    os.write(wake_second, b"x")
    loop.turn()
    assert seen == ["first"]
    os.write(pipes[2][1], b"x")
    loop.turn()
    assert seen == ["first", "replaced"]  # in the next turn it is as any other


def test_a_callback_hears_of_room_and_of_the_end(loop: EventLoop, pipes: list[tuple[int, int]]) -> None:
    seen: list[str] = []
    read, write = pipes[0]
    loop.watch(write, WRITE, lambda: seen.append("room"))
    assert loop.turn()
    loop.unwatch(write)
    loop.unwatch(write)  # no error
    loop.watch(read, READ, lambda: seen.append("end"))
    os.close(write)
    assert loop.turn()
    assert seen == ["room", "end"]


def test_timers_run_in_the_order_of_their_time_and_once(loop: EventLoop, now: list[float]) -> None:
    seen: list[str] = []
    loop.call_later(0.3, lambda: seen.append("c"))
    loop.call_at(1000.1, lambda: seen.append("a"))
    loop.call_at(1000.1, lambda: seen.append("b"))
    gone = loop.call_later(0.2, lambda: seen.append("cancelled"))
    gone.cancel()
    gone.cancel()
    now[0] += 0.3
    assert not loop.turn()
    assert seen == ["a", "b", "c"]
    assert loop._timeout() is None


def test_a_timer_may_be_ten_years_away(loop: EventLoop, pipes: list[tuple[int, int]]) -> None:
    """epoll_wait(2) takes 24 days at most; a command's timeout may be longer, and ended pid 1."""
    loop.call_later(315_360_000, lambda: None)
    loop.call_later(float("inf"), lambda: None)
    loop.watch(pipes[0][0], READ, lambda: None)
    os.write(pipes[0][1], b"x")
    assert loop.turn()


def test_cancelled_timers_are_not_kept_until_their_time(loop: EventLoop, now: list[float]) -> None:
    """A thousand commands a second with a timeout of an hour each must not add up."""
    seen: list[int] = []
    kept = [loop.call_later(3600 + at, lambda at=at: seen.append(at)) for at in range(10)]  # type: ignore[misc]
    for _ in range(10_000):
        loop.call_later(3600, lambda: None).cancel()
        assert len(loop._timers) <= 10 + eventloop._MAX_CANCELLED + 1
    kept[3].cancel()
    now[0] += 4000
    loop.turn()
    assert seen == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert not loop._timers
    assert loop._cancelled == 0


def test_it_runs_while_a_condition_holds_but_not_for_ever(loop: EventLoop) -> None:
    left = [3]

    def count() -> None:
        left[0] -= 1
        loop.call_later(0, count)

    loop.call_later(0, count)
    loop.run_while(lambda: left[0] > 0, 60)
    assert left == [0]
    began = time.monotonic()
    loop.run_while(lambda: True, 0.01)
    assert time.monotonic() - began < 30


def test_descriptors_above_1023(loop: EventLoop, pipes: list[tuple[int, int]]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("a hard limit of descriptors below 2,048")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    seen: list[str] = []
    try:
        os.dup2(pipes[0][0], 1500)
        loop.watch(1500, READ, lambda: seen.append("ready"))
        os.write(pipes[0][1], b"x")
        loop.turn()
        loop.unwatch(1500)
        os.close(1500)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert seen == ["ready"]


def test_an_alarm_rings_at_the_earliest_time_that_was_asked_for(loop: EventLoop, now: list[float]) -> None:
    rang: list[float] = []
    alarm = Alarm(loop, lambda: rang.append(now[0]))
    alarm.by(1005.0)
    alarm.by(1009.0)
    alarm.by(1002.0)
    for _ in range(1000):
        alarm.by(1004.0)
    assert len(loop._timers) == 2  # asking costs no timer
    now[0] = 1002.0
    loop.turn()
    assert rang == [1002.0]
    alarm.after(3)
    alarm.cancel()
    now[0] = 1010.0
    loop.call_later(0, lambda: None)
    loop.turn()
    assert rang == [1002.0]


def test_an_alarm_may_be_set_again_by_what_it_rings(loop: EventLoop, now: list[float]) -> None:
    rang: list[float] = []

    def ring() -> None:
        rang.append(now[0])
        if len(rang) < 3:
            alarm.after(1)

    alarm = Alarm(loop, ring)
    alarm.after(0)
    for _ in range(3):
        loop.turn()
        now[0] += 1
    assert rang == [1000.0, 1001.0, 1002.0]


def test_a_kernel_that_takes_no_more_is_told_as_a_limit(loop: EventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """fs.epoll.max_user_watches, which the sandbox's own root can use up, is no full disk."""

    def refuse(fd: int, events: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(loop, "_epoll", SimpleNamespace(register=refuse, close=loop._epoll.close))
    with pytest.raises(WatchRefused) as raised:
        loop.watch(0, READ, lambda: None)
    told = known(raised.value, "start the process")
    assert (told.kind, told.facts["limit"]) == ("limit-exceeded", "watches")
    loop.unwatch(0)  # it is not watched: no error
