"""Everything at once: hostile services, strangers without a token, floods of names and output, kills and flushes.

The daemon lives in network namespaces of the test's own, so that rules are flushed there only. What is measured is
compared: with the quiet minute before, and with a process beside the daemon that does nothing but wake up in time, so
that a slow or busy machine fails nothing. The short form runs with the other tests, and tells stalls of what is
normal; `make test-long` runs ten minutes and holds the figures.
"""

from __future__ import annotations

import contextlib
import pathlib
import random
import re
import socket
import subprocess
import sys
import threading

import pytest

from sandboxd.client import Sandbox
from sandboxd.errors import SandboxdError

from ..support import seeds
from ..support.daemon import Daemon
from ..support.nonstop import PORT, SENDER, Receivers, kill, network_processes
from ..support.waiting import wait_until
from ..support.world import METADATA, NAMESERVER, NEIGHBOUR, OTHER, PRIVATE, World

pytestmark = [pytest.mark.real, pytest.mark.slow]

SEED = seeds.seed(17)
TOKEN = "a-token-that-no-stranger-has"
#: Asks a unix socket for its health again and again, from a process of its own; tells how long each answer took.
ASK = """
import socket, sys, time
until = time.monotonic() + float(sys.argv[2])
link = socket.socket(socket.AF_UNIX)
link.settimeout(60)
link.connect(sys.argv[1])
while time.monotonic() < until:
    begun = time.monotonic()
    link.sendall(b"GET /v1/health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    answer = b""
    while b"}" not in answer:
        answer += link.recv(4096)
    print(time.monotonic() - begun)
    time.sleep(0.02)
"""
#: An answer that never ends: chunks of one byte, or informational ones. argv: port, which.
SERVICE = """
import socket, sys, threading
HEAD = b"HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n"
EARLY = b"HTTP/1.1 103 Early Hints\\r\\n\\r\\n"
first, then = (HEAD, b"1\\r\\nx\\r\\n" * 4000) if sys.argv[2] == "chunks" else (b"", EARLY * 2000)
def serve(client):
    try:
        client.recv(65536)
        client.sendall(first)
        while True:
            client.sendall(then)
    except OSError:
        client.close()
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
NAMES = """
import os, socket, struct
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print("asking", flush=True)
while True:
    name = os.urandom(6).hex().encode()
    head = os.urandom(2) + struct.pack(">5H", 256, 1, 0, 0, 0)
    query = head + bytes([len(name)]) + name + b"\\x07example\\x00" + b"\\x00\\x01\\x00\\x01"
    try:
        link.sendto(query, ("127.0.0.53", 53))
    except OSError:
        pass
"""
#: Tells how late it woke up, in seconds, a line each.
CONTROL = """
import time
while True:
    before = time.monotonic()
    time.sleep(0.02)
    print(time.monotonic() - before - 0.02, flush=True)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with World(tmp_path_factory.mktemp("world")) as found:
        yield found


@pytest.fixture(scope="module")
def daemon(world, tmp_path_factory):
    directory = tmp_path_factory.mktemp("soak")
    token = directory / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    options = ("--listen", "127.0.0.1:7070", "--token-file", str(token), "--preview-listen", "127.0.0.1:7071")
    found = Daemon(directory / "d", config={"network_dns": [NAMESERVER]}, options=options)
    found.start()
    yield found
    found.close()


@pytest.fixture
def receivers(world):
    found = Receivers(world)
    yield found
    found.close()


class Until:
    """Runs functions in threads, again and again, until it is left."""

    def __init__(self):
        self.over = threading.Event()
        self._threads = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self._threads:
            thread.join(60)

    def again(self, act, *arguments):
        def run():
            while not self.over.is_set():
                with contextlib.suppress(OSError, SandboxdError):
                    act(*arguments)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()


def visit(over, url):
    """Read what a preview answers, for as long as it does."""
    host = re.sub(r"^http://|/$", "", url)
    with socket.create_connection(("127.0.0.1", 7071), timeout=5) as link:
        link.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        while not over.is_set() and link.recv(65536):
            pass


