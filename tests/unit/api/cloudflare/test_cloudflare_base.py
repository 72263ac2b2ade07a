"""What both faces share: sandboxes that come to be at their first use, and errors in their forms."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from sandboxd import errors
from sandboxd.api.cloudflare import container, names, problems
from sandboxd.api.cloudflare.problems import Refusal
from sandboxd.runtime.lifecycle import State
from sandboxd.spec import SandboxSpec
from tests.support.fake_daemon import TOKEN, FakeDaemon, daemon_in


@pytest.fixture
async def daemon(tmp_path: Path) -> Any:
    async with daemon_in(tmp_path) as found:
        yield found


async def test_the_first_uses_make_one_sandbox(daemon: FakeDaemon) -> None:
    found = []

    async def use() -> None:
        found.append(await names.reach(daemon.manager, "shared"))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(use)
    assert len({sandbox.id for sandbox in found}) == 1
    assert found[0].state is State.RUNNING
    assert found[0].spec.name == "shared"
    assert (await daemon.client.get("/v1/sandboxes/shared")).json()["id"] == found[0].id


async def test_a_sandbox_of_the_native_api_is_reached_by_its_id_too(daemon: FakeDaemon) -> None:
    made = await daemon.create(name="native")
    assert (await names.reach(daemon.manager, made["id"])).id == made["id"]
    assert (await names.reach(daemon.manager, "native")).id == made["id"]


async def test_one_that_sleeps_wakes(daemon: FakeDaemon) -> None:
    made = await daemon.create(name="sleeper")
    await daemon.client.post(f"/v1/sandboxes/{made['id']}/freeze")
    assert (await names.reach(daemon.manager, "sleeper")).state is State.RUNNING


async def test_only_what_was_made_here_is_begun_anew(daemon: FakeDaemon) -> None:
    ours = await names.reach(daemon.manager, "ours")
    theirs = await daemon.manager.create(SandboxSpec(name="theirs"))
    for sandbox in (ours, theirs):
        sandbox.mark_failed("killed by signal 9")
    again = await names.reach(daemon.manager, "ours")
    assert again.id != ours.id
    assert again.state is State.RUNNING
    with pytest.raises(errors.SandboxFailed):
        await names.reach(daemon.manager, "theirs")


async def test_removing_is_idempotent_and_frees_the_name(daemon: FakeDaemon) -> None:
    first = await names.reach(daemon.manager, "again")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(names.remove, daemon.manager, "again")
        await trio.testing.wait_all_tasks_blocked()
        second = await names.reach(daemon.manager, "again")
    assert second.id != first.id
    assert await names.remove(daemon.manager, "again") is True
    assert await names.remove(daemon.manager, "again") is False


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a" * 64, "a.b", "../x", "www", "a\n"])
def test_bad_container_ids(name: str) -> None:
    with pytest.raises(Refusal) as caught:
        names.check_container_id(name)
    assert problems.tell_container(caught.value).status == 400


@pytest.mark.parametrize("name", ["", "a-b", "A", "a" * 64, "1", "../x"])
def test_bad_bridge_ids(name: str) -> None:
    with pytest.raises(Refusal) as caught:
        names.check_bridge_id(name)
    told = problems.tell_bridge(caught.value)
    assert (told.status, told.kind) == (400, "invalid_request")


def test_every_kind_has_a_code_and_no_permanent_one_is_503() -> None:
    again = {"server-busy", "daemon-unavailable", "launcher-gone"}
    for kind, cls in errors.kinds().items():
        if cls.__module__ != errors.__name__:
            continue  # another test's
        status, shown = problems.container(cls("why"))
        assert status == problems.STATUS[shown["code"]]
        assert (status == 503) == (kind in again), kind
        told = problems.tell_bridge(cls("why"))
        assert json.loads(told.body) == {"error": "why", "code": told.kind}
        assert (told.status == 503) == (kind == "server-busy"), kind


def test_the_containers_form() -> None:
    refusal = container.refusal_of(errors.FileNotFound("cannot open /x: there is no such file", path="/x"), {})
    refusal.operation = "file.read"
    status, shown = problems.container(refusal)
    stamp = shown.pop("timestamp")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", stamp)
    assert (status, shown) == (
        404,
        {
            "code": "FILE_NOT_FOUND",
            "message": "cannot open /x: there is no such file",
            "context": {"path": "/x"},
            "operation": "file.read",
            "httpStatus": 404,
            "suggestion": "Check that /x exists before using it",
        },
    )
    assert problems.suggestion("FILE_NOT_FOUND", {}) == "Check that it exists before using it"
    assert all(code in problems.STATUS for code in (*problems.CODES.values(), *problems.SUGGESTIONS))


def test_a_bug_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    told = problems.tell_container(RuntimeError("secret"))
    assert told.status == 500
    assert b"secret" not in told.body
    assert "secret" in caplog.text


async def test_routes_of_no_use_answer_in_their_forms(daemon: FakeDaemon) -> None:
    missing = await daemon.client.get("/cloudflare/sandboxes/x/api/nothing")
    assert (missing.status_code, missing.json()["code"]) == (404, "UNKNOWN_ERROR")
    missing = await daemon.client.get("/cloudflare/v1/nothing")
    assert (missing.status_code, missing.json()["code"]) == (404, "invalid_request")
    assert (await daemon.client.get("/cloudflare/health")).json() == {"ok": True}


async def test_nobody_without_the_token_comes_in_over_tcp(daemon: FakeDaemon) -> None:
    host, port = daemon.tcp
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
        assert (await client.get("/cloudflare/health")).status_code == 200
        refused = await client.post("/cloudflare/v1/sandbox")
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
        refused = await client.get("/cloudflare/sandboxes/x/api/ping")
        assert (refused.status_code, refused.json()["code"]) == (401, "UNAUTHORIZED")
        token = {"Authorization": f"Bearer {TOKEN}"}
        made = await client.post("/cloudflare/v1/sandbox", headers=token)
        assert re.fullmatch(r"[a-z2-7]{26}", made.json()["id"])
        gone = await client.delete(f"/cloudflare/v1/sandbox/{made.json()['id']}", headers=token)
        assert gone.status_code == 204


async def test_the_bridges_page_is_a_page(daemon: FakeDaemon) -> None:
    page = await daemon.client.get("/cloudflare/v1/openapi.html")
    assert (page.status_code, page.headers.get_list("content-type")) == (200, ["text/html; charset=utf-8"])
    assert page.text.startswith("<!doctype html>")
    assert page.headers["content-security-policy"] == "default-src 'none'"
    assert (await daemon.client.get("/cloudflare/v1/openapi.json")).headers["content-type"] == "application/json"


@pytest.mark.parametrize("way", ["handshake", "GET"])
async def test_the_transport_that_is_not_built_is_refused_once_and_for_all(daemon: FakeDaemon, way: str) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    answer = await daemon.client.request(
        "GET",
        "/cloudflare/sandboxes/box/rpc?access_token=x",
        headers=upgrade if way == "handshake" else {},
    )
    # Their client tries 500, 502, 503 and 504 again, and tells what a 404 is by another error.
    assert answer.status_code == 400
    shown = answer.json()
    assert (shown["code"], shown["httpStatus"]) == ("VALIDATION_FAILED", 400)
    if way == "handshake":
        assert "http or websocket" in shown["message"]
        assert shown["context"] == {"transport": "rpc", "transports": ["http", "websocket"]}
    assert len(daemon.manager.registry) == 0
