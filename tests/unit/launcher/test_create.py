"""Creations, by what their processes say: in any order, and with a failure at any moment. The processes are real."""

from __future__ import annotations

import dataclasses
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sandboxd.errors import SandboxdError, SandboxGone
from sandboxd.launcher.create import CreateRequest, Creations, _Creation
from sandboxd.launcher.create_child import StatusReader
from sandboxd.launcher.creation_states import OVER, Event, State
from sandboxd.linux.eventloop import READ, EventLoop
from sandboxd.network import NetworkSpec
from sandboxd.spec import Limits
from sandboxd.wire import framing

#: The builder says that it has built before it lets pid 1 go on.
ORDERS = [
    order
    for order in itertools.permutations(["builder", "pid", "built", "ready"])
    if order.index("built") < order.index("ready")
]
WITH_VETH = NetworkSpec(mode="internet")


class FakeTeardowns:
    """Takes everything away at once."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def __contains__(self, sandbox_id: object) -> bool:
        return False

    def begin(self, sandbox_id: str, range_index: int, done: Callable[[None], None], pidfd: int = -1) -> None:
        self.begun.append(sandbox_id)
        if pidfd >= 0:
            os.close(pidfd)
        done(None)


class FakeVeths:
    """Makes a link when it is told to."""

    def __init__(self) -> None:
        self.attached: list[Callable[[SandboxdError | None], None]] = []

    def attach(self, sandbox_id: str, index: int, pid: int, spec: NetworkSpec, done: Any) -> None:
        self.attached.append(done)


@dataclasses.dataclass
class World:
    """One creation, and what came of it."""

    creations: Creations
    creation: _Creation
    teardowns: FakeTeardowns
    veths: FakeVeths
    status: int
    results: list[object]
    builder: int

    def say(self, *message: object) -> None:
        os.write(self.status, framing.encode(list(message), limit=framing.MAX_REPLY_FRAME))
        self.creations._on_status(self.creation)

    def happen(self, what: str) -> None:
        if what == "builder":
            self.say("builder", self.builder)
        elif what == "pid":
            self.say("pid", os.getpid())
        elif what == "ready":
            self.say("ready", {"serve": 0.1})
        elif what == "built":
            self.say("built", [1], {"mount": 0.1})
        elif what == "failed":
            self.say("failed", "mount-overlay", "mount", "EINVAL", "/x")
        elif what == "unwanted":
            self.creations._abandon(self.creation, SandboxGone("cannot create it: it was destroyed in the meantime"))
        elif what == "silence":
            os.close(self.status)
            self.status = -1
            self.creations._on_status(self.creation)


@pytest.fixture
def make_world() -> Iterator[Callable[[], World]]:
    made: list[World] = []

    def make() -> World:
        loop, teardowns, veths = EventLoop(), FakeTeardowns(), FakeVeths()
        loop.open()
        deps: Any = type("Deps", (), {"teardowns": teardowns, "veths": veths})()
        # Before the pipe: an exec lets its parent go on before it closes what is not to be inherited.
        builder = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        ours, theirs = socket.socketpair()
        theirs.close()
        results: list[object] = []

        def on_created(record: Any, pidfd: int, _timings: dict[str, float]) -> None:
            os.close(pidfd)
            results.append(record)

        order = CreateRequest(
            id="s-1",
            rootfs="r",
            limits=Limits(),
            seccomp="default",
            network=WITH_VETH,
            unenforced=[],
            on_created=on_created,
            on_failed=results.append,
        )
        range_: Any = type("Range", (), {"index": 7})()
        creation = _Creation("s-1", Limits(), 10, "default", range_, StatusReader(read), ours)
        creations = Creations(loop, deps)
        creations._active["s-1"] = creation
        loop.watch(read, READ, lambda *_: None)
        creation.order = order
        creations._move(creation, Event.ORDER)
        made.append(World(creations, creation, teardowns, veths, write, results, builder))
        return made[-1]

    yield make
    for world in made:
        if world.status >= 0:
            os.close(world.status)
        if world.creations._ending:
            os.kill(world.builder, 9)
            os.waitpid(world.builder, 0)
        world.creations._loop.close()


def test_messages_in_any_order_make_one_sandbox(make_world: Callable[[], World]) -> None:
    for order in ORDERS:
        for turn in range(5):
            world = make_world()
            for number, what in enumerate(order):
                if number == turn:
                    for attached in world.veths.attached:
                        attached(None)
                world.happen(what)
            for attached in world.veths.attached:
                attached(None)  # a second time does nothing
            (record,) = world.results
            assert (record.devices, record.range_index, world.creation.state) == ([1], 7, State.CREATED)  # type: ignore[attr-defined]
            assert not world.teardowns.begun
            assert "s-1" not in world.creations


@pytest.mark.parametrize("failure", ["failed", "unwanted", "silence", "link"])
def test_a_failure_at_any_moment_ends_it_once(make_world: Callable[[], World], failure: str) -> None:
    for order in ORDERS:
        for turn in range(5):
            world = make_world()
            steps = [*order[:turn], failure, *order[turn:]]
            for what in steps:
                if what == "link":
                    for attached in world.veths.attached:
                        attached(SandboxGone("cannot attach it"))
                elif world.status >= 0 and world.creation.state not in OVER:
                    world.happen(what)
            if world.creation.state not in OVER:  # ready before the end of its pipe, or linked after all
                assert failure in ("link", "silence")
                world.creations._abandon(world.creation, SandboxGone("cannot go on"))
            assert world.creation.state is State.FAILED
            (error,) = world.results
            assert isinstance(error, SandboxdError)
            assert world.teardowns.begun == ["s-1"]
            for attached in world.veths.attached:
                attached(None)  # too late
            assert len(world.results) == 1
            if not world.creation.builder:
                os.kill(world.builder, 9)
                os.waitpid(world.builder, 0)


def test_what_the_table_refuses_costs_the_creation_alone(
    make_world: Callable[[], World], caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world()
    world.happen("builder")
    world.happen("pid")
    world.happen("ready")
    world.happen("ready")
    assert (world.creation.state, len(world.results), world.teardowns.begun) == (State.FAILED, 1, ["s-1"])
    assert "Bug in the creation of sandbox s-1" in caplog.text
    world.creations._move(world.creation, Event.KNOWN)
    assert len(world.results) == 1
