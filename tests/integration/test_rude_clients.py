"""Slow and rude clients: nothing is lost, nothing grows, everybody is answered, and nobody else waits."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import resource
import socket
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from sandboxd import AsyncSandbox, Sandbox
from sandboxd.api.http import body as api_body
from sandboxd.api.http import server as api_server
from sandboxd.client import AsyncClient, Client
from tests.support import footprint
from tests.support.daemon import Daemon
from tests.support.fake_daemon import TOKEN, daemon_in
from tests.support.rude import Rude
from tests.support.waiting import SOON_S, wait_until

MIB = 1024 * 1024
#: What a stuck stream may hold in the daemon: the link's window and overdraft (2.5 MiB), one batch on its way to the
#: socket (as much again), and the pieces that Python keeps of each.
MAX_PER_STUCK_STREAM = 6 * MIB
FORMS = {"raw": "application/octet-stream", "sse": "text/event-stream", "json": "application/json"}

real = pytest.mark.real


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, tuple[str, int]]]:
    """A daemon that listens on TCP too."""
    directory = tmp_path_factory.mktemp("rude")
    token = directory / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = probe.getsockname()
    options = ("--listen", f"{address[0]}:{address[1]}", "--token-file", str(token))
    daemon = Daemon(directory, options=options)
    daemon.start()
    yield daemon, address
    daemon.close()


@pytest.fixture
def unix(served: tuple[Daemon, tuple[str, int]]) -> str:
    return str(served[0].socket)


@pytest.fixture
def client(served: tuple[Daemon, tuple[str, int]]) -> Iterator[Client]:
    with served[0].client() as client:
        yield client


@pytest.fixture
def sandbox(client: Client) -> Iterator[Sandbox]:
    with Sandbox.create(client=client) as sandbox:
        yield sandbox


def exec_path(sandbox: Sandbox) -> str:
    return f"/v1/sandboxes/{sandbox.id}/exec"


# --- slow readers ---------------------------------------------------------------------------------------------

NUMBERS = 6_000_000  # 47 MB of text


def raw_stdout(client: Rude) -> tuple[bytes, dict[str, Any]]:
    """Take a raw answer's stdout and exit event out of the connection."""
    content = client.answer().body
    digest = hashlib.sha256()
    at, end = 0, {}
    while at < len(content):
        kind, size = struct.unpack_from(">BI", content, at)
        piece = content[at + 5 : at + 5 + size]
        if kind == 1:
            digest.update(piece)
        else:
            end = json.loads(piece)
        at += 5 + size
    return digest.digest(), end


@real
@pytest.mark.slow
def test_a_slow_reader_makes_its_program_wait_and_loses_nothing(
    served: tuple[Daemon, tuple[str, int]], client: Client
) -> None:
    daemon = served[0]
    assert daemon.process
    with Sandbox.create(client=client) as sandbox, Sandbox.create(client=client) as other:
        latencies = {"before": [timed(other) for _ in range(40)]}
        memory = footprint.rss(daemon.process.pid)
        readers = [Rude(str(daemon.socket)) for _ in range(8)]
        for number, reader in enumerate(readers):
            command = f"echo $$ > /tmp/{number}; exec seq 1 {NUMBERS}"
            reader.ask("POST", exec_path(sandbox), {"command": command}, Accept=FORMS["raw"])
        written = [stuck(sandbox, number) for number in range(8)]
        grown = footprint.rss(daemon.process.pid) - memory
        latencies["same sandbox"] = [timed(sandbox) for _ in range(40)]
        latencies["another"] = [timed(other) for _ in range(40)]
        shown = [f"{name} {1000 * statistics.median(t):.1f}, {1000 * max(t):.1f} ms" for name, t in latencies.items()]
        print(
            f"8 slow readers: their programs wait after {min(written) / MIB:.1f} to {max(written) / MIB:.1f} MiB, the "
            f"daemon has grown by {grown / MIB:.1f} MiB; exec takes (median, worst of 40) {'; '.join(shown)}"
        )
        assert max(written) < 16 * MIB
        assert grown < len(readers) * MAX_PER_STUCK_STREAM
        for name in ("same sandbox", "another"):
            assert statistics.median(latencies[name]) < 5 * statistics.median(latencies["before"]) + 0.01
        expected = hashlib.sha256(b"".join(b"%d\n" % n for n in range(1, NUMBERS + 1))).digest()
        for reader in readers[:3]:
            digest, end = raw_stdout(reader)
            assert digest == expected
            assert end["exit_code"] == 0
        for reader in readers:
            reader.socket.close()
        wait_until(lambda: sandbox.exec("pgrep -c seq").exit_code == 1)


