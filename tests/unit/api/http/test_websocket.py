"""WebSockets over both servers: who is let in, what is refused, and clients that do not behave."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, Request, TextMessage
from wsproto.frame_protocol import CloseReason

from sandboxd.api.cloudflare import container_socket
from sandboxd.api.http import websocket
from sandboxd.api.v1 import terminals
from sandboxd.errors import RemoteProtocolError
from sandboxd.runtime.budget import FREE_BYTES
from sandboxd.wire.messages import Event, Reply
from tests.support.fake_daemon import TOKEN, FakeDaemon, daemon_in, eventually
from tests.support.fake_peer import Conversation, exit_data

PTY = "/v1/sandboxes/box/pty"
CLIENTS: list[Client] = []
HANDSHAKE = {
    "Host": "x",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
INFO = {
    "id": "p",
    "pid": 7,
    "running": True,
    "argv": ["sh"],
    "cwd": "/",
    "user": "root",
    "started_at": 1.0,
    "ended_at": None,
    "restarts": 0,
    "terminal": True,
    "result": None,
    "usage": {"cpu_s": 0.0, "memory_peak_bytes": None},
    "next": 1,
}


class Terminal:
    """A fake init's terminal: what it is asked, and how its viewers are fed."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self.typed = bytearray()
        self.sizes: list[tuple[int, int]] = []
        self.views: list[tuple[Conversation, Any]] = []
        self.started: list[dict[str, Any]] = []
        self.reads = True
        for name in ("start", "info", "follow", "view", "stdin", "resize", "redraw"):
            daemon.init.answers[name] = getattr(self, name)

    async def start(self, talk: Conversation, request: Any) -> None:
        self.started.append(request.params)
        await talk.send(Reply(request.id, {**INFO, "id": request.params["process"]}))

    async def info(self, talk: Conversation, request: Any) -> None:
        await talk.send(Reply(request.id, {**INFO, "id": request.params["process"]}))

    async def follow(self, talk: Conversation, request: Any) -> None:
        await talk.send(Event(request.id, 0, 1.0, "start", {"id": "p", "pid": 7}))
        await talk.send(Event(request.id, 1, 1.0, "stdout", b"before"))
        await talk.send(Reply(request.id, {"next": 2, "running": True}))

    async def view(self, talk: Conversation, request: Any) -> None:
        self.views.append((talk, request))
        await trio.sleep_forever()

    async def stdin(self, talk: Conversation, request: Any) -> None:
        if not self.reads:
            await trio.sleep_forever()
        self.typed += request.params["data"]
        await talk.send(Reply(request.id, {}))

    async def resize(self, talk: Conversation, request: Any) -> None:
        self.sizes.append((request.params["cols"], request.params["rows"]))
        await talk.send(Reply(request.id, {}))

    async def redraw(self, talk: Conversation, request: Any) -> None:
        await talk.send(Reply(request.id, {}))


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[FakeDaemon]:
    async with daemon_in(tmp_path) as found:
        await found.create(name="box")
        yield found
        for client in CLIENTS:
            await trio.aclose_forcefully(client.stream)
        CLIENTS.clear()


async def answer_to(stream: trio.abc.Stream, target: str = PTY, **changes: str | None) -> tuple[int, dict[str, Any]]:
    """Send a handshake with changes and return the status and problem that it is refused with."""
    headers = {name: value for name, value in {**HANDSHAKE, **changes}.items() if value is not None}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    await stream.send_all(f"GET {target} HTTP/1.1\r\n{head}\r\n".encode())
    data = b""
    async with stream:
        with trio.fail_after(10):
            while piece := await stream.receive_some(65536):
                data += piece
    head_bytes, _, body = data.partition(b"\r\n\r\n")
    return int(head_bytes.split()[1]), json.loads(body)


