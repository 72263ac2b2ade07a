"""Sessions: turns one after the other, the state that is taken over or not, and what a deletion ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import (
    InternalError,
    InvalidRequest,
    LimitExceeded,
    NameTaken,
    SandboxdError,
    ServerBusy,
    SessionNotFound,
)
from sandboxd.guest import sessions
from sandboxd.guest.processes import Shell
from sandboxd.guest.sessions import Sessions, Waiting, find_shell
from sandboxd.spec import CommandSpec, SessionSpec
from tests.support.file_jobs import OWNER


class Leaf:
    """Where a command ran; something of it may go on there."""

    def __init__(self) -> None:
        self.is_gone = False


class Program:
    """A command that ends when the test says so, and leaves what the test says."""

    def __init__(self, name: str, shell: Shell) -> None:
        self.id = name
        self.shell = shell
        self.leaves = [Leaf()]
        self._callbacks: list[Callable[[], None]] = []

    def when_ended(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def end(self, state: bytes = b"", *, is_gone: bool = True) -> None:
        """End; a saved state is what its shell wrote."""
        os.write(self.shell.fds[2], state)
        self.leaves[0].is_gone = is_gone
        for callback in self._callbacks:
            callback()


class Peer:
    """What a session needs of a daemon's connection."""

    def __init__(self) -> None:
        self.replies: list[dict[str, Any]] = []

    def reply(self, request: int, result: dict[str, Any]) -> None:
        self.replies.append(result)


class World:
    """Sessions over a sandbox in which nothing runs but what the test plays."""

    def __init__(self) -> None:
        self.deferred: list[Callable[[], None]] = []
        self.ends: list[tuple[list[Any], list[Any], Callable[[], None]]] = []
        commands = SimpleNamespace(
            cwd="/", user=OWNER, environment=lambda env, user: {"HOME": user.home, **env},
            end=lambda running, trees, done: self.ends.append((running, list(trees), done)),
            loop=SimpleNamespace(defer=self.deferred.append),
        )  # fmt: skip
        self.sessions = Sessions(commands)
        self.started: list[Program] = []
        self.refused: list[tuple[str, SandboxdError]] = []

    def ask(self, name: str, session: str = "s", **params: Any) -> dict[str, Any]:
        peer = Peer()
        self.sessions.operations[f"session_{name}"](peer, 1, {"session": session, **params})  # type: ignore[arg-type]
        return peer.replies[0] if peer.replies else {}

    def create(self, session: str = "s", **params: Any) -> dict[str, Any]:
        return self.ask("create", session, **{"env": {}, **params})

    def waiting(self, name: str, spec: CommandSpec | None = None, fails: BaseException | None = None) -> Waiting:
        def start(shell: Shell) -> Any:
            if fails is not None:
                shell.close()
                raise fails
            self.started.append(Program(name, shell))
            return self.started[-1]

        spec = spec or CommandSpec(argv=(name,))
        return Waiting(spec, start, lambda error: self.refused.append((name, error)))

    def run(self, name: str, session: str = "s", **options: Any) -> Callable[[], None] | None:
        return self.sessions.take_turn({"session": session}, self.waiting(name, **options))

    def go_on(self) -> None:
        """Do what was put off to the end of a turn of the loop."""
        while self.deferred:
            self.deferred.pop(0)()

    @property
    def names(self) -> list[str]:
        return [program.id for program in self.started]

    def state(self, session: str = "s") -> bytes:
        return os.pread(self.sessions.find({"session": session}).state, 1 << 16, 0)


@pytest.fixture
def world() -> Iterator[World]:
    """Nothing stays open once all sessions are deleted and all commands have ended."""
    before = len(os.listdir("/proc/self/fd"))
    made = World()
    yield made
    for row in made.ask("list")["items"]:
        made.ask("delete", row["session"])
    for _, _, done in made.ends:
        done()
    assert len(os.listdir("/proc/self/fd")) == before


def whole(cwd: str = "/") -> bytes:
    return f"state\n#cwd {cwd}\n#end\n".encode()


