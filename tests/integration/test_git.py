"""Clones into real sandboxes, from C git's servers inside their networks."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from hashlib import sha1
from typing import Any

import pytest

from bench import git_history
from sandboxd import AsyncSandbox, Sandbox, errors
from sandboxd.client import AsyncClient, Client, GitProgress
from tests.support.daemon import Daemon
from tests.support.git_hostile import packed, raw_repository
from tests.support.git_server import GIT_ENV, HttpServer, git_daemon
from tests.support.netns import init_pid, listen_in

pytestmark = pytest.mark.real


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory with history.git."""
    root = tmp_path_factory.mktemp("repositories")
    git_history.make(root / "history.git", commits=2500)
    return root


@pytest.fixture
def server(daemon: Daemon, sandbox: Sandbox, served: pathlib.Path) -> Iterator[HttpServer]:
    """`git http-backend` inside the sandbox's network."""
    with HttpServer(served, sock=listen_in(daemon, sandbox)) as server:
        yield server


def head_of(served: pathlib.Path, name: str = "main") -> str:
    command = ["git", "-C", str(served / "history.git"), "rev-parse", name]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=GIT_ENV).stdout.strip()


def leftovers(sandbox: Sandbox) -> list[str]:
    """Return what clones have left: directories, and processes."""
    script = (
        "ls -A /workspace; find / -xdev -name '.sandboxd-clone*'; grep -l [s]andboxd.templates /proc/[0-9]*/cmdline"
    )
    return sandbox.exec(script).stdout.split()


def test_a_clone_over_http(sandbox: Sandbox, server: HttpServer, served: pathlib.Path) -> None:
    told: list[GitProgress] = []
    result = sandbox.git_checkout(f"{server.url}/history.git", on_progress=told.append)
    assert (result.target_dir, result.branch) == ("/workspace/history", "main")
    assert result.commit == head_of(served)
    assert sandbox.read_file("/workspace/history/README.md") == b"# A history\n"
    assert sandbox.exec("cd history && ls -l link.md && cat docs/* && wc -c < assets/large.bin").stdout.endswith(
        "link.md -> README.md\nGrüße\n300000\n"
    )
    phases = list(dict.fromkeys(one.phase for one in told))
    assert phases[0] == "connecting"
    assert phases[-3:] == ["receiving", "resolving", "checking-out"]
    assert told[-1].percent == 100
    assert max(one.received_bytes for one in told) == result.received_bytes > 300_000
    assert b"PRETTY_NAME" in sandbox.read_file("/etc/os-release")  # the root is the sandbox's, the clone's was too


def test_git_daemon_a_tag_and_a_folder(daemon: Daemon, sandbox: Sandbox, served: pathlib.Path) -> None:
    with git_daemon(served, sock=listen_in(daemon, sandbox)) as url:
        result = sandbox.git_checkout(f"{url}/history.git", branch="v1.2", target_dir="/srv/code/x", depth=1)
    assert (result.target_dir, result.branch, result.commit) == ("/srv/code/x", None, head_of(served, "v1.2^{commit}"))
    assert sandbox.exists("/srv/code/x/.git/shallow")


def test_a_path_of_the_sandbox(sandbox: Sandbox, served: pathlib.Path, server: HttpServer) -> None:
    first = sandbox.git_checkout(f"{server.url}/history.git", target_dir="one")
    second = sandbox.git_checkout("/workspace/one", target_dir="two")
    third = sandbox.git_checkout("file:///workspace/one/.git", target_dir="three", branch="main", depth=1)
    assert first.commit == second.commit == third.commit == head_of(served)
    with pytest.raises(errors.GitRepositoryNotFound):  # the host's directories are not the sandbox's
        sandbox.git_checkout(str(served / "history.git"), target_dir="four")


