"""A command's life by what the reaper, the clock and callers say; its process is a fake, the loop and pipes real."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator

import pytest

from sandboxd.errors import ProcessNotRunning
from sandboxd.guest import processes
from sandboxd.guest.process_states import Event, State
from sandboxd.guest.processes import Process
from sandboxd.guest.users import User
from sandboxd.spec import CommandSpec
from tests.support.fake_leaves import PID, FakeDeps, happen, turn_until

ROOT = User("root", 0, 0, (0,), "/root", "/bin/sh")
FAILED, KILLED = 1 << 8, signal.SIGKILL
USAGE = resource.getrusage(resource.RUSAGE_SELF)


@pytest.fixture
def deps() -> Iterator[FakeDeps]:
    one = FakeDeps()
    yield one
    one.close()


def start(deps: FakeDeps, ended: list[Process], *, restart: bool = False) -> Process:
    spec = CommandSpec(argv=("x",), restart=restart)
    return Process(deps, "p-1", spec, {}, "/", ROOT, lambda process: None, ended.append)  # type: ignore[arg-type]


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
    process._move(Event.RESTART)
    assert (process._state, deps.made[0].kills) == (State.RUNNING, 1)
    happen(deps, lambda: process.on_exit(KILLED, USAGE))
    turn_until(deps, lambda: bool(ended))
    assert process.result is not None
    assert process.result["reason"] == ("bug: cannot handle event restart in state running: no such transition")
    happen(deps, lambda: process.on_exit(KILLED, USAGE))
    assert (process._state, len(ended)) == (State.ENDED, 1)