class Client:
    """A WebSocket client that shows every event."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        CLIENTS.append(self)
        self.stream = stream
        self.wire = WSConnection(ConnectionType.CLIENT)
        self.events: list[Any] = []

    async def open(self, target: str = PTY) -> Client:
        await self.stream.send_all(self.wire.send(Request(host="x", target=target)))
        assert isinstance(await self.next(), AcceptConnection)
        return self

    async def next(self) -> Any:
        with trio.fail_after(10):
            while not self.events:
                data = await self.stream.receive_some(65536)
                self.wire.receive_data(bytes(data) or None)
                self.events += self.wire.events()
                if not data and not self.events:
                    return None
        return self.events.pop(0)

    async def told(self) -> dict[str, Any]:
        event = await self.next()
        assert isinstance(event, TextMessage), event
        found: dict[str, Any] = json.loads(event.data)
        return found

    async def send(self, event: Any) -> None:
        await self.stream.send_all(self.wire.send(event))


@pytest.mark.own_server
@pytest.mark.parametrize(
    ("changes", "status", "kind"),
    [
        ({"Sec-WebSocket-Version": "8"}, 400, "invalid-request"),
        ({"Sec-WebSocket-Version": None}, 400, "invalid-request"),
        ({"Sec-WebSocket-Key": None}, 400, "invalid-request"),
        ({"Sec-WebSocket-Key": "short"}, 400, "invalid-request"),
        ({"Content-Length": "5"}, 400, "invalid-request"),
    ],
)
async def test_handshakes_that_are_none(
    daemon: FakeDaemon, changes: dict[str, str | None], status: int, kind: str
) -> None:
    found, problem = await answer_to(await daemon.raw_connection(), **changes)  # type: ignore[arg-type]
    assert (found, problem["kind"]) == (status, kind)


@pytest.mark.parametrize(
    ("target", "status", "kind", "field"),
    [
        ("/v1/nothing", 404, "route-not-found", None),
        ("/v1/health", 400, "invalid-request", None),
        ("/v1/sandboxes/nobody/pty", 404, "sandbox-not-found", None),
        (PTY + "?cols=0", 400, "invalid-request", "cols"),
        (PTY + "?cols=1000000000", 400, "invalid-request", "cols"),
        (PTY + "?rows=0&cols=80", 400, "invalid-request", "rows"),
        (PTY + "?rows=x", 400, "invalid-request", "rows"),
        (PTY + "?rows=24&rows=25", 400, "invalid-request", "rows"),
        (PTY + "?colour=1", 400, "unknown-field", "colour"),
        (PTY + "?process=p&command=x", 400, "invalid-request", "command"),
        (PTY + "?process=p&session=s", 400, "invalid-request", "session"),
        (PTY + "?process=../x", 400, "invalid-request", "process"),
        (PTY + "?id=/", 400, "invalid-request", "id"),
        (PTY + "?linger_s=-1", 400, "invalid-request", "linger_s"),
        (PTY + "?linger_s=nan", 400, "invalid-request", "linger_s"),
        (PTY + "?orphans=maybe", 400, "invalid-request", "orphans"),
        (PTY + "?umask=8", 400, "invalid-request", "umask"),
        (PTY + "?umask=22&session=s", 400, "invalid-request", "umask"),
        (PTY + "?process=p&umask=22", 400, "invalid-request", "umask"),
        (PTY + "?user=%00", 400, "invalid-request", "user"),
    ],
)
async def test_requests_that_are_refused(
    daemon: FakeDaemon, target: str, status: int, kind: str, field: str | None
) -> None:
    found, problem = await answer_to(await daemon.raw_connection(), target)
    assert (found, problem["kind"], problem.get("field")) == (status, kind, field)
    assert not daemon.init.asked("start")


async def test_tcp_needs_the_token(daemon: FakeDaemon) -> None:
    Terminal(daemon)
    for target in (PTY, "/v1/nothing", "/v1/health"):
        status, problem = await answer_to(await trio.open_tcp_stream(*daemon.tcp), target)
        if target != "/v1/health":  # which is everybody's, but no WebSocket
            assert (status, problem["kind"]) == (401, "unauthenticated")
    status, _ = await answer_to(await trio.open_tcp_stream(*daemon.tcp), Authorization="Bearer wrong")
    assert status == 401
    stream = await trio.open_tcp_stream(*daemon.tcp)
    head = "".join(f"{name}: {value}\r\n" for name, value in HANDSHAKE.items())
    await stream.send_all(f"GET {PTY} HTTP/1.1\r\n{head}Authorization: Bearer {TOKEN}\r\n\r\n".encode())
    with trio.fail_after(5):
        assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 101 ")
    await stream.aclose()


async def test_a_plain_request_is_told(daemon: FakeDaemon) -> None:
    response = await daemon.client.get(PTY)
    assert (response.status_code, response.json()["kind"]) == (400, "invalid-request")


async def test_a_terminal_is_shown_and_fed(daemon: FakeDaemon) -> None:
    terminal = Terminal(daemon)
    client = await Client(await daemon.raw_connection()).open(PTY + "?cols=100&rows=30&command=top&linger_s=7")
    (params,) = terminal.started
    assert (params["terminal"], params["linger_s"], params["argv"][-1]) == ([100, 30], 7.0, "top")
    assert (await client.told())["type"] == "start"
    shown = await client.next()
    assert shown.data == b"before"
    await client.send(BytesMessage(data=b"\x03"))
    await client.send(TextMessage(data='{"type": "resize", "cols": 5, "rows": 6}'))
    await client.send(Ping(b"x"))
    assert isinstance(await client.next(), Pong)
    await eventually(lambda: terminal.sizes == [(100, 30), (5, 6)] and terminal.typed == b"\x03")
    ((talk, request),) = terminal.views
    await talk.send(Event(request.id, 2, 1.0, "stdout", b"more"))
    assert (await client.next()).data == b"more"
    await client.stream.aclose()
    await eventually(talk.cancelled[request.id].is_set)


@pytest.mark.parametrize(
    "text",
    ["", "x", "[]", "3", "null", '{"type": "x"}', '{"type": "resize"}', '{"type": "resize", "cols": 0, "rows": 24}',
     '{"type": "resize", "cols": 80, "rows": 1000000000}', '{"type": "resize", "cols": 80.5, "rows": 24}',
     '{"type": "resize", "cols": true, "rows": 24}', '{"type": "resize", "cols": 8, "rows": 24, "x": 1}',
     "[" * 100_000],
)  # fmt: skip
async def test_messages_that_are_none_are_told_and_end_nothing(daemon: FakeDaemon, text: str) -> None:
    terminal = Terminal(daemon)
    client = await Client(await daemon.raw_connection()).open()
    assert (await client.told())["type"] == "start"
    await client.next()
    await client.send(TextMessage(data=text))
    told = await client.told()
    assert (told["type"], told["problem"]["kind"]) == ("error", "invalid-request")
    await client.send(BytesMessage(data=b"still here"))
    await eventually(lambda: terminal.typed == b"still here")
    assert terminal.sizes == []
    await client.stream.aclose()


async def test_a_message_over_the_bound_ends_the_connection(daemon: FakeDaemon) -> None:
    Terminal(daemon)
    client = await Client(await daemon.raw_connection()).open()
    await client.told()
    await client.next()
    await client.send(BytesMessage(data=b"x" * websocket.MAX_MESSAGE_BYTES, message_finished=False))
    await client.send(BytesMessage(data=b"x"))
    event = await client.next()
    assert isinstance(event, CloseConnection)
    assert event.code == 1009


@pytest.mark.parametrize(
    "garbage",
    [b"\xff" * 100, b"\x81\x05hello", b"\x83\x80\0\0\0\0", b"GET / HTTP/1.1\r\n\r\n", b"\x81\x82\0\0\0\0\xff\xff"],
)
async def test_what_is_no_websocket_ends_the_connection_alone(daemon: FakeDaemon, garbage: bytes) -> None:
    terminal = Terminal(daemon)
    client = await Client(await daemon.raw_connection()).open()
    await client.told()
    await client.next()
    await eventually(lambda: bool(terminal.views))
    await client.stream.send_all(garbage)
    ((talk, request),) = terminal.views
    with trio.fail_after(10):
        while await client.stream.receive_some(65536):
            pass
    await eventually(talk.cancelled[request.id].is_set)
    assert (await daemon.client.get("/v1/sandboxes/box")).status_code == 200


@pytest.mark.own_server
async def test_messages_sent_before_the_answer_are_not_lost(daemon: FakeDaemon) -> None:
    terminal = Terminal(daemon)
    client = Client(await daemon.raw_connection())
    frame = bytes([0x82, 0x82, 0, 0, 0, 0]) + b"hi"
    await client.stream.send_all(client.wire.send(Request(host="x", target=PTY)) + frame)
    await eventually(lambda: terminal.typed == b"hi")
    await client.stream.aclose()


@pytest.mark.own_server
async def test_a_client_that_sends_and_does_not_read_holds_its_own_connection_alone(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pings want answers: once those fill the socket, no more is read; and in the end it is dropped."""
    monkeypatch.setattr(websocket, "SEND_TIMEOUT_S", 0.5)
    terminal = Terminal(daemon)
    client = await Client(await daemon.raw_connection()).open()
    ping = bytes([0x89, 0xFD, 0, 0, 0, 0]) + b"p" * 125
    sent = 0
    with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
        while True:
            await client.stream.send_all(ping * 500)
            sent += len(ping) * 500
    assert sent < 8 << 20
    assert (await daemon.client.get("/v1/sandboxes/box")).status_code == 200
    await eventually(lambda: all(talk.cancelled[request.id].is_set() for talk, request in terminal.views))


