"""Thousands of idle or slow connections without a token, on any listener, lock out nobody else."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from sandboxd import Sandbox
from sandboxd.api.http import server as api_server
from tests.support.daemon import Daemon
from tests.support.fake_daemon import TOKEN, FakeDaemon, daemon_in, eventually
from tests.support.previews import Visitor, start_service
from tests.support.rude import Rude

#: What each stranger says, and whether it ends its side then.
STRANGERS: dict[str, tuple[bytes, bool]] = {
    "idle": (b"", False),
    "a slow head": (b"GET /v1/health HTTP/1.1\r\nHost:", False),
    "a slow body": (b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", False),
    "slow chunks": (b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", False),
    "a slow body to what is open to all": (b"GET /v1/health HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{", False),
    "answered once": (b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n", False),
    "half a WebSocket": (b"GET /v1/sandboxes/x/pty HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n", False),
    "half-closed": (b"", True),
    "half-closed in its head": (b"GET / HTTP/1.1\r\nHost", True),
}
pytestmark = pytest.mark.slow
INFO = b"GET /v1/info HTTP/1.1\r\nHost: x\r\n"
AUTHORIZED = f"Authorization: Bearer {TOKEN}\r\n".encode()
BOUND = 20


@pytest.fixture(scope="module", autouse=True)
def unharmed() -> None:
    """Nothing here runs hostile code in a sandbox."""


@pytest.fixture
async def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeDaemon]:
    """A daemon whose listeners take few connections and wait for ever: only giving way makes room."""
    monkeypatch.setattr(api_server, "MAX_CONNECTIONS", BOUND)
    monkeypatch.setattr(api_server, "STRANGER_S", 3600)
    monkeypatch.setattr(api_server, "KEEP_ALIVE_S", 3600)
    async with daemon_in(tmp_path) as found:
        yield found


async def connect(daemon: FakeDaemon, door: str) -> trio.SocketStream:
    return await daemon.raw_connection() if door == "unix" else await trio.open_tcp_stream(*daemon.tcp)


async def ask(stream: trio.SocketStream, rows: bytes = b"") -> bytes:
    await stream.send_all(INFO + rows + b"\r\n")
    with trio.fail_after(30):
        return bytes(await stream.receive_some(65536))


@contextlib.asynccontextmanager
async def crowd(daemon: FakeDaemon, door: str, name: str, count: int) -> AsyncIterator[list[trio.SocketStream]]:
    said, ends = STRANGERS[name]
    streams = []
    try:
        for _ in range(count):
            stream = await connect(daemon, door)
            streams.append(stream)
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(said)
                if ends:
                    await stream.send_eof()
        yield streams
    finally:
        for stream in streams:
            await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("name", STRANGERS)
async def test_strangers_lock_out_nobody(full: FakeDaemon, name: str) -> None:
    async with crowd(full, "tcp", name, 3 * BOUND):
        for door, rows in (("tcp", AUTHORIZED), ("unix", b"")):
            stream = await connect(full, door)
            assert (await ask(stream, rows)).startswith(b"HTTP/1.1 200 ")
            await stream.aclose()
        assert full.server.statistics()["connections"] <= 2 * BOUND + 2
    await eventually(lambda: full.server.statistics()["connections"] <= 1)  # the fixture's own


@pytest.mark.parametrize("name", ["idle", "a slow head", "answered once", "half-closed"])
async def test_idle_callers_of_the_unix_socket_lock_out_nobody(full: FakeDaemon, name: str) -> None:
    async with crowd(full, "unix", name, 3 * BOUND):
        for door, rows in (("unix", b""), ("tcp", AUTHORIZED)):
            stream = await connect(full, door)
            assert (await ask(stream, rows)).startswith(b"HTTP/1.1 200 ")
            await stream.aclose()


async def test_who_has_shown_its_token_stays(full: FakeDaemon) -> None:
    known = await connect(full, "tcp")
    assert (await ask(known, AUTHORIZED)).startswith(b"HTTP/1.1 200 ")
    async with crowd(full, "tcp", "idle", 3 * BOUND) as strangers:
        assert (await ask(known, AUTHORIZED)).startswith(b"HTTP/1.1 200 ")
        with trio.fail_after(30):
            assert not await strangers[0].receive_some(1)  # the one that waited longest went
        assert (await ask(strangers[-1])).startswith(b"HTTP/1.1 401 ")  # the newest is there
    await known.aclose()


async def test_callers_alone_fill_their_listener_and_no_other(full: FakeDaemon) -> None:
    """Nobody gives way who has shown a token; others wait, and over the unix socket nothing is felt of it."""
    known = []
    for _ in range(BOUND):
        stream = await connect(full, "tcp")
        known.append(stream)
        assert (await ask(stream, AUTHORIZED)).startswith(b"HTTP/1.1 200 ")
    late = await connect(full, "tcp")
    unix = await connect(full, "unix")
    assert (await ask(unix)).startswith(b"HTTP/1.1 200 ")
    assert (await ask(known[0], AUTHORIZED)).startswith(b"HTTP/1.1 200 ")
    await known.pop().aclose()
    assert (await ask(late, AUTHORIZED)).startswith(b"HTTP/1.1 200 ")
    for stream in (*known, late, unix):
        await stream.aclose()


@pytest.mark.parametrize("name", [*STRANGERS, "a trickle", "answers that nobody reads"])
async def test_a_stranger_has_little_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(api_server, "STRANGER_S", 0.2)
    async with daemon_in(tmp_path) as daemon:
        known = await connect(daemon, "tcp")
        assert (await ask(known, AUTHORIZED)).startswith(b"HTTP/1.1 200 ")
        async with crowd(daemon, "tcp", name if name in STRANGERS else "idle", 1) as (stream,):
            with trio.fail_after(20), contextlib.suppress(trio.BrokenResourceError):
                if name == "a trickle":
                    while True:
                        await stream.send_all(b"G")
                        await trio.sleep(0.01)
                elif name == "answers that nobody reads":
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    while True:
                        await stream.send_all(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
                else:
                    while await stream.receive_some(65536):
                        pass
            await eventually(lambda: daemon.server.statistics()["connections"] <= 2)
        assert (await ask(known, AUTHORIZED)).startswith(b"HTTP/1.1 200 ")  # it has its time
        await known.aclose()


# --- the whole daemon ----------------------------------------------------------------------------------------------

#: Descriptors of the daemon under test: its bounds are parts of them.
DESCRIPTORS = 4096


class Small(Daemon):
    """A daemon that may have few descriptors."""

    def command(self) -> list[str]:
        return ["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}", *super().command()]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, tuple[str, int]]]:
    directory = tmp_path_factory.mktemp("a53")
    token = directory / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = probe.getsockname()
    options = ("--listen", f"{address[0]}:{address[1]}", "--token-file", str(token), "--preview-listen", "127.0.0.1:0")
    daemon = Small(directory / "d", options=options)
    daemon.start()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], min(before[1], 8192)), before[1]))
    yield daemon, address
    daemon.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.real
@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost:"], ids=["idle", "slow"])
@pytest.mark.parametrize("door", ["tcp", "previews", "unix"])
def test_thousands_on_any_listener(served: tuple[Daemon, tuple[str, int]], door: str, said: bytes) -> None:
    daemon, tcp = served
    with daemon.client() as client, Sandbox.create(client=client) as sandbox:
        start_service(sandbox, 8000)
        port = sandbox.expose_port(8000)
        listener = ("127.0.0.1", int(port.url.split(":")[2].rstrip("/")))
        address: Any = {"tcp": tcp, "previews": listener, "unix": str(daemon.socket)}[door]
        strangers = []
        try:
            for _ in range(1500):  # over every listener's bound, and all descriptors of the daemon at three listeners
                strangers.append(Rude(address))
                strangers[-1].send(said)
            with Rude(tcp) as holder:
                holder.ask("GET", "/v1/info", Authorization=f"Bearer {TOKEN}")
                assert holder.answer().status == 200
            with Rude(str(daemon.socket)) as root:
                root.ask("GET", "/v1/info")
                assert root.answer().status == 200
            with Visitor(port) as visitor:
                visitor.ask("/")
                assert visitor.answer()[0] == 200
            assert daemon.process
            assert len(os.listdir(f"/proc/{daemon.process.pid}/fd")) < DESCRIPTORS // 2
        finally:
            for stranger in strangers:
                stranger.socket.close()