def test_the_api_as_it_is(client: Client, sandbox: Sandbox, server: HttpServer) -> None:
    path = f"/v1/sandboxes/{sandbox.id}/git/clone"
    answer = client._http.post(path, json={"url": f"{server.url}/history.git", "depth": 1}, timeout=60)
    assert answer.status_code == 200
    assert sorted(answer.json()) == ["branch", "commit", "files", "objects", "received_bytes", "target_dir"]
    events = client._http.post(
        path,
        json={"url": f"{server.url}/history.git", "target_dir": "b", "branch": "feature-y"},
        headers={"Accept": "text/event-stream"},
        timeout=60,
    ).text.split("\n\n")
    assert events[0].startswith("id: 0\nevent: progress\ndata: {")
    assert json.loads(events[0].split("data: ")[1])["phase"] == "connecting"
    assert events[-2].startswith("event: problem\n")
    problem = json.loads(events[-2].split("data: ")[1])
    assert (problem["status"], problem["kind"], problem["ref"]) == (404, "git-ref-not-found", "feature-y")
    assert "feature-x" in problem["suggestions"]
    again = client._http.post(path, json={"url": f"{server.url}/history.git"}, timeout=60)
    assert (again.status_code, again.json()["kind"]) == (409, "directory-not-empty")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"url": "ext::sh -c id"}, "url"),
        ({"url": "-u./payload"}, "url"),
        ({"url": "ftp://host/a"}, "url"),
        ({"url": "https://host"}, "url"),
        ({"url": "https:///a"}, "url"),
        ({"url": "https://-oProxy=x/a"}, "url"),
        ({"url": "relative/path"}, "url"),
        ({"url": "/a/../b"}, "url"),
        ({"url": "https://host/a\nb"}, "url"),
        ({"url": "https://host/a?x=1"}, "url"),
        ({"url": "https://h/" + "a" * 3000}, "url"),
        ({"url": "https://git.example/a%00b"}, "target_dir"),
        ({"url": "https://git.example/%2e%2e"}, "target_dir"),
        ({"branch": "-x"}, "branch"),
        ({"branch": "a b"}, "branch"),
        ({"branch": ""}, "branch"),
        ({"depth": 0}, "depth"),
        ({"target_dir": "/a/../b"}, "target_dir"),
        ({"target_dir": "../b"}, "target_dir"),
        ({"target_dir": "/"}, "target_dir"),
        ({"sparse": ["a/*"]}, "sparse"),
        ({"sparse": [".."]}, "sparse"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"username": "a:b"}, "username"),
        ({"token": "a", "password": "b"}, "token"),
        ({"token": "a\n"}, "password"),
        ({"url": "git://host/a", "username": "b"}, "username"),
    ],
)
def test_bad_input(client: Client, shared: Sandbox, fields: dict[str, Any], field: str) -> None:
    body = {"url": "https://git.example/a.git", **fields}
    answer = client._http.post(f"/v1/sandboxes/{shared.id}/git/clone", json=body)
    assert (answer.status_code, answer.json().get("field")) == (400, field)


@pytest.mark.parametrize("url", ["git@host:a/b.git", "ssh://git@host/a.git"])
def test_ssh_is_not_built(shared: Sandbox, url: str) -> None:
    with pytest.raises(errors.NotAvailable):
        shared.git_checkout(url)


SECRET = "sch1ffahrt-geheim"


def test_a_password_opens_and_stays_nowhere(
    daemon: Daemon, sandbox: Sandbox, served: pathlib.Path, server: HttpServer
) -> None:
    server.login = ("anne", SECRET)
    seen: list[str] = []

    def look(handler: Any) -> bool:
        """While the clone is under way: what can be seen of it, in the sandbox and on the host."""
        if handler.command == "POST":
            script = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ /proc/[0-9]*/comm 2>/dev/null | tr '\\0' '\\n'"
            seen.append(sandbox.exec(script).stdout)
            for process in pathlib.Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    seen.append((process / "cmdline").read_text(errors="replace"))
                    if (process / "cmdline").read_bytes().find(b"pytest") < 0:
                        seen.append((process / "environ").read_text(errors="replace"))
        return False

    server.answer = look
    url = server.url.replace("http://", "http://anne@")
    result = sandbox.git_checkout(f"{url}/history.git", password=SECRET)
    other = sandbox.git_checkout(server.url.replace("//", f"//anne:{SECRET}@") + "/history.git", target_dir="b")
    assert result.commit == other.commit
    assert seen
    assert not any(SECRET in text for text in seen)
    assert sandbox.exec(["grep", "-rl", SECRET, "/workspace", "/tmp", "/root"]).stdout == ""
    assert b"anne" not in sandbox.read_file("/workspace/b/.git/config")
    assert SECRET not in daemon.log.read_text()
    for password in (None, "wrong"):
        with pytest.raises(errors.GitAuthentication) as caught:
            sandbox.git_checkout(f"{url}/history.git", target_dir="c", password=password)
        assert caught.value.status == 422 or caught.value.facts["sent"] is True
    assert not sandbox.exists("/workspace/c")


