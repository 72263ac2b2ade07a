"""What a context does with output: a flood that ends with its run, what no run is there for, an end in the middle."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
import trio.testing

from sandboxd.errors import ContextExited, InternalError, SandboxGone
from sandboxd.runtime import between_runs, context, runs, turn
from sandboxd.runtime.between_runs import BetweenRuns
from sandboxd.runtime.context import Context
from sandboxd.runtime.context_states import SHOWN, State
from sandboxd.runtime.questions import Question
from sandboxd.runtime.runs import Run
from sandboxd.runtime.worker import Worker
from sandboxd.spec import ContextSpec, SandboxSpec
from sandboxd.wire.messages import Event, Request
from tests.support.fake_daemon import eventually, manager_of
from tests.support.fake_peer import Conversation, FakeInit, exit_data


def frame(**message: Any) -> tuple[str, bytes]:
    body = msgpack.packb(message)
    return "frame", struct.pack(">I", len(body)) + body


def end(message: dict[str, Any]) -> tuple[str, bytes]:
    return frame(op="end", run=message["run"], status="ok", count=1)


class FakeLink:
    """An init with one worker, which does what `on_run` says."""

    def __init__(self, on_run: Callable[[dict[str, Any]], None] = lambda message: None) -> None:
        self.on_run = on_run
        self.generation = 0
        self.is_silent = False
        self.killed = 0
        self.on_kill: Callable[[], None] | None = None
        self.is_muted = False
        self._send, self._receive = trio.open_memory_channel[list[Event]](100)
        self._offset = 0

    def end(self) -> None:
        """Have it exit."""
        self.put(("exit", exit_data()))
        self.put()

    def put(self, *events: tuple[str, Any]) -> None:
        """Have all of these come at once."""
        batch = [Event(1, self._offset + n, 0.0, kind, data) for n, (kind, data) in enumerate(events)]
        self._offset += len(batch)
        self._send.send_nowait(batch)

    def handoff(self, spec: ContextSpec) -> None:
        return None

    def stream(self, op: str, params: dict[str, Any], *, fds: Any = ()) -> FakeLink:
        self.generation += 1
        if not self.is_silent:
            self.put(("start", {}), frame(op="ready", version="1"))
        return self

    async def __aenter__(self) -> FakeLink:
        return self

    def close(self, *, cancel: bool = True) -> None:
        return

    async def next_batch(self) -> list[Event]:
        return await self._receive.receive()

    async def ask(self, op: str, /, **params: Any) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        if op == "context_mute":
            self.is_muted = params["on"]
        elif op == "context_send":
            self.on_run(msgpack.unpackb(params["data"][4:]))
        elif op == "context_kill":
            self.killed += 1
            if self.on_kill is not None:
                self.on_kill()
        return {}


@asynccontextmanager
async def serving(link: Any, kind: type[Context] = Context, *, is_default: bool = False) -> AsyncIterator[Context]:
    one = kind("c", ContextSpec(language="python"), link, dict, is_default=is_default)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.serve)
        await one.started.wait()
        yield one
        nursery.cancel_scope.cancel()


def new_run(timeout_s: float | None = None) -> Run:
    return Run("1", timeout_s, {}, detach=False)


async def test_a_flood_that_ends_with_its_run_leaves_the_next_ones_output() -> None:
    """Which task goes first is chance: trio rolls the dice."""
    piece = ("stdout", b"x" * 256 * 1024)
    for _ in range(20):
        link = FakeLink()
        link.on_run = lambda message, link=link: link.put(*[piece] * 66, end(message))  # type: ignore[misc]
        async with serving(link) as one:
            run = new_run()
            one.submit(run)
            await run.finished.wait()
            assert run.is_flooded
            await trio.testing.wait_all_tasks_blocked()
            assert not link.is_muted


async def test_a_flood_between_two_runs_leaves_the_next_ones_output() -> None:
    link = FakeLink()

    def on_run(message: dict[str, Any]) -> None:
        assert not link.is_muted
        link.put(("stdout", b"hello"), end(message))

    link.on_run = on_run
    async with serving(link) as one:
        for _ in range(2):
            link.put(*[("stdout", b"x" * between_runs.MAX_BYTES)] * 2)
            await trio.testing.wait_all_tasks_blocked()
            assert link.is_muted
            run = new_run()
            one.submit(run)
            with trio.fail_after(30):
                await run.finished.wait()
            assert b"hello" in [event.data for event in run.events]
            assert run.dropped_bytes == between_runs.MAX_BYTES


async def test_a_run_is_over_when_its_context_ends_while_it_begins_anew(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    link = FakeLink()
    run = new_run(1.0)
    async with serving(link) as one:
        link.is_silent = True  # the next interpreter is long in coming
        one.submit(run)
        await trio.sleep(turn.INTERRUPT_GRACE_S + context.KILL_TIMEOUT_S + 5)
        assert (one.state, run.status) == (State.RESTARTING, None)
    assert (run.finished.is_set(), run.status) == (True, "timeout")


async def test_a_run_that_comes_when_an_interpreter_has_just_ended_is_for_the_next_one() -> None:
    """Also where the run before it is: its interpreter ended without having read it."""
    link = FakeLink()
    first, second = new_run(), new_run()

    def on_run(message: dict[str, Any]) -> None:
        if link.generation == 1:
            link.put(("exit", {**exit_data(), "unread": True}))
            link.put()
        else:
            link.put(end(message))

    class Late(Context):
        def on_gone(self, worker: Worker) -> None:
            super().on_gone(worker)
            if link.generation == 1:
                self.submit(second)

    link.on_run = on_run
    async with serving(link, Late, is_default=True) as one:
        one.submit(first)
        with trio.fail_after(30):
            await first.finished.wait()
            await second.finished.wait()
    assert (first.status, second.status, second.failure) == ("ok", "ok", None)


async def test_a_context_that_is_being_deleted_takes_no_run() -> None:
    link = FakeLink()
    async with serving(link) as one, trio.open_nursery() as nursery:
        nursery.start_soon(one.delete)
        await trio.testing.wait_all_tasks_blocked()
        assert (one.state, SHOWN[one.state]) == (State.DELETING, "gone")
        for asked in (one.restart, lambda: one.ask(Question.complete("x", None))):
            with pytest.raises(SandboxGone):
                await asked()
        with pytest.raises(SandboxGone):
            one.submit(new_run())
        link.put(("exit", exit_data()))
        link.put()
    assert one.state is State.GONE


async def test_an_interpreter_that_cannot_be_killed_leaves_its_context_exited(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Not idle: nobody may run code in one that is to be gone."""
    link = FakeLink()
    async with serving(link) as one:
        link.is_silent = True
        with pytest.raises(ContextExited):
            await one.restart()
        await trio.testing.wait_all_tasks_blocked()
        assert one.state is State.EXITED
        with pytest.raises(ContextExited):
            one.submit(new_run())