async def test_a_program_that_reads_no_input_holds_its_viewer_for_a_while(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminals, "INPUT_TIMEOUT_S", 0.2)
    terminal = Terminal(daemon)
    terminal.reads = False
    client = await Client(await daemon.raw_connection()).open()
    await client.told()
    await client.next()
    await client.send(BytesMessage(data=b"x" * 100_000))
    for cols in (90, 91):
        await client.send(TextMessage(data=json.dumps({"type": "resize", "cols": cols, "rows": 30})))
        await eventually(lambda cols=cols: terminal.sizes[-1:] == [(cols, 30)])  # type: ignore[misc]
    monkeypatch.setattr(terminals, "MAX_UNREAD_BYTES", 50_000)
    await client.send(BytesMessage(data=b"x"))
    event = await client.next()
    assert isinstance(event, CloseConnection)
    assert event.code == 1013


def test_keys_are_bounded_as_a_paste_is() -> None:
    """Each costs the daemon more than its byte."""
    typed = terminals.Typed()
    count = 0
    while typed.has_room:
        typed.put(b"x")
        count += 1
    assert count < terminals.MAX_UNREAD_BYTES / 200


async def test_a_slow_viewer_is_told_of_its_gap_and_shown_the_screen_anew(daemon: FakeDaemon) -> None:
    terminal = Terminal(daemon)
    client = await Client(await daemon.raw_connection()).open()
    await client.told()
    await client.next()
    await eventually(lambda: bool(terminal.views))
    talk, request = terminal.views[0]
    await talk.send(Event(request.id, 5, 1.0, "truncated", {"dropped_bytes": 99}))
    told = await client.told()
    assert (told["type"], told["dropped_bytes"]) == ("truncated", 99)
    assert (await client.next()).data == b"\x1bcbefore"
    await eventually(lambda: len(terminal.views) == 2)
    await client.stream.aclose()


