"""Hostile repositories, servers and roots, and a real clone among them."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha1
from typing import Any

import pytest

from bench import git_history
from sandboxd import Client, Sandbox, errors
from tests.support.daemon import Daemon
from tests.support.git_hostile import PWNED, raw_repository, with_submodule, write_pack
from tests.support.git_server import HttpServer
from tests.support.netns import listen_in

pytestmark = pytest.mark.real

MIB = 1 << 20


@pytest.fixture
def server(daemon: Daemon, sandbox: Sandbox, tmp_path: pathlib.Path) -> Iterator[HttpServer]:
    """Serves `tmp_path` inside the sandbox."""
    with HttpServer(tmp_path, sock=listen_in(daemon, sandbox)) as server:
        yield server


def is_untouched(sandbox: Sandbox) -> None:
    """Nothing ran, nothing is left."""
    found = sandbox.exec("ls -A /workspace; ls /tmp; find / -xdev -name '.sandboxd-clone*'").stdout
    assert found == ""
    assert not pathlib.Path("/tmp/sandboxd-pwned").exists()


def a_hook(root: pathlib.Path) -> None:
    hooks = [(b"40000", b"hooks", [(b"100755", b"post-checkout", PWNED)])]
    raw_repository(root / "bad.git", [(b"40000", b".git", hooks)])


def a_short_name(root: pathlib.Path) -> None:
    raw_repository(root / "bad.git", [(b"40000", b"GIT~1", [(b"100644", b"config", b"[core]\nfsmonitor = id\n")])])


def an_ignorable_name(root: pathlib.Path) -> None:
    name = ".g\u200cit".encode()
    raw_repository(root / "bad.git", [(b"40000", name, [(b"100644", b"config", b"[core]\nfsmonitor = id\n")])])


def a_link_and_a_file_behind_it(root: pathlib.Path) -> None:
    raw_repository(
        root / "bad.git", [(b"120000", b"a", b"/etc"), (b"40000", b"a", [(b"100644", b"cron.evil", b"evil")])]
    )


def dots(root: pathlib.Path) -> None:
    raw_repository(root / "bad.git", [(b"40000", b"..", [(b"100644", b"evil", b"evil")])])


def a_bomb_of_trees(root: pathlib.Path) -> None:
    objects = []

    def add(kind: int, data: bytes) -> bytes:
        objects.append((kind, data))
        return sha1(b"%b %d\0" % ({1: b"commit", 2: b"tree", 3: b"blob"}[kind], len(data)) + data).digest()

    below, mode = add(3, b"boom"), b"100644"
    for _ in range(10):
        below = add(2, b"".join(mode + b" d%d\0" % number + below for number in range(10)))
        mode = b"40000"
    commit = add(1, b"tree %b\nauthor a <a> 0 +0000\ncommitter a <a> 0 +0000\n\nx\n" % below.hex().encode())
    write_pack(root / "bad.git", objects, commit.hex())


@pytest.mark.parametrize(
    "make", [a_hook, a_short_name, an_ignorable_name, a_link_and_a_file_behind_it, dots, a_bomb_of_trees]
)
def test_a_hostile_repository_is_refused(
    sandbox: Sandbox, server: HttpServer, tmp_path: pathlib.Path, make: Callable[[pathlib.Path], None]
) -> None:
    make(tmp_path)
    with pytest.raises(errors.GitError) as caught:
        sandbox.git_checkout(f"{server.url}/bad.git")
    assert caught.value.kind in ("git-refused", "git-protocol-error")
    is_untouched(sandbox)


@pytest.mark.parametrize(
    "address",
    ["-u./payload", "ext::sh -c touch% /tmp/sandboxd-pwned", "file:///etc", "/etc", "ssh://-oProxyCommand=x/y"],
)
def test_a_submodule_of_another_kind_is_refused(
    sandbox: Sandbox, server: HttpServer, tmp_path: pathlib.Path, address: str
) -> None:
    git_history.make(tmp_path / "history.git", files=3, commits=120)
    with_submodule(tmp_path, address)
    with pytest.raises(errors.GitRefused) as caught:
        sandbox.git_checkout(f"{server.url}/outer.git", submodules=True)
    assert caught.value.reason == "submodule-address"
    is_untouched(sandbox)


@pytest.mark.parametrize("url", ["ext::sh -c id", "-u./payload", "fd::17/a", "file://host/etc", "http://-x/a"])
def test_an_address_of_another_kind_is_refused(sandbox: Sandbox, url: str) -> None:
    with pytest.raises(errors.InvalidRequest):
        sandbox.git_checkout(url)


@pytest.mark.parametrize("to", ["http://169.254.169.254", "http://10.0.0.1", "http://[::ffff:169.254.169.254]"])
def test_a_redirection_leads_no_further_than_the_sandbox(sandbox: Sandbox, server: HttpServer, to: str) -> None:
    def answer(handler: Any) -> bool:
        handler.send_response(302)
        handler.send_header("Location", to + handler.path)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    server.answer = answer
    with pytest.raises(errors.GitUnreachable):
        sandbox.git_checkout(f"{server.url}/a.git", timeout=20)
    is_untouched(sandbox)


def test_the_hosts_files_are_no_repository(daemon: Daemon, sandbox: Sandbox, tmp_path: pathlib.Path) -> None:
    git_history.make(tmp_path / "history.git", files=3, commits=5)
    for path in (tmp_path / "history.git", daemon.state_dir, "/proc/1/root"):
        with pytest.raises(errors.GitError):
            sandbox.git_checkout(str(path), target_dir="x")
    is_untouched(sandbox)


def test_a_pack_bomb_meets_the_disk_limit(daemon: Daemon, client: Client, tmp_path: pathlib.Path) -> None:
    zeros = bytes(256 * MIB)
    raw_repository(tmp_path / "bomb.git", [(b"100644", b"zeros", zeros)])
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.pack")) < MIB
    with (
        Sandbox.create(client=client, limits={"disk_bytes": 64 * MIB}) as sandbox,
        HttpServer(tmp_path, sock=listen_in(daemon, sandbox)) as server,
    ):
        with pytest.raises(errors.QuotaExceeded):
            sandbox.git_checkout(f"{server.url}/bomb.git")
        is_untouched(sandbox)
        sandbox.write_file("/workspace/after", bytes(8 * MIB))  # its room is free again


def test_a_target_behind_a_link_stays_in_the_sandbox(
    sandbox: Sandbox, server: HttpServer, tmp_path: pathlib.Path
) -> None:
    git_history.make(tmp_path / "history.git", files=3, commits=5)
    sandbox.exec("ln -s /etc /workspace/etc; ln -s /proc/1/root/srv /workspace/root")
    before = set(os.listdir("/etc"))
    sandbox.git_checkout(f"{server.url}/history.git", target_dir="/workspace/etc/history")
    assert sandbox.exists("/etc/history/README.md")
    assert set(os.listdir("/etc")) == before


def test_nothing_of_the_sandboxs_is_loaded(
    daemon: Daemon, sandbox: Sandbox, server: HttpServer, tmp_path: pathlib.Path
) -> None:
    git_history.make(tmp_path / "history.git", files=3, commits=5)
    package = pathlib.Path(errors.__file__).parent
    evil = "import os; os.system('touch /tmp/evil'); raise SystemExit(9)\n"
    for path in (
        f"{package}/errors.py",
        f"{package}/templates/git/clone.py",
        "/usr/lib/python3.11/os.py",
        "/usr/lib/python3.11/encodings/idna.py",
        "/usr/lib/python3/dist-packages/sitecustomize.py",
    ):
        sandbox.write_file(path, evil)
    sandbox.exec(
        "for f in $(find / -xdev -name 'libnss_*' -o -xdev -name 'gconv-modules*' 2>/dev/null); do echo evil > $f;"
        "done;"
        "echo 'hosts: evil dns' > /etc/nsswitch.conf; cp /bin/true /usr/lib/libnss_evil.so.2;"
        "mkdir -p /usr/lib/ssl; printf 'openssl_conf = x\\n[x]\\nengines = y\\n' > /usr/lib/ssl/openssl.cnf;"
        "printf '[core]\\nfsmonitor = touch /tmp/evil\\n' > /root/.gitconfig"
    ).check()
    maps: list[str] = []

    def look(handler: Any) -> bool:
        if handler.command == "POST":
            for leaf in pathlib.Path(daemon.cgroup(), sandbox.id, "work").glob("_git*"):
                for pid in (leaf / "cgroup.procs").read_text().split():
                    maps.append(pathlib.Path("/proc", pid, "maps").read_text())
        return False

    server.answer = look
    url = server.url.replace("127.0.0.1", "localhost")
    assert sandbox.git_checkout(f"{url}/history.git").branch == "main"
    assert not sandbox.exists("/tmp/evil")
    assert maps
    devices = {line.split()[3] for text in maps for line in text.splitlines() if line.count("/")}
    inside = os.stat(f"/proc/{_init(daemon, sandbox)}/root/usr").st_dev
    assert f"{os.major(inside):02x}:{os.minor(inside):02x}" not in devices
    shutil.rmtree(tmp_path / "history.git")


def _init(daemon: Daemon, sandbox: Sandbox) -> int:
    return int(pathlib.Path(daemon.cgroup(), sandbox.id, "init", "cgroup.procs").read_text().split()[0])