async def test_a_context_whose_interpreter_has_ended_ends_with_its_sandbox(tmp_path: Path) -> None:
    """Its task and the runs that it keeps would stay in the daemon for ever."""

    leave = trio.Event()

    async def start(talk: Conversation, request: Request) -> None:
        await talk.event(request, 0, "start", {})
        await talk.event(request, 1, *frame(op="ready", version="1"))
        await leave.wait()
        await talk.event(request, 2, "exit", exit_data())
        await talk.reply(request)

    def prepare(init: FakeInit) -> None:
        done = init.answers["ping"]
        init.answers |= {"context_source": done, "context_start": start, "context_forget": done}

    async with manager_of(tmp_path) as (fake, manager):
        fake.prepare = prepare
        sandbox = await manager.create(SandboxSpec())
        one = await sandbox.contexts.create(ContextSpec(language="python"))
        leave.set()
        await eventually(lambda: one.state is State.EXITED)
        await manager.destroy(sandbox.id)
        await eventually(lambda: one.state is State.GONE)


async def test_a_move_that_the_table_refuses_costs_the_context_alone(caplog: pytest.LogCaptureFixture) -> None:
    link = FakeLink()
    async with serving(link) as one:
        link.on_kill = link.end
        one.state, run = State.BUSY, new_run()  # a bug: nothing runs
        one.submit(run)
        with trio.fail_after(30):
            await run.finished.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(run.failure, InternalError)
        assert (one.state, link.killed) == (State.GONE, 1)
    assert "ends by a bug" in caplog.text


def test_what_is_printed_between_two_runs_is_bounded_whoever_prints_on() -> None:
    between = BetweenRuns()
    for _ in range(between_runs.MAX_BYTES // 4):
        between.add("stdout", "é".encode() * 2)
    between.add("stderr", b"")
    assert not between.is_full
    for _ in range(1000):
        between.add("stderr", b"x" * 1000)
    assert between.is_full
    run = new_run()
    between.move_to(run)
    assert [event.data for event in run.events] == []
    run.finish("ok")
    assert [event.data for event in run.events[:1]] == ["é".encode() * (between_runs.MAX_BYTES // 2)]
    assert run.dropped_bytes == 1_000_000
    assert between.text == ""
    assert run.size < runs.MAX_OUTPUT_BYTES
