"""The daemon has been taken over: what it can do without the launcher (nothing), and with it (its sandboxes only)."""

from __future__ import annotations

import ast
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, Final

import pytest

from sandboxd import Sandbox
from sandboxd.launcher import control, networks, server, sockets
from sandboxd.linux import procfs
from sandboxd.wire.messages import Failure, Reply, Request
from tests.escape.conftest import PROBES, host_pid
from tests.integration.test_launcher import ID, create
from tests.probes.dropped_daemon import UID
from tests.support.daemon import ROOTFS_DIR, Daemon
from tests.support.launching import LauncherProcess
from tests.support.waiting import wait_until

pytestmark = pytest.mark.real

# --- without the launcher ---------------------------------------------------------------------------------------


class DroppedDaemon(Daemon):
    """A daemon that has left root for a user of its own."""

    def command(self) -> list[str]:
        return [sys.executable, str(PROBES / "dropped_daemon.py"), *super().command()[1:]]


@pytest.fixture(scope="module")
def dropped() -> Iterator[DroppedDaemon]:
    directory = pathlib.Path(tempfile.mkdtemp(prefix="sandboxd-dropped-"))
    directory.chmod(0o755)
    os.environ["PYTHONPATH"] = str(PROBES.parents[1])
    daemon = DroppedDaemon(directory)
    daemon.start()
    yield daemon
    daemon.close()
    del os.environ["PYTHONPATH"]
    shutil.rmtree(directory)


