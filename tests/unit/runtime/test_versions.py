"""Inits of other releases: what a daemon takes from them, and what it says of those that it cannot speak with."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from sandboxd.errors import InvalidRequest, SandboxFailed
from sandboxd.guest.init import Init
from sandboxd.runtime import waiting
from sandboxd.runtime.events import Filter
from sandboxd.runtime.lifecycle import State
from sandboxd.runtime.manager import Manager
from sandboxd.runtime.sandbox import Sandbox
from sandboxd.runtime.store import Record, Store
from sandboxd.spec import CommandSpec, SandboxSpec, new_id
from sandboxd.wire import framing, messages
from sandboxd.wire.messages import VERSION, Hello, Request
from sandboxd.wire.operations import OPERATIONS, Channel, fields
from tests.support.fake_daemon import eventually, manager_of
from tests.support.fake_peer import Conversation, FakeInit, FakeLauncher, exit_data

COMMAND = CommandSpec(argv=("true",))
VALUES: dict[str, Any] = {
    "null": None,
    "bool": True,
    "int": 1,
    "number": 1.0,
    "text": "x",
    "bytes": b"x",
    "list": [],
    "map": {},
}
#: What the types alone do not say.
MEANT: dict[str, dict[str, Any]] = {
    "Process": {"id": "p-1", "argv": ["true"], "running": False, "result": exit_data()},
    "Session": {"session": "s-1"},
    "File": {"type": "file"},
}


def example(shape: str) -> dict[str, Any]:
    """Return what an init says of something, with every field that a shape has."""
    return {name: VALUES[kind.split(" | ")[0]] for name, kind in fields(f"...{shape}").items()} | MEANT[shape]


@contextlib.asynccontextmanager
async def taken_over(directory: Path, *, frozen: bool = False) -> AsyncIterator[tuple[FakeLauncher, Manager, Sandbox]]:
    """Run a daemon that finds one sandbox, whose init is there already."""
    for name in ("links", "trees", "registry"):
        (directory / name).mkdir()
    one = Record(new_id(), SandboxSpec(name="old"), 0.0)
    Store(directory / "registry").save(one)
    fake = FakeLauncher(directory / "links", directory / "trees")
    fake.frozen = {one.id} if frozen else set()
    fake.rows = [fake.row(one.id)]
    async with trio.open_nursery() as nursery:
        init = FakeInit(directory / "links" / f"{one.id}.sock", directory)
        await nursery.start(init.run)
        fake.inits[one.id] = init
        async with manager_of(directory, fake) as (_, manager):
            yield fake, manager, manager.registry.find("old")
        nursery.cancel_scope.cancel()


# --- another version of the link ----------------------------------------------------------------------------------


def speaking(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have inits greet with a version; the launcher's is always the daemon's own."""
    whole = Conversation.run

    async def run(self: Conversation) -> None:
        if "configure" in self.handlers:  # an init's
            hello = framing.encode(messages.to_array(Hello(version)), limit=framing.MAX_REPLY_FRAME)
            monkeypatch.setattr(self.wire, "greet", lambda: hello)
        await whole(self)

    monkeypatch.setattr(Conversation, "run", run)


@pytest.mark.parametrize("version", [VERSION + 1, VERSION - 1], ids=["newer", "older"])
async def test_an_init_of_another_version_is_failed_with_a_reason_that_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    speaking(version, monkeypatch)
    reason = f"its init speaks version {version} of the link, and this daemon version {VERSION}"
    async with taken_over(tmp_path) as (fake, manager, sandbox):
        assert (sandbox.state, sandbox.reason) == (State.FAILED, reason)
        with pytest.raises(SandboxFailed) as caught:
            await sandbox.ping()
        assert (caught.value.facts["reason"], reason in caught.value.message) == (reason, True)
        told = manager.events.read(0, Filter(types=["failed"])).events
        assert [event.facts["reason"] for event in told] == [reason]
        await eventually(lambda: fake.killed == [sandbox.id])  # as every one that has failed
        await manager.destroy(sandbox.id)


async def test_one_that_was_frozen_says_so_when_it_is_thawed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaking(VERSION + 1, monkeypatch)
    async with taken_over(tmp_path, frozen=True) as (_, manager, sandbox):
        assert sandbox.state is State.FROZEN
        with pytest.raises(SandboxFailed, match=f"speaks version {VERSION + 1} of the link, and this daemon"):
            await manager.control.thaw(sandbox.id)
        assert sandbox.state is State.FAILED  # type: ignore[comparison-overlap]  # it has moved


# --- the same version, other keys ------------------------------------------------------------------------------------


async def test_keys_that_a_newer_init_sends_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reply, event = Conversation.reply, Conversation.event

    async def more(self: Conversation, request: Request, **result: Any) -> None:
        if request.op not in ("list", "create"):
            await reply(self, request, **result, from_the_future={"a": [1]})
        else:
            await reply(self, request, **result)

    async def more_events(self: Conversation, request: Request, offset: int, kind: str, data: Any) -> None:
        await event(self, request, offset, kind, {**data, "from_the_future": 1} if isinstance(data, dict) else data)

    monkeypatch.setattr(Conversation, "reply", more)
    monkeypatch.setattr(Conversation, "event", more_events)

    def answers(shape: str) -> Any:
        async def answer(talk: Conversation, request: Request) -> None:
            await talk.reply(request, **example(shape))

        return answer

    async with taken_over(tmp_path) as (fake, _, sandbox):
        fake.inits[sandbox.id].answers |= {
            "info": answers("Process"),
            "session_info": answers("Session"),
            "stat": answers("File"),
        }
        assert sandbox.state is State.RUNNING
        async with sandbox.execute(COMMAND) as execution:
            while await execution.next_batch():
                pass
        assert execution.exit is not None
        assert (await sandbox.processes.get("p-1")).argv == ("true",)
        assert (await sandbox.sessions.get("s-1")).id == "s-1"
        assert (await sandbox.ask("stat", path=b"x", follow=True))["type"] == "file"


async def test_keys_and_operations_that_an_older_init_lacks_are_done_without(tmp_path: Path) -> None:
    async def unknown(talk: Conversation, request: Request) -> None:
        raise InvalidRequest(f"cannot do {request.op!r}: no such operation", field="op")

    async def met(talk: Conversation, request: Request) -> None:
        await talk.reply(request, met=True, result=None)  # `status` came later

    original = FakeInit.__init__

    def older(self: FakeInit, *args: Any) -> None:
        original(self, *args)
        self.answers |= {"context_list": unknown, "await_port": met}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeInit, "__init__", older)
        async with taken_over(tmp_path) as (_, _, sandbox):
            assert sandbox.state is State.RUNNING
            waited = await waiting.for_port(sandbox, None, 80, None, 5)
            assert (waited.met, waited.status) == (True, None)


class Asked:
    """A connection of a daemon: keeps what init answers."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []

    def reply(self, request: int, result: dict[str, Any]) -> None:
        self.answers.append(result)


@pytest.mark.parametrize("op", ["configure", "ping", "list", "session_list", "context_list"])
def test_an_init_passes_over_keys_of_a_newer_daemon(op: str) -> None:
    init, asked = Init(), Asked()
    params = {"env": {}, "cwd": "/", "user": "root"} if op == "configure" else {}
    init._operations[op](asked, 1, {**params, "from_the_future": {"a": 1}})  # type: ignore[arg-type]
    (answer,) = asked.answers
    assert set(answer) <= {name.removesuffix("?") for name in fields(OPERATIONS[Channel.LINK][op].answer)}