def timed(sandbox: Sandbox) -> float:
    began = time.perf_counter()
    sandbox.exec(["true"]).check()
    return time.perf_counter() - began


def stuck(sandbox: Sandbox, number: int) -> int:
    """Wait until that program is blocked in a write, seen from inside, and return how much it has written."""
    seen: list[str] = []

    def is_stuck() -> bool:
        line = sandbox.exec(f"p=$(cat /tmp/{number}); grep wchar /proc/$p/io; cut -d' ' -f3 /proc/$p/stat").stdout
        seen.append(line)
        return len(seen) > 8 and len(set(seen[-8:])) == 1 and line.split()[-1] == "S"

    wait_until(is_stuck)
    return int(seen[-1].split()[1])


@real
@pytest.mark.slow
def test_clients_that_never_read_do_not_hinder_others(served: tuple[Daemon, tuple[str, int]], client: Client) -> None:
    daemon = served[0]
    with Sandbox.create(client=client) as sandbox:
        mute = [Rude(str(daemon.socket)) for _ in range(12)]
        try:
            for number, rude in enumerate(mute):
                form = list(FORMS.values())[number % 3]
                rude.ask("POST", exec_path(sandbox), {"command": "head -c 6000000 /dev/zero"}, Accept=form)
            outputs: dict[int, str] = {}

            async def one(number: int, client: AsyncClient) -> None:
                async with AsyncSandbox.create(client=client) as other:
                    outputs[number] = (await other.exec(f"echo {number}")).stdout

            async def fifty() -> None:
                async with AsyncClient(daemon.url) as shared, trio.open_nursery() as nursery:
                    for number in range(50):
                        nursery.start_soon(one, number, shared)

            began = time.perf_counter()
            trio.run(fifty)
            print(f"50 beside 12 clients that never read: {time.perf_counter() - began:.2f} s")
            assert outputs == {number: f"{number}\n" for number in range(50)}
        finally:
            for rude in mute:
                rude.socket.close()


# --- clients that leave ---------------------------------------------------------------------------------------


def leave_behind(sandbox: Sandbox, unix: str, form: str, *, detach: bool, pipelined: bool = False) -> None:
    """Start a command, wait until it runs, and hang up without a word."""
    command = "mkfifo /tmp/go; read word < /tmp/go; echo $word > /tmp/word"
    with Rude(unix) as rude:
        rude.ask("POST", exec_path(sandbox), {"command": command, "detach": detach}, Accept=FORMS[form])
        if pipelined:
            rude.ask("GET", "/v1/health")
        wait_until(lambda: sandbox.exec("test -p /tmp/go").exit_code == 0)


@real
@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_client_that_leaves_ends_its_command(sandbox: Sandbox, unix: str, form: str, pipelined: bool) -> None:
    leave_behind(sandbox, unix, form, detach=False, pipelined=pipelined)
    wait_until(lambda: sandbox.exec("pgrep -f 'read wor[d]'").exit_code == 1)


@real
@pytest.mark.parametrize("form", FORMS)
def test_a_detached_command_goes_on_without_its_client(sandbox: Sandbox, unix: str, form: str) -> None:
    leave_behind(sandbox, unix, form, detach=True)
    sandbox.exec("echo on > /tmp/go", timeout=10).check()
    wait_until(lambda: sandbox.exec("cat /tmp/word").stdout == "on\n")


# --- orphans --------------------------------------------------------------------------------------------------


