"""Inits that are older or newer than the daemon: what they leave out of an answer, or add to it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from sandboxd.errors import InvalidRequest
from sandboxd.spec import CommandSpec
from sandboxd.wire.messages import Request
from tests.support.fake_daemon import FakeDaemon, daemon_in, problem
from tests.support.fake_peer import Conversation, exit_data

LATER: dict[str, Any] = {"later": [1], "and": {"more": None}}


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[FakeDaemon]:
    async with daemon_in(tmp_path) as daemon:

        def prepare(init: Any) -> None:
            async def configure(talk: Conversation, request: Request) -> None:
                await talk.reply(request, **LATER)

            async def start(talk: Conversation, request: Request) -> None:
                await talk.reply(request, **process(request.params["process"]), **LATER)

            async def create_session(talk: Conversation, request: Request) -> None:
                # `cwd` and `running` are not there.
                facts = {"shell": "/bin/sh", "user": "root", "created_at": 1.0, "commands": 0, "waiting": 0}
                await talk.reply(request, session=request.params["session"], **facts, **LATER)

            init.answers |= {"configure": configure, "start": start, "session_create": create_session}
            ended = exit_data(**LATER)
            del ended["signal"]
            ended["usage"] = {"cpu_s": 0.5, **LATER}
            init.exit = ended

        daemon.fake.prepare = prepare
        await daemon.create(name="box")
        yield daemon


def process(name: str) -> dict[str, Any]:
    """Return what an init says of a process, without `pid` and the peak of its memory."""
    return {
        "id": name,
        "running": True,
        "argv": ["true"],
        "cwd": "/",
        "user": "root",
        "started_at": time.time(),
        "restarts": 0,
        "terminal": False,
        "usage": {"cpu_s": 0.0},
        "next": 1,
    }


async def test_answers_of_another_age_are_taken(daemon: FakeDaemon) -> None:
    path = "/v1/sandboxes/box"
    done = (await daemon.client.post(f"{path}/exec", json={"command": ["true"]})).json()
    assert (done["exit_code"], done["signal"], done["stdout"]) == (0, None, "hello\n")
    assert done["usage"] == {"cpu_s": 0.5, "memory_peak_bytes": None}
    started = await daemon.client.post(f"{path}/processes", json={"command": "true", "id": "p"})
    assert started.status_code == 201, started.text
    assert (started.json()["id"], started.json()["pid"]) == ("p", None)
    session = await daemon.client.post(f"{path}/sessions", json={"id": "s"})
    assert session.status_code == 201, session.text
    assert (session.json()["cwd"], session.json()["running"]) == (None, None)
    assert (await daemon.client.get(path)).json()["state"] == "running"


@pytest.mark.parametrize(
    ("known", "status"),
    [(["linger_s", "later"], 201), (None, 422), ([], 422), (["later"], 422), ([["linger_s"]], 422), ("linger_s", 422)],
)
async def test_what_an_old_init_would_do_without_is_refused(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, known: Any, status: int
) -> None:
    """As if terminals had once had no `linger_s`."""

    async def configure(talk: Conversation, request: Request) -> None:
        await talk.reply(request, **({} if known is None else {"knows": known}))

    daemon.init.answers["configure"] = configure
    monkeypatch.setattr(CommandSpec, "LATER", frozenset({"linger_s"}))
    path = "/v1/sandboxes/box/processes"
    fields = {"command": "true", "id": "p", "terminal": {}}
    found = await daemon.client.post(path, json={**fields, "linger_s": 3})
    assert found.status_code == status, found.text
    if status == 422:
        assert (problem(found)["kind"], problem(found)["field"]) == ("not-available", "linger_s")
        assert not daemon.init.asked("start")
    else:
        assert daemon.init.asked("start")[0]["linger_s"] == 3
    assert (await daemon.client.post(path, json=fields)).status_code == 201
    assert "linger_s" not in daemon.init.asked("start")[-1]


@pytest.mark.parametrize("knows", [False, True])
async def test_a_umask_is_for_an_init_that_knows_it(daemon: FakeDaemon, knows: bool) -> None:
    async def configure(talk: Conversation, request: Request) -> None:
        await talk.reply(request, **({"knows": ["umask"]} if knows else {}))

    daemon.init.answers["configure"] = configure
    path, fields = "/v1/sandboxes/box", {"command": "true", "umask": "0027"}
    for what, body in (("exec", fields), ("processes", {**fields, "id": "p"}), ("sessions", {"umask": "0027"})):
        found = await daemon.client.post(f"{path}/{what}", json=body)
        if knows:
            assert found.status_code in (200, 201), found.text
        else:
            assert (problem(found)["kind"], problem(found)["field"]) == ("not-available", "umask")
    asked = [daemon.init.asked(op) for op in ("exec", "start", "session_create")]
    assert [[params["umask"] for params in one] for one in asked] == ([["0027"]] * 3 if knows else [[]] * 3)


@pytest.mark.parametrize(("op", "field"), [("errand", "do"), ("open_write", "op"), ("session_create", "op")])
async def test_an_operation_that_an_old_init_does_not_know_is_not_available(
    daemon: FakeDaemon, op: str, field: str
) -> None:
    """As guest/init.py and guest/jobs.py answer what is not in their tables; `truncate` was the first to come later."""

    async def refuse(talk: Conversation, request: Request) -> None:
        raise InvalidRequest("cannot do 'it': no such operation", field=field)

    daemon.init.answers[op] = refuse
    path = "/v1/sandboxes/box"
    asked: dict[str, tuple[str, str, dict[str, Any]]] = {
        "errand": ("POST", f"{path}/files/truncate", {"json": {"path": "/f", "size": 0}}),
        "open_write": ("PUT", f"{path}/files", {"params": {"path": "/f"}, "content": b"x"}),
        "session_create": ("POST", f"{path}/sessions", {"json": {}}),
    }
    method, url, more = asked[op]
    found = await daemon.client.request(method, url, **more)
    assert (found.status_code, problem(found)["kind"]) == (422, "not-available")
    assert "earlier version" in problem(found)["detail"]
    assert "field" not in problem(found)


async def test_who_asks_for_what_an_init_may_not_know_hears_of_its_end(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def configure(talk: Conversation, request: Request) -> None:
        daemon.init.die()

    daemon.init.answers["configure"] = configure
    monkeypatch.setattr(CommandSpec, "LATER", frozenset({"timeout_s"}))
    found = await daemon.client.post("/v1/sandboxes/box/exec", json={"command": "true", "timeout_s": 3})
    assert problem(found)["kind"] == "sandbox-failed"


async def test_a_command_that_waits_for_what_init_knows_hears_that_the_daemon_stops(tmp_path: Path) -> None:
    """Its caller would keep the daemon from ending, or be told that the sandbox is too old."""
    async with daemon_in(tmp_path) as daemon:

        async def say_nothing(talk: Conversation, request: Request) -> None:
            daemon.manager.stop()

        daemon.fake.prepare = lambda init: init.answers.update(configure=say_nothing)
        await daemon.create(name="box")
        with trio.fail_after(30):
            asked = await daemon.client.post("/v1/sandboxes/box/exec", json={"command": "true", "umask": "077"})
        assert problem(asked)["kind"] == "server-busy"


async def test_of_what_init_says_it_knows_only_what_may_be_asked_for_is_kept(daemon: FakeDaemon) -> None:
    async def configure(talk: Conversation, request: Request) -> None:
        await talk.reply(request, knows=["umask", "x" * 500_000, [], {"a": 1}, b"umask", None])

    daemon.init.answers["configure"] = configure
    asked = await daemon.client.post("/v1/sandboxes/box/exec", json={"command": "true", "umask": "077"})
    assert asked.status_code == 200, asked.text
    (sandbox,) = daemon.manager.registry
    assert sandbox._known_fields == {"umask"}
