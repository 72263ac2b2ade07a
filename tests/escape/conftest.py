"""Real daemons, attackers inside them, and a witness that looks at the host and a neighbour after each module."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import pathlib
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import pytest

from sandboxd import Sandbox
from sandboxd.linux import procfs
from tests.integration.conftest import client, daemon, own_daemon, pytest_collection_modifyitems, run, sandbox, shared
from tests.support.daemon import Daemon

__all__ = ["client", "daemon", "own_daemon", "pytest_collection_modifyitems", "run", "sandbox", "shared"]

#: Clients that an attack may have left waiting until their daemon ends.
THREADS: list[threading.Thread] = []
PROBES = pathlib.Path(__file__).parents[1] / "probes"
ROOT = PROBES.parents[1]
HOST_VALUES = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/sysrq",
    "/proc/sys/kernel/randomize_va_space",
    "/proc/sys/user/max_user_namespaces",
    "/proc/sys/net/ipv4/ip_unprivileged_port_start",
    "/proc/sys/net/ipv4/tcp_rmem",
    "/proc/sys/net/ipv4/tcp_wmem",
    "/proc/sys/vm/overcommit_memory",
    "/etc/passwd",
    "/etc/shadow",
)


def host_state(daemon: Daemon) -> dict[str, str]:
    """What no sandbox may change; the mounts are ours alone, since other daemons may come and go meanwhile."""
    found = {path: pathlib.Path(path).read_text() for path in HOST_VALUES if pathlib.Path(path).exists()}
    for program in (sys.executable, "/bin/sh"):
        found[program] = hashlib.sha256(pathlib.Path(program).resolve().read_bytes()).hexdigest()
    found["mounts"] = str([m for m in procfs.mounts() if str(daemon.state_dir) in m.target or "stage" in m.target])
    return found


@pytest.fixture(scope="module", autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a module: the host is as it was, the daemon answers, a neighbour runs."""
    if os.geteuid() != 0:
        yield
        return
    daemon: Daemon = request.getfixturevalue("daemon")
    with daemon.client() as client, Sandbox.create(client=client) as neighbour:
        before = host_state(daemon)
        clock = time.time() - time.monotonic()
        yield
        assert host_state(daemon) == before
        assert abs(time.time() - time.monotonic() - clock) < 2
        assert neighbour.exec("echo alive").stdout == "alive\n"


@pytest.fixture(scope="module")
def neighbour(daemon: Daemon) -> Iterator[Sandbox]:
    with daemon.client() as client, Sandbox.create(client=client) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def python(shared: Sandbox) -> Callable[..., str]:
    """Run Python in the shared sandbox and return what it prints."""

    def python(source: str, **options: object) -> str:
        result = shared.exec(["python3", "-c", source], **options)  # type: ignore[arg-type]
        return (result.stdout + result.stderr).strip()

    return python


class HostileDaemon(Daemon):
    """The real daemon over a launcher whose inits can be taken over (`tests/probes/hostile_launcher.py`)."""

    def start(self) -> None:
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(f"\0sandboxd-test-{os.getpid()}-{id(self)}")
        with notify, self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, str(PROBES / "hostile_daemon.py"), "serve", "--allow-unenforced"),
                    *("--state-dir", str(self.state_dir), "--runtime-dir", str(self.runtime_dir)),
                    *("--rootfs-dir", self.rootfs_dir, *self.options),
                ],
                env={
                    **os.environ,
                    "NOTIFY_SOCKET": "@" + notify.getsockname()[1:].decode(),
                    "PYTHONPATH": str(ROOT),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            self._wait_until_ready(notify)

    def wreck(self) -> None:
        """Remove everything by hand, where the daemon itself may be beyond it."""
        if self.process and self.process.poll() is None:
            pid = self.process.pid
            children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            launchers = [os.pidfd_open(int(child)) for child in children]
            self.process.kill()
            self.process.wait()
            for launcher in launchers:
                select.select([launcher], [], [], 10)
                os.close(launcher)
        group = self.cgroup()
        if group.exists():
            (group / "cgroup.kill").write_text("1")
            _remove_deep(group)
        shutil.rmtree(self.state_dir, ignore_errors=True)
        shutil.rmtree(self.runtime_dir, ignore_errors=True)
        for thread in THREADS:
            thread.join(10)
        THREADS.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a killed daemon leaves its clients' sockets to the collector
            gc.collect()


def _remove_deep(group: pathlib.Path) -> None:
    """Remove a tree of cgroups that no recursion and no path can name."""
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(group)
        way: list[str] = []
        while True:
            below = [entry.name for entry in os.scandir(".") if entry.is_dir(follow_symlinks=False)]
            if below:
                way.append(below[0])
                os.chdir(below[0])
            elif way:
                os.chdir("..")
                name = way.pop()
                for _ in range(500):
                    with contextlib.suppress(OSError):
                        os.rmdir(name)
                        break
                    time.sleep(0.01)
            else:
                break
    finally:
        os.fchdir(here)
        os.close(here)
    for _ in range(500):
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.01)