@real
def test_orphans_are_killed_however_they_hide(sandbox: Sandbox) -> None:
    hide = "import os\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0: os.execvp('sleep', ['sleep', '7001'])"
    result = sandbox.exec(["python3", "-c", hide])
    assert result.exit_code == 0
    wait_until(lambda: sandbox.exec("pgrep -f '^sleep 7001'").exit_code == 1)


@real
def test_orphans_are_kept_on_demand_and_go_with_the_sandbox(sandbox: Sandbox) -> None:
    began = time.perf_counter()
    assert sandbox.exec("setsid sleep 7002 & echo up", keep_orphans=True).stdout == "up\n"
    assert time.perf_counter() - began < 60  # it holds the pipes, and nobody waits for it
    assert sandbox.exec("true").exit_code == 0
    assert sandbox.exec("pgrep -fc '^sleep 7002'").stdout == "1\n"


@real
def test_who_closes_its_pipes_early_is_not_cut_off(sandbox: Sandbox) -> None:
    """A command ends with its main process, not with its output."""
    result = sandbox.exec("exec >&- 2>&-; sleep 0.3; touch /tmp/late")
    assert result.exit_code == 0
    assert result.duration_s >= 0.3
    assert sandbox.exec("test -e /tmp/late").exit_code == 0


# --- many connections, many requests --------------------------------------------------------------------------


@real
@pytest.mark.slow
def test_a_thousand_idle_connections(served: tuple[Daemon, tuple[str, int]], client: Client, sandbox: Sandbox) -> None:
    daemon = served[0]
    assert daemon.process
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    path = f"/proc/{daemon.process.pid}/fd"
    before, memory = len(os.listdir(path)), footprint.rss(daemon.process.pid)
    idle = []
    try:
        idle = [Rude(str(daemon.socket)) for _ in range(1000)]
        for rude in idle[::2]:
            rude.send(b"GET /v1/health HTTP/1.1\r\nHost:")  # half a request is idle too
        wait_until(lambda: client.health() or len(os.listdir(path)) >= before + 1000)
        took = [timed(sandbox) for _ in range(40)]
        grown = footprint.rss(daemon.process.pid) - memory
        print(
            f"beside 1,000 idle connections exec takes {1000 * statistics.median(took):.1f} ms (median), "
            f"{1000 * max(took):.1f} ms (worst of 40); each holds {grown / 1000 / 1024:.0f} KiB"
        )
        assert statistics.median(took) < 0.25
        assert grown < 1000 * 128 * 1024
    finally:
        for rude in idle:
            rude.socket.close()
    wait_until(lambda: client.health() or len(os.listdir(path)) <= before + 2)


@real
def test_pipelined_requests_are_answered_in_order(sandbox: Sandbox, unix: str) -> None:
    with Rude(unix) as rude:
        for number in range(30):
            if number % 3 == 0:
                rude.ask("POST", exec_path(sandbox), {"command": f"sleep 0.01; echo {number}"})
            else:
                rude.ask("GET", f"/v1/nothing/{number}")
        for number in range(30):
            answer = rude.answer()
            if number % 3 == 0:
                assert json.loads(answer.body)["stdout"] == f"{number}\n"
            else:
                assert answer.problem["path"] == f"/v1/nothing/{number}"


@real
def test_more_requests_than_are_read_ahead_wait_their_turn(sandbox: Sandbox, unix: str) -> None:
    """What is behind a silent command is read up to a bound; the rest waits in the kernel, and nothing is lost."""
    with Rude(unix) as rude:
        rude.ask("POST", exec_path(sandbox), {"command": "mkfifo /tmp/go; read word < /tmp/go; echo $word"})
        padding = "x" * 30_000
        writer = threading.Thread(target=lambda: [rude.ask("GET", "/v1/health", X_Padding=padding) for _ in range(40)])
        writer.start()
        wait_until(lambda: sandbox.exec("test -p /tmp/go").exit_code == 0)
        sandbox.exec("echo on > /tmp/go", timeout=10).check()
        assert json.loads(rude.answer().body)["stdout"] == "on\n"
        assert [rude.answer().status for _ in range(40)] == [200] * 40
        writer.join(10)