def test_the_daemon_keeps_nothing_of_root(dropped: DroppedDaemon) -> None:
    assert dropped.process
    lines = pathlib.Path(f"/proc/{dropped.process.pid}/status").read_text().splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    assert status["Uid"] == status["Gid"] == [str(UID)] * 4
    assert status["Groups"] == [str(UID)]
    assert {int(status[name][0], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == ["1"]
    with dropped.client() as client, Sandbox.create(client=client) as sandbox:
        sandbox.write_file("/workspace/f", "works")
        assert sandbox.exec("cat f").stdout == "works"
        sandbox.freeze()
        sandbox.thaw()


def test_without_the_launcher_it_can_do_nothing_privileged(dropped: DroppedDaemon) -> None:
    with dropped.client() as client, Sandbox.create(client=client) as sandbox:
        pid, launcher, group = host_pid(dropped, sandbox), dropped.launcher_pid(), dropped.cgroup() / sandbox.id
        words = [dropped.state_dir, dropped.runtime_dir, sandbox.id, pid, launcher, group, ROOTFS_DIR]
        with tempfile.TemporaryDirectory() as directory:
            program = shutil.copy(PROBES / "powers.py", directory)
            pathlib.Path(directory).chmod(0o755)
            done = subprocess.run(
                [sys.executable, "-I", program, *map(str, words)],
                user=UID, group=UID, extra_groups=[], capture_output=True, text=True, timeout=60, check=True,
            )  # fmt: skip
        found = json.loads(done.stdout)
        refused = {"EPERM", "EACCES", "ENOENT", "EROFS"}
        assert len(found) > 35
        assert {name: answer for name, answer in found.items() if answer not in refused} == {}
        # ENOENT is only for what this host does not have at all, never for what hides.
        assert {name for name, answer in found.items() if answer == "ENOENT"} <= {"open raw memory"}
        assert sandbox.exec("echo alive").stdout == "alive\n"


# --- with the launcher ------------------------------------------------------------------------------------------

OTHER: Final = "z" * 20  # of another daemon's launcher
HOSTILE_IDS: Final[tuple[Any, ...]] = (
    None, 5, True, 1.5, b"a" * 20, [ID], {"id": ID}, "", "short", "../" + "a" * 20, "/" + "a" * 20, "a" * 20 + "\n",
    "a" * 20 + "\0", "a" * 20 + "/..", "A" * 20, "é" * 20, "a" * 19 + "/", "." * 20, "a" * 1_000_000, OTHER, "q" * 20,
)  # fmt: skip
HOSTILE_LIMITS: Final[tuple[Any, ...]] = (
    None, 5, "all", [], [1], {"memory_bytes": "max"}, {"memory_bytes": -1}, {"memory_bytes": 1 << 63},
    {"memory_bytes": 1e400}, {"cpus": float("nan")}, {"cpus": -1}, {"cpus": "1 1\n"}, {"pids": "max"}, {"pids": 0},
    {"disk_bytes": -1}, {"io": "254:0 rbps=max"}, {"io": {"read_iops": "1\n8:0 wbps=max"}}, {"io": {"device": "8:0"}},
    {"io": [1]}, {"__class__": 1}, {1: 2}, {"memory_bytes": {}}, {"pids": [9]},
)  # fmt: skip
EXTRAS: Final[tuple[dict[str, Any], ...]] = (
    {"path": "/"}, {"tree": "/"}, {"pid": 1}, {"uid": 0}, {"range": 0}, {"fd": 0}, {"cgroup": "/"}, {"env": {"A": "1"}},
    {"allow_unenforced": True}, {"devices": [1]}, {"filters": [b""]}, {"request": 1},
)  # fmt: skip
#: Operations of which an id that nobody has is no error: it is gone, as asked.
IDEMPOTENT: Final = {"destroy", "kill"}
WITHOUT_ID: Final = {"list", "watch", "rootfs", "info"}


def operations() -> set[str]:
    """The launcher's closed list, read from its source: a new operation must be tried here too."""
    found: set[str] = set()
    for module in (server, control, networks, sockets):
        for node in ast.walk(ast.parse(pathlib.Path(str(module.__file__)).read_text())):
            if isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                found |= {
                    str(key.value)
                    for key, value in pairs
                    if isinstance(key, ast.Constant)
                    and isinstance(value, ast.Attribute)
                    and isinstance(value.value, ast.Name)
                    and value.value.id == "self"
                }
    return found


ID_OPERATIONS: Final = (
    "destroy", "freeze", "kill", "limit", "network", "permit", "resolver", "sockets", "stats", "thaw",
)  # fmt: skip


def test_every_operation_is_tried_here() -> None:
    assert operations() == {*ID_OPERATIONS, *WITHOUT_ID, "create", "prepare"}


@pytest.fixture(scope="module")
def launchers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LauncherProcess, LauncherProcess]]:
    """The one that a hostile daemon has, with a sandbox; and a stranger's, with another."""
    ours, theirs = (LauncherProcess(tmp_path_factory.mktemp(name)) for name in ("ours", "theirs"))
    assert isinstance(create(ours), Reply)
    assert isinstance(create(theirs, OTHER), Reply)
    for launcher, sandbox_id in ((ours, ID), (theirs, OTHER)):  # what helped at its creation goes a moment later
        wait_until(lambda group=launcher.cgroup / sandbox_id: (group / "cgroup.procs").read_text() == "")  # type: ignore[misc]
    yield ours, theirs
    for launcher, sandbox_id in ((ours, ID), (theirs, OTHER)):
        assert isinstance(launcher.asker.ask("destroy", id=sandbox_id), Reply)
        assert launcher.leftovers() == []
        launcher.close()


def world(*launchers: LauncherProcess) -> dict[str, object]:
    """What no request may have changed: mounts, the directories, the groups and limits, who runs."""
    # Another daemon of this machine may give its first sandbox a network meanwhile.
    mounts = sorted(mount.target for mount in procfs.mounts() if mount.fstype != "nsfs")
    found: dict[str, object] = {"mounts": mounts}
    for launcher in launchers:
        settings = launcher.settings
        for place in (settings.pool_dir, settings.records_dir, settings.init_sockets_dir, settings.state_dir):
            found[place] = sorted(os.listdir(place))
        for group in sorted(launcher.cgroup.glob("**/")):
            found[str(group)] = [(group / "cgroup.freeze").read_text(), (group / "cgroup.procs").read_text()]
        found[settings.records_dir + "/bytes"] = [
            (path.name, path.read_bytes()) for path in sorted(pathlib.Path(settings.records_dir).iterdir())
        ]
    return found


