"""Links planted before and swapped under every operation on files; nothing of the host is touched.

The sandbox's own root sees nothing of the host, so no path can lead there; what these hold is that each operation
stays in the sandbox, does not hang, and leaves init and the daemon as they were.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
import secrets
import tarfile
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from sandboxd import Sandbox
from sandboxd.errors import SandboxdError
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real

#: What a link may lead to: the host's files by every way that anybody thought of.
TARGETS = (
    "/etc", "../../../../../../../../etc", "/proc/self/root/etc", "/proc/1/root/etc", "/proc/self/cwd", "/proc/1/cwd",
    "/proc/self/fd/3", "/proc/1/fd/0", "/dev/fd/0", "/dev/fd", ".", "..", "l", "/sys/fs/cgroup",
    "/proc/thread-self/root",
)  # fmt: skip


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def operations(sandbox: Sandbox, path: str) -> list[Callable[[], object]]:
    """Everything that can be asked of a path and of a name below it."""
    below = f"{path}/sandboxd-attack"
    return [
        lambda: sandbox.read_file(f"{path}/shadow"),
        lambda: sandbox.stat_file(f"{path}/shadow"),
        lambda: sandbox.list_files(path),
        lambda: sandbox.list_files("/workspace", recursive=True),
        lambda: sandbox.write_file(below, "evil"),
        lambda: sandbox.chmod(below, 0o777),
        lambda: sandbox.chown(below, 1000),
        lambda: sandbox.truncate(below, 1),
        lambda: sandbox.copy_file(f"{path}/hostname", "/workspace/copied"),
        lambda: sandbox.copy_file("/workspace/own", below),
        lambda: sandbox.rename_file(below, f"{path}/sandboxd-attack2"),
        lambda: sandbox.mkdir(f"{path}/sandboxd-attack-folder/x", parents=True),
        lambda: sandbox.symlink(f"{path}/sandboxd-attack-link", "/etc/shadow"),
        lambda: sandbox.search_files(path, name="shadow"),
        lambda: sandbox.replace_in_files(path, "root", "evil", name="sandboxd-attack*"),
        lambda: read_archive(sandbox, path),
        lambda: sandbox.write_archive(path, archive((tarfile.TarInfo("sandboxd-attack-tar"), b"evil"))),
        lambda: sandbox.delete_file(below),
        lambda: sandbox.delete_file(path, recursive=True),
    ]


def read_archive(sandbox: Sandbox, path: str) -> bytes:
    with sandbox.read_archive(path) as stream:
        return b"".join(stream)


@pytest.mark.parametrize("target", TARGETS)
def test_a_planted_link_leads_nowhere_else(sandbox: Sandbox, target: str) -> None:
    shadow = pathlib.Path("/etc/shadow").read_text()
    before = set(pathlib.Path("/etc").iterdir())
    sandbox.exec(f"echo own > own; ln -s {target} l").check()
    for operation in operations(sandbox, "/workspace/l"):
        began = time.monotonic()
        with contextlib.suppress(SandboxdError):
            answer = operation()
            assert not isinstance(answer, bytes) or shadow.encode() not in answer
        assert time.monotonic() - began < 20
    assert pathlib.Path("/etc/shadow").read_text() == shadow
    assert set(pathlib.Path("/etc").iterdir()) == before
    assert sandbox.exec("echo alive").stdout == "alive\n"


@contextlib.contextmanager
def flipping(daemon: Daemon, sandbox: Sandbox, source: str) -> Iterator[None]:
    """Run a program in the sandbox as fast as it goes, until the end of the block; it says `turns N` then."""
    ready = threading.Event()
    said: list[str] = []

    def go() -> None:
        with daemon.client() as client:
            inner = Sandbox.connect(sandbox.id, client=client)
            with inner.exec_stream(["python3", "-c", source]) as stream:
                for chunk in stream:
                    said.append(chunk.text)
                    ready.set()

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    assert ready.wait(10)
    yield
    sandbox.write_file("/stop", "x")
    thread.join(20)
    turns = int("".join(said).split("turns ")[1])
    assert turns >= 10_000, f"only {turns} turns were raced"


#: A directory and a link swap names: what is looked at is a directory, what is used may be the link.
SWAP = """
import ctypes, os
libc = ctypes.CDLL(None)
os.chdir('/workspace')
os.makedirs('real/d', exist_ok=True)
os.symlink('{target}', 'evil')
os.rename('real', 'x') if not os.path.exists('x') else None
print('ready', flush=True)
turns = 0
while turns < 10_000 or not os.path.exists('/stop'):
    libc.renameat2(-100, b'x', -100, b'evil', 2)  # RENAME_EXCHANGE
    turns += 1
    if turns % 100 == 0:
        for name in ('x', 'evil'):
            try:
                os.makedirs(f'{{name}}/d/e', exist_ok=True)
            except OSError:
                pass
