"""A face that exists only here: its routes, its errors, its token, and the sandbox that a header names."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from quart_trio.wrappers import TrioResponse
from werkzeug.sansio.request import Request
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, RejectConnection, RejectData, TextMessage
from wsproto.events import Request as Handshake

from sandboxd.api import problems
from sandboxd.api.access import in_header
from sandboxd.api.call import Call, Last, answer, streamed
from sandboxd.api.face import Face
from sandboxd.api.faces import FACES, Faces
from sandboxd.api.problems import Told
from sandboxd.api.route import Route
from sandboxd.api.socket_call import SocketCall
from sandboxd.errors import Conflict
from sandboxd.runtime.sandbox import Sandbox
from tests.support.fake_daemon import TOKEN, FakeDaemon, daemon_in, eventually

KEY = {"X-API-Key": TOKEN}
CLOSED: list[str] = []


class Teapot(Exception):
    """An error that only this face has."""


def claim(request: Request) -> Mapping[str, Any] | None:
    """Claim what is sent to a host of our own; its first label, or a header, names the sandbox."""
    label, _, domain = request.headers.get("Host", "").partition(".")
    if domain != "tea.example":
        return None
    name = request.headers.get("X-Sandbox", label)
    return {"ref": name} if name != "www" else {}


def tell(error: Exception) -> Told:
    """Tell an error in one line of text."""
    if isinstance(error, Teapot):
        return Told("teapot", 418, b"short and stout", {"Content-Type": "text/plain"}, 4418)
    known = problems.known(error)
    return Told(known.kind, known.status, f"!{known.kind}".encode(), {"Content-Type": "text/plain"}, 4000)


async def show(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Tell which sandbox was meant."""
    return answer({"name": sandbox.spec.name, "caller": call.request.headers.get("X-API-Key") == TOKEN})


async def fail(call: Call, how: str) -> TrioResponse:
    """Fail in one of three ways."""
    raise {"teapot": Teapot(), "bug": RuntimeError("a secret"), "known": Conflict("cannot brew")}[how]


async def pour(call: Call) -> TrioResponse:
    """Stream until the caller leaves."""

    async def pieces() -> AsyncGenerator[bytes, None]:
        try:
            yield b"first"
            await trio.sleep_forever()
        finally:
            CLOSED.append("pour")

    return streamed(pieces(), 200, {"Content-Type": "text/plain"})


async def sip(call: Call) -> TrioResponse:
    """Stream two pieces."""

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"first "
        yield Last(b"last")

    return streamed(pieces(), 200, {"Content-Type": "text/plain"})


async def talk(call: SocketCall, sandbox: Sandbox) -> None:
    """Give each message back; fail at one."""
    if call.request.headers.get("X-Refuse"):
        raise Teapot
    await call.socket.accept()
    while True:
        said = await call.socket.receive()
        if said == "fail":
            raise Teapot
        await call.socket.send_json({"said": said, "to": sandbox.spec.name})


TEA = Face(
    name="tea",
    routes=(
        Route(name="tea.show", method="GET", path="/v1/sandboxes", handler=show),  # a path that /v1 has, too
        Route(name="tea.fail", method="POST", path="/fail/<how>", handler=fail),
        Route(name="tea.pour", method="GET", path="/pour", handler=pour),
        Route(name="tea.sip", method="GET", path="/sip", handler=sip),
        Route(name="tea.talk", method="GET", path="/talk", handler=talk, status=101, websocket=True),
    ),
    tell=tell,
    claim=claim,
    token=in_header("X-API-Key"),
)


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[FakeDaemon]:
    async with daemon_in(tmp_path, faces=(TEA, *FACES)) as found:
        await found.create(name="box")
        yield found


@contextlib.asynccontextmanager
async def client_of(
    daemon: FakeDaemon, host: str = "www.tea.example", headers: Mapping[str, str] = KEY
) -> AsyncIterator[httpx.AsyncClient]:
    address = f"http://{daemon.tcp[0]}:{daemon.tcp[1]}"
    async with httpx.AsyncClient(base_url=address, headers={"Host": host, **headers}) as client:
        yield client


async def test_a_host_or_a_header_names_the_sandbox(daemon: FakeDaemon) -> None:
    async with client_of(daemon, "box.tea.example") as client:
        found = await client.get("/v1/sandboxes")
        assert (found.status_code, found.json()) == (200, {"name": "box", "caller": True})
        missing = await client.get("/v1/sandboxes", headers={"X-Sandbox": "nobody"})
        assert (missing.status_code, missing.text) == (404, "!sandbox-not-found")
    async with client_of(daemon) as client:
        found = await client.get("/v1/sandboxes", headers={"X-Sandbox": "box"})
        assert found.json()["name"] == "box"
    assert daemon.manager.counters.answers["tea.show", 200] == 2
    assert daemon.manager.counters.answers["tea.show", 404] == 1


async def test_others_requests_are_still_theirs(daemon: FakeDaemon) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with client_of(daemon, "localhost", headers) as client:
        assert [one["name"] for one in (await client.get("/v1/sandboxes")).json()["items"]] == ["box"]
        assert (await client.get("/pour")).json()["kind"] == "route-not-found"
        assert (await client.get("/cloudflare/sandboxes/x/api/nothing")).json()["code"] == "UNKNOWN_ERROR"
        assert (await client.get("/v1/sandboxes", headers={"Authorization": "", **KEY})).status_code == 401