# --- creating and deleting ---------------------------------------------------------------------------------


def test_a_new_session_tells_what_it_is(world: World) -> None:
    made = world.create(env={"a": "it's"}, cwd="/proc", shell="sh")
    assert made | {"created_at": 0} == {
        "session": "s", "shell": "/bin/sh", "user": "u", "cwd": "/proc", "created_at": 0, "commands": 0,
        "running": None, "waiting": 0,
    }  # fmt: skip
    assert world.ask("info") == made
    assert world.ask("list") == {"items": [made]}
    assert b"export a='it'\"'\"'s'\n" in world.state()
    assert world.state().endswith(b"#cwd /proc\n#end\n")


@pytest.mark.parametrize("name", ["", "../x", "a b", "x" * 200, "a\0"])
def test_ids_that_are_none(world: World, name: str) -> None:
    with pytest.raises(InvalidRequest):
        world.create(name)


@pytest.mark.parametrize(
    "params",
    [
        {"cwd": "/no/such/directory"}, {"cwd": "relative"}, {"cwd": "/etc/passwd"}, {"shell": "zsh"},
        {"user": "no-such-user"}, {"env": {"a=b": "c"}}, {"env": {"a": "\0"}},
    ],
)  # fmt: skip
def test_what_no_session_can_have(world: World, params: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        world.create(**params)
    assert world.ask("list") == {"items": []}


def test_an_id_is_used_once_until_it_is_deleted(world: World) -> None:
    world.create()
    with pytest.raises(NameTaken):
        world.create()
    world.ask("delete")
    world.create()


def test_sessions_are_bounded(world: World) -> None:
    for number in range(sessions.MAX_SESSIONS):
        world.create(f"s{number}")
    with pytest.raises(LimitExceeded) as caught:
        world.create("more")
    assert caught.value.facts == {"bound": sessions.MAX_SESSIONS}
    world.ask("delete", "s0")
    world.create("more")


@pytest.mark.parametrize("name", ["nobody", "x" * 1000, "\x1b[2J"])
def test_a_session_that_is_none(world: World, name: str) -> None:
    for ask in (
        lambda: world.ask("info", name), lambda: world.ask("delete", name), lambda: world.run("a", name),
    ):  # fmt: skip
        with pytest.raises(SessionNotFound) as caught:
            ask()
        assert len(str(caught.value)) < 300
        assert len(caught.value.facts["session"]) <= 128


# --- turns -------------------------------------------------------------------------------------------------


def test_commands_of_one_session_run_one_after_the_other(world: World) -> None:
    world.create()
    world.create("other")
    assert world.run("a") is None
    assert world.run("b") is not None
    assert world.run("c") is not None
    assert world.run("d", "other") is None
    info = world.ask("info")
    assert (info["running"], info["waiting"], info["commands"]) == ("a", 2, 1)
    assert world.names == ["a", "d"]
    world.started[0].end(whole())
    assert world.names == ["a", "d"], "after the flush that the end has deferred"
    world.go_on()
    assert world.names == ["a", "d", "b"]
    world.started[2].end()
    world.go_on()
    world.started[3].end()
    world.go_on()
    world.started[1].end()
    info = world.ask("info")
    assert (info["running"], info["waiting"], info["commands"]) == (None, 0, 3)


def test_nobody_overtakes_between_an_end_and_the_next_start(world: World) -> None:
    world.create()
    world.run("a")
    world.run("b")
    world.started[0].end()
    world.run("late")
    world.go_on()
    assert world.names == ["a", "b"]
    world.started[1].end()
    world.go_on()
    assert world.names == ["a", "b", "late"]
    world.started[2].end()


def test_a_command_that_waits_can_be_taken_back(world: World) -> None:
    world.create()
    world.run("a")
    take_back = world.run("b")
    world.run("c")
    assert take_back is not None
    take_back()
    take_back()
    world.started[0].end()
    world.go_on()
    assert world.names == ["a", "c"]
    world.started[1].end()


def test_waiting_is_bounded(world: World) -> None:
    world.create()
    world.run("a")
    for number in range(sessions.MAX_WAITING):
        world.run(f"w{number}")
    with pytest.raises(ServerBusy) as caught:
        world.run("more")
    assert caught.value.facts == {"bound": sessions.MAX_WAITING}
    world.ask("delete")
    assert len(world.refused) == sessions.MAX_WAITING
    world.started[0].end()


@pytest.mark.parametrize(
    ("fails", "kind"),
    [
        (InvalidRequest("no"), InvalidRequest), (OSError(errno.EAGAIN, "no"), LimitExceeded),
        (MemoryError(), LimitExceeded), (OSError(errno.EIO, "no"), InternalError),
    ],
)  # fmt: skip
def test_a_command_that_cannot_start_does_not_hold_back_the_next(
    world: World, fails: BaseException, kind: type[SandboxdError]
) -> None:
    world.create()
    world.run("a")
    world.run("b", fails=fails)
    world.run("c")
    world.started[0].end()
    world.go_on()
    assert [(name, type(error)) for name, error in world.refused] == [("b", kind)]
    assert world.names == ["a", "c"]
    assert world.ask("info")["commands"] == 2
    world.started[1].end()


def test_the_first_ones_failure_is_its_callers(world: World) -> None:
    world.create()
    with pytest.raises(OSError, match="no"):
        world.run("a", fails=OSError(errno.EIO, "no"))
    assert world.refused == []
    assert world.run("b") is None
    world.started[0].end()


def test_a_sessions_user_is_its_own(world: World) -> None:
    world.create()
    with pytest.raises(InvalidRequest) as caught:
        world.run("a", spec=CommandSpec(argv=("a",), user="root"))
    assert caught.value.facts == {"field": "user"}
    assert world.ask("info")["running"] is None


@given(st.lists(st.sampled_from(["run", "end", "go", "back"]), max_size=40))
def test_whatever_the_order_turns_come_in_theirs(steps: list[str]) -> None:
    world = World()
    world.create()
    asked: list[str] = []
    backs: dict[str, Callable[[], None]] = {}
    ended = 0
    for number, step in enumerate(steps):
        if step == "run":
            name = str(number)
            asked.append(name)
            back = world.run(name)
            if back is not None:
                backs[name] = back
        elif step == "end" and ended < len(world.started):
            world.started[ended].end()
            ended += 1
        elif step == "go":
            world.go_on()
        elif step == "back" and backs:
            name, back = backs.popitem()
            back()
            if name not in world.names:
                asked.remove(name)
        assert len(world.started) - ended <= 1, "one at a time"
    while True:
        world.go_on()
        if ended == len(world.started):
            break
        world.started[ended].end()
        ended += 1
    assert world.names == asked
    world.ask("delete")
    world.ends[0][2]()


# --- the state ---------------------------------------------------------------------------------------------


def test_a_state_that_is_whole_is_taken_over(world: World) -> None:
    world.create()
    number = world.sessions.find({"session": "s"}).state
    world.run("a")
    assert world.started[0].shell.fds[1] == number
    world.started[0].end(whole("/tmp"))
    assert world.state() == whole("/tmp")
    assert world.ask("info")["cwd"] == "/tmp"
    assert world.sessions.find({"session": "s"}).state == number
    assert not os.get_inheritable(number)


@pytest.mark.parametrize("state", [b"", b"half", b"x\n#cwd /tmp\n#en", b"\n#cwd /tmp\n#end\nmore"])
def test_one_that_is_not_whole_leaves_the_last(world: World, state: bytes) -> None:
    world.create()
    before = world.state()
    world.run("a")
    world.started[0].end(state)
    assert world.state() == before
    assert world.ask("info")["cwd"] == "/"


def test_a_hostile_state_is_only_looked_at_from_its_end(world: World) -> None:
    world.create()
    world.run("a")
    world.started[0].end(b"\n#cwd /evil\n#end\n" + b"x" * 100_000 + whole("/ok"))
    assert world.ask("info")["cwd"] == "/ok"
    world.run("b")
    world.started[1].end(b"x" * 100_000 + b"\n#cwd " + b"/y" * 5000 + b"\n#end\n")
    assert world.ask("info")["cwd"] is None, "a name of over 4096 bytes is none"


def test_a_command_beside_sees_the_state_of_its_start(world: World) -> None:
    world.create()
    world.run("a")
    before = world.state()
    beside = world.sessions.run_beside({"session": "s"}, CommandSpec(argv=("b",)), world.waiting("b").start)
    program = world.started[1]
    assert beside is program  # type: ignore[comparison-overlap]
    world.started[0].end(whole("/tmp"))
    assert os.pread(program.shell.fds[1], 1 << 16, 0) == before
    program.end(whole("/evil"))
    assert world.state() == whole("/tmp")
    assert (world.ask("info")["cwd"], world.ask("info")["commands"]) == ("/tmp", 1)


def test_a_command_beside_that_cannot_start_leaves_nothing_open(world: World) -> None:
    world.create()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="no"):
        world.sessions.run_beside(
            {"session": "s"}, CommandSpec(argv=("b",)), world.waiting("b", fails=OSError(5, "no")).start
        )
    with pytest.raises(InvalidRequest):
        world.sessions.run_beside({"session": "s"}, CommandSpec(argv=("b",), user="u"), world.waiting("b").start)
    assert len(os.listdir("/proc/self/fd")) == before