@real
def test_many_writers_to_one_stdin_wait_for_each_other(sandbox: Sandbox, client: Client) -> None:
    """Pieces of one request stay together, and none is refused because others wait."""
    size, writers = 300_000, 24
    with sandbox.exec_stream("sleep 0.2; cat", stdin=True, timeout=30) as stream:
        process = stream.process_id

        async def write(letter: int, client: AsyncClient) -> None:
            transport_path = f"/v1/sandboxes/{sandbox.id}/processes/{process}/stdin"
            response = await client._http.post(transport_path, content=bytes([65 + letter]) * size, timeout=60)
            assert response.status_code == 204, response.text

        async def all_of_them() -> None:
            async with AsyncClient(client.address.url) as other, trio.open_nursery() as nursery:
                for letter in range(writers):
                    nursery.start_soon(write, letter, other)

        thread = threading.Thread(target=trio.run, args=(all_of_them,))
        thread.start()
        pieces: list[bytes] = []
        for chunk in stream:
            pieces.append(chunk.data)
            if sum(map(len, pieces)) == size * writers:
                stream.close_stdin()
        thread.join(60)
    output = b"".join(pieces)
    assert {output.count(bytes([65 + letter])) for letter in range(writers)} == {size}


@real
def test_a_character_that_the_end_cut_does_not_hide_the_exit(sandbox: Sandbox, unix: str) -> None:
    """Whoever resumes after the last id that came must not miss the exit."""
    with Rude(unix) as rude:
        rude.ask("POST", exec_path(sandbox), {"command": r"printf 'a\342\202'"}, Accept=FORMS["sse"])
        events = rude.answer().body.decode().strip().split("\n\n")
    ids = [line for event in events for line in event.split("\n") if line.startswith("id:")]
    assert "\ufffd" in events[-2]
    assert "id:" not in events[-2]
    assert len(ids) == len(set(ids)) == len(events) - 1


# --- what is no request ---------------------------------------------------------------------------------------

HEAD = b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
TLS_HELLO = bytes.fromhex("16030100c8010000c403035cb4f1") + bytes(190)
BAD = {
    "no HTTP at all": (b"hello\r\n\r\n", 400, "invalid-request"),
    "HTTP/0.9": (b"GET /v1/health\r\n\r\n", 400, "invalid-request"),
    "HTTP/2 by prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 400, "invalid-request"),
    "a TLS client hello": (TLS_HELLO, 400, "invalid-request"),
    "a NUL in a header": (b"GET /v1/health HTTP/1.1\r\nHost: x\r\nX: \0\r\n\r\n", 400, "invalid-request"),
    "two lengths": (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}", 400, "invalid-request"),
    "a negative length": (HEAD + b"Content-Length: -1\r\n\r\n{}", 400, "invalid-request"),
    "an unknown transfer coding": (HEAD + b"Transfer-Encoding: zip\r\n\r\n{}", 400, "invalid-request"),
    "chunks of garbage": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n", 400, "invalid-request"),
    "a huge chunk extension": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 200_000 + b"\r\n{\r\n", 431, "header-too-large"
    ),
    "10 MB of one header": (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 10_000_000, 431, "header-too-large"),
    "10 MB of headers": (
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: 0123456789\r\n" * 666_666, 431, "header-too-large"
    ),
    "10 MB of request line": (b"GET /" + b"x" * 10_000_000, 431, "header-too-large"),
    "a body over the bound, told": (
        HEAD + b"Content-Length: 5000000\r\n\r\n" + b" " * 5_000_000, 413, "body-too-large",
    ),
    "a body over the bound, in chunks": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b" " * 65_536 + b"\r\n") * 80 + b"0\r\n\r\n",
        413, "body-too-large",
    ),
    "a websocket where there is none": (
        b"GET /v1/nothing HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OTAxMjM0NQ==\r\n\r\n", None, None,
    ),
}  # fmt: skip


