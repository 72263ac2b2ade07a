"""The domain without HTTP: recovery, names, creations and ends, over a fake launcher."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path

import pytest
import trio
import trio.testing

from sandboxd.errors import (
    Conflict,
    InvalidRequest,
    LaunchFailed,
    NameTaken,
    RootfsNotFound,
    SandboxdError,
    SandboxFailed,
    SandboxGone,
    SandboxNotFound,
    ServerBusy,
)
from sandboxd.runtime import recovery
from sandboxd.runtime.launcher import Launched
from sandboxd.runtime.lifecycle import TRANSITIONS, State, may_move
from sandboxd.runtime.registry import Registry
from sandboxd.runtime.sandbox import Sandbox
from sandboxd.runtime.store import Record, Store
from sandboxd.spec import CommandSpec, Limits, SandboxSpec, new_id
from sandboxd.wire.messages import Request
from tests.support.fake_daemon import eventually, manager_of
from tests.support.fake_peer import Conversation, FakeInit, FakeLauncher
from tests.support.sandboxes import sandbox_of

TRUE = CommandSpec(argv=("true",))


def launched(sandbox_id: str, *, alive: bool = True) -> Launched:
    return Launched(sandbox_id, 1, alive, frozenset({1}), (), Limits())


def record(sandbox_id: str) -> Record:
    return Record(sandbox_id, SandboxSpec(), 0.0)


# --- pure -----------------------------------------------------------------------------------------------------


def test_every_state_has_a_row_and_destroyed_is_the_end() -> None:
    assert set(TRANSITIONS) == set(State)
    assert not TRANSITIONS[State.DESTROYED]
    reachable = {State.CREATING}
    for _ in State:
        reachable |= {new for old, new in itertools.product(tuple(reachable), State) if may_move(old, new)}
    assert reachable == set(State)


@pytest.mark.parametrize(
    ("alive", "registered", "known", "expected"),
    [
        (True, True, True, "take_over"),
        (True, False, True, "destroy"),
        (False, True, True, "destroy+drop"),
        (False, False, True, "destroy"),
        (False, True, False, "drop"),
    ],
)
def test_recovery_decides_by_both_lists(alive: bool, registered: bool, known: bool, expected: str) -> None:
    sandbox_id = new_id()
    found = recovery.decide(
        [launched(sandbox_id, alive=alive)] if known else [],
        [record(sandbox_id)] if registered else [],
        [sandbox_id] if registered else [],
    )
    told = [name for name in ("take_over", "destroy", "drop") if getattr(found, name)]
    assert "+".join(told) == expected
    assert bool(found.notes) == (expected != "take_over")


def test_recovery_drops_folders_without_a_readable_record() -> None:
    assert recovery.decide([], [], ["rubbish"]).drop == ("rubbish",)


def test_a_record_survives_the_disk(tmp_path: Path) -> None:
    store = Store(tmp_path)
    spec = SandboxSpec(name="a", env={"K": "v"}, limits=Limits(pids=9), user=7, labels={"x": "y"})
    one = Record(new_id(), spec, 12.5)
    store.save(one)
    assert store.load() == [one]
    path = tmp_path / one.id / "sandbox.json"
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    assert store.load() == []
    store.drop(one.id)
    store.drop(one.id)
    assert list(tmp_path.iterdir()) == []


def test_pages_have_no_gap_when_sandboxes_go() -> None:
    registry = Registry()
    made = []
    for number in range(7):
        sandbox = sandbox_of(created_at=float(number))
        made.append(sandbox)
        registry.add(sandbox)
    first, cursor = registry.page(None, 3)
    assert first == made[:3]
    registry.remove(made[2])
    second, cursor = registry.page(cursor, 3)
    assert second == made[3:6]
    third, cursor = registry.page(cursor, 3)
    assert (third, cursor) == (made[6:], None)
    for bad in ("x", "_", "zz_q"):
        with pytest.raises(InvalidRequest):
            registry.page(bad, 3)
    for limit in (0, 1001):
        with pytest.raises(InvalidRequest):
            registry.page(None, limit)


def test_ids_go_before_names() -> None:
    registry = Registry(bound=2)
    one = sandbox_of()
    registry.add(one)
    other = sandbox_of(SandboxSpec(name=one.id), 1.0)
    registry.add(other)
    assert registry.find(one.id) is one
    registry.remove(one)
    assert registry.find(one.id) is other
    registry.add(one)
    with pytest.raises(ServerBusy):
        registry.add(sandbox_of(created_at=2.0))


def test_every_move_is_told_and_an_end_releases_who_waits() -> None:
    told: list[State] = []
    sandbox = sandbox_of(tell_move=lambda one: told.append(one.state))
    before = sandbox.moved
    sandbox.move(State.RUNNING)
    assert before.is_set()
    assert not sandbox.moved.is_set()
    with pytest.raises(Conflict):
        sandbox.move(State.CREATING)
    assert sandbox.mark_failed("test")
    assert not sandbox.mark_failed("again")
    assert told == [State.RUNNING, State.FAILED]
    assert sandbox.disconnected.is_set()


# --- creations ---------------------------------------------------------------------------------------------------


async def test_a_birth_sends_no_secrets_to_the_launcher(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (fake, manager):
        sandbox = await manager.create(SandboxSpec(name="n", env={"SECRET": "s3cret"}, labels={"a": "b"}))
        assert "s3cret" not in repr(fake.created)
        assert set(fake.created[0]) == {"id", "rootfs", "limits", "network", "seccomp"}
        assert fake.inits[sandbox.id].asked("configure") == []
        await sandbox.ping()
        settings = {"env": {"SECRET": "s3cret"}, "cwd": "/workspace", "user": "root", "standby_s": 0}
        assert fake.inits[sandbox.id].asked("configure") == [settings]
        assert (tmp_path / "registry" / sandbox.id / "sandbox.json").exists()
        assert sandbox.unenforced == ("disk_bytes",)


async def test_one_of_many_gets_a_name(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (fake, manager):
        outcomes: list[object] = []

        async def one() -> None:
            try:
                outcomes.append(await manager.create(SandboxSpec(name="n")))
            except NameTaken as error:
                outcomes.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one)
        assert sum(isinstance(outcome, Sandbox) for outcome in outcomes) == 1
        assert len(fake.created) == 1
        await manager.destroy("n")
        await manager.create(SandboxSpec(name="n"))


@pytest.mark.parametrize("error", [RootfsNotFound("no"), LaunchFailed("no", step="x", errno="EINVAL")])
async def test_a_birth_that_fails_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    async with manager_of(tmp_path) as (fake, manager):

        async def refuse(talk: Conversation, request: Request) -> None:
            raise error

        fake.answers["create"] = refuse
        with pytest.raises(type(error)) as caught:
            await manager.create(SandboxSpec(name="n"))
        assert caught.value.facts == error.facts  # type: ignore[attr-defined]
        assert len(manager.registry) == 0
        assert list((tmp_path / "registry").iterdir()) == []
        assert len(fake.destroyed) == 1


async def test_an_init_that_refuses_its_configuration_leaves_nothing(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (fake, manager):

        async def refuse(talk: Conversation, request: Request) -> None:
            raise InvalidRequest("cannot use cwd /nowhere: ENOENT", field="cwd")

        fake.prepare = lambda init: init.answers.update(configure=refuse)
        with pytest.raises(InvalidRequest) as caught:
            await manager.create(SandboxSpec(cwd="/nowhere"))
        assert caught.value.field == "cwd"
        assert len(manager.registry) == 0
        assert not fake.inits


async def test_an_init_that_dies_during_its_birth_is_a_failed_launch(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (fake, manager):

        async def die(talk: Conversation, request: Request) -> None:
            await talk.stream.aclose()

        fake.prepare = lambda init: init.answers.update(configure=die)
        with pytest.raises(LaunchFailed):
            await manager.create(SandboxSpec(user=5))
        assert len(manager.registry) == 0


# --- an init is connected to when something is asked of it ---------------------------------------------------


async def test_nobody_speaks_to_an_init_that_nothing_is_asked_of(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (fake, manager):
        sandbox = await manager.create(SandboxSpec(env={"A": "1"}))
        await manager.control.freeze(sandbox.id)
        await manager.control.stats(sandbox.id)
        assert not fake.inits[sandbox.id].conversations
        await manager.control.thaw(sandbox.id)
        assert len(fake.inits[sandbox.id].conversations) == 1
        other = await manager.create(SandboxSpec())
        await manager.destroy(other.id)
        assert not [name for name, state in manager.statistics().items() if name == "failed" and state]


async def test_many_first_requests_share_one_link_that_is_configured_first(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (fake, manager):
        sandbox = await manager.create(SandboxSpec())
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(sandbox.ping)
        (talk,) = fake.inits[sandbox.id].conversations
        assert [request.op for request in talk.requests] == ["configure"] + ["ping"] * 20


async def test_an_init_that_died_unheard_is_told_of_with_the_launchers_reason(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (fake, manager):
        sandbox = await manager.create(SandboxSpec())
        fake.inits[sandbox.id].die()
        (tmp_path / "links" / f"{sandbox.id}.sock").unlink()
        outcomes: list[SandboxFailed] = []

        async def ask() -> None:
            try:
                await sandbox.ping()
            except SandboxFailed as error:
                outcomes.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await fake.ended[0].send((sandbox.id, "init was killed by SIGKILL"))
        assert [error.facts["reason"] for error in outcomes] == ["init was killed by SIGKILL"]
        assert sandbox.state is State.FAILED


async def test_an_init_that_refuses_its_settings_later_is_failed(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (fake, manager):

        async def refuse(talk: Conversation, request: Request) -> None:
            raise InvalidRequest("cannot use cwd /workspace: ENOENT", field="cwd")

        fake.prepare = lambda init: init.answers.update(configure=refuse)
        sandbox = await manager.create(SandboxSpec())
        with contextlib.suppress(SandboxFailed):
            await sandbox.ping()  # it may be answered before the refusal was looked at
        await eventually(lambda: sandbox.state is State.FAILED)
        assert "its init cannot be configured" in str(sandbox.reason)
        await manager.destroy(sandbox.id)


async def test_a_record_that_cannot_be_written_fails_the_birth(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (fake, manager):
        (tmp_path / "registry").rmdir()
        with pytest.raises(LaunchFailed):
            await manager.create(SandboxSpec())
        assert not fake.inits
        (tmp_path / "registry").mkdir()


async def test_a_caller_that_leaves_during_a_birth_leaves_nothing(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (fake, manager):
        reached, go = trio.Event(), trio.Event()

        async def slow() -> None:
            reached.set()
            await go.wait()

        fake.before_create = slow
        async with trio.open_nursery() as nursery:
            nursery.start_soon(manager.create, SandboxSpec(name="n"))
            await reached.wait()
            assert manager.registry.find("n").state is State.CREATING
            with pytest.raises(Conflict):
                await manager.destroy("n")
            nursery.cancel_scope.cancel()
            go.set()
        assert len(manager.registry) == 0
        assert fake.destroyed == [fake.created[0]["id"]]
        assert list((tmp_path / "registry").iterdir()) == []


# --- life and end ---------------------------------------------------------------------------------------------


async def test_an_init_that_ends_fails_its_sandbox_with_the_reason(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (fake, manager):
        sandbox = await manager.create(SandboxSpec(name="n"))
        fake.inits[sandbox.id].wait_for_cancel = True
        async with sandbox.execute(TRUE) as execution:
            await execution.next_batch()
            fake.inits[sandbox.id].die()
            await fake.ended[0].send((sandbox.id, "killed by SIGKILL"))
            with pytest.raises(SandboxFailed) as caught:
                while await execution.next_batch():
                    pass
        assert caught.value.reason == "killed by SIGKILL"
        assert (sandbox.state, sandbox.reason) == (State.FAILED, "killed by SIGKILL")
        with pytest.raises(SandboxFailed):
            await sandbox.ping()
        await manager.destroy("n")
        assert len(manager.registry) == 0


async def test_a_link_that_closes_without_a_word_fails_the_sandbox(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with manager_of(tmp_path) as (fake, manager):
        sandbox = await manager.create(SandboxSpec())
        await sandbox.ping()
        fake.inits[sandbox.id].die()
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(5)
        while not fake.killed:
            await trio.testing.wait_all_tasks_blocked(0.01)  # a thread that writes is no task
        assert (sandbox.state, sandbox.reason) == (State.FAILED, "init closed its link")
        assert fake.killed == [sandbox.id]


async def never(talk: Conversation, request: Request) -> None:
    await trio.sleep_forever()


async def refused(talk: Conversation, request: Request) -> None:
    raise LaunchFailed("cannot", step="x")


@pytest.mark.parametrize("door", ["no socket", "no answer", "frozen", "first request", "configure", "destroy"])
async def test_what_failed_is_killed_whatever_made_it_fail(
    tmp_path: Path, door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can ask it anything any more, so nothing of it may run on unseen."""
    for module in ("sandbox", "manager"):
        monkeypatch.setattr(f"sandboxd.runtime.{module}.REASON_TIMEOUT_S", 0.01)
        monkeypatch.setattr(f"sandboxd.runtime.{module}.CONNECT_TIMEOUT_S", 0.05)
    fake = FakeLauncher(tmp_path / "links", tmp_path / "trees")
    for name in ("trees", "links", "registry"):
        (tmp_path / name).mkdir()
    if door in ("no answer", "configure"):
        fake.prepare = lambda init: init.answers.update(configure=never)
    if found := door in ("no socket", "no answer", "frozen"):
        one = record(new_id())
        Store(tmp_path / "registry").save(one)
        fake.frozen = {one.id} if door == "frozen" else set()
        fake.rows = [fake.row(one.id)]

    async def listed(talk: Conversation, request: Request) -> None:
        if door == "no answer":
            await fake.start_init(one.id)
        await fake.op_list(talk, request)

    fake.answers |= {"list": listed} | ({"destroy": refused} if door == "destroy" else {})
    async with manager_of(tmp_path, fake) as (_, manager):
        sandbox = manager.registry.find(one.id) if found else await manager.create(SandboxSpec())
        with contextlib.suppress(SandboxdError):
            if door == "frozen":
                await manager.control.thaw(one.id)
            elif door == "destroy":
                await manager.destroy(sandbox.id)
            elif door == "first request":
                fake.inits[sandbox.id].path.unlink()
                await sandbox.ping()
            elif door == "configure":
                await sandbox.ping()
        await eventually(lambda: bool(fake.killed))
        assert (sandbox.state, fake.killed) == (State.FAILED, [sandbox.id])


