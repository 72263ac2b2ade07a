"""Real daemons and real sandboxes."""

from __future__ import annotations

import os
import pathlib
import socket
from collections.abc import Callable, Iterator

import pytest

from sandboxd import Sandbox
from sandboxd.client import Client
from tests.support.cloudflare_client import TOKEN, Driver
from tests.support.daemon import ROOTFS_DIR, Daemon


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A real sandbox needs root and a rootfs; without them these tests say so instead of failing in the middle."""
    missing = None
    if os.geteuid() != 0:
        missing = "needs root"
    elif not pathlib.Path(ROOTFS_DIR, "default", "rootfs.json").exists():
        missing = f"needs the rootfs 'default' in {ROOTFS_DIR} (make rootfs)"
    for item in items:
        # Daemons that are killed and started again, and attacks: the full run has them.
        if "/escape/" in str(item.path) or item.path.stem in ("test_lifecycle", "test_crash_only", "test_rude_clients"):
            item.add_marker(pytest.mark.slow)
        if missing and item.get_closest_marker("real"):
            item.add_marker(pytest.mark.skip(reason=missing))


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests that do not kill it."""
    daemon = Daemon(tmp_path_factory.mktemp("d"))
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture
def own_daemon(tmp_path: pathlib.Path) -> Iterator[Daemon]:
    """A daemon of the test's own, to kill and restart."""
    daemon = Daemon(tmp_path)
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture
def forking(tmp_path: pathlib.Path) -> Iterator[Daemon]:
    """A daemon of the test's own where no process stands by for commands: what init holds can be counted."""
    daemon = Daemon(tmp_path, config={"standby_s": 0})
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with daemon.client() as client:
        yield client


@pytest.fixture
def sandbox(client: Client) -> Iterator[Sandbox]:
    """A fresh sandbox."""
    with Sandbox.create(client=client) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def shared(daemon: Daemon) -> Iterator[Sandbox]:
    """A sandbox for a module's tests that change nothing in it."""
    with daemon.client() as client, Sandbox.create(client=client) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def run(shared: Sandbox) -> Callable[[str], str]:
    """Run a shell line in the shared sandbox and return its output."""

    def run(line: str, **options: object) -> str:
        result = shared.exec(line, **options)  # type: ignore[arg-type]
        return (result.stdout + result.stderr).strip()

    return run


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, str]]:
    """A daemon that listens on TCP for a bearer token, and its URL."""
    directory = tmp_path_factory.mktemp("served")
    token = directory / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    options = ("--listen", address, "--token-file", str(token), "--preview-listen", "127.0.0.1:0")
    daemon = Daemon(directory / "d", options=options)
    daemon.start()
    yield daemon, f"http://{address}"
    daemon.close()


@pytest.fixture(scope="module")
def cf(served: tuple[Daemon, str], request: pytest.FixtureRequest) -> Iterator[Driver]:
    """The clients of Cloudflare's npm package, of one sandbox for the module."""
    name = request.module.__name__.rpartition(".")[2].removeprefix("test_").replace("_", "-")
    with Driver(served[1], TOKEN, name) as driver:
        yield driver
