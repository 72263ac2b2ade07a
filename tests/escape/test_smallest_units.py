"""The smallest legal units, from strangers without a token, from services behind previews and from inits.

Every loop over such bytes lets the others run: each row feeds one of them, and the loop's thread must not work for
longer than the design allows between two checkpoints, nor a round of the loop while twenty do the same.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dns.message
import msgpack
import pytest
import trio

from sandboxd.git_spec import CloneSpec
from sandboxd.runtime.clone import Clone
from sandboxd.runtime.worker import Worker
from sandboxd.wire import worker as worker_frames
from sandboxd.wire.http_heads import MAX_FIELDS
from sandboxd.wire.messages import Event, Reply, Request
from tests.support.fake_daemon import TOKEN, FakeDaemon, daemon_in
from tests.support.fake_peer import Conversation, exit_data
from tests.support.previews.local import previews
from tests.support.steps import MAX_STEP_S, Steps, watched
from tests.unit.api.http.test_websocket import PTY, Client, Terminal
from tests.unit.runtime.test_resolver import resolving

#: Connections that do the same at once.
MANY = 20
CHUNKS = b"1\r\nx\r\n" * 12_000
FIELDS = b"a:b\r\n" * 12_800
FOLDED = b"a: b\r\n" + b" c\r\n" * 12_800
AUTHORIZED = f"Authorization: Bearer {TOKEN}\r\nConnection: close\r\n".encode()
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def check(steps: Steps) -> None:
    assert steps.count, "nothing was watched"
    assert steps.longest <= MAX_STEP_S, f"{steps.longest * 1000:.0f} ms in one step of {steps.where}"
    assert steps.longest_round <= MAX_STEP_S, f"{steps.longest_round * 1000:.0f} ms in one round"


async def say(address: tuple[str, int], data: bytes) -> bytes:
    """Send that over a new connection, whatever comes back meanwhile, and return what came to its end."""
    found = bytearray()
    async with await trio.open_tcp_stream(*address) as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(data)

        nursery.start_soon(send)
        with trio.fail_after(60), contextlib.suppress(trio.BrokenResourceError):
            while piece := await stream.receive_some(65536):
                found += piece
        nursery.cancel_scope.cancel()
    return bytes(found)


async def many(address: tuple[str, int], data: bytes, count: int = MANY) -> list[bytes]:
    answers: list[bytes] = []
    async with trio.open_nursery() as nursery:

        async def one() -> None:
            answers.append(await say(address, data))

        for _ in range(count):
            nursery.start_soon(one)
    return answers


@pytest.fixture(scope="module", autouse=True)
def unharmed() -> None:
    """Nothing here runs in a sandbox: there is no host and no neighbour to look at."""


# --- the API ----------------------------------------------------------------------------------------------------


def request(line: bytes, rows: bytes, rest: bytes = b"") -> bytes:
    return line + b" HTTP/1.1\r\nHost: x\r\n" + rows + b"\r\n" + rest


CREATE, HEALTH = b"POST /v1/sandboxes", b"GET /v1/health"
#: What is sent, and the status that each connection is answered with first.
API: dict[str, tuple[bytes, int]] = {
    "chunks of a stranger's": (request(CREATE, CHUNKED, CHUNKS), 401),
    "chunks to what is open to all": (request(HEALTH, CHUNKED, CHUNKS), 200),
    "chunks of a caller's": (request(CREATE, CHUNKED + AUTHORIZED, CHUNKS + b"0\r\n\r\n"), 400),
    "fields": (request(HEALTH, FIELDS), 431),
    "a few fields too many": (request(HEALTH, b"a:b\r\n" * MAX_FIELDS), 431),
    "fields without an end": (b"GET / HTTP/1.1\r\n" + FIELDS, 431),
    "folded lines": (request(HEALTH, FOLDED), 400),
    "fields of a trailer": (
        request(CREATE, CHUNKED + AUTHORIZED, b"1\r\nx\r\n0\r\n" + FIELDS + b"\r\n"),
        400,
    ),
    "requests": (request(HEALTH, b"") * 100 + request(HEALTH, b"Connection: close\r\n"), 200),
    "refused requests": (request(b"GET /v1/info", b"") * 2000, 401),
    "a long path": (request(b"GET " + b"/a" * 30_000, b""), 401),
    "one long field": (request(HEALTH, b"a: " + b" \t" * 30_000 + b"\x00\r\n"), 400),
}


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeDaemon]:
    async with daemon_in(tmp_path) as found:
        await found.create(name="box")
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("name", API)
async def test_the_api(fake: FakeDaemon, name: str) -> None:
    data, status = API[name]
    with watched() as steps:
        answers = await many(fake.tcp, data)
    assert {answer.split(b" ", 2)[1] for answer in answers} == {b"%d" % status}
    check(steps)
    assert (await fake.client.get("/v1/health")).status_code == 200


async def test_no_body_is_parsed_before_access(fake: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even chunks that are none: the answer to a stranger is 401 whatever follows, and the connection is closed."""
    for rest in (b"no chunk", CHUNKS, b"1\r\nx\r\n0\r\n" + FIELDS):
        for line in (CREATE, b"GET /v1/nothing", b"PUT /v1/sandboxes/box/files/content?path=/x"):
            answer = await say(fake.tcp, request(line, CHUNKED, rest))
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert b"connection: close" in answer.lower()
            assert answer.count(b"HTTP/1.1") == 1
    answer = await say(fake.tcp, request(b"HEAD /v1/info", b""))
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert answer.endswith(b"\r\n\r\n")
    # A body is asked for by no "100 Continue" either.
    answer = await say(fake.tcp, request(CREATE, b"Expect: 100-continue\r\nContent-Length: 5\r\n"))
    assert answer.startswith(b"HTTP/1.1 401 ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "frame", "count"),
    [
        ("fragments of one byte", bytes([0x00, 0x81, 0, 0, 0, 0]) + b"x", 100_000),
        ("empty fragments", bytes([0x00, 0x80, 0, 0, 0, 0]), 100_000),
        ("messages of one byte", bytes([0x82, 0x81, 0, 0, 0, 0]) + b"x", 3_000),
        ("pongs", bytes([0x8A, 0x80, 0, 0, 0, 0]), 100_000),
        ("pings", bytes([0x89, 0x80, 0, 0, 0, 0]), 5_000),
    ],
)
async def test_a_websocket(fake: FakeDaemon, name: str, frame: bytes, count: int) -> None:
    terminal = Terminal(fake)
    client = await Client(await fake.raw_connection()).open(PTY)
    is_fragment = not frame[0] & 0x0F
    first = bytes([0x02, 0x80, 0, 0, 0, 0]) if is_fragment else b""
    last = bytes([0x80 if is_fragment else 0x82, 0x84, 0, 0, 0, 0]) + b"last"
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            while await client.stream.receive_some(1 << 20):  # pongs, which would fill the socket
                pass

        nursery.start_soon(read)
        with watched() as steps, trio.fail_after(60):
            await client.stream.send_all(first + frame * count + last)
            while not terminal.typed.endswith(b"last"):  # noqa: ASYNC110 - nothing tells of it
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    check(steps)
    await trio.aclose_forcefully(client.stream)