async def test_destruction_ends_what_runs(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (fake, manager):
        sandbox = await manager.create(SandboxSpec(name="n"))
        fake.inits[sandbox.id].wait_for_cancel = True
        async with trio.open_nursery() as nursery:

            async def follow() -> None:
                async with sandbox.execute(TRUE) as execution:
                    with pytest.raises(SandboxGone):
                        while await execution.next_batch():
                            pass

            nursery.start_soon(follow)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await manager.destroy("n")
        with pytest.raises(SandboxNotFound):
            await manager.destroy("n")


async def test_a_destruction_that_fails_can_be_asked_for_again(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (fake, manager):
        sandbox = await manager.create(SandboxSpec(name="n"))
        working = fake.answers["destroy"]

        async def refuse(talk: Conversation, request: Request) -> None:
            raise LaunchFailed("cannot unmount: EBUSY", step="unmount", errno="EBUSY")

        fake.answers["destroy"] = refuse
        with pytest.raises(LaunchFailed):
            await manager.destroy("n")
        assert sandbox.state is State.FAILED
        fake.answers["destroy"] = working
        await manager.destroy("n")
        assert len(manager.registry) == 0


async def test_a_daemon_that_starts_again_finds_its_sandboxes(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (_fake, manager):
        kept = await manager.create(SandboxSpec(name="kept", env={"A": "1"}))
        dead = await manager.create(SandboxSpec(name="dead"))
        ids = kept.id, dead.id
    again = FakeLauncher(tmp_path / "links", tmp_path / "trees")
    stray = new_id()
    again.rows = [again.row(ids[0]), again.row(ids[1], alive=False), again.row(stray)]
    for path in (tmp_path / "links").iterdir():
        path.unlink()

    async with trio.open_nursery() as nursery:
        survivor = FakeInit(tmp_path / "links" / f"{ids[0]}.sock", tmp_path)
        await nursery.start(survivor.run)
        async with manager_of(tmp_path, again) as (_, manager):
            (found,) = manager.registry
            assert (found.id, found.state, found.spec.env) == (ids[0], State.RUNNING, {"A": "1"})
            assert sorted(again.destroyed) == sorted([ids[1], stray])
            assert [path.name for path in (tmp_path / "registry").iterdir()] == [ids[0]]
            async with found.execute(TRUE) as execution:
                while await execution.next_batch():
                    pass
            assert execution.exit is not None
        nursery.cancel_scope.cancel()


async def test_an_init_that_cannot_be_reached_again_is_failed(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (_, manager):
        sandbox_id = (await manager.create(SandboxSpec())).id
    again = FakeLauncher(tmp_path / "links", tmp_path / "trees")
    again.rows = [again.row(sandbox_id)]
    async with manager_of(tmp_path, again) as (_, manager):
        (found,) = manager.registry
        assert found.state is State.FAILED
        await manager.destroy(sandbox_id)
        assert again.destroyed == [sandbox_id]
