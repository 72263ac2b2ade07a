"""An interpreter's life as init sees it, where a template's child may be it: socket and reaper tell in either order."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from sandboxd.guest import worker
from sandboxd.guest.incoming import IncomingChildren
from sandboxd.guest.users import User
from sandboxd.guest.worker import Worker
from sandboxd.guest.worker_states import Event as LifeEvent
from sandboxd.guest.worker_states import State
from sandboxd.wire.messages import Event
from tests.support.fake_leaves import FakeDeps, happen, turn_until

ROOT = User("root", 0, 0, (0,), "/root", "/bin/sh")


class FakePeer:
    """A daemon that listens."""

    has_room = True

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.replies: list[dict[str, Any]] = []

    def send(self, event: Event) -> None:
        self.events.append(event)

    def reply(self, _request: int, result: dict[str, Any]) -> None:
        self.replies.append(result)

    @property
    def told(self) -> list[str]:
        return [event.type for event in self.events]


class World:
    """A worker for which a template's child is on its way; `child` is that child's end of the socket."""

    def __init__(self) -> None:
        self.deps = FakeDeps()
        self.reaped: worker.Reaped = {}
        self.started: list[str] = []
        self.child, handoff = socket.socketpair()
        children = IncomingChildren(self.deps.loop)
        deps: Any = self.deps
        self.worker = Worker(
            deps, "w", ("x",), {}, "/", ROOT, self.deps.null_fd, self.reaped, children, handoff.detach()
        )
        self.peer = FakePeer()
        self.worker.follow(self.peer, 1, 1_000_000)  # type: ignore[arg-type]

    @property
    def state(self) -> State:
        return self.worker._state

    def arrive(self) -> None:
        self.child.sendall(b"1")
        turn_until(self.deps, lambda: self.state is State.ARRIVED)

    def exit(self, status: int) -> None:
        on_exit = self.reaped.pop(os.getpid())
        happen(self.deps, lambda: on_exit(status, None))  # type: ignore[arg-type]

    def result(self) -> dict[str, Any]:
        turn_until(self.deps, lambda: self.worker.ended)
        (event,) = [event for event in self.peer.events if event.type == "exit"]
        assert isinstance(event.data, dict)
        assert self.peer.replies == [{}]
        return event.data

    def close(self) -> None:
        self.worker._close_all()
        self.child.close()
        self.deps.close()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The pid that comes with a child's first byte is this process's own: nobody is to be killed."""
    monkeypatch.setattr(os, "kill", lambda pid, number: None)
    one = World()

    def start_own() -> None:
        one.started.append(one.worker.name)
        one.worker._move(LifeEvent.BEGIN)

    monkeypatch.setattr(one.worker, "_start", start_own)
    yield one
    one.close()


def test_a_child_that_begins_and_exits(world: World) -> None:
    assert world.state is State.EXPECTING
    world.arrive()
    world.child.sendall(b"begun")
    turn_until(world.deps, lambda: world.state is State.RUNNING)
    world.exit(3 << 8)
    assert world.result()["exit_code"] == 3
    assert world.peer.told == ["start", "expecting", "exit"]


def test_a_child_whose_exit_is_told_before_its_last_word(world: World) -> None:
    """The reaper may come first: that it had begun is read after, and it has exited all the same."""
    world.arrive()
    world.child.recv(1 << 20)
    on_exit = world.reaped.pop(os.getpid())

    def both() -> None:
        world.child.sendall(b"begun")
        on_exit(3 << 8, None)  # type: ignore[arg-type]

    happen(world.deps, both)
    assert world.result()["exit_code"] == 3
    assert not world.started


def test_a_child_that_exits_without_a_word_is_replaced(world: World) -> None:
    world.arrive()
    world.exit(3 << 8)
    assert (world.state, world.worker.pid) == (State.LOST, 0)
    world.child.close()
    turn_until(world.deps, lambda: world.state is State.RUNNING)
    assert world.started == ["w"]
    assert world.peer.told == ["start", "expecting", "absent"]


@pytest.mark.parametrize("moment", ["expecting", "arrived", "lost"])
def test_it_can_be_killed_at_any_moment(world: World, moment: str) -> None:
    if moment != "expecting":
        world.arrive()
    if moment == "lost":
        world.exit(signal.SIGKILL)
    happen(world.deps, lambda: world.worker.kill("killed"))
    if moment == "arrived":
        assert world.state is State.RUNNING  # until the reaper tells
        world.exit(signal.SIGKILL)
    result = world.result()
    assert (result["signal"], result["reason"]) == ("SIGKILL", "killed")
    assert not world.started


def test_what_the_table_refuses_costs_the_interpreter_and_not_init(world: World) -> None:
    kills = world.worker.leaf.kills  # type: ignore[attr-defined]
    happen(world.deps, lambda: world.worker.on_exit(0, None))
    assert world.worker.leaf.kills == kills + 1  # type: ignore[attr-defined]
    happen(world.deps, lambda: world.worker.kill("killed"))
    assert world.result()["reason"] == "bug: cannot handle event exit in state expecting: no such transition"