print('turns', turns)
"""


@pytest.mark.parametrize("target", ["/etc", "../../../../../etc", "/proc/self/root/etc", "/proc/1/root/etc"])
def test_a_folder_that_is_swapped_for_a_link_leads_nowhere_else(daemon: Daemon, sandbox: Sandbox, target: str) -> None:
    """10,000 swaps under every operation; writes go to the directory or to the sandbox's own /etc, never further."""
    marker = f"sandboxd-attack-{secrets.token_hex(4)}"
    shadow = pathlib.Path("/etc/shadow").read_text()
    before = set(pathlib.Path("/etc").iterdir())
    with flipping(daemon, sandbox, SWAP.format(target=target)):
        until = time.monotonic() + 3
        turn = 0
        while time.monotonic() < until:
            turn += 1
            with contextlib.suppress(SandboxdError):
                sandbox.write_file(f"/workspace/x/d/{marker}", "evil")
            with contextlib.suppress(SandboxdError):
                assert sandbox.read_file("/workspace/x/shadow") != shadow.encode()
            with contextlib.suppress(SandboxdError):
                sandbox.write_archive("/workspace/x", archive((tarfile.TarInfo(f"d/{marker}"), b"evil")))
            operation = operations(sandbox, "/workspace/x")[turn % 18]
            with contextlib.suppress(SandboxdError):
                operation()
    assert turn > 10
    assert pathlib.Path("/etc/shadow").read_text() == shadow
    assert set(pathlib.Path("/etc").iterdir()) == before
    assert not list(pathlib.Path("/").glob(f"*/{marker}"))
    assert sandbox.exec("echo alive").stdout == "alive\n"


def test_a_walk_survives_a_tree_that_turns_under_it(daemon: Daemon, sandbox: Sandbox) -> None:
    """Deleting, copying, packing and listing a tree whose directories become links and files all the while."""
    source = """
import os
os.makedirs('/workspace/t', exist_ok=True); os.chdir('/workspace/t')
os.makedirs('/keep/inner', exist_ok=True)
open('/keep/inner/file', 'w').write('kept')
print('ready', flush=True)
turns = 0
while turns < 10_000 or not os.path.exists('/stop'):
    name = f'd{turns % 5}'
    for make in (lambda: os.makedirs(f'/workspace/t/{name}/a/b'),
                 lambda: os.rename(f'/workspace/t/{name}', '/workspace/t/gone'),
                 lambda: os.symlink('/keep', f'/workspace/t/{name}'), lambda: os.unlink(f'/workspace/t/{name}'),
                 lambda: os.symlink('/keep', f'/workspace/t/gone/a/l'),
                 lambda: os.rename('/workspace/t/gone', f'/workspace/t/{name}')):
        try:
            make()
        except OSError:
            pass
    turns += 1
print('turns', turns)
"""
    with flipping(daemon, sandbox, source):
        until = time.monotonic() + 3
        while time.monotonic() < until:
            for operation in (
                lambda: sandbox.list_files("/workspace", recursive=True),
                lambda: read_archive(sandbox, "/workspace/t"),
                lambda: sandbox.copy_file("/workspace/t", "/workspace/copy"),
                lambda: sandbox.chmod("/workspace/t", 0o700, recursive=True),
                lambda: sandbox.delete_file("/workspace/copy", recursive=True),
                lambda: sandbox.delete_file("/workspace/t", recursive=True),
            ):
                with contextlib.suppress(SandboxdError):
                    operation()
    assert sandbox.read_text("/keep/inner/file") == "kept"
    assert sandbox.exec("find / -xdev -name '.sandboxd-tmp-*'").stdout == ""


def test_a_chain_of_links_does_not_end_init(sandbox: Sandbox) -> None:
    source = """
import os
os.chdir('/workspace')
os.symlink('end', 'l0')
for n in range(1, 3000):
    os.symlink(f'l{n - 1}', f'l{n}')
os.mkdir('m')
os.symlink('m', 'm0')
for n in range(1, 30):
    os.symlink(f'm{n - 1}/../m{n - 1}', f'm{n}')
"""
    sandbox.exec(["python3", "-c", source]).check()
    began = time.monotonic()
    for path in ("/workspace/l2999", "/workspace/m29/x", "/workspace/m29"):
        for operation in (*operations(sandbox, path), lambda path=path: sandbox.write_file(path, "x")):  # type: ignore[misc]
            with contextlib.suppress(SandboxdError):
                operation()
    assert time.monotonic() - began < 40
    assert sandbox.exec("echo alive").stdout == "alive\n"


def test_no_field_mounts_anything_of_the_host(daemon: Daemon) -> None:
    """There are no volumes: a request for one is refused by name, whatever it asks for."""
    import httpx

    with httpx.Client(transport=httpx.HTTPTransport(uds=str(daemon.socket)), base_url="http://sandboxd") as client:
        for field in ("volumes", "mounts", "binds"):
            for path in ("/", "/etc", "/run/docker.sock", str(daemon.state_dir)):
                answer = client.post("/v1/sandboxes", json={field: [{"host_path": path, "path": "/mnt"}]})
                assert (answer.status_code, answer.json()["kind"]) == (400, "unknown-field")
