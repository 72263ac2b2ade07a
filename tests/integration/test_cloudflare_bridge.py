"""Cloudflare's bridge API on a real daemon, over TCP with its key."""

from __future__ import annotations

import base64
import io
import json
import os
import pathlib
import socket
import tarfile
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Message, RejectConnection, Request, TextMessage

from tests.support.cloudflare_client import TOKEN
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def url(served: tuple[Daemon, str]) -> str:
    """What a caller gives as the worker's URL."""
    return f"{served[1]}/cloudflare"


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=f"{url}/v1", headers=headers, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def box(http: httpx.Client) -> Iterator[str]:
    """The path of a sandbox."""
    path = f"/sandbox/{http.post('/sandbox').json()['id']}"
    yield path
    assert http.delete(path).status_code == 204


def events(text: str) -> list[tuple[str, bytes]]:
    """Return the events of a stream, output decoded."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        data = fields["data"]
        is_output = fields["event"] in ("stdout", "stderr")
        found.append((fields["event"], base64.b64decode(data) if is_output else data.encode()))
    return found


def run(
    http: httpx.Client, box: str, *argv: str, session: str | None = None, **fields: Any
) -> tuple[bytes, bytes, int]:
    headers = {} if session is None else {"Session-Id": session}
    response = http.post(f"{box}/exec", json={"argv": argv, **fields}, headers=headers)
    assert response.status_code == 200, response.text
    *output, (last, end) = events(response.text)
    assert last == "exit"
    joined = {name: b"".join(data for kind, data in output if kind == name) for name in ("stdout", "stderr")}
    return joined["stdout"], joined["stderr"], json.loads(end)["exit_code"]


def refused(response: httpx.Response) -> tuple[int, str]:
    assert set(response.json()) == {"error", "code"}, response.text
    return response.status_code, response.json()["code"]


def test_who_may_call(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        assert client.get("/health").json() == {"ok": True}
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            for method, path in (("POST", "/v1/sandbox"), ("GET", "/v1/openapi.json"), ("GET", "/v1/pool/stats")):
                assert refused(client.request(method, path, headers=headers)) == (401, "unauthorized")


def test_a_sandbox_appears_on_first_use(http: httpx.Client) -> None:
    path = f"/sandbox/{http.post('/sandbox').json()['id']}"
    assert http.get(f"{path}/running").json() == {"running": False}
    assert run(http, path, "pwd") == (b"/workspace\n", b"", 0)
    assert http.get(f"{path}/running").json() == {"running": True}
    assert http.delete(path).status_code == 204
    assert http.get(f"{path}/running").json() == {"running": False}
    assert http.delete(path).status_code == 204


def test_commands(http: httpx.Client, box: str) -> None:
    assert run(http, box, "sh", "-c", "echo out; echo err >&2; exit 3") == (b"out\n", b"err\n", 3)
    data = bytes(range(256)) * 1000
    assert run(http, box, "python3", "-c", "import os; os.write(1, bytes(range(256)) * 1000)") == (data, b"", 0)
    assert run(http, box, "sh", "-c", "kill -TERM $$")[2] == 143
    assert run(http, box, "no-such-program")[2] == 127
    assert run(http, box, "pwd", cwd="/workspace") == (b"/workspace\n", b"", 0)
    out, note, code = run(http, box, "sh", "-c", "echo begun; sleep 100", timeout_ms=200)
    assert (out, code) == (b"begun\n", 124)
    assert b"200 ms" in note
    assert run(http, box, "sh", "-c", "sleep 100 & echo $! >pid") == (b"", b"", 0)
    assert run(http, box, "sh", "-c", "kill $(cat pid)") == (b"", b"", 0)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"argv": []}, 400),
        ({"argv": "ls"}, 400),
        ({"argv": ["a\0b"]}, 400),
        ({"argv": ["ls"], "timeout_ms": -1}, 400),
        ({"argv": ["ls"], "cwd": "/etc"}, 403),
        ({"argv": ["ls"], "cwd": "/workspace/../etc"}, 403),
        ({"argv": ["ls"], "cwd": "/workspace/none"}, 400),
    ],
)
def test_bad_commands(http: httpx.Client, box: str, body: dict[str, Any], status: int) -> None:
    assert refused(http.post(f"{box}/exec", json=body)) == (status, "invalid_request")


def test_bad_requests(http: httpx.Client, box: str) -> None:
    assert refused(http.post(f"{box}/exec", content=b"{")) == (400, "invalid_request")
    assert refused(http.post("/sandbox/UPPER/exec", json={"argv": ["ls"]})) == (400, "invalid_request")
    assert refused(http.get("/nothing")) == (404, "invalid_request")
    assert refused(http.put("/sandbox")) == (405, "invalid_request")
    for route in ("mount", "unmount"):
        assert refused(http.post(f"{box}/{route}", json={})) == (501, f"{route}_error")


def test_files(http: httpx.Client, box: str) -> None:
    data = os.urandom(300_000)
    assert http.put(f"{box}/file/workspace/a/b%20c.bin", content=data).json() == {"ok": True}
    found = http.get(f"{box}/file/workspace/a/b%20c.bin")
    assert (found.status_code, found.content) == (200, data)
    assert http.put(f"{box}/file/workspace/empty", content=b"").status_code == 200
    assert http.get(f"{box}/file/workspace/empty").content == b""
    assert refused(http.get(f"{box}/file/workspace/none")) == (404, "workspace_read_not_found")
    assert refused(http.get(f"{box}/file/workspace/a")) == (400, "invalid_request")
    for path in ("etc/passwd", "workspace/%2e%2e/etc/passwd", "workspacex/a"):
        assert refused(http.get(f"{box}/file/{path}")) == (403, "invalid_request")
        assert refused(http.put(f"{box}/file/{path}", content=b"x")) == (403, "invalid_request")


def test_persist_and_hydrate(http: httpx.Client, box: str) -> None:
    run(http, box, "sh", "-c", "rm -rf *; mkdir -p keep/sub drop 'odd [x]'; echo 1 >keep/sub/one; echo 2 >drop/two")
    run(http, box, "sh", "-c", "echo 3 >'odd [x]/y'; ln -s one keep/sub/link")
    tar = http.post(f"{box}/persist", params={"excludes": "drop,odd [x],none"})
    with tarfile.open(fileobj=io.BytesIO(tar.content)) as archive:
        found = {member.name.removeprefix("./") for member in archive}
    assert {"keep/sub/one", "keep/sub/link"} <= found
    assert not [name for name in found if name.startswith(("drop", "odd"))]
    other = f"/sandbox/{http.post('/sandbox').json()['id']}"
    assert http.post(f"{other}/hydrate", content=tar.content).json() == {"ok": True}
    assert run(http, other, "cat", "keep/sub/link")[0] == b"1\n"
    assert refused(http.post(f"{other}/hydrate", content=b"")) == (400, "invalid_request")
    assert refused(http.post(f"{other}/hydrate", content=b"no tar" * 1000))[0] == 400
    assert refused(http.post(f"{other}/persist", params={"excludes": "../etc"})) == (403, "invalid_request")
    http.delete(other)


def test_sessions(http: httpx.Client, box: str) -> None:
    made = http.post(f"{box}/session", json={"id": "work", "cwd": "/workspace", "env": {"A": "1"}})
    assert made.json() == {"id": "work"}
    assert refused(http.post(f"{box}/session", json={"id": "work"})) == (409, "session_error")
    run(http, box, "eval", "f() { echo f $A; }; cd /usr", session="work")
    assert run(http, box, "eval", "pwd; f; exit 4", session="work") == (b"/usr\nf 1\n", b"", 4)
    assert run(http, box, "eval", "B=2", session="made-by-use")[2] == 0
    assert run(http, box, "eval", "echo $B", session="made-by-use")[0] == b"2\n"
    gone = http.delete(f"{box}/session/work").json()
    assert (gone["success"], gone["sessionId"]) == (True, "work")
    assert refused(http.delete(f"{box}/session/work")) == (404, "session_error")
    assert refused(http.post(f"{box}/exec", json={"argv": ["ls"]}, headers={"Session-Id": "a..b"}))[0] == 400
    assert len(http.post(f"{box}/session").json()["id"]) > 5


def test_tunnels_are_previews(http: httpx.Client, box: str) -> None:
    run(http, box, "sh", "-c", "echo hello >index.html; python3 -m http.server 8000 >/dev/null 2>&1 &")
    made = http.post(f"{box}/tunnel/8000", json={"name": "web"}).json()
    assert (made["port"], made["name"]) == (8000, "web")
    assert http.post(f"{box}/tunnel/8000").json()["url"] == made["url"]
    ask = "import urllib.request as u; u.urlopen('http://localhost:8000')"
    run(http, box, "sh", "-c", f'until python3 -c "{ask}"; do :; done 2>/dev/null')
    host = made["hostname"]
    address = f"http://127.0.0.1:{host.rpartition(':')[2]}/index.html"
    assert httpx.get(address, headers={"Host": host}).text == "hello\n"
    for _ in range(2):
        assert http.delete(f"{box}/tunnel/8000").status_code == 204
    assert refused(http.post(f"{box}/tunnel/0")) == (400, "invalid_request")


def test_the_rest(http: httpx.Client, box: str) -> None:
    assert run(http, box, "true")[2] == 0
    stats = http.get("/pool/stats").json()
    assert stats["assigned"] == stats["total"] >= 1
    assert http.post("/pool/prime").json() == http.post("/pool/shutdown-prewarmed").json() == {"ok": True}
    document = http.get("/openapi.json").json()
    assert {"/v1/sandbox/{name}/exec", "/v1/sandbox/{name}/file/{path}", "/health"} <= set(document["paths"])
    body = document["paths"]["/v1/sandbox/{name}/exec"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"]["required"] == ["argv"]
    page = http.get("/openapi.html")
    assert "/cloudflare/v1/sandbox/{name}/exec" in page.text
    assert page.headers["content-type"] == "text/html; charset=utf-8"


#: What is no id of anything, as it is sent: control characters, slashes that are a name's, what is no UTF-8, too long.
NO_IDS = (
    "a%0A",
    "%0Aa",
    "a%0D",
    "a%00b",
    "a%1Bb",
    "a%7F",
    "a%2Fb",
    "%2F",
    "a%2fexec",
    "%C3%28",
    "%E6%97%A5",
    "a%20b",
    "x" * 999,
)


@pytest.mark.parametrize("wrong", NO_IDS)
def test_what_is_no_id_is_refused_as_one(http: httpx.Client, served: tuple[Daemon, str], box: str, wrong: str) -> None:
    """In a word about ids, and not as if there were no such route."""
    http.post(f"{box}/exec", json={"argv": ["true"]})  # it comes to be at its first use
    for method, path in (
        ("GET", f"/sandbox/{wrong}/running"),
        ("DELETE", f"/sandbox/{wrong}"),
        ("POST", f"/sandbox/{wrong}/exec"),
        ("DELETE", f"{box}/session/{wrong}"),
        ("DELETE", f"{box}/tunnel/{wrong}"),
    ):
        assert refused(http.request(method, path)) == (400, "invalid_request"), path
    terminal = Terminal(served[1], f"/cloudflare/v1/sandbox/{wrong}/pty")
    terminal.socket.close()
    assert terminal.status == 400
    for path in (f"/cloudflare/sandboxes/{wrong}/api/ping", f"/cloudflare/sandboxes/ok/api/process/{wrong}"):
        answer = http.get(served[1] + path)
        assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_FAILED"), path
    is_text = wrong != "%C3%28"  # what is no UTF-8 is refused before anybody looks at names
    for kind, status in (("processes", 400), ("sessions", 400), ("contexts", 404 if is_text else 400)):
        answer = http.get(f"{served[1]}/v1{box.replace('sandbox', 'sandboxes', 1)}/{kind}/{wrong}")
        assert answer.status_code == status
        assert answer.json()["kind"] != "route-not-found"
    shown = http.get(f"{served[1]}/v1/sandboxes/{wrong}").json()["kind"]
    assert shown == ("sandbox-not-found" if is_text else "invalid-request")


@pytest.mark.parametrize("name", ["a%0A", "%0Aa", "a%0Ab", "in%0A/a%2Fb%0D", "%20a%7F"])
def test_a_files_name_may_have_a_line_end(http: httpx.Client, box: str, name: str) -> None:
    path = f"{box}/file/workspace/{name}"
    assert http.put(path, content=b"found").status_code == 200
    assert http.get(path).content == b"found"
    assert run(http, box, "cat", httpx.URL(f"http://x/{name}").path.removeprefix("/"))[0] == b"found"


def test_it_works_over_the_unix_socket_too(daemon: Daemon) -> None:
    path = pathlib.Path(daemon.url.removeprefix("unix://"))
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://x/cloudflare/v1") as http:
        box = f"/sandbox/{http.post('/sandbox').json()['id']}"
        assert run(http, box, "echo", "hi") == (b"hi\n", b"", 0)
        http.delete(box)


class Terminal:
    """A WebSocket's client."""

    def __init__(self, url: str, path: str, token: str = TOKEN) -> None:
        address = url.removeprefix("http://")
        host, _, port = address.partition(":")
        self.socket = socket.create_connection((host, int(port)), 20)
        self.wire = WSConnection(ConnectionType.CLIENT)
        headers = [(b"authorization", f"Bearer {token}".encode())]
        self.send(Request(host=address, target=path, extra_headers=headers))
        self.events = self.receive()
        answer = next(self.events)
        self.status = answer.status_code if isinstance(answer, RejectConnection) else 101
        assert isinstance(answer, AcceptConnection | RejectConnection)

    def send(self, event: Any) -> None:
        self.socket.sendall(self.wire.send(event))

    def receive(self) -> Iterator[Any]:
        while data := self.socket.recv(65_536):
            self.wire.receive_data(data)
            yield from self.wire.events()

    def until(self, kind: str) -> tuple[bytes, dict[str, Any]]:
        """Return what is shown until that text frame, and the frame."""
        shown, text = b"", ""
        for event in self.events:
            if isinstance(event, BytesMessage):
                shown += bytes(event.data)
            elif isinstance(event, TextMessage):
                text += event.data
                if event.message_finished:
                    found, text = json.loads(text), ""
                    if found["type"] == kind:
                        return shown, found
        raise AssertionError(f"no {kind}: {shown!r}")