# --- previews ---------------------------------------------------------------------------------------------------


#: What the service says once it has read something; and the status that its visitors see.
OK = b"HTTP/1.1 200 OK\r\n"
SERVICES: dict[str, tuple[bytes, int | None]] = {
    "chunks": (OK + CHUNKED + b"\r\n" + CHUNKS + b"0\r\n\r\n", 200),
    "informational responses": (b"HTTP/1.1 103 E\r\n\r\n" * 20_000 + OK + b"Content-Length: 0\r\n\r\n", 103),
    "full informational responses": ((b"HTTP/1.1 103 E\r\n" + b"a:b\r\n" * 100 + b"\r\n") * 300, 103),
    "fields": (OK + FIELDS + b"Content-Length: 0\r\n\r\n", 502),
    "folded lines": (OK + FOLDED + b"Content-Length: 0\r\n\r\n", 502),
    "fields of a trailer": (OK + CHUNKED + b"\r\n1\r\nx\r\n0\r\n" + FIELDS + b"\r\n", None),
    "a folded trailer": (OK + CHUNKED + b"\r\n1\r\nx\r\n0\r\n" + FOLDED + b"\r\n", None),
    "bytes to the end": (OK + b"\r\n" + bytes(1 << 20), 200),
    "a length": (OK + b"Content-Length: 1048576\r\n\r\n" + bytes(1 << 20), 200),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVICES)