async def test_a_stop_says_that_the_service_restarts(daemon: FakeDaemon) -> None:
    terminal = Terminal(daemon)
    client = await Client(await daemon.raw_connection()).open()
    await client.told()
    await client.next()
    await eventually(lambda: bool(terminal.views))
    daemon.manager.stop()
    assert (await client.told())["problem"]["kind"] == "server-busy"
    event = await client.next()
    assert isinstance(event, CloseConnection)
    assert event.code == 1012


async def test_an_init_that_lies_about_a_terminal_is_dropped(daemon: FakeDaemon) -> None:
    async def lie(talk: Conversation, request: Any) -> None:
        await talk.send(Reply(request.id, {**INFO, "id": "another"}))

    Terminal(daemon)
    daemon.init.answers["info"] = lie
    status, problem = await answer_to(await daemon.raw_connection(), PTY + "?process=p")
    assert (status, problem["kind"]) == (409, "sandbox-failed")
    assert issubclass(RemoteProtocolError, Exception)


# --- the client's goodbye (RFC 6455, 5.5.1) -------------------------------------------------------------------------


async def goodbye(client: Client, close: CloseConnection) -> CloseConnection:
    """Send a goodbye and return the answer, whatever comes before it; the connection must end after it."""
    await client.send(close)
    with trio.fail_after(10):
        while not isinstance(event := await client.next(), CloseConnection):
            assert event is not None, "the connection ended without a goodbye"
        with contextlib.suppress(trio.BrokenResourceError):
            assert not await client.stream.receive_some(1)
    return event