@pytest.mark.parametrize("op", [*ID_OPERATIONS, "prepare"])
def test_an_operation_reaches_no_sandbox_of_another(
    launchers: tuple[LauncherProcess, LauncherProcess], op: str
) -> None:
    ours, theirs = launchers
    before = world(ours, theirs)
    for value in HOSTILE_IDS:
        if op == "prepare" and value in (OTHER, "q" * 20):
            continue  # ids that are free: a prepared sandbox would be held
        answer = ours.asker.ask(op, id=value, **({"limits": {}} if op == "limit" else {}))
        if op in IDEMPOTENT and value in (OTHER, "q" * 20):
            assert isinstance(answer, Reply)
            continue
        assert isinstance(answer, Failure), (op, str(value)[:40])
        assert answer.kind in ("invalid-request", "sandbox-not-found"), (op, str(value)[:40], answer)
    assert isinstance(ours.asker.ask(op), Failure)
    assert world(ours, theirs) == before


@pytest.mark.parametrize(
    "params",
    [
        {"family": 4}, {"count": 1}, {"family": 4, "count": 0}, {"family": 4, "count": 9}, {"family": 4, "count": True},
        {"family": 4, "count": "1"}, {"family": 4, "count": 1.0}, {"family": 4, "count": -1}, {"family": 1, "count": 1},
        {"family": 16, "count": 1}, {"family": True, "count": 1}, {"family": [4], "count": 1},
        {"family": 4, "count": 1, "type": 3}, {"family": 4, "count": 1, "pid": 1},
    ],
)  # fmt: skip
def test_sockets_are_few_and_of_two_kinds(
    launchers: tuple[LauncherProcess, LauncherProcess], params: dict[str, Any]
) -> None:
    ours, _ = launchers
    before = ours.fds()
    answer = ours.asker.ask("sockets", id=ID, **params)
    assert isinstance(answer, Failure)
    assert answer.kind == "invalid-request"
    assert ours.fds() == before


@pytest.mark.parametrize("family", [4, 6])
def test_sockets_are_of_the_sandboxs_network_and_the_launcher_stays_in_its_own(
    launchers: tuple[LauncherProcess, LauncherProcess], family: int
) -> None:
    """What a daemon gets: TCP, unconnected, without a way to the host; its maker keeps neither them nor the place."""
    ours, _ = launchers
    namespace = os.readlink(f"/proc/{ours.process.pid}/ns/net")
    assert namespace == os.readlink("/proc/self/ns/net")
    before = ours.fds()
    with socket.create_server(("127.0.0.1", 0)) as host:
        answer = ours.asker.ask("sockets", id=ID, family=family, count=8)
        assert isinstance(answer, Reply)
        made = [socket.socket(fileno=fd) for fd in ours.asker.fds]
        assert len(made) == 8
        for sock in made:
            with sock:
                assert sock.type == socket.SOCK_STREAM
                assert sock.family == {4: socket.AF_INET, 6: socket.AF_INET6}[family]
                assert not os.get_blocking(sock.fileno())
                sock.settimeout(5)
                address = {4: "127.0.0.1", 6: "::1"}[family]
                with pytest.raises(ConnectionRefusedError):
                    sock.connect((address, host.getsockname()[1]))
    assert os.readlink(f"/proc/{ours.process.pid}/ns/net") == namespace
    assert isinstance(ours.asker.ask("info"), Reply)  # it has closed its own by then
    assert ours.fds() == before


@pytest.mark.parametrize("op", ["limit", "create"])
def test_limits_are_numbers_of_their_own_files(launchers: tuple[LauncherProcess, LauncherProcess], op: str) -> None:
    ours, theirs = launchers
    before = world(ours, theirs)
    for limits in HOSTILE_LIMITS:
        params: dict[str, Any] = {"id": ID, "limits": limits}
        if op == "create":
            if not limits:
                continue  # "none given" at a creation: the defaults
            params |= {"id": "n" * 20, "rootfs": "default", "network": {"mode": "none"}, "seccomp": "default"}
        answer = ours.asker.ask(op, **params)
        assert isinstance(answer, Failure), (op, limits)
        assert answer.kind == "invalid-request", (limits, answer)
    assert world(ours, theirs) == before


