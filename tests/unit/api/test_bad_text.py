"""Text that no encoding has, and numbers that no float is, through every door: refused in that door's form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request, TextMessage

from sandboxd import errors
from sandboxd.api import jsontext, problems
from sandboxd.api.faces import FACES
from tests.support.fake_daemon import FakeDaemon, daemon_in

BOX = "/cloudflare/sandboxes/box"
BRIDGE = f"/cloudflare/v1/sandbox/{'a' * 26}"
#: What is no JSON that anybody can write down again; `@` is where a text or a value stands.
VALUES = {
    "high": rb'"\ud800"',
    "low": rb'"x\udfffy"',
    "swapped": rb'"\udc00\ud800"',
    "key": rb'{"\ud800": "x"}',
    "raw-surrogate": b'"\xed\xa0\x80"',
    "no-utf-8": b'"\xff"',
    "inf": b"1e999",
    "nan": b"NaN",
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "digits": b"1" * 5000,
}
BODIES = {
    ("POST", "/v1/sandboxes"): b'{"network":{"allow":[@]}}',
    ("PATCH", "/v1/sandboxes/box"): b'{"labels":{"a":@}}',
    ("POST", "/v1/sandboxes/box/exec"): b'{"command":@}',
    ("POST", "/v1/sandboxes/box/processes"): b'{"command":["x"],"env":{"A":@}}',
    ("POST", "/v1/sandboxes/box/files/mkdir"): b'{"path":@}',
    ("POST", "/v1/sandboxes/box/contexts"): b'{"env":{"A":@}}',
    ("POST", f"{BOX}/api/execute"): b'{"command":@}',
    ("POST", f"{BOX}/api/write"): b'{"path":"/a","content":@}',
    ("POST", f"{BOX}/api/session/create"): b'{"id":"s","env":{"A":@}}',
    ("POST", f"{BOX}/api/execute/code"): b'{"context_id":"c","code":@}',
    ("POST", f"{BRIDGE}/exec"): b'{"argv":[@]}',
    ("POST", f"{BRIDGE}/session"): b'{"cwd":@}',
}
TARGETS = [
    ("GET", "/v1/sandboxes/%ff"),
    ("GET", "/v1/sandboxes/box/files?path=/%ed%a0%80"),
    ("GET", "/v1/sandboxes?label=%ff"),
    ("GET", "/v1/%ff/nothing"),
    ("GET", f"{BOX}/api/process/%ed%a0%80"),
    ("GET", f"{BOX}/api/process/list?status=%ff"),
    ("GET", f"{BRIDGE}/file/%ff"),
    ("PUT", f"{BRIDGE}/file/x%ed%b2%80"),
    ("POST", f"{BRIDGE}/persist?excludes=%ff"),
]


@pytest.fixture
async def daemon(tmp_path: Path) -> Any:
    async with daemon_in(tmp_path) as found:
        await found.create(name="box")
        yield found


def check_form(path: str, response: httpx.Response) -> None:
    """A refusal has the form of its face, and says something."""
    assert response.status_code in (400, 422), (response.status_code, response.content[:200])
    shown = json.loads(response.content.decode())
    if path.startswith("/v1/"):
        assert response.headers["content-type"] == "application/problem+json"
        assert shown["kind"] == "invalid-request"
        assert shown["detail"]
    elif path.startswith("/cloudflare/v1/"):
        assert shown["code"] == "invalid_request"
        assert shown["error"]
    else:
        assert shown["code"] == "VALIDATION_FAILED"
        assert shown["message"]
        assert shown["httpStatus"] == 400


@pytest.mark.parametrize("door", BODIES, ids=lambda door: door[1])
async def test_a_body_that_cannot_be_written_down_is_refused(daemon: FakeDaemon, door: tuple[str, str]) -> None:
    for name, value in VALUES.items():
        body = BODIES[door].replace(b"@", value)
        response = await daemon.client.request(door[0], door[1], content=body)
        assert response.content, name
        check_form(door[1], response)
    assert not daemon.init.asked("exec")


@pytest.mark.parametrize(("method", "path"), TARGETS)
async def test_a_target_that_is_no_utf_8_is_refused(daemon: FakeDaemon, method: str, path: str) -> None:
    check_form(path, await daemon.client.request(method, path))


async def test_what_looks_like_them_is_taken(daemon: FakeDaemon) -> None:
    text = '"\\ud83d\\ude00 \\\\ud800 \\u0041 \U0001f600"'
    made = await daemon.client.post("/v1/sandboxes", content=f'{{"labels":{{"a":{text}}}}}'.encode())
    assert made.status_code == 201
    assert made.json()["labels"] == {"a": "\U0001f600 \\ud800 A \U0001f600"}
    found = await daemon.client.put(f"{BRIDGE}/file/workspace/%F0%9F%98%80%C3%A9", content=b"x")
    assert found.status_code == 200, found.text


@pytest.mark.parametrize("number", [b"1" * 400, b"-" + b"9" * 400])
async def test_a_number_of_400_digits_is_refused(daemon: FakeDaemon, number: bytes) -> None:
    for path, body in (
        ("/v1/sandboxes", b'{"limits":{"pids":@}}'),
        ("/v1/sandboxes", b'{"limits":{"cpus":@}}'),
        ("/v1/sandboxes/box/exec", b'{"command":"x","timeout_s":@}'),
        ("/v1/sandboxes/box/files/chown", b'{"path":"/a","user":@}'),
        ("/v1/sandboxes/box/files/chown", b'{"path":"/a","group":@}'),
        ("/v1/sandboxes/box/files/search", b'{"path":"/a","name":"x","limit":@}'),
        ("/v1/sandboxes/box/files/search", b'{"path":"/a","name":"x","timeout_s":@}'),
        ("/v1/sandboxes/box/processes", b'{"command":"x","pty":true,"rows":@}'),
        ("/v1/sandboxes/box/ports", b'{"port":@}'),
        ("/v1/sandboxes/box/contexts/c/complete", b'{"code":"x","cursor":@}'),
        ("/v1/sandboxes/box/git/clone", b'{"url":"https://x/y","depth":@}'),
        (f"{BOX}/api/git/checkout", b'{"repoUrl":"https://x/y","depth":@}'),
        (f"{BOX}/api/execute", b'{"command":"x","timeoutMs":@}'),
        (f"{BOX}/api/port-watch", b'{"port":@}'),
        (f"{BRIDGE}/exec", b'{"argv":["x"],"timeout_ms":@}'),
    ):
        response = await daemon.client.post(path, content=body.replace(b"@", number))
        assert 400 <= response.status_code < 500, (path, response.status_code)
        assert json.loads(response.content)
    response = await daemon.client.delete(f"{BOX}/api/process/p?signal={'9' * 5000}")
    assert response.status_code == 400, response.text


async def open_socket(daemon: FakeDaemon, target: str) -> tuple[trio.SocketStream, WSConnection]:
    """Open a WebSocket, and return its stream and wire; a refusal is answered as HTTP on the stream."""
    stream = await daemon.raw_connection()
    wire = WSConnection(ConnectionType.CLIENT)
    await stream.send_all(wire.send(Request(host="x", target=target)))
    return stream, wire


async def heard(stream: trio.SocketStream, wire: WSConnection) -> Any:
    """Return what comes next: a text message's object, or the handshake's acceptance."""
    with trio.fail_after(10):
        while True:
            for event in wire.events():
                return json.loads(event.data) if isinstance(event, TextMessage) else event
            wire.receive_data(await stream.receive_some(65536) or None)


async def test_a_message_of_a_websocket_is_read_by_the_same_parser(daemon: FakeDaemon) -> None:
    stream, wire = await open_socket(daemon, f"{BOX}/ws")
    async with stream:
        assert isinstance(await heard(stream, wire), AcceptConnection)
        for method, path, body in (
            ("POST", r"/api/\ud800", "null"),
            ("POST", "/api/execute", r'{"command":"\udc00"}'),
            ("POST", "/api/execute", r'{"command":"x","timeoutMs":1e999}'),
            ("POST", "/api/execute", "[" * 500 + "]" * 500),
            ("POST", "/api/execute", "[" * 5000 + "]" * 5000),
            ("GET", "/api/process/%ff", "null"),
            ("GET", "/api/process/list?status=%ed%a0%80", "null"),
        ):
            message = f'{{"type":"request","id":"1","method":"{method}","path":"{path}","body":{body}}}'
            await stream.send_all(wire.send(TextMessage(data=message)))
            answer = await heard(stream, wire)
            assert answer["status"] == 400, (path, answer)
        # The next one is answered as if nothing had been, by the unquoted path that HTTP would take.
        message = '{"type":"request","id":"2","method":"GET","path":"/api/%70ing"}'
        await stream.send_all(wire.send(TextMessage(data=message)))
        assert (await heard(stream, wire))["body"]["success"]


@pytest.mark.parametrize(
    "target",
    [
        "/v1/sandboxes/box/pty?command=%ff",
        "/v1/sandboxes/%ed%a0%80/pty",
        f"{BOX}/ws/pty?shell=%ff",
        f"{BRIDGE}/pty?session=%ed%a0%80",
    ],
)
async def test_a_handshake_is_refused_the_same_way(daemon: FakeDaemon, target: str) -> None:
    stream, _ = await open_socket(daemon, target)
    data = b""
    async with stream:
        with trio.fail_after(10):
            while piece := await stream.receive_some(65536):
                data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.split()[1] == b"400", head
    shown = json.loads(body.decode())
    assert shown.get("kind", shown.get("code")) in ("invalid-request", "VALIDATION_FAILED", "invalid_request")


def test_no_fact_breaks_an_error() -> None:
    odd = "a\ud800\udcffb"
    error = errors.InvalidRequest(f"cannot {odd}", field=odd, more={odd: [odd, 1]}, thing=object)
    shown = json.loads(problems.to_json(error).decode())
    assert shown["detail"] == "cannot a\ufffd\ufffdb"
    assert shown["more"] == {"a\ufffd\ufffdb": ["a\ufffd\ufffdb", 1]}
    for face in FACES:
        assert face.tell(error).status == 400
    assert json.loads(jsontext.encode({"a": odd})) == {"a": "a\ufffd\ufffdb"}