async def opened(daemon: FakeDaemon, terminal: Terminal) -> Client:
    client = await Client(await daemon.raw_connection()).open()
    await client.told()
    await client.next()
    await eventually(lambda: bool(terminal.views))
    return client


@pytest.mark.parametrize(
    ("close", "code"),
    [
        (CloseConnection(code=1000), 1000),
        (CloseConnection(code=1000, reason="bye"), 1000),
        (CloseConnection(code=4321, reason="x" * 123), 4321),
        (CloseConnection(code=CloseReason.NO_STATUS_RCVD), 1005),
    ],
)
async def test_a_goodbye_is_answered_with_its_code(daemon: FakeDaemon, close: CloseConnection, code: int) -> None:
    terminal = Terminal(daemon)
    client = await opened(daemon, terminal)
    assert (await goodbye(client, close)).code == code
    ((talk, request),) = terminal.views
    await eventually(talk.cancelled[request.id].is_set)


@pytest.mark.parametrize("size", [1, websocket.MAX_MESSAGE_BYTES, 3 * websocket.MAX_MESSAGE_BYTES])
async def test_a_goodbye_behind_a_paste_that_nobody_reads_is_answered(
    daemon: FakeDaemon, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT_S", 0.2)
    terminal = Terminal(daemon)
    terminal.reads = False
    client = await opened(daemon, terminal)
    for _ in range(0, size, websocket.MAX_MESSAGE_BYTES):
        await client.send(BytesMessage(data=b"x" * min(size, websocket.MAX_MESSAGE_BYTES)))
    await client.send(Ping(b"there?"))
    with trio.fail_after(10):
        assert isinstance(await client.next(), Pong)
    await goodbye(client, CloseConnection(code=1000))
    ((talk, request),) = terminal.views
    await eventually(talk.cancelled[request.id].is_set, 10)  # its viewer is gone, though its program has not read


async def test_what_came_before_a_goodbye_is_typed(daemon: FakeDaemon) -> None:
    terminal = Terminal(daemon)
    client = await opened(daemon, terminal)
    messages = b"".join(client.wire.send(BytesMessage(data=b"%03d" % number)) for number in range(300))
    await client.stream.send_all(messages)
    await goodbye(client, CloseConnection(code=1000))
    await eventually(lambda: terminal.typed == b"".join(b"%03d" % number for number in range(300)))


async def test_a_goodbye_in_the_middle_of_a_message_is_answered(daemon: FakeDaemon) -> None:
    client = await opened(daemon, Terminal(daemon))
    await client.send(BytesMessage(data=b"x", message_finished=False))
    await goodbye(client, CloseConnection(code=1000))


async def test_a_goodbye_under_a_flood_is_answered(daemon: FakeDaemon) -> None:
    """The client takes nothing until it has said goodbye: the handler waits in the middle of a frame."""
    terminal = Terminal(daemon)
    client = await opened(daemon, terminal)
    talk, request = terminal.views[0]
    async with trio.open_nursery() as nursery:

        async def flood() -> None:
            for offset in range(2, 200):
                await talk.event(request, offset, "stdout", bytes(256 * 1024))

        nursery.start_soon(flood)
        stuck = 0
        while stuck != (stuck := talk.sent_bytes) or not stuck:  # noqa: ASYNC110 - nothing tells that all buffers are full
            await trio.sleep(0.05)
        assert isinstance(await goodbye(client, CloseConnection(code=1000)), CloseConnection)
        nursery.cancel_scope.cancel()
    await eventually(talk.cancelled[request.id].is_set)


@pytest.mark.parametrize("number", range(8))
async def test_goodbyes_that_cross_leave_a_whole_connection(daemon: FakeDaemon, number: int) -> None:
    """The program ends while the client says goodbye, and while it pings: each side hears one goodbye."""
    terminal = Terminal(daemon)
    client = await opened(daemon, terminal)
    talk, request = terminal.views[0]
    exited = Event(request.id, 2, 1.0, "exit", exit_data())
    frames = client.wire.send(Ping(b"x" * 100)) * number + client.wire.send(CloseConnection(code=1000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.send, exited)
        nursery.start_soon(client.stream.send_all, frames)
    closes = 0
    with trio.fail_after(10):
        while (event := await client.next()) is not None:
            if isinstance(event, CloseConnection):
                closes += event.code == 1000
                break
    assert closes == 1
    await trio.aclose_forcefully(client.stream)


@pytest.mark.own_server
async def test_a_message_over_the_bound_leaves_time_for_a_goodbye(daemon: FakeDaemon) -> None:
    """What is on its way behind it must not reset the connection under our goodbye."""
    client = await opened(daemon, Terminal(daemon))
    await client.send(BytesMessage(data=b"x" * websocket.MAX_MESSAGE_BYTES, message_finished=False))
    for _ in range(64):
        await client.send(BytesMessage(data=b"x" * 65536, message_finished=False))
    event = await client.next()
    assert isinstance(event, CloseConnection)
    assert event.code == 1009
    await client.send(event.response())
    with trio.fail_after(10):
        assert not await client.stream.receive_some(1)


async def test_the_containers_socket_answers_a_goodbye_under_its_requests(daemon: FakeDaemon) -> None:
    """Cloudflare's /ws, while one of its requests waits for an init that says nothing."""

    async def silent(talk: Conversation, request: Any) -> None:
        await trio.sleep_forever()

    daemon.init.answers["stat"] = silent
    client = await Client(await daemon.raw_connection()).open("/cloudflare/sandboxes/box/ws")
    asked = {"type": "request", "id": "1", "method": "POST", "path": "/api/execute", "body": {"command": "x"}}
    await client.send(TextMessage(data=json.dumps(asked)))
    await eventually(lambda: bool(daemon.init.requests))
    assert (await goodbye(client, CloseConnection(code=1001))).code == 1001


async def bash(talk: Conversation, request: Any) -> None:
    facts = {"type": "file", "size": 1, "mode": 0o755, "uid": 0, "gid": 0, "mtime": 1.0}
    await talk.reply(request, path=b"/bin/bash", **facts)


async def large_answer(daemon: FakeDaemon) -> tuple[Client, str]:
    """Ask over Cloudflare's /ws for an answer that is made piece by piece; return its text with the client."""

    daemon.init.answers["stat"] = bash
    text = "é\n" * 1_000_000
    data = text.encode()
    daemon.init.script = [("stdout", data[at : at + 200_000]) for at in range(0, len(data), 200_000)]
    client = await Client(await daemon.raw_connection()).open("/cloudflare/sandboxes/box/ws")
    asked = {"type": "request", "id": "1", "method": "POST", "path": "/api/execute", "body": {"command": "x"}}
    await client.send(TextMessage(data=json.dumps(asked)))
    await eventually(lambda: daemon.manager.budget.held > 1_000_000)
    return client, text


async def test_an_answer_in_pieces_is_one_message_whatever_comes_meanwhile(daemon: FakeDaemon) -> None:
    client, text = await large_answer(daemon)
    await client.send(Ping(payload=b"still there?"))
    ping = {"type": "request", "id": "2", "method": "GET", "path": "/api/ping"}
    found: dict[str, Any] = {}
    parts: list[str] = []
    while len(found) < 2:
        event = await client.next()
        if isinstance(event, TextMessage) and not parts and not found:  # it is on its way
            for message in ({"type": "cancel", "id": "1"}, ping):
                await client.send(TextMessage(data=json.dumps(message)))
        if isinstance(event, TextMessage):
            parts.append(event.data)
            if event.message_finished:
                message = json.loads("".join(parts))
                found[message["id"]] = message
                parts.clear()
    assert found["1"]["body"]["stdout"] == text
    assert (found["1"]["status"], found["2"]["status"]) == (200, 200)
    await eventually(lambda: not daemon.manager.budget.held)


async def test_a_daemon_that_stops_does_not_wait_for_who_reads_no_answer(tmp_path: Path) -> None:
    with trio.fail_after(websocket.SEND_TIMEOUT_S / 2):
        async with daemon_in(tmp_path) as daemon:
            await daemon.create(name="box")
            client, _ = await large_answer(daemon)
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert not daemon.manager.budget.held
    await trio.aclose_forcefully(client.stream)


@pytest.mark.own_server
async def test_what_a_terminal_showed_before_is_held_until_its_viewer_has_it(daemon: FakeDaemon) -> None:
    terminal = Terminal(daemon)
    shown = b"x" * 400_000 + b"end"

    async def follow(talk: Conversation, request: Any) -> None:
        await talk.send(Event(request.id, 0, 1.0, "start", {"id": "p", "pid": 7}))
        for offset, start in enumerate(range(0, len(shown), 100_000), 1):
            await talk.send(Event(request.id, offset, 1.0, "stdout", shown[start : start + 100_000]))
        await talk.send(Reply(request.id, {"next": 6, "running": True}))

    daemon.init.answers["follow"] = follow
    client = await Client(await daemon.raw_connection()).open(PTY + "?process=p&fresh=true")
    await eventually(lambda: bool(terminal.views))
    assert daemon.manager.budget.held > len(shown) - 2 * FREE_BYTES
    got = b""
    while not got.endswith(b"end"):
        event = await client.next()
        got += event.data if isinstance(event, BytesMessage) else b""
    assert got == shown
    await eventually(lambda: not daemon.manager.budget.held)


async def test_bodies_of_the_containers_socket_are_bounded_together(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container_socket, "MAX_BODIES_BYTES", 20_000)
    begun: list[str] = []
    goes_on = trio.Event()

    async def execute(talk: Conversation, request: Any) -> None:
        begun.append(request.params["argv"][-1][:1])
        await goes_on.wait()
        await daemon.init.op_exec(talk, request)

    daemon.init.answers |= {"stat": bash, "exec": execute}
    client = await Client(await daemon.raw_connection()).open("/cloudflare/sandboxes/box/ws")
    for name in "abc":
        asked = {"type": "request", "id": name, "method": "POST", "path": "/api/execute"}
        await client.send(TextMessage(data=json.dumps({**asked, "body": {"command": name * 8_000}})))
    await eventually(lambda: len(begun) == 2)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert sorted(begun) == ["a", "b"]
    await client.send(Ping(payload=b"still there?"))
    assert isinstance(await client.next(), Pong)
    goes_on.set()
    assert {(await client.told())["id"] for _ in range(3)} == set("abc")
    assert len(begun) == 3


async def test_a_stream_of_large_events_over_the_containers_socket_may_be_cancelled_at_any_time(
    daemon: FakeDaemon,
) -> None:
    daemon.init.answers["stat"] = bash
    daemon.init.script = [("stdout", b"\x01" * 200_000)] * 20
    client = await Client(await daemon.raw_connection()).open("/cloudflare/sandboxes/box/ws")
    asked = {"type": "request", "id": "1", "method": "POST", "path": "/api/execute/stream", "body": {"command": "x"}}
    await client.send(TextMessage(data=json.dumps(asked)))
    found: list[dict[str, Any]] = []
    parts: list[str] = []
    is_cancelled = False
    while not found or found[-1]["id"] != "2":
        event = await client.next()
        assert isinstance(event, TextMessage)
        if not event.message_finished and not is_cancelled:
            is_cancelled = True
            ping = {"type": "request", "id": "2", "method": "GET", "path": "/api/ping"}
            for message in ({"type": "cancel", "id": "1"}, ping):
                await client.send(TextMessage(data=json.dumps(message)))
        parts.append(event.data)
        if event.message_finished:
            found.append(json.loads("".join(parts)))
            parts.clear()
    told = [json.loads(one["data"]) for one in found if one["type"] == "stream"]
    assert {one["type"] for one in told} <= {"start", "stdout"}
    assert all(set(one["data"]) == {"\x01"} for one in told if one["type"] == "stdout")
    assert len(told) < 20
    assert found[-1]["status"] == 200
