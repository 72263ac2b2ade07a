"""No text event of any face cuts a character: not in a stream, not where a reader comes back, not in what is there."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from sandboxd.wire.sse import SseDecoder, SseEvent
from tests.support.cloudflare_client import TOKEN
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real

#: Twelve characters of 2 to 4 bytes, written byte by byte, so that nearly every piece ends within one.
TEXT = "é日😀" * 4
WRITE = """
import os, time
for byte in "é日😀".encode() * 4:
    os.write({fd}, bytes([byte]))
    time.sleep(0.002)
"""
PROGRAM = f"python3 -c '{WRITE.format(fd=1)}'"
NAME = "textevents"  # a name by the rules of every face
V1 = f"/v1/sandboxes/{NAME}"
CONTAINER = f"/cloudflare/sandboxes/{NAME}/api"


@pytest.fixture(scope="module")
def http(served: tuple[Daemon, str]) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=served[1], headers=headers, timeout=30) as client:
        client.post("/v1/sandboxes", json={"name": NAME}).raise_for_status()
        yield client
        client.delete(V1).raise_for_status()


def stream(http: httpx.Client, method: str, path: str, **more: Any) -> list[SseEvent]:
    response = http.request(method, path, headers={"Accept": "text/event-stream"}, **more)
    assert response.status_code == 200, response.text
    return SseDecoder().feed(response.content)


def start(http: httpx.Client, program: str = PROGRAM) -> str:
    """Run a process to its end, and return its id."""
    found: str = http.post(f"{V1}/processes", json={"command": program}).json()["id"]
    http.post(f"{V1}/processes/{found}/wait", json={"for": "exit"}).raise_for_status()
    return found


def texts(events: list[SseEvent], field: str = "text") -> list[str]:
    """Return what output events say, by our names of the stream or by theirs."""
    found = [(event.event, json.loads(event.data)) for event in events]
    return [data[field] for name, data in found if "stdout" in (name, data.get("type"))]


def v1_exec(http: httpx.Client) -> list[str]:
    return texts(stream(http, "POST", f"{V1}/exec", json={"command": PROGRAM}))


def v1_logs(http: httpx.Client) -> list[str]:
    return texts(stream(http, "GET", f"{V1}/processes/{start(http)}/logs?follow=true"))


def v1_run(http: httpx.Client) -> list[str]:
    return texts(stream(http, "POST", f"{V1}/run", json={"code": WRITE.format(fd=1)}))


def container_exec(http: httpx.Client) -> list[str]:
    return texts(stream(http, "POST", f"{CONTAINER}/execute/stream", json={"command": PROGRAM}), "data")


def container_logs(http: httpx.Client) -> list[str]:
    return texts(stream(http, "GET", f"{CONTAINER}/process/{start(http)}/stream"), "data")


def container_code(http: httpx.Client) -> list[str]:
    return texts(stream(http, "POST", f"{CONTAINER}/execute/code", json={"code": WRITE.format(fd=1)}))


def bridge_exec(http: httpx.Client) -> list[str]:
    path = f"/cloudflare/v1/sandbox/{NAME}/exec"
    events = stream(http, "POST", path, json={"argv": ["sh", "-c", PROGRAM]})
    return [base64.b64decode(event.data).decode("utf-8", "replace") for event in events if event.event == "stdout"]


FACES = [v1_exec, v1_logs, v1_run, container_exec, container_logs, container_code, bridge_exec]


@pytest.mark.parametrize("face", FACES)
def test_every_event_is_whole_text(http: httpx.Client, face: Callable[[httpx.Client], list[str]]) -> None:
    assert "".join(face(http)) == TEXT


def test_the_bridge_gives_the_very_bytes(http: httpx.Client) -> None:
    """What never becomes a character is given all the same: at once where it is none, else at the end."""
    program = "import os\nfor piece in (b'a\\xc3', b'b\\xff', b'\\xf0\\x9f'): os.write(1, piece)\nos.write(2, b'\\xe6')"
    path = f"/cloudflare/v1/sandbox/{NAME}/exec"
    events = stream(http, "POST", path, json={"argv": ["python3", "-c", program]})
    data = {name: [base64.b64decode(one.data) for one in events if one.event == name] for name in ("stdout", "stderr")}
    assert b"".join(data["stdout"]) == b"a\xc3b\xff\xf0\x9f"
    assert data["stderr"] == [b"\xe6"]
    assert events[-1].event == "exit"


@pytest.mark.parametrize("what", ["process", "run"])
def test_who_comes_back_within_a_character_gets_its_rest(http: httpx.Client, what: str) -> None:
    if what == "process":
        path = f"{V1}/processes/{start(http)}/logs?follow=true"
    else:
        answer = http.post(f"{V1}/run", json={"code": WRITE.format(fd=1)})
        head = answer.headers
        path = f"{V1}/contexts/{head['Sandboxd-Context']}/runs/{head['Sandboxd-Run']}?"
    whole = stream(http, "GET", path)
    assert "".join(texts(whole)) == TEXT
    for position in range(1, int(whole[-1].id) + 1):
        before = "".join(texts([event for event in whole if int(event.id) < position]))
        assert before + "".join(texts(stream(http, "GET", f"{path}&from={position}"))) == TEXT


def test_what_a_running_process_has_said_so_far(http: httpx.Client) -> None:
    program = """python3 -c 'import os; os.write(1, b"ok \\xe6\\x97"); input()'"""
    made = http.post(f"{V1}/processes", json={"command": program, "stdin": True}).json()["id"]
    http.post(f"{V1}/processes/{made}/wait", json={"for": "log", "pattern": "ok"}).raise_for_status()
    for path in (f"{V1}/processes/{made}/logs", f"{CONTAINER}/process/{made}/logs"):
        assert http.get(path).json()["stdout"] == "ok "
    http.post(f"{V1}/processes/{made}/stdin/close").raise_for_status()
    http.post(f"{V1}/processes/{made}/wait", json={"for": "exit"}).raise_for_status()
    for path in (f"{V1}/processes/{made}/logs", f"{CONTAINER}/process/{made}/logs"):
        assert http.get(path).json()["stdout"] == "ok \N{REPLACEMENT CHARACTER}"
