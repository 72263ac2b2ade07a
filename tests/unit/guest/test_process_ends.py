"""A command's life by what the reaper, the clock and callers say; its process is a fake, the loop and pipes real."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sandboxd.errors import ProcessNotRunning
from sandboxd.guest import processes
from sandboxd.guest.process_states import State
from sandboxd.guest.processes import Process
from sandboxd.guest.users import User
from sandboxd.linux.eventloop import EventLoop
from sandboxd.spec import CommandSpec

ROOT = User("root", 0, 0, (0,), "/root", "/bin/sh")
FAILED, KILLED = 1 << 8, signal.SIGKILL
USAGE = resource.getrusage(resource.RUSAGE_SELF)
#: No process has it, and none can.
PID = 2**22 + 1


class FakeLeaf:
    """A leaf with nobody in it."""

    is_gone = False

    def __init__(self) -> None:
        self.kills = 0

    def kill(self) -> None:
        self.kills += 1

    def is_populated(self) -> bool:
        return False

    def pids(self) -> list[int]:
        return []

    def oom_kills(self) -> int:
        return 0

    def usage(self, _rusage: object) -> dict[str, Any]:
        return {"cpu_s": 0.0, "memory_peak_bytes": None}


class FakeDeps:
    """What a command is made with; its standby is always there, or never can become anything."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.loop.open()
        self.kernel = None
        self.leaves = self.standby = self
        self.null_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self.is_broken = False
        self.made: list[FakeLeaf] = []

    def new(self, _process_id: str) -> FakeLeaf:
        return FakeLeaf()

    def drop(self, leaf: FakeLeaf, *, keep_rest: bool) -> None: ...

    def take(self, _order: object, _fds: object) -> tuple[int, FakeLeaf]:
        if self.is_broken:
            raise OSError("no room")
        self.made.append(FakeLeaf())
        return PID, self.made[-1]


@pytest.fixture
def deps() -> Iterator[FakeDeps]:
    one = FakeDeps()
    yield one
    one.loop.close()
    os.close(one.null_fd)


def start(deps: FakeDeps, ended: list[Process], *, restart: bool = False) -> Process:
    spec = CommandSpec(argv=("x",), restart=restart)
    return Process(deps, "p-1", spec, {}, "/", ROOT, lambda process: None, ended.append)  # type: ignore[arg-type]


def happen(deps: FakeDeps, what: Callable[[], None]) -> None:
    """Have something happen within a turn of the loop, as all that happens to init."""
    deps.loop.call_later(0.0, what)
    deps.loop.turn()


def turn_until(deps: FakeDeps, is_met: Callable[[], bool]) -> None:
    while not is_met():
        deps.loop.turn()


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "RESTART_DELAY_S", 0.001)


def states_of(deps: FakeDeps, process: Process, *wanted: State) -> None:
    turn_until(deps, lambda: process._state in wanted)


def test_a_command_ends_once(deps: FakeDeps) -> None:
    ended: list[Process] = []
    process = start(deps, ended)
    assert (process._state, process.info()["pid"], process.has_ended) == (State.RUNNING, PID, False)
    happen(deps, lambda: process.on_exit(FAILED, USAGE))
    turn_until(deps, lambda: bool(ended))
    assert (process._state, process.info()["pid"], process.has_ended) == (State.ENDED, None, True)
    assert process.result is not None
    assert (process.result["exit_code"], process.result["reason"]) == (1, "exit")
    for ask in (lambda: process.signal(signal.SIGTERM), lambda: process.signal(signal.SIGWINCH)):
        with pytest.raises(ProcessNotRunning):
            ask()
    process.kill("killed")
    process.hang_up()
    assert (len(ended), deps.made[0].kills) == (1, 0)


def test_one_that_is_restarted_goes_round_until_it_is_told_to_end(deps: FakeDeps) -> None:
    ended: list[Process] = []
    process = start(deps, ended, restart=True)
    for runs in (1, 2, 3):
        assert len(deps.made) == runs
        happen(deps, lambda: process.on_exit(FAILED, USAGE))
        states_of(deps, process, State.RESTING)
        assert (process.info()["pid"], process.info()["running"]) == (None, True)
        process.signal(signal.SIGWINCH)
        states_of(deps, process, State.RUNNING)
    process.kill("killed")
    assert process._state is State.STOPPING
    happen(deps, lambda: process.on_exit(KILLED, USAGE))
    turn_until(deps, lambda: bool(ended))
    assert process.result is not None
    assert (process.result["reason"], process.info()["restarts"]) == ("killed", 3)


@pytest.mark.parametrize("ask", [lambda process: process.kill("killed"), lambda process: process.signal(signal.SIGINT)])
def test_one_that_rests_ends_at_once_when_it_is_told_to(deps: FakeDeps, ask: Callable[[Process], None]) -> None:
    ended: list[Process] = []
    process = start(deps, ended, restart=True)
    happen(deps, lambda: process.on_exit(FAILED, USAGE))
    states_of(deps, process, State.RESTING)
    happen(deps, lambda: ask(process))
    assert process.has_ended
    turn_until(deps, lambda: bool(ended))
    assert len(deps.made) == 1


def test_one_that_cannot_start_again_ends(deps: FakeDeps) -> None:
    ended: list[Process] = []
    process = start(deps, ended, restart=True)
    happen(deps, lambda: process.on_exit(FAILED, USAGE))
    states_of(deps, process, State.RESTING)
    deps.is_broken = True
    turn_until(deps, lambda: bool(ended))
    assert (process._state, process.info()["ended_at"]) == (State.ENDED, process.ended_at)


def test_what_the_table_refuses_costs_the_command_and_not_init(deps: FakeDeps) -> None:
    ended: list[Process] = []
    process = start(deps, ended)
    process._move(processes.Event.RESTART)
    assert (process._state, deps.made[0].kills) == (State.RUNNING, 1)
    happen(deps, lambda: process.on_exit(KILLED, USAGE))
    turn_until(deps, lambda: bool(ended))
    assert process.result is not None
    assert process.result["reason"] == ("bug: cannot take event restart in state running: the table has no such move")
    happen(deps, lambda: process.on_exit(KILLED, USAGE))
    assert (process._state, len(ended)) == (State.ENDED, 1)