async def test_its_errors_have_its_form(daemon: FakeDaemon, caplog: pytest.LogCaptureFixture) -> None:
    async with client_of(daemon) as client:
        for method, path, status, text in (
            ("GET", "/nothing", 404, "!route-not-found"),
            ("DELETE", "/pour", 405, "!method-not-allowed"),
            ("GET", "/pour?x=1", 400, "!unknown-field"),
            ("GET", "/talk", 400, "!invalid-request"),
            ("POST", "/fail/known", 409, "!conflict"),
            ("POST", "/fail/teapot", 418, "short and stout"),
            ("POST", "/fail/bug", 500, "!internal-error"),
        ):
            found = await client.request(method, path)
            assert (found.status_code, found.text) == (status, text)
            assert found.headers["content-type"] == "text/plain"
    assert "a secret" in caplog.text
    assert daemon.manager.counters.answers["tea.fail", 500] == 1
    assert daemon.manager.counters.answers["none", 404] == 1


STRANGERS: list[dict[str, str]] = [{}, {"X-API-Key": "wrong"}, {"Authorization": f"Bearer {TOKEN}"}]


@pytest.mark.parametrize("headers", STRANGERS)
async def test_its_token_is_in_its_header_alone(daemon: FakeDaemon, headers: dict[str, str]) -> None:
    async with client_of(daemon, "box.tea.example", headers) as client:
        for path in ("/v1/sandboxes", "/nothing"):
            found = await client.get(path)
            assert (found.status_code, found.text) == (401, "!unauthenticated")


async def test_a_stream_is_closed_when_its_caller_leaves(daemon: FakeDaemon) -> None:
    CLOSED.clear()
    stream = await daemon.raw_connection()
    async with stream:
        await stream.send_all(b"GET /pour HTTP/1.1\r\nHost: www.tea.example\r\n\r\n")
        data = b""
        with trio.fail_after(5):
            while b"first" not in data:
                data += bytes(await stream.receive_some(65536))
        assert not CLOSED
    await eventually(lambda: CLOSED == ["pour"])


@pytest.mark.own_server
async def test_the_end_of_a_stream_goes_out_with_its_last_piece(daemon: FakeDaemon) -> None:
    stream = await daemon.raw_connection()
    async with stream:
        await stream.send_all(b"GET /sip HTTP/1.1\r\nHost: www.tea.example\r\n\r\n")
        data = b""
        with trio.fail_after(5):
            while b"last" not in data:
                data = bytes(await stream.receive_some(65536))
    assert data.endswith(b"4\r\nlast\r\n0\r\n\r\n")


async def handshake(
    daemon: FakeDaemon, path: str, headers: Mapping[str, str], *say: str
) -> AsyncIterator[tuple[int, bytes | str]]:
    """Open a WebSocket, say something, and give what comes: an answer that is none, texts, and how it is closed."""
    socket = WSConnection(ConnectionType.CLIENT)
    extra = [(name.encode(), value.encode()) for name, value in headers.items()]
    stream = await trio.open_tcp_stream(*daemon.tcp)
    async with stream:
        await stream.send_all(socket.send(Handshake(host="box.tea.example", target=path, extra_headers=extra)))
        status, refused = 0, b""
        with trio.fail_after(5):
            while True:
                for event in socket.events():
                    if isinstance(event, AcceptConnection):
                        for text in say:
                            await stream.send_all(socket.send(TextMessage(data=text)))
                    elif isinstance(event, RejectConnection):
                        status = event.status_code
                    elif isinstance(event, RejectData):
                        refused += event.data
                        if event.body_finished:
                            yield status, refused
                            return
                    elif isinstance(event, TextMessage):
                        yield 0, event.data
                    elif isinstance(event, CloseConnection):
                        yield event.code, event.reason or ""
                        return
                socket.receive_data(await stream.receive_some(65536) or None)


async def test_a_websocket_is_served_refused_and_closed_in_its_form(daemon: FakeDaemon) -> None:
    told = [one async for one in handshake(daemon, "/talk", KEY, "hello", "fail")]
    assert told == [(0, '{"said":"hello","to":"box"}'), (4418, "teapot")]
    for path, headers, refused in (
        ("/talk", {"X-Refuse": "1"}, (418, b"short and stout")),
        ("/talk?x=1", {}, (400, b"!unknown-field")),
        ("/nothing", {}, (404, b"!route-not-found")),
        ("/pour", {}, (400, b"!invalid-request")),
        ("/talk", {"X-Sandbox": "nobody"}, (404, b"!sandbox-not-found")),
    ):
        assert [one async for one in handshake(daemon, path, KEY | headers)] == [refused]
    for headers in STRANGERS:
        assert [one async for one in handshake(daemon, "/talk", headers)] == [(401, b"!unauthenticated")]


def test_two_routes_cannot_have_one_name() -> None:
    with pytest.raises(ValueError, match="one name"):
        Faces((TEA, TEA))