def test_terminals(served: tuple[Daemon, str], http: httpx.Client, box: str) -> None:
    path = f"/cloudflare/v1{box}/pty"
    first = Terminal(served[1], f"{path}?cols=100&rows=30")
    first.until("ready")
    first.send(Message(data=b"stty size; X=1; exit 5\n"))
    shown, ended = first.until("exit")
    assert b"30 100" in shown
    assert ended["code"] == 5
    own = Terminal(served[1], f"{path}?shell=/bin/sh")
    own.until("ready")
    own.send(Message(data=b'echo "[$X]"; exit\n'))
    assert b"[]" in own.until("exit")[0]  # each has its own, where no session is named
    shared = [Terminal(served[1], f"{path}?session=together")]
    shared[0].until("ready")
    shared[0].send(Message(data=b"echo $((40+2))before; touch /tmp/before\n"))
    assert run(http, box, "sh", "-c", "until [ -e /tmp/before ]; do sleep 0.02; done")[2] == 0
    shared.append(Terminal(served[1], f"{path}?session=together"))
    assert b"42before" in shared[1].until("ready")[0]  # what was there comes first
    shared[0].send(Message(data=b"echo $((40+2))together; exit\n"))
    for one in shared:
        assert b"42together" in one.until("exit")[0]
    bad, stranger = Terminal(served[1], f"{path}?cols=0"), Terminal(served[1], path, token="wrong")
    assert (bad.status, stranger.status) == (400, 401)
    for one in (first, own, *shared, bad, stranger):
        one.socket.close()