# --- deleting ----------------------------------------------------------------------------------------------


def test_deleting_ends_what_runs_and_what_was_left(world: World) -> None:
    world.create()
    world.run("left")
    world.started[0].end(is_gone=False)
    world.run("gone")
    world.started[1].end(is_gone=True)
    world.run("now")
    world.run("waits")
    world.sessions.run_beside({"session": "s"}, CommandSpec(argv=("b",)), world.waiting("beside").start)
    state = world.sessions.find({"session": "s"}).state
    peer = Peer()
    world.sessions.operations["session_delete"](peer, 1, {"session": "s"})  # type: ignore[arg-type]
    ((running, trees, done),) = world.ends
    assert [program.id for program in running] == ["beside", "now"]
    assert trees == [world.started[0].leaves]
    assert [(name, type(error)) for name, error in world.refused] == [("waits", SessionNotFound)]
    with pytest.raises(SessionNotFound):
        world.ask("info")
    world.started[3].end()
    world.started[2].end(whole())
    world.go_on()
    assert world.names == ["left", "gone", "now", "beside"]
    assert peer.replies == []
    os.fstat(state)
    done()
    world.ends.clear()
    assert peer.replies == [{}]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(state)


def test_what_is_gone_is_forgotten(world: World) -> None:
    world.create()
    for number in range(20):
        world.run(str(number))
        world.started[-1].end(is_gone=number != 3)
    session = world.sessions.find({"session": "s"})
    assert session.trees == [world.started[3].leaves]  # type: ignore[comparison-overlap]  # played


# --- shells ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "wanted", "found"),
    [
        ({"/bin/bash", "/usr/bin/bash"}, None, "/bin/bash"), ({"/usr/bin/bash"}, "bash", "/usr/bin/bash"),
        (set(), None, "/bin/sh"), (set(), "sh", "/bin/sh"), ({"/bin/bash"}, "sh", "/bin/sh"),
        (set(), "bash", None), ({"/bin/zsh"}, "zsh", None), ({"/bin/bash"}, "", None),
        ({"/bin/bash"}, "/bin/bash", None),
    ],
)  # fmt: skip
def test_which_shell(monkeypatch: pytest.MonkeyPatch, there: set[str], wanted: str | None, found: str | None) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path in there)
    if found is not None:
        assert find_shell(wanted) == found
        return
    with pytest.raises(InvalidRequest) as caught:
        find_shell(SessionSpec(shell=wanted).shell)
    assert caught.value.facts == {"field": "shell"}