async def test_a_service(name: str) -> None:
    said, status = SERVICES[name]
    async with previews(said) as (address, host):
        with watched() as steps:
            answers = await many(address, b"GET / HTTP/1.1\r\n" + host + b"Connection: close\r\n\r\n")
    if status is not None:
        assert {answer.split(b" ", 2)[1] for answer in answers} == {b"%d" % status}
    if status == 103:
        assert max(answer.count(b"HTTP/1.1 103") for answer in answers) <= 32
    check(steps)


#: What a visitor says behind the request line; HOST is the preview's own row.
VISITORS: dict[str, tuple[bytes, int]] = {
    "chunks": (b"POST / HTTP/1.1\r\nHOST" + CHUNKED + b"\r\n" + CHUNKS + b"0\r\n\r\n", 200),
    "fields": (b"GET / HTTP/1.1\r\nHOST" + FIELDS + b"\r\n", 431),
    "fields without an end": (b"GET / HTTP/1.1\r\nHOST" + FIELDS, 431),
    "folded lines": (b"GET / HTTP/1.1\r\nHOST" + FOLDED + b"\r\n", 400),
    "fields of a trailer": (b"POST / HTTP/1.1\r\nHOST" + CHUNKED + b"\r\n1\r\nx\r\n0\r\n" + FIELDS + b"\r\n", 400),
    "requests to nobody": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1500, 404),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VISITORS)
async def test_a_visitor(name: str) -> None:
    said, status = VISITORS[name]
    async with previews(OK + b"Content-Length: 0\r\nConnection: close\r\n\r\n") as (address, host):
        data = said.replace(b"HOST", host + b"Connection: close\r\n")
        if name == "requests to nobody":
            data += b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        with watched() as steps:
            answers = await many(address, data)
    assert {answer.split(b" ", 2)[1] for answer in answers} == {b"%d" % status}
    check(steps)


# --- inits, workers, clones ---------------------------------------------------------------------------------------

TINY_EVENTS = 14_000  # within a stream's credit


def flood(talk: Conversation, asked: Request) -> bytes:
    frames = [talk.wire.send(Event(asked.id, 0, 0.0, "start", {"id": asked.params["process"], "pid": 7}))]
    frames += [talk.wire.send(Event(asked.id, n, 0.0, "stdout", b"x")) for n in range(1, TINY_EVENTS)]
    frames.append(talk.wire.send(Event(asked.id, TINY_EVENTS, 0.0, "exit", exit_data())))
    frames.append(talk.wire.send(Reply(asked.id, {})))
    return b"".join(frames)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["text/event-stream", "application/octet-stream", "application/json"])
async def test_events_of_an_init(fake: FakeDaemon, form: str) -> None:
    """From the link through the answer: server-sent events, raw frames, JSON."""

    async def speak(talk: Conversation, asked: Request) -> None:
        await talk.send_bytes(flood(talk, asked))

    fake.init.answers["exec"] = speak
    with watched() as steps:
        answer = await fake.client.post(
            "/v1/sandboxes/box/exec", json={"command": "x"}, headers={"Accept": form}, timeout=60
        )
    assert answer.status_code == 200
    assert answer.content.count(b"x") >= TINY_EVENTS - 1
    check(steps)


async def test_bytes_of_an_init(fake: FakeDaemon) -> None:
    async def speak(talk: Conversation, asked: Request) -> None:
        for byte in flood(talk, asked)[:3000]:
            await talk.send_bytes(bytes([byte]))
        talk.stream.socket.close()

    fake.init.answers["exec"] = speak
    with watched() as steps:
        await fake.client.post("/v1/sandboxes/box/exec", json={"command": "x"}, timeout=60)
    check(steps)


class FakeLink:
    """Gives a worker one batch of events after the other."""

    def __init__(self, batches: list[list[Event]]) -> None:
        self.batches = batches

    def stream(self, op: str, params: dict[str, Any], *, fds: Any = ()) -> FakeLink:
        return self

    async def __aenter__(self) -> FakeLink:
        return self

    def close(self, *, cancel: bool = True) -> None:
        return

    async def next_batch(self) -> list[Event]:
        await trio.lowlevel.checkpoint()
        return self.batches.pop(0) if self.batches else []

    async def ask(self, op: str, /, **params: object) -> dict[str, Any]:
        return {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["many in one event", "one in many events", "bytes"])