@pytest.fixture
def hostile() -> Iterator[HostileDaemon]:
    """A hostile daemon of the test's own, removed whatever state it is in."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="sandboxd-escape-"))
    daemon = HostileDaemon(directory)
    daemon.start()
    check_hostile(daemon)
    yield daemon
    daemon.wreck()
    shutil.rmtree(directory)


def take_over(daemon: Daemon, sandbox: Sandbox, source: str, seconds: float = 6) -> str | None:
    """Run source in pid 1; returns its answer, or None where it gave none (or only trouble) in time."""
    answers: list[str] = []

    def go() -> None:
        with contextlib.suppress(Exception), daemon.client() as client:
            result = Sandbox.connect(sandbox.id, client=client).exec(["takeover", source])
            answers.append(result.stdout)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    THREADS.append(thread)
    thread.join(seconds)
    return answers[0] if answers else None


def check_hostile(daemon: Daemon) -> None:
    """The control: source runs in pid 1, or every attack of this kind would seem to be refused."""
    with daemon.client() as client, Sandbox.create(client=client) as sandbox:
        assert take_over(daemon, sandbox, "answer = os.getpid()") == "1"


class Stalls:
    """Asks the daemon for its health all the while and keeps the longest wait: what the loop's stalls look like.

    What either side waited for a processor is no stall: others use this machine too.
    """

    def __init__(self, daemon: Daemon) -> None:
        assert daemon.process
        self._path = str(daemon.socket)
        self._pid = daemon.process.pid
        self._asked = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._is_over = False
        self.worst = 0.0

    def __enter__(self) -> Stalls:
        self._thread.start()
        assert self._asked.wait(30), "the daemon does not answer"
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(30)
        assert self._is_over, "the daemon does not answer"

    def _watch(self) -> None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(self._path)
            self._ask(sock)  # a connection's first answer takes longer
            self._asked.set()
            while not self._is_over:
                is_last = self._ended.is_set()  # what is asked now waits for what was under way
                queued, began = self._queued(), time.monotonic()
                if not self._ask(sock):
                    return
                took = time.monotonic() - began
                waited = sum(value - queued.get(thread, 0) for thread, value in self._queued().items())
                self.worst = max(self.worst, took - waited / 1e9)
                self._is_over = is_last
                time.sleep(0.002)

    @staticmethod
    def _ask(sock: socket.socket) -> bytes:
        sock.sendall(b"GET /v1/health HTTP/1.1\r\nHost: sandboxd\r\n\r\n")
        return sock.recv(65536)

    def _queued(self) -> dict[pathlib.Path, int]:
        """Return how long the daemon's threads and this one were ready to run and did not, in nanoseconds."""
        found = {}
        for thread in (pathlib.Path("/proc/thread-self"), *pathlib.Path(f"/proc/{self._pid}/task").iterdir()):
            with contextlib.suppress(OSError):  # it has just ended
                found[thread] = int((thread / "schedstat").read_text().split()[1])
        return found


def host_pid(daemon: Daemon, sandbox: Sandbox) -> int:
    """Return the host's pid of a sandbox's init."""
    return int((daemon.cgroup() / sandbox.id / "init" / "cgroup.procs").read_text())
