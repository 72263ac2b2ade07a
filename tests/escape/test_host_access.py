"""Who on the host may reach what: `nobody` against the daemon's sockets, files and processes; TCP without a token."""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from sandboxd import Sandbox
from tests.escape.conftest import host_pid
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real

TRY = """
import os, socket, sys
def attempt(name, action):
    try:
        print(name, 'allowed', action())
    except OSError as error:
        print(name, 'blocked', error.strerror)
def connect(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
for path in sys.argv[1].split(','):
    attempt('list ' + path, lambda: os.listdir(path))
    attempt('write ' + path, lambda: os.mkdir(path + '/evil'))
for path in sys.argv[2].split(','):
    attempt('connect ' + path, lambda: connect(path))
for path in sys.argv[3].split(','):
    attempt('read ' + path, lambda: open(path, 'rb').read(1))
"""


@pytest.fixture(scope="module")
def reachable() -> Iterator[Daemon]:
    """A daemon whose directories lie where anybody may go, as installed ones do (pytest's are closed above)."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="sandboxd-access-"))
    directory.chmod(0o755)
    token = directory / "token"
    token.write_text("correct-horse-battery-staple")
    token.chmod(0o600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    daemon = Daemon(directory, options=("--listen", f"127.0.0.1:{port}", "--token-file", str(token)))
    daemon.start()
    daemon.port = port  # type: ignore[attr-defined]
    yield daemon
    daemon.close()
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def inhabited(reachable: Daemon) -> Iterator[Sandbox]:
    with reachable.client() as client, Sandbox.create(client=client, env={"SECRET": "s3cret"}) as sandbox:
        yield sandbox


def test_nobody_reaches_nothing(reachable: Daemon, inhabited: Sandbox) -> None:
    assert reachable.process
    state, runtime, pid = reachable.state_dir, reachable.runtime_dir, host_pid(reachable, inhabited)
    closed = [
        state / "pool",
        runtime / "pool",
        state / "records",
        state / "registry",
        runtime / "links",
        runtime / "stage",
        "/run/sandboxd-ids",
    ]
    sockets = [reachable.socket, runtime / "links" / f"{inhabited.id}.sock"]
    pids = (reachable.process.pid, reachable.launcher_pid(), pid)
    files = [state / "lock", state / "registry" / inhabited.id / "sandbox.json"]
    files += [pathlib.Path(f"/proc/{number}/{name}") for number in pids for name in ("environ", "mem", "maps")]
    lists = [",".join(map(str, paths)) for paths in (closed, sockets, files)]
    done = subprocess.run(
        [sys.executable, "-I", "-c", TRY, *lists],
        user=65534, group=65534, extra_groups=[], capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(closed) + len(sockets) + len(files)
    assert [line for line in lines if " blocked " not in line] == []


def test_modes_on_disk(reachable: Daemon, inhabited: Sandbox) -> None:
    for path in (reachable.state_dir, reachable.runtime_dir):
        for directory, _, files in os.walk(path):
            below = pathlib.Path(directory).relative_to(path).parts
            if below[:1] == ("pool",) and below != ("pool",):
                continue
            for name in files:
                facts = os.lstat(f"{directory}/{name}")
                assert not facts.st_mode & stat.S_IWOTH, f"{directory}/{name}"
                assert not facts.st_mode & (stat.S_ISUID | stat.S_ISGID), f"{directory}/{name}"
    assert (reachable.state_dir / "registry").stat().st_mode & 0o7777 == 0o700
    assert (reachable.runtime_dir / "links").stat().st_mode & 0o007 == 0
    assert reachable.socket.stat().st_mode & 0o7777 == 0o660
    link = reachable.runtime_dir / "links" / f"{inhabited.id}.sock"
    assert link.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "header",
    ["", "Authorization: Bearer wrong\r\n", "Authorization: Bearer \r\n", "Authorization: Basic x\r\n",
     "Authorization: Bearer correct-horse-battery-stapl\r\n", "Authorization: Bearer\r\n", "X-Real-IP: 127.0.0.1\r\n"],
)  # fmt: skip
def test_tcp_needs_the_token(reachable: Daemon, header: str) -> None:
    for path in ("/v1/sandboxes", "/v1/info", "//v1/sandboxes", "/v1/health/../sandboxes"):
        with socket.create_connection(("127.0.0.1", reachable.port), 5) as sock:  # type: ignore[attr-defined]
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{header}Connection: close\r\n\r\n".encode())
            status = sock.recv(4096).split(b" ", 2)[1]
        assert status in (b"401", b"404", b"400"), (path, status)


def test_no_listener_without_a_token(tmp_path: pathlib.Path) -> None:
    daemon = Daemon(tmp_path, options=("--listen", "127.0.0.1:0"))
    with pytest.raises(AssertionError, match="not ready"):
        daemon.start()
    assert daemon.process
    assert daemon.process.wait(10) != 0