def be_strangers(over):
    """A hundred connections without a token, each of which goes on with a body that nobody reads."""
    links = []
    try:
        for _ in range(100):
            link = socket.create_connection(("127.0.0.1", 7070), timeout=5)
            link.sendall(b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            links.append(link)
        for _ in range(20):
            for link in links:
                with contextlib.suppress(OSError):
                    link.sendall(b"1\r\n{\r\n" * 50)
            if over.wait(0.2):
                return
    finally:
        for link in links:
            link.close()


def read_flood(over, sandbox):
    with sandbox.exec_stream("yes") as stream:
        for _ in stream:
            if over.is_set():
                return


def health_times(daemon, seconds):
    """Return how long answers took, sorted."""
    command = [sys.executable, "-c", ASK, str(daemon.socket), str(seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return sorted(map(float, done.stdout.split()))


def at(times, share):
    return times[min(len(times) - 1, int(share * len(times)))]


class Control:
    """How late a process that does nothing else wakes up."""

    def __enter__(self):
        self._process = subprocess.Popen([sys.executable, "-c", CONTROL], stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self.times = sorted(float(line) for line in self._process.communicate()[0].splitlines()[:-1])


def rss(daemon):
    text = pathlib.Path(f"/proc/{daemon.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found
    return int(found[1]) * 1024


def disturb_network(over, world, daemon, chance, every):
    """Kill what makes links, or flush the host's rules."""
    if over.wait(every * chance.uniform(0.5, 1)):
        return
    if chance.random() < 0.5:
        world.flush_rules()
    else:
        kill(network_processes(daemon.launcher_pid()))


def soak(world, daemon, receivers, seconds, every, *, is_whole=False):
    chance = random.Random(SEED)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(daemon.client())
        make = lambda **options: stack.enter_context(Sandbox.create(client=client, **options))  # noqa: E731
        sender = make(network={"mode": "allowlist", "allow": [f"{OTHER}:{PORT}"]})
        sender.start_process(["python3", "-c", SENDER, OTHER, PRIVATE, METADATA, NEIGHBOUR])
        asker, flooder = make(network="internet"), make()
        previews = []
        for kind in ("chunks", "103"):
            host = make()
            service = host.start_process(["python3", "-c", SERVICE, "8000", kind])
            assert host.wait_for_log(service, "ready", timeout=60)
            previews.append(host.expose_port(8000, public=True).url)
        wait_until(lambda: receivers.allowed() > 20)
        quiet = health_times(daemon, 3)
        with Until() as until, Control() as control:
            asker.start_process(["python3", "-c", NAMES])
            for url in previews * 2:
                until.again(visit, until.over, url)
            until.again(be_strangers, until.over)
            until.again(read_flood, until.over, flooder)
            until.again(disturb_network, until.over, world, daemon, chance, every)
            warm = health_times(daemon, seconds / 3)
            before = rss(daemon)
            busy = health_times(daemon, seconds * 2 / 3)
            after = rss(daemon)
        busy = sorted(warm + busy)
    figures = f"seed {SEED}: quiet p95 {at(quiet, 0.95):.4f} s, "
    figures += f"busy p95 {at(busy, 0.95):.4f} p99 {at(busy, 0.99):.4f}, "
    figures += f"control p95 {at(control.times, 0.95):.4f} p99 {at(control.times, 0.99):.4f}, {len(busy)} answers, "
    figures += f"RSS {before >> 20} to {after >> 20} MiB"
    print(figures)
    assert receivers.let_through() == {}, figures
    # What a process that only wakes up has to wait for is the machine's, twice: for the daemon and for who asks.
    machine = at(quiet, 0.99) + 2 * at(control.times, 0.99)
    assert at(busy, 0.99) <= (0.05 if is_whole else 0.25) + machine, figures
    if is_whole:
        assert at(busy, 0.95) <= 0.025 + at(quiet, 0.95) + 2 * at(control.times, 0.95), figures
    assert after - before < 64 << 20, figures


def test_everything_at_once_for_a_while(world, daemon, receivers) -> None:
    soak(world, daemon, receivers, 12, 4)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_everything_at_once_for_ten_minutes(world, daemon, receivers) -> None:
    soak(world, daemon, receivers, 600, 30, is_whole=True)