def test_a_clone_is_the_sandboxes_users(daemon: Daemon, client: Client, served: pathlib.Path) -> None:
    with Sandbox.create(client=client, user="nobody") as sandbox:
        with HttpServer(served, sock=listen_in(daemon, sandbox)) as server:
            sandbox.git_checkout(f"{server.url}/history.git")
            with pytest.raises(errors.FilePermissionDenied):
                sandbox.git_checkout(f"{server.url}/history.git", target_dir="/usr/history")
        assert sandbox.exec("stat -c %U history history/README.md history/.git/index").stdout.split() == ["nobody"] * 3


def test_a_clone_under_the_strict_profile(daemon: Daemon, client: Client, served: pathlib.Path) -> None:
    with (
        Sandbox.create(client=client, seccomp="strict") as sandbox,
        HttpServer(served, sock=listen_in(daemon, sandbox)) as server,
    ):
        assert sandbox.git_checkout(f"{server.url}/history.git", submodules=True).commit == head_of(served)


def test_what_a_clone_is_inside(daemon: Daemon, sandbox: Sandbox, server: HttpServer) -> None:
    """Its powers, leaf and filter are those of any process of the sandbox."""
    facts: dict[str, str] = {}

    def look(handler: Any) -> bool:
        if handler.command == "POST" and not facts:
            leaves = pathlib.Path(daemon.cgroup(), sandbox.id, "work")
            (pid,) = [pid for leaf in leaves.glob("_git*") for pid in (leaf / "cgroup.procs").read_text().split()]
            status = pathlib.Path("/proc", pid, "status").read_text()
            pairs = (line.partition(":\t") for line in status.splitlines())
            facts.update({name: value for name, found, value in pairs if found})
            for name in ("net", "mnt", "pid", "user"):
                init = os.readlink(f"/proc/{init_pid(daemon, sandbox)}/ns/{name}")
                facts[name] = str(os.readlink(f"/proc/{pid}/ns/{name}") == init)
        return False

    server.answer = look
    sandbox.git_checkout(f"{server.url}/history.git")
    plain = sandbox.exec("cat /proc/self/status").stdout
    expected = dict(line.split(":\t", 1) for line in plain.splitlines() if ":\t" in line)
    for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"):
        assert facts[name] == expected[name], name
    assert [facts[name] for name in ("net", "mnt", "pid", "user")] == ["True"] * 4
    assert facts["Uid"].split()[0] != "0"  # the host's root it is not


def _authority(directory: pathlib.Path) -> ssl.SSLContext:
    """Make a certificate for localhost that is its own authority: cert.pem, and a server's context with it."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(directory / "key.pem"),
         "-out", str(directory / "cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    return context


def test_https_and_the_authorities_that_the_sandbox_trusts(
    daemon: Daemon, sandbox: Sandbox, served: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    context = _authority(tmp_path)
    with HttpServer(served, sock=listen_in(daemon, sandbox), tls=context, login=("anne", SECRET)) as server:
        url = f"https://localhost:{server.port}/history.git"
        with pytest.raises(errors.GitUnreachable) as caught:
            sandbox.git_checkout(url, username="anne", password=SECRET)
        assert caught.value.reason == "tls"
        assert server.hits == []
        authorities = sandbox.read_file("/etc/ssl/certs/ca-certificates.crt")
        sandbox.write_file("/etc/ssl/certs/ca-certificates.crt", authorities + (tmp_path / "cert.pem").read_bytes())
        assert sandbox.git_checkout(url, username="anne", token=SECRET).commit == head_of(served)


def test_a_small_sandbox_clones_within_its_memory(
    daemon: Daemon, client: Client, served: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    raw_repository(tmp_path / "large.git", [(b"100644", b"zeros", bytes(40 << 20)), (b"100644", b"x", b"x")])
    base = bytes(2 << 20)
    copies = b"\xf0" + (1 << 20).to_bytes(3, "little")  # 1 MiB of the base, again and again
    delta = b"\x80\x80\x80\x01" + b"\x80\x80\x80\x80\x01" + copies * 256  # 256 MiB
    bomb = packed([(3, base), (7, delta, len(delta), sha1(b"blob %d\0" % len(base) + base).digest())])
    with (
        Sandbox.create(client=client, limits={"memory_bytes": 96 << 20}) as sandbox,
        HttpServer(served, sock=listen_in(daemon, sandbox)) as server,
        HttpServer(tmp_path, sock=listen_in(daemon, sandbox)) as other,
    ):
        assert sandbox.git_checkout(f"{server.url}/history.git").commit == head_of(served)
        assert sandbox.git_checkout(f"{other.url}/large.git").files == 2  # what is no delta passes through in pieces
        other.answer = lambda handler: _send_pack(handler, bomb)
        with pytest.raises(errors.GitRefused) as caught:
            sandbox.git_checkout(f"{other.url}/bomb.git")
        assert caught.value.reason == "object-too-large"
        assert leftovers(sandbox) == ["history", "large"]


#: A repository whose one file has so many MiB of zeros; made in pieces, since git itself would hold all of it.
MAKE = """
import hashlib, os, subprocess, sys, zlib
size = int(sys.argv[1]) << 20
head, piece = b"blob %d\\0" % size, bytes(1 << 20)
digest, packer, parts = hashlib.sha1(head), zlib.compressobj(1), []
parts.append(packer.compress(head))
for _ in range(size >> 20):
    digest.update(piece)
    parts.append(packer.compress(piece))
