"""The process that makes veths: one that dies is followed by one that is asked the same, and all begins at once."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from sandboxd.errors import SandboxdError
from sandboxd.launcher import network_process
from sandboxd.launcher.network_process import Deps, NetworkProcess
from sandboxd.linux.eventloop import READ, EventLoop, is_readable
from sandboxd.netd import answers, guard, server, veth
from sandboxd.netd.server import Server
from tests.unit.netd.test_network_rules import HOST, state


class Router:
    """Stands for the namespace, and notes what becomes of it."""

    def __init__(self) -> None:
        self.namespace, self.is_kept, self.done = os.open("/dev/null", os.O_RDONLY), False, list[str]()

    def open(self) -> int:
        self.is_kept = True
        return self.namespace

    def sockets(self) -> list[int]:
        return [os.dup(self.namespace), os.dup(self.namespace)]

    def forward(self, on: bool) -> None:
        self.done.append(f"forward {on}")

    def forget(self) -> None:
        self.is_kept = False
        self.done.append("forget")

    def close(self) -> None:
        pass


class Rig(NetworkProcess):
    """The real thing, but for the processes: each is a socket of the test's."""

    def __init__(self, networks: list[dict[str, Any]]) -> None:
        self.loop = EventLoop()
        self.loop.open()
        self.router = Router()
        self.ends: list[socket.socket] = []
        self.networks = networks
        self.told: list[dict[str, Any]] = []
        state = lambda: ({"table": "t"}, networks)  # noqa: E731
        means = Deps("/", self.router, lambda: bool(networks), state, self.told.append)  # type: ignore[arg-type]
        super().__init__(self.loop, None, means)  # type: ignore[arg-type]

    def _spawn(self, module: str, connection: socket.socket, network: int = -1) -> None:
        if module.endswith("netd"):
            self.ends.append(connection.dup())
            self.ends[-1].setblocking(False)
        read, write = os.pipe()
        self._pidfds.append(read)
        self.pipes = write

    def _end_processes(self) -> None:
        for fd in self._pidfds:
            os.close(fd)
        self._pidfds.clear()

    def turn(self) -> None:
        self.loop.call_later(0, self._advance)
        self.loop.turn()

    def asked(self, *, answer: bool = True) -> list[str]:
        """Return what the present process was asked, and answer it."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                message, fds, _, _ = socket.recv_fds(self.ends[-1], 1 << 17, 8)
                sequence, operation, params = msgpack.unpackb(message)
                found.append(f"{operation} {params.get('id', '')}".strip())
                if operation == "begin":
                    found[-1] += f" {[one['id'] for one in msgpack.unpackb(os.pread(fds[0], 1 << 20, 0))]}"
                for fd in fds:
                    os.close(fd)
                if answer:
                    self.ends[-1].send(msgpack.packb([sequence, None, []]))
        self.turn()
        return found

    def die(self) -> None:
        self.ends[-1].close()
        self.turn()
        self._started_at -= network_process._REST_S  # the time that the next one waits
        self.turn()


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    found = Rig([])
    yield found
    found.close()
    found.loop.close()
    for end in found.ends:
        end.close()


def test_what_was_asked_of_a_process_that_died_is_asked_of_the_next(rig: Rig) -> None:
    results: dict[str, SandboxdError | None] = {}
    for operation, name in (("attach", "a"), ("detach", "b"), ("permit", "c")):
        rig.ask(
            operation,
            {"id": name},
            [os.dup(rig.router.namespace)],
            lambda error, name=name: results.update({name: error}),  # type: ignore[misc]
        )
    rig.ends[-1].send(b"ready")
    rig.turn()
    assert rig.asked(answer=False) == ["router", "begin []", "attach a", "detach b", "permit c"]
    rig.networks.append({"id": "z"})
    rig.die()
    rig.ends[-1].send(b"ready")
    rig.turn()
    assert not results
    assert rig.asked() == ["router", "begin ['z']", "attach a", "detach b", "permit c"]  # in order, after all there is
    while len(results) < 3:
        rig.turn()
    assert results == {"a": None, "b": None, "c": None}
    assert rig.router.done == ["forward True"]  # not before its rules were there


def test_what_ends_every_process_fails_at_last(rig: Rig) -> None:
    results: list[SandboxdError | None] = []
    rig.ask("attach", {"id": "poison"}, [], results.append)
    for count in range(network_process._MAX_LOSSES):
        assert not results, count
        rig.ends[-1].send(b"ready")
        rig.turn()
        assert "attach poison" in rig.asked(answer=False)
        rig.die()
    assert len(results) == 1
    assert results[0] is not None
    assert results[0].kind == "network-unavailable"


def test_the_router_goes_with_the_last_network_and_not_where_another_has_begun(rig: Rig) -> None:
    rig.ask("end", {}, [], lambda _: None)
    rig.ends[-1].send(b"ready")
    rig.turn()
    rig.asked()
    while rig.is_busy:
        rig.turn()
    assert rig.router.done == ["forward True", "forget"]
    rig.ask("end", {}, [], lambda _: None)
    rig.ask("attach", {"id": "next"}, [], lambda _: None)  # before the end is acknowledged
    assert rig.asked() == ["begin []", "end", "begin []", "attach next"]
    while rig.is_busy:
        rig.turn()
    assert rig.router.done[2:] == ["forward True", "forward True"]
    assert rig.router.is_kept


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Have descriptors from 1,100 on, as a launcher of as many sandboxes has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("a hard limit of descriptors below 2,048")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
    taken = [os.open("/dev/null", os.O_RDONLY)]
    try:
        while taken[-1] < 1100:
            taken.append(os.dup(taken[0]))
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_last_networks_end_is_awaited_among_many_descriptors(
    many_descriptors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_process, "_SHUTDOWN_S", 0.2)
    rig, results = Rig([]), list[SandboxdError | None]()
    rig.ask("end", {}, [], results.append)
    assert rig.ends[-1].fileno() > 1023
    rig.ends[-1].send(b"ready")
    rig.close()
    rig.loop.close()
    assert len(results) == 1
    rig.ends[-1].close()


def test_a_process_is_looked_at_among_many_descriptors(many_descriptors: None) -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    pidfd = os.pidfd_open(process.pid)
    try:
        assert pidfd > 1023
        assert not is_readable(pidfd)
        process.kill()
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        assert is_readable(pidfd)
    finally:
        process.kill()
        process.communicate()
        os.close(pidfd)


DEEP = b"\x91" * 1010 + b"\xc0"  # msgpack reads it, and nobody may look into it: each level is a call


@pytest.mark.parametrize(
    "answer",
    [
        b"\x93\x03" + DEEP + b"\x90",  # why it was refused
        b"\x93\x03\xc0\x91" + DEEP,  # whose rules were left out
        b"\x93\x00\xa6denied\x84\xa2id" + DEEP + b"\xa7address\xa1a\xa8protocol\xa1a\xa4port\xc0",
        msgpack.packb([0, "denied", {"id": "a", "address": b"\xff", "protocol": "tcp", "port": 1}]),
        msgpack.packb([0, "denied", {"id": "a", "address": "b", "protocol": "tcp", "port": 1 << 63}]),
        msgpack.packb([0, "denied", {"id": "a"}]),
        msgpack.packb([3, ["no"]]),
        msgpack.packb([3, None, 5]),
        msgpack.packb([[], None]),
        msgpack.packb(7),
    ],
    ids=[
        "deep error",
        "deep list",
        "deep attempt",
        "bytes",
        "port",
        "missing",
        "list",
        "no list",
        "unhashable",
        "number",
    ],
)
def test_a_process_that_says_nonsense_is_ended_and_the_launcher_goes_on(rig: Rig, answer: bytes) -> None:
    results: list[SandboxdError | None] = []
    rig.ask("attach", {"id": "a"}, [], results.append)
    rig.ends[-1].send(b"ready")
    rig.turn()
    assert rig.asked(answer=False) == ["router", "begin []", "attach a"]
    rig.ends[-1].send(answer)
    rig.turn()
    assert rig.ends[-1].recv(1) == b""  # it was let go
    assert not rig.told
    rig._started_at -= network_process._REST_S
    rig.turn()
    rig.ends[-1].send(b"ready")
    rig.turn()
    assert "attach a" in rig.asked()
    while not results:
        rig.turn()
    assert results == [None]


def test_of_a_denied_packet_only_what_is_known_is_told(rig: Rig) -> None:
    rig.ask("attach", {"id": "a"}, [], lambda _: None)
    rig.ends[-1].send(b"ready")
    rig.turn()
    known = {"id": "a", "address": "198.18.0.1", "protocol": "tcp", "port": 80}
    rig.ends[-1].send(msgpack.packb([0, "denied", {**known, "more": [1]}]))
    rig.turn()
    assert rig.told == [known]


class Remote:
    """Notes each transaction, and refuses those with a word in them."""

    def __init__(self, refused: str = "") -> None:
        self.transactions: list[str] = []
        self.refused = refused

    def run(self, commands: str) -> str:
        self.transactions.append(commands)
        return "no" if self.refused and self.refused in commands else ""


class Deaf:
    """Stands for the watch, which hears of nothing."""

    sockets = ()

    def __init__(self, _: str) -> None:
        pass

    def passing_over(self, _: object) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def begun(monkeypatch: pytest.MonkeyPatch, remote: Remote, count: int) -> tuple[Server, list[str]]:
    class Host:
        port, asked = 1, 0

        def routes(self) -> list[Any]:
            self.asked += 1
            return []

        def index_of(self, _: str) -> int:
            return 5

    places = veth.Places(Host(), None, -1)  # type: ignore[arg-type]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    one = Server(ours)
    one._places, one._remote = places, remote  # type: ignore[assignment]
    monkeypatch.setattr(server, "Watch", Deaf)
    monkeypatch.setattr(veth, "fetch", lambda *_: None)
    monkeypatch.setattr(guard.Guard, "restore", lambda *_: "")
    states = [state("198.18.0.1/32", sandbox_id=f"s{at}", index=at) for at in range(1, count + 1)]
    fd = os.memfd_create("states")
    os.write(fd, msgpack.packb([{name: getattr(item, name) for name in item.__slots__} for item in states]))
    try:
        left_out = one._begin(HOST, fd)
    finally:
        os.close(fd)
        ours.close()
    assert places.host.asked == 1  # type: ignore[attr-defined]  # once, however many there are
    return one, left_out


def test_all_begins_in_one_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Remote()
    one, left_out = begun(monkeypatch, remote, 100)
    assert len(remote.transactions) == 1
    assert remote.transactions[0].count("policy drop") == 4
    assert all(f"{{ sdtest-{at} . " in remote.transactions[0] for at in range(1, 101))
    assert not left_out
    assert len(one._states) == 100


def test_one_list_that_is_refused_shuts_its_own_sandbox_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Remote("allow_3 ")
    one, left_out = begun(monkeypatch, remote, 5)
    assert left_out == ["s3: no"]
    assert sorted(one._states) == ["s1", "s2", "s4", "s5"]
    assert "policy drop" in remote.transactions[1]
    assert "sdtest-" not in remote.transactions[1]  # shut first, then opened one by one


def test_a_detach_may_be_asked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Remote()
    one, _ = begun(monkeypatch, remote, 2)
    monkeypatch.setattr(veth, "detach", lambda *_: None)
    params = {"id": "s1", "name": "sdtest-1", "addresses": [[4, "10.213.0.1"]]}
    assert "delete element" in one._prepare("detach", dict(params), [])
    assert one._prepare("detach", dict(params), []) == ""


def test_answers_are_looked_through_once_a_second_however_often_the_loop_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = begun(monkeypatch, Remote(), 2)
    now, looks = 1000.0, list[float]()
    lapse = answers.Answers.lapse
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(answers.Answers, "lapse", lambda self, when: looks.append(when) or lapse(self, when))
    assert not one._loop._timers
    one._permit("s1", [("198.18.0.1", [[80, 80]], 3.0)])
    one._loop.open()
    one._loop.watch(ready := os.eventfd(1), READ, lambda: None)
    for turn in range(100):
        now = 1000.0 + turn / 25
        assert one._loop.turn()
    assert len(looks) == 2 * 4
    assert not one._answers["s1"].has_any  # it had its time all the same
    assert not one._loop._timers
    one._loop.close()
    os.close(ready)