@pytest.mark.parametrize("op", [*ID_OPERATIONS, "create", "prepare"])
def test_what_an_operation_does_not_know_is_refused_or_without_effect(
    launchers: tuple[LauncherProcess, LauncherProcess], op: str
) -> None:
    ours, theirs = launchers
    before = world(ours, theirs)
    for extra in EXTRAS:
        params: dict[str, Any] = {"id": "q" * 20, **extra}
        if op == "create":
            params |= {"rootfs": "default", "limits": {}, "network": {"mode": "none"}, "seccomp": "default"}
        answer = ours.asker.ask(op, **params)
        assert isinstance(answer, Failure) or (op in IDEMPOTENT and answer.result == {}), (op, extra, answer)
    assert world(ours, theirs) == before


def test_questions_tell_of_its_own_sandboxes_only(launchers: tuple[LauncherProcess, LauncherProcess]) -> None:
    ours, theirs = launchers
    before = world(ours, theirs)
    for op in sorted(WITHOUT_ID - {"watch"}):
        answer = ours.asker.ask(op, id=OTHER, path="/etc", state_dir=theirs.settings.state_dir)
        assert isinstance(answer, Reply)
        assert OTHER not in str(answer.result)
        assert theirs.settings.state_dir not in str(answer.result)
    assert world(ours, theirs) == before


def test_whoever_does_not_read_ends_that_launcher_alone(tmp_path: pathlib.Path) -> None:
    """A million questions and no look at the answers: the launcher's memory is every later init's."""
    launcher = LauncherProcess(tmp_path)
    assert isinstance(create(launcher), Reply)
    link, sock = launcher.asker.link, launcher.asker.socket
    sock.settimeout(10)
    try:
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            for number in range(1000, 1_000_000):
                sock.sendall(link.send(Request(number, "rootfs", {})))
                if number % 1000 == 0:
                    status = pathlib.Path(f"/proc/{launcher.process.pid}/status").read_text()
                    assert int(status.partition("VmRSS:")[2].split()[0]) < 120_000
    finally:
        assert launcher.process.wait(30) == 0
    launcher.asker.close()
    again = LauncherProcess(tmp_path)
    init = again.init(ID)
    init.ask("configure", env={}, cwd="/", user="root")
    assert init.run("echo", "alive") == b"alive\n"
    init.close()
    assert isinstance(again.asker.ask("destroy", id=ID), Reply)
    again.close()


@pytest.mark.parametrize("garbage", [b"\0\0\0\1\xc1", b"\xff" * 64, b"\0\0\0\5\x94\x01\x01\xa4", os.urandom(4096)])
def test_garbage_ends_that_launcher_alone(tmp_path: pathlib.Path, garbage: bytes) -> None:
    launcher = LauncherProcess(tmp_path)
    answer = create(launcher)
    assert isinstance(answer, Reply)
    launcher.asker.socket.sendall(garbage)
    launcher.asker.socket.shutdown(1)
    assert launcher.process.wait(30) == 0
    os.kill(answer.result["pid"], 0)
    launcher.asker.close()
    again = LauncherProcess(tmp_path)
    assert isinstance(again.asker.ask("destroy", id=ID), Reply)
    assert again.leftovers() == []
    again.close()


def test_an_init_that_is_stopped_holds_no_operation_up(launchers: tuple[LauncherProcess, LauncherProcess]) -> None:
    ours, _ = launchers
    pid = create(ours, "s" * 20)
    assert isinstance(pid, Reply)
    os.kill(pid.result["pid"], signal.SIGSTOP)
    assert isinstance(ours.asker.ask("freeze", id="s" * 20), Reply)
    assert isinstance(ours.asker.ask("stats", id="s" * 20), Reply)
    assert isinstance(ours.asker.ask("thaw", id="s" * 20), Reply)
    assert isinstance(ours.asker.ask("destroy", id="s" * 20), Reply)
