"""Inits that are older or newer than the daemon: what they leave out of an answer, or add to it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sandboxd.wire.messages import Request
from tests.support.fake_daemon import FakeDaemon, daemon_in
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
