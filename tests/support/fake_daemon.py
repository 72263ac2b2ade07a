"""The whole daemon but its privileged half: real manager, API and server over a fake launcher."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import trio

from sandboxd.api.access import Caller, Policy
from sandboxd.api.app import Api
from sandboxd.api.call import DaemonFacts
from sandboxd.api.face import Face
from sandboxd.api.faces import FACES
from sandboxd.api.http.server import Server
from sandboxd.runtime.launcher import Launcher
from sandboxd.runtime.manager import Manager
from tests.support.asgi import StockServer
from tests.support.fake_peer import FakeInit, FakeLauncher

TOKEN = "correct-horse-battery"
#: Which server `daemon_in` runs: our own, or the stock one over ASGI. A fixture of the API's tests sets it.
SERVER: contextvars.ContextVar[str] = contextvars.ContextVar("server", default="own")


@dataclasses.dataclass
class FakeDaemon:
    """What a test gets: both halves, and clients of each door."""

    fake: FakeLauncher
    launcher: Launcher
    manager: Manager
    server: Any
    socket_path: Path
    tcp: tuple[str, int]
    client: httpx.AsyncClient
    registry_dir: Path

    @property
    def init(self) -> FakeInit:
        """The only init."""
        (init,) = self.fake.inits.values()
        return init

    async def create(self, **fields: Any) -> dict[str, Any]:
        """Create a sandbox over HTTP."""
        response = await self.client.post("/v1/sandboxes", json=fields)
        assert response.status_code == 201, response.text
        made: dict[str, Any] = response.json()
        return made

    async def raw_connection(self) -> trio.SocketStream:
        """Return a bare connection to the unix socket."""
        return await trio.open_unix_socket(str(self.socket_path))


@contextlib.asynccontextmanager
async def manager_of(directory: Path, fake: FakeLauncher | None = None) -> AsyncIterator[tuple[FakeLauncher, Manager]]:
    """Run a manager over a fake launcher."""
    links, registry, trees = directory / "links", directory / "registry", directory / "trees"
    for path in (links, registry, trees):
        path.mkdir(exist_ok=True)
    fake = fake or FakeLauncher(links, trees)
    ours, theirs = socket.socketpair()
    launcher = Launcher(ours)
    manager = Manager(launcher, registry, links)
    async with trio.open_nursery() as nursery:
        await nursery.start(fake.run, theirs)
        await nursery.start(manager.run)
        try:
            yield fake, manager
        finally:
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def daemon_in(
    directory: Path, *, policy: Policy | None = None, faces: tuple[Face, ...] = FACES
) -> AsyncIterator[FakeDaemon]:
    """Run the daemon over a fake launcher and connect a client."""
    path = directory / "api.sock"
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(path))
    unix.listen(64)
    tcp = socket.socket()
    tcp.bind(("127.0.0.1", 0))
    tcp.listen(64)
    address = tcp.getsockname()
    async with manager_of(directory) as (fake, manager), trio.open_nursery() as nursery:
        policy = policy or Policy(TOKEN, frozenset({os.geteuid()}), None)
        api = Api(manager, policy, DaemonFacts("0", {}), faces=faces)
        server: Any = (
            Server(api, [unix, tcp]) if SERVER.get() == "own" else StockServer(api, [unix, tcp], Caller(os.geteuid()))
        )
        await nursery.start(server.run)
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://sandboxd", timeout=20) as client:
            yield FakeDaemon(fake, manager.launcher, manager, server, path, address, client, directory / "registry")
        server.stop()
        nursery.cancel_scope.cancel()


async def eventually(predicate: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for what another task or a thread brings about, where no event tells of it."""
    with trio.fail_after(seconds):
        while not predicate():  # noqa: ASYNC110 - see above
            await trio.sleep(0.005)


def problem(response: httpx.Response) -> dict[str, Any]:
    """Return a response's problem object, after looking at its form."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    found: dict[str, Any] = json.loads(response.content)
    assert found["status"] == response.status_code
    assert {"type", "title", "detail", "kind"} <= set(found)
    return found