name = digest.hexdigest()
run = lambda *words, data="": subprocess.run(
    ["git", "-c", "user.name=a", "-c", "user.email=a", *words], input=data, capture_output=True, text=True, check=True
).stdout.strip()
run("init", "-q", "-b", "main", ".")
os.makedirs(f".git/objects/{name[:2]}", exist_ok=True)
open(f".git/objects/{name[:2]}/{name[2:]}", "wb").write(b"".join(parts) + packer.flush())
tree = run("mktree", data=f"100644 blob {name}\\tzeros\\n")
run("update-ref", "refs/heads/main", run("commit-tree", "-m", "x", tree))
"""


def test_a_repository_that_does_not_fit_in_memory(client: Client) -> None:
    """A path is packed by dulwich in the child, which holds each object as a whole."""
    with Sandbox.create(client=client, limits={"memory_bytes": 96 << 20}) as sandbox:
        for directory, mebibytes in (("small", 4), ("large", 160)):
            sandbox.mkdir(f"/workspace/{directory}")
            sandbox.exec(["python3", "-c", MAKE, str(mebibytes)], cwd=f"/workspace/{directory}").check()
        found = sandbox.git_checkout("/workspace/small", target_dir="a")
        assert found.files == 1
        with pytest.raises(errors.LimitExceeded) as caught:
            sandbox.git_checkout("/workspace/large", target_dir="b")
        assert caught.value.limit == "memory_bytes"
        assert leftovers(sandbox) == ["a", "large", "small"]
        assert sandbox.git_checkout("/workspace/small", target_dir="c").commit == found.commit


def _send_pack(handler: Any, pack: bytes) -> bool:
    """Answer as a server of version 0 with one branch and this pack."""
    if handler.command == "GET":
        line = b"1" * 40 + b" refs/heads/main\0side-band-64k ofs-delta\n"
        body = b"001e# service=git-upload-pack\n0000%04x%b0000" % (len(line) + 4, line)
        handler._plain(200, body, {"Content-Type": "application/x-git-upload-pack-advertisement"})
        return True
    handler.rfile.read(int(handler.headers["Content-Length"]))
    pieces = [pack[start : start + 60_000] for start in range(0, len(pack), 60_000)]
    body = b"0008NAK\n" + b"".join(b"%04x\x01%b" % (len(piece) + 5, piece) for piece in pieces) + b"0000"
    handler._plain(200, body, {"Content-Type": "application/x-git-upload-pack-result"})
    return True


# --- what ends early ----------------------------------------------------------------------------------------


class _Hanging:
    """A server that answers the list of branches, and then says nothing."""

    def __init__(self, server: HttpServer) -> None:
        self.asked = threading.Event()
        self._server = server
        server.answer = self._answer

    def _answer(self, handler: Any) -> bool:
        if handler.command != "POST":
            return False
        self.asked.set()
        self._server.stopped.wait(60)
        return True


def test_a_timeout_leaves_nothing(sandbox: Sandbox, server: HttpServer) -> None:
    _Hanging(server)
    with pytest.raises(errors.GitTimeout) as caught:
        sandbox.git_checkout(f"{server.url}/history.git", target_dir="/workspace/new/x", timeout=1)
    assert caught.value.timeout_s == 1
    assert leftovers(sandbox) == []


async def test_a_cancelled_clone_leaves_nothing(daemon: Daemon, sandbox: Sandbox, server: HttpServer) -> None:
    import trio

    hanging = _Hanging(server)
    async with AsyncClient(daemon.url) as client:
        twin = await AsyncSandbox.connect(sandbox.id, client=client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(twin.git_checkout, f"{server.url}/history.git")
            assert await trio.to_thread.run_sync(hanging.asked.wait, 20)
            nursery.cancel_scope.cancel()
    await trio.to_thread.run_sync(_wait_until, lambda: not leftovers(sandbox))


def _wait_until(condition: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(1200):
        if condition():
            return
        waiting.wait(0.05)
    raise AssertionError("it did not come to be in time")


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_clone_that_is_killed_leaves_nothing(daemon: Daemon, sandbox: Sandbox, server: HttpServer, how: str) -> None:
    def answer(handler: Any) -> bool:
        if handler.command == "POST":
            leaf = next(pathlib.Path(daemon.cgroup(), sandbox.id, "work").glob("_git*"))
            for pid in (leaf / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        return False

    server.answer = answer
    with pytest.raises(errors.SandboxdError) as caught:
        sandbox.git_checkout(f"{server.url}/history.git", timeout=1 if how == "stopped" else None)
    assert caught.value.kind == ("internal-error" if how == "killed" else "git-timeout")
    assert leftovers(sandbox) == []


def test_a_daemon_that_dies_leaves_nothing(own_daemon: Daemon, served: pathlib.Path) -> None:
    with own_daemon.client() as client:
        sandbox = Sandbox.create(client=client)
        with HttpServer(served, sock=listen_in(own_daemon, sandbox)) as server:
            hanging = _Hanging(server)
            thread = threading.Thread(target=_expect_failure, args=(sandbox, f"{server.url}/history.git"))
            thread.start()
            assert hanging.asked.wait(20)
            own_daemon.signal(signal.SIGKILL)
            thread.join(20)
            own_daemon.start()
        again = Sandbox.connect(sandbox.id, client=client)
        _wait_until(lambda: not leftovers(again))
        again.destroy()


def _expect_failure(sandbox: Sandbox, url: str) -> None:
    with contextlib.suppress(errors.SandboxdError):
        sandbox.git_checkout(url)


def test_an_unreachable_server(shared: Sandbox) -> None:
    with pytest.raises(errors.GitUnreachable) as caught:
        shared.git_checkout("http://127.0.0.1:9/a.git", target_dir="u")
    assert caught.value.reason == "connection"
    with pytest.raises(errors.GitUnreachable) as caught:
        shared.git_checkout("https://git.nowhere.example/a.git", target_dir="u")
    assert caught.value.reason == "name"
    assert not shared.exists("/workspace/u")


def test_many_at_once(sandbox: Sandbox, server: HttpServer) -> None:
    results: list[Any] = []

    def one(number: int) -> None:
        try:
            results.append(sandbox.git_checkout(f"{server.url}/history.git", target_dir=f"n{number}", depth=1).commit)
        except errors.SandboxdError as error:
            results.append(error.kind)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(results) == 12
    assert set(results) - {"server-busy"} == {results[0]} - {"server-busy"} or len(set(results)) <= 2


# --- the other faces ----------------------------------------------------------------------------------------


async def test_the_asynchronous_sdk(daemon: Daemon, sandbox: Sandbox, server: HttpServer) -> None:
    told: list[GitProgress] = []

    async def take(one: GitProgress) -> None:
        told.append(one)

    async with AsyncClient(daemon.url) as client:
        twin = await AsyncSandbox.connect(sandbox.id, client=client)
        result = await twin.git_checkout(f"{server.url}/history.git", depth=1, on_progress=take)
        with pytest.raises(errors.DirectoryNotEmpty):
            await twin.git_checkout(f"{server.url}/history.git")
    assert result.branch == "main"
    assert told[-1].phase == "checking-out"


def test_the_command_line(daemon: Daemon, sandbox: Sandbox, server: HttpServer, tmp_path: pathlib.Path) -> None:
    server.login = ("anne", SECRET)
    (tmp_path / "password").write_text(SECRET + "\n")

    def cli(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(pathlib.Path(sys.executable).with_name("sandboxd")), "--url", daemon.url, "clone", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    url = f"{server.url}/history.git"
    done = cli("-u", "anne", "--password-file", str(tmp_path / "password"), "--depth", "1", sandbox.id, url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("/workspace/history: main at ")
    done = cli("-u", "anne", "--password-file", str(tmp_path / "password"), "--json", sandbox.id, url, "b")
    assert json.loads(done.stdout)["target_dir"] == "/workspace/b"
    done = cli(sandbox.id, url, "c")
    assert (done.returncode, "the server requires a login" in done.stderr) == (1, True)