@real
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("door", ["unix", "tcp"])
def test_what_is_no_request_is_answered(
    served: tuple[Daemon, tuple[str, int]], client: Client, name: str, door: str
) -> None:
    daemon, address = served
    data, status, kind = BAD[name]
    if door == "tcp":
        data = data.replace(b"Host: x\r\n", f"Host: x\r\nAuthorization: Bearer {TOKEN}\r\n".encode())
    with Rude(str(daemon.socket) if door == "unix" else address) as rude:
        rude.send(data)
        answer = rude.answer()
        assert 400 <= answer.status < 500
        if status:
            assert (answer.status, answer.problem["kind"]) == (status, kind)
        client.health()


@real
@pytest.mark.parametrize(
    "head",
    [
        b"GET http://anything/v1/health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        b"GET /v1/health HTTP/1.0\r\n\r\n",
    ],
    ids=["absolute form", "h2c", "HTTP/1.0"],
)
def test_what_is_odd_but_right_is_served(unix: str, head: bytes) -> None:
    with Rude(unix) as rude:
        rude.send(head)
        assert rude.answer().status == 200


@real
def test_a_client_that_asks_before_it_sends_is_told_to_go_on(unix: str) -> None:
    with Rude(unix) as rude:
        rude.send(HEAD + b"Content-Length: 13\r\nExpect: 100-continue\r\n\r\n")
        assert rude.receive().startswith(b"HTTP/1.1 100")
        rude.send(b'{"colour": 1}')
        assert rude.answer().problem["kind"] == "unknown-field"


@real
def test_what_a_client_is_told_comes_in_its_order(unix: str) -> None:
    """An answer that needs no body is ready while the word to go on is on its way."""
    for _ in range(40):  # which of two tasks runs first is trio's throw of the dice
        with Rude(unix) as rude:
            rude.send(b"POST /v1/nope HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
            told = b""
            while b"/v1/nope" not in told:
                told += rude.receive()
            assert told.startswith(b"HTTP/1.1 100"), told


@real
@pytest.mark.parametrize("sent", [b"GET", HEAD, HEAD + b"Content-Length: 100\r\n\r\n{", TLS_HELLO[:20]])
def test_whoever_hangs_up_in_the_middle_leaves_nothing(
    served: tuple[Daemon, tuple[str, int]], client: Client, sent: bytes
) -> None:
    daemon = served[0]
    assert daemon.process
    path = f"/proc/{daemon.process.pid}/fd"
    client.health()
    before = len(os.listdir(path))
    for _ in range(20):
        with Rude(str(daemon.socket)) as rude:
            rude.send(sent)
    wait_until(lambda: client.health() or len(os.listdir(path)) <= before)
    assert Sandbox.list(client=client) == []


# --- what takes its time: the real API and server over a fake launcher, with short times ----------------------


@pytest.mark.parametrize(
    "sent", [b"GET /v1/hea", HEAD, HEAD + b"X: y"], ids=["half a line", "half a header", "half a field"]
)
async def test_a_header_that_does_not_end_is_given_up(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(api_server, "KEEP_ALIVE_S", 0.1)
    async with daemon_in(tmp_path) as daemon:
        stream = await daemon.raw_connection()
        async with stream:
            await stream.send_all(sent)
            with trio.fail_after(SOON_S):
                answer = await read_all(stream)
            assert answer.startswith(b"HTTP/1.1 408")
            assert b'"kind":"request-timeout"' in answer


async def test_an_idle_connection_is_closed_without_a_word(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_server, "KEEP_ALIVE_S", 0.1)
    async with daemon_in(tmp_path) as daemon:
        stream = await daemon.raw_connection()
        async with stream:
            with trio.fail_after(SOON_S):
                assert await read_all(stream) == b""


async def test_a_body_that_does_not_end_is_given_up(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_body, "JSON_IDLE_S", 0.1)
    async with daemon_in(tmp_path) as daemon:
        stream = await daemon.raw_connection()
        async with stream:
            await stream.send_all(HEAD + b'Content-Length: 100\r\n\r\n{"na')
            with trio.fail_after(SOON_S):
                answer = await read_all(stream)
            assert answer.startswith(b"HTTP/1.1 408")
            assert b'"kind":"request-timeout"' in answer
        assert daemon.fake.created == []


async def read_all(stream: trio.SocketStream) -> bytes:
    found = b""
    while data := await stream.receive_some(65_536):
        found += data
    return found