async def test_frames_of_a_worker(name: str) -> None:
    body = msgpack.packb({"op": "clear", "run": 1, "wait": False})
    frame = struct.pack(">I", len(body)) + body
    pieces = {
        "many in one event": [frame * 9000] * 8,
        "one in many events": [frame] * 20_000,
        "bytes": [bytes([byte]) for byte in frame * 800],
    }[name]
    events = [Event(1, n, 0.0, "frame", piece) for n, piece in enumerate(pieces)]
    events.append(Event(1, len(events), 0.0, "exit", exit_data()))
    heard: list[worker_frames.Frame] = []
    listener: Any = SimpleNamespace(on_frame=heard.append, on_gone=lambda worker: None)
    link: Any = FakeLink([events[n : n + 512] for n in range(0, len(events), 512)])
    worker = Worker(link, "w", listener)
    with watched() as steps:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.serve, "context_start", {})
    assert (worker.violation, worker.failure) == (None, None)
    assert len(heard) == sum(map(len, pieces)) // len(frame)
    check(steps)


async def test_what_a_clone_tells() -> None:
    """git: the child that clones tells of its progress as often as it likes."""
    sandbox: Any = SimpleNamespace(spec=SimpleNamespace(cwd="/workspace"))
    clone = Clone(sandbox, CloneSpec(url="https://example.com/x.git"))
    progress = {"phase": "receiving", "done": 1, "total": 1, "received_bytes": 1}
    frames = [msgpack.packb(["progress", progress])] * 5000
    ends = {"branch": None, "commit": None, "objects": 1, "received_bytes": 1, "files": 1}
    frames.append(msgpack.packb(["end", ends]))
    given: list[int] = []
    link: Any = FakeLink([])
    await clone._child.start(lambda fds: given.extend(fds) or link, [])
    async with trio.lowlevel.FdStream(given[0]) as out, trio.open_nursery() as nursery:
        with watched() as steps:
            nursery.start_soon(clone.finish)
            await out.send_all(b"".join(struct.pack(">I", len(body)) + body for body in frames))
            with trio.fail_after(30):
                while clone.result is None:  # noqa: ASYNC110 - nothing tells of it
                    await trio.sleep(0.01)
    await clone._child.close_pipes()
    check(steps)


# --- names --------------------------------------------------------------------------------------------------------


def stuffed(count: int) -> bytes:
    """Return a question with as many records behind it as its bound allows."""
    question = dns.message.make_query("example.com", "A").to_wire()
    record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 0)
    return question[:10] + struct.pack(">H", count) + question[12:] + record * count


Ask = Callable[[Any], Awaitable[None]]


async def ask_tiny(under: Any) -> None:
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        await link.connect(under.address)
        for wire in [b"", b"x", bytes(12), stuffed(80)] * 300:
            await link.send(wire)
    await under.ask("example.com")


async def ask_for_much(under: Any) -> None:
    """A name whose owner packed 4,000 records into its answer."""

    def full(query: dns.message.Message) -> list[bytes]:
        head = struct.pack(">6H", query.id, 0x8180, 1, 4000, 0, 0)
        records = b"".join(b"\xc0\x0c" + struct.pack(">HHIHI", 1, 1, 60, 4, n + (8 << 24)) for n in range(4000))
        return [head + query.to_wire()[12:-11] + records]

    def cut(query: dns.message.Message) -> list[bytes]:
        reply = dns.message.make_response(query, recursion_available=True)
        reply.flags |= 0x0200
        return [reply.to_wire()]

    under.upstream.lie, under.upstream.over_tcp = cut, full
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(under.ask, "a." * 100 + "example.com")
    answer = await under.ask_over_tcp("example.com")
    assert sum(len(rrset) for rrset in answer.answer) == 64


@pytest.mark.slow
@pytest.mark.parametrize("ask", [ask_tiny, ask_for_much])
async def test_the_resolver(ask: Ask) -> None:
    async with resolving() as under:
        with watched() as steps:
            await ask(under)
    check(steps)
