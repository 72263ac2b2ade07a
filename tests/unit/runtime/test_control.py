"""PATCH, freeze, thaw and stats over a fake launcher: what changes, what is refused, what a failure takes back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.api.v1.patch import merge
from sandboxd.errors import CgroupError, SandboxdError, SandboxFrozen, ServerBusy
from sandboxd.runtime import control, host
from sandboxd.spec import CommandSpec, Limits, SandboxSpec
from sandboxd.wire.messages import Request
from tests.support.fake_daemon import FakeDaemon, daemon_in, eventually, manager_of, problem
from tests.support.fake_peer import Conversation, FakeLauncher

ROUTE = "/v1/sandboxes"


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[FakeDaemon]:
    async with daemon_in(tmp_path) as daemon:
        yield daemon


def kept(daemon: FakeDaemon, sandbox_id: str) -> dict[str, Any]:
    """What a daemon that starts again would read."""
    found: dict[str, Any] = json.loads((daemon.registry_dir / sandbox_id / "sandbox.json").read_text())["spec"]
    return found


# --- the merge patch of RFC 7396, with its own examples


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": "foo"}, None, None),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(target: Any, patch: Any, result: Any) -> None:
    assert merge(target, patch) == result


@settings(deadline=None)  # other work on the machine is no failure
@given(
    st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.dictionaries(st.text(max_size=2), st.none()))
)
def test_a_merge_leaves_its_target_alone_and_no_null(patch: dict[str, Any]) -> None:
    target = {"a": {"b": 1}}
    merged = merge(target, patch)
    assert target == {"a": {"b": 1}}
    assert None not in merged.values()
    assert merge(merged, patch) == merged


# --- PATCH


async def test_patch_changes_what_may_change_and_nothing_else(daemon: FakeDaemon) -> None:
    made = await daemon.create(name="box", env={"A": "1", "B": "2"}, labels={"k": "v"}, limits={"cpus": 1, "pids": 9})
    patch = {
        "name": "crate",
        "env": {"A": None, "C": "3"},
        "labels": {"l": "w"},
        "limits": {"pids": None, "memory_bytes": 1 << 28, "io": {"read_iops": 5}},
    }
    changed = (await daemon.client.patch(f"{ROUTE}/box", json=patch)).json()
    assert changed["name"] == "crate"
    assert changed["env"] == {"B": "2", "C": "3"}
    assert changed["labels"] == {"k": "v", "l": "w"}
    assert changed["unenforced"] == ["io"]
    sent = daemon.fake.limited[0]["limits"]
    assert (sent["memory_bytes"], sent["cpus"], sent["pids"], sent["io"]["read_iops"]) == (1 << 28, 1, None, 5)
    configured = [r.params for r in daemon.init.conversations[0].requests if r.op == "configure"]
    assert configured[-1]["env"] == {"B": "2", "C": "3"}
    spec = kept(daemon, made["id"])
    assert (spec["name"], spec["env"], spec["limits"]["pids"]) == ("crate", {"B": "2", "C": "3"}, None)
    assert (await daemon.client.get(f"{ROUTE}/box")).status_code == 404
    assert (await daemon.client.get(f"{ROUTE}/crate")).json() == changed
    await daemon.create(name="box")  # the name is free again


async def test_null_takes_whole_fields_back_to_their_defaults(daemon: FakeDaemon) -> None:
    await daemon.create(name="box", env={"A": "1"}, labels={"k": "v"}, cwd="/tmp", limits={"cpus": 1})
    patch = dict.fromkeys(("name", "env", "labels", "cwd", "limits"))
    listed = (await daemon.client.patch(f"{ROUTE}/box", json=patch)).json()
    assert (listed["name"], listed["env"], listed["labels"], listed["cwd"]) == (None, {}, {}, "/workspace")
    assert set(daemon.fake.limited[0]["limits"].values()) == {None}


async def test_an_empty_patch_changes_nothing(daemon: FakeDaemon) -> None:
    made = await daemon.create(name="box")
    assert (await daemon.client.patch(f"{ROUTE}/box", json={})).json() == made
    assert daemon.fake.limited == []


@pytest.mark.parametrize(
    ("patch", "status", "kind", "field"),
    [
        ({"limits": {"memory_bytes": 1}}, 400, "invalid-request", "limits.memory_bytes"),
        ({"limits": {"cpus": "two"}}, 400, "invalid-request", "limits.cpus"),
        ({"limits": {"colour": 1}}, 400, "unknown-field", "limits.colour"),
        ({"limits": 5}, 400, "invalid-request", "limits"),
        ({"limits": {"io": {"read_iops": -1}}}, 400, "invalid-request", "limits.io.read_iops"),
        ({"env": {"A=B": "1"}}, 400, "invalid-request", "env.A=B"),
        ({"env": {"A": 1}}, 400, "invalid-request", "env"),
        ({"name": "No"}, 400, "invalid-request", "name"),
        ({"rootfs": "other"}, 400, "invalid-request", "rootfs"),
        ({"user": None}, 400, "invalid-request", "user"),
        ({"seccomp": "strict"}, 400, "invalid-request", "seccomp"),
        ({"idle_timeout_s": 5}, 422, "not-available", "idle_timeout_s"),
        ({"state": "frozen"}, 400, "invalid-request", "state"),
        ({"colour": "red"}, 400, "unknown-field", "colour"),
    ],
)
async def test_a_patch_that_cannot_be_is_named(
    daemon: FakeDaemon, patch: dict[str, Any], status: int, kind: str, field: str
) -> None:
    made = await daemon.create(name="box", env={"A": "1"})
    found = problem(await daemon.client.patch(f"{ROUTE}/box", json=patch))
    assert (found["status"], found["kind"], found["field"]) == (status, kind, field)
    assert (await daemon.client.get(f"{ROUTE}/box")).json() == made


async def test_a_name_that_another_has_is_refused_and_nothing_is_changed(daemon: FakeDaemon) -> None:
    made = await daemon.create(name="box")
    await daemon.create(name="other")
    found = problem(await daemon.client.patch(f"{ROUTE}/box", json={"name": "other", "env": {"A": "1"}}))
    assert (found["status"], found["kind"]) == (409, "name-taken")
    assert (await daemon.client.get(f"{ROUTE}/box")).json() == made


async def test_what_the_launcher_refuses_is_taken_back_in_init_too(daemon: FakeDaemon) -> None:
    made = await daemon.create(name="box", env={"A": "1"})
    await daemon.manager.registry.find("box").ping()

    async def refuse(talk: Conversation, request: Request) -> None:
        raise CgroupError("cannot limit it: EIO", errno="EIO")

    daemon.fake.answers["limit"] = refuse
    patch = {"name": "crate", "env": {"A": "2"}, "limits": {"pids": 7}}
    found = problem(await daemon.client.patch(f"{ROUTE}/box", json=patch))
    assert (found["status"], found["kind"], found["errno"]) == (500, "cgroup-error", "EIO")
    assert (await daemon.client.get(f"{ROUTE}/box")).json() == made
    configured = [r.params["env"] for r in daemon.init.conversations[0].requests if r.op == "configure"]
    assert configured == [{"A": "1"}, {"A": "2"}, {"A": "1"}]
    assert kept(daemon, made["id"])["name"] == "box"


async def test_a_caller_that_goes_away_leaves_no_half_of_a_patch(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (fake, manager):
        sandbox = await manager.create(SandboxSpec())
        asked, go_on = trio.Event(), trio.Event()

        async def slow(talk: Conversation, request: Request) -> None:
            asked.set()
            await go_on.wait()
            await FakeLauncher.op_limit(fake, talk, request)

        fake.answers["limit"] = slow
        spec = SandboxSpec(name="n", limits=Limits(pids=77))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(manager.control.change, sandbox.id, lambda _: spec)
            await asked.wait()
            nursery.cancel_scope.cancel()
            go_on.set()
        assert sandbox.spec == spec
        assert manager.registry.find("n") is sandbox


# --- freeze and thaw


async def test_a_frozen_sandbox_says_so_and_runs_nothing(daemon: FakeDaemon) -> None:
    await daemon.create(name="box")
    frozen = await daemon.client.post(f"{ROUTE}/box/freeze")
    assert (frozen.status_code, frozen.json()["state"]) == (200, "frozen")
    for answer in (
        await daemon.client.post(f"{ROUTE}/box/exec", json={"command": "true"}),
        await daemon.client.get(f"{ROUTE}/box/files", params={"path": "/etc/passwd"}),
        await daemon.client.patch(f"{ROUTE}/box", json={"cwd": "/tmp"}),
    ):
        found = problem(answer)
        assert (found["status"], found["kind"]) == (409, "sandbox-frozen")
    assert (await daemon.client.post(f"{ROUTE}/box/freeze")).json()["state"] == "frozen"
    assert (await daemon.client.get(f"{ROUTE}/box/stats")).json()["state"] == "frozen"
    thawed = await daemon.client.post(f"{ROUTE}/box/thaw")
    assert (thawed.status_code, thawed.json()["state"]) == (200, "running")
    assert (await daemon.client.post(f"{ROUTE}/box/exec", json={"command": "true"})).json()["exit_code"] == 0
    assert (await daemon.client.post(f"{ROUTE}/box/thaw")).json()["state"] == "running"


async def test_env_that_changed_while_frozen_holds_after_the_thaw(daemon: FakeDaemon) -> None:
    await daemon.create(name="box", env={"A": "1"})
    await daemon.manager.registry.find("box").ping()
    await daemon.client.post(f"{ROUTE}/box/freeze")
    patched = await daemon.client.patch(f"{ROUTE}/box", json={"env": {"A": "2"}})
    assert (patched.status_code, patched.json()["state"]) == (200, "frozen")
    await daemon.client.post(f"{ROUTE}/box/thaw")
    configured = [r.params["env"] for r in daemon.init.conversations[0].requests if r.op == "configure"]
    assert configured == [{"A": "1"}, {"A": "2"}]


async def test_a_frozen_sandbox_can_go_and_can_fail(daemon: FakeDaemon) -> None:
    await daemon.create(name="one")
    two = await daemon.create(name="two")
    for name in ("one", "two"):
        await daemon.client.post(f"{ROUTE}/{name}/freeze")
    assert (await daemon.client.delete(f"{ROUTE}/one")).status_code == 204
    await daemon.fake.ended[0].send((two["id"], "init was killed by SIGKILL"))
    await eventually(lambda: daemon.manager.registry.find("two").state == "failed")
    found = problem(await daemon.client.post(f"{ROUTE}/two/thaw"))
    assert (found["status"], found["kind"]) == (409, "sandbox-failed")


async def test_a_process_that_does_not_stop_lets_all_go_on(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "FREEZE_TIMEOUT_S", 0.05)
    await daemon.create(name="box")

    async def never(talk: Conversation, request: Request) -> None:
        await talk.reply(request, frozen=False)

    daemon.fake.answers["freeze"] = never
    found = problem(await daemon.client.post(f"{ROUTE}/box/freeze"))
    assert (found["status"], found["kind"]) == (500, "cgroup-error")
    assert (await daemon.client.get(f"{ROUTE}/box")).json()["state"] == "running"
    assert daemon.fake.frozen == set()


async def test_a_daemon_that_starts_knows_what_is_frozen_and_reaches_it_when_it_thaws(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (fake, manager):
        sandbox = await manager.create(SandboxSpec(name="n", env={"A": "1"}))
        await manager.control.freeze("n")
    again = FakeLauncher(fake.links, fake.trees)
    again.frozen.add(sandbox.id)
    again.rows = [again.row(sandbox.id)]
    (fake.links / f"{sandbox.id}.sock").unlink()
    async with manager_of(tmp_path, again) as (_, manager):
        found = manager.registry.find("n")
        assert found.state == "frozen"
        with pytest.raises(SandboxFrozen):
            async with found.execute(CommandSpec(argv=("true",))):
                pass
        init = await again.start_init(sandbox.id)
        await manager.control.thaw("n")
        assert found.state == "running"
        assert [r.params["env"] for r in init.conversations[0].requests if r.op == "configure"] == [{"A": "1"}]


async def test_destroying_while_it_freezes_ends_both(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (fake, manager):
        sandbox = await manager.create(SandboxSpec())
        asked, go_on = trio.Event(), trio.Event()

        async def slow(talk: Conversation, request: Request) -> None:
            asked.set()
            await go_on.wait()
            await talk.reply(request, frozen=True)

        fake.answers["freeze"] = slow
        async with trio.open_nursery() as nursery:

            async def freeze() -> None:
                with contextlib.suppress(SandboxdError):
                    await manager.control.freeze(sandbox.id)
                    raise AssertionError("a sandbox that is gone was frozen")

            nursery.start_soon(freeze)
            await asked.wait()
            await manager.destroy(sandbox.id)
            go_on.set()
        assert sandbox.state == "destroyed"
        assert not len(manager.registry)


# --- stats and admission


async def test_stats_tell_null_for_what_nobody_counts(daemon: FakeDaemon) -> None:
    made = await daemon.create(name="box")
    found = (await daemon.client.get(f"{ROUTE}/box/stats")).json()
    assert (found["id"], found["cpu_s"], found["memory_bytes"], found["pids"]) == (made["id"], 1.5, 4096, 3)
    assert (found["io"], found["disk_bytes"], found["limits"]["cpus"]) == (None, None, 2.0)
    assert problem(await daemon.client.get(f"{ROUTE}/none/stats"))["kind"] == "sandbox-not-found"


async def test_a_host_without_memory_takes_no_further_sandbox(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await daemon.create()
    monkeypatch.setattr(host, "reserve", lambda total: 1 << 60)
    with pytest.raises(ServerBusy):
        host.check_room()
    found = problem(await daemon.client.post(ROUTE, json={}))
    assert (found["status"], found["kind"], found["reserve_bytes"]) == (503, "server-busy", 1 << 60)
    assert (await daemon.client.get(f"{ROUTE}/{made['id']}")).status_code == 200


def test_a_small_host_keeps_a_small_reserve() -> None:
    assert host.reserve(1 << 40) == 256 << 20
    assert host.reserve(1 << 30) == int(0.05 * (1 << 30))
    assert set(host.facts()) == {"memory_bytes", "memory_available_bytes", "cpus", "load"}
