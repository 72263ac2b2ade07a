"""Spare interpreters: what one may say, and when there is room for one; its worker is a fake."""

from __future__ import annotations

import os
import pathlib
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any, cast

import msgpack
import pytest

from sandboxd.guest import spares
from sandboxd.guest.leaf_cgroups import LeafCgroups
from sandboxd.guest.spares import Spare, Spares, Wish
from sandboxd.guest.users import User
from sandboxd.guest.worker import Worker
from sandboxd.linux.eventloop import EventLoop
from sandboxd.runtime.contexts import may_wait

ROOT = User("root", 0, 0, (0,), "/root", "/bin/sh")


class FakeWorker:
    """A worker without a process."""

    pid = 2**22 + 1
    is_running = True

    def __init__(self) -> None:
        self.killed = 0

    def kill(self, _reason: str) -> None:
        self.killed += 1

    def write(self, *_: Any) -> None: ...

    def hear_first(self, *_: Any) -> None: ...


@pytest.fixture
def wish(tmp_path: pathlib.Path) -> Wish:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/node").write_bytes(b"\x7fELF")
    os.utime(tmp_path / "bin/node", (1, 1))
    return Wish(("node", "-e", "0"), {"PATH": f"/none:{tmp_path}/first:{tmp_path}/bin"}, str(tmp_path), ROOT, "node")


def program(wish: Wish) -> str:
    return f"{wish.cwd}/bin/node"


def made(wish: Wish) -> Spare:
    before = {program(wish): spares._stamp(program(wish))}
    return Spare(wish, FakeWorker(), before, time.time_ns() + 10**9)  # type: ignore[arg-type]


def frame(message: object) -> bytes:
    body = msgpack.packb(message)
    return struct.pack(">I", len(body)) + bytes(body)


def test_it_is_parked_when_all_was_said(wish: Wish) -> None:
    spare = made(wish)
    for byte in frame({"op": "parked", "files": [program(wish)]}):
        assert not spare.is_parked
        assert not spare.serves(wish)
        assert spare.hear(bytes([byte]))
    assert spare.serves(wish)
    assert not spare.hear(b"\0")


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        struct.pack(">I", 3) + b"\xc1\xc1\xc1",
        *(
            frame(message)
            for message in cast(
                "tuple[object, ...]",
                (
                    {},
                    [],
                    None,
                    {"files": []},
                    {"files": "/"},
                    {"files": [1]},
                    {"files": ["x"]},
                    {"files": ["/\0"]},
                    {"files": ["/none"]},
                    {"files": [sys.executable]},
                    {"files": ["/"] * 300},
                ),
            )
        ),
        frame({"files": ["/"]}) + b"\0",
    ],
)
def test_what_is_no_such_word_ends_it(wish: Wish, said: bytes) -> None:
    spare = made(wish)
    assert not spare.hear(said)
    assert not spare.serves(wish)


def test_a_file_that_changed_while_it_started_ends_it(wish: Wish) -> None:
    spare = Spare(wish, FakeWorker(), {}, time.time_ns())  # type: ignore[arg-type]
    os.utime(program(wish))
    assert not spare.hear(frame({"files": [program(wish)]}))


@pytest.mark.parametrize("change", ["gone", "written", "replaced", "before", "folder"])
def test_it_serves_nobody_after_a_change(wish: Wish, change: str) -> None:
    spare = made(wish)
    assert spare.hear(frame({"files": [program(wish)]}))
    path = pathlib.Path(program(wish))
    if change == "gone":
        path.unlink()
    elif change == "written":
        path.write_bytes(b"\x7fELF2")
    elif change == "replaced":
        path.with_suffix(".new").write_bytes(b"\x7fELF")
        os.utime(path.with_suffix(".new"), (1, 1))
        path.with_suffix(".new").rename(path)
    elif change == "before":
        first = path.parent.parent / "first"
        first.mkdir()
        (first / "node").write_text("#!/bin/sh\n")
    else:
        os.rename(wish.cwd, f"{wish.cwd}.old")
        os.mkdir(wish.cwd)
    assert not spare.serves(wish)


@pytest.fixture
def group(tmp_path: pathlib.Path) -> Iterator[tuple[pathlib.Path, LeafCgroups]]:
    directory = tmp_path / "work"
    directory.mkdir()
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    leaves = LeafCgroups(EventLoop())
    leaves.work_fd = fd
    yield directory, leaves
    os.close(fd)


@pytest.mark.parametrize(
    ("files", "room"),
    [
        ({}, True),
        ({"memory.max": "max\n", "memory.current": "5\n"}, True),
        ({"memory.max": "100\n", "memory.current": "50\n"}, True),
        ({"memory.max": "100\n", "memory.current": "51\n"}, False),
        ({"pids.max": "20\n", "pids.current": "10\n"}, True),
        ({"memory.max": "100\n", "memory.current": "0\n", "pids.max": "20\n", "pids.current": "11\n"}, False),
    ],
)
def test_room(group: tuple[pathlib.Path, LeafCgroups], files: dict[str, str], room: bool) -> None:
    directory, leaves = group
    for name, text in files.items():
        (directory / name).write_text(text)
    assert leaves.has_room(50, 10) is room


def test_there_is_one_at_most_and_none_without_room(group: tuple[pathlib.Path, LeafCgroups], wish: Wish) -> None:
    directory, leaves = group
    started: list[FakeWorker] = []

    def start(_wish: Wish, _name: str) -> Worker:
        started.append(FakeWorker())
        return started[-1]  # type: ignore[return-value]

    loop = EventLoop()
    table = Spares(loop, leaves, start)
    for number in (1, 2, 3):
        table._make(wish, b"", 60)
        assert (len(started), sum(worker.killed for worker in started)) == (number, number - 1)
    assert table.take(wish) is None  # it has not said that it waits
    assert started[-1].killed == 1
    (directory / "memory.max").write_text("1000\n")
    (directory / "memory.current").write_text("1\n")
    table._make(wish, b"", 60)
    assert len(started) == 3
    table.drop()


def test_a_program_that_cannot_be_started_is_no_error(group: tuple[pathlib.Path, LeafCgroups], wish: Wish) -> None:
    def start(_wish: Wish, _name: str) -> Worker:
        raise OSError(11, "no room")

    table = Spares(EventLoop(), group[1], start)
    table._make(wish, b"", 60)
    assert table.take(wish) is None


@pytest.mark.parametrize(
    ("env", "may"),
    [
        ({}, True),
        ({"A": "b", "TZ": "UTC", "LANG": "C"}, True),
        ({"NODE_OPTIONS": "-r ./x"}, False),
        ({"LD_PRELOAD": "x"}, False),
        ({"OPENSSL_CONF": "x"}, False),
        ({"SSL_CERT_FILE": "x"}, False),
    ],
)
def test_variables_that_name_files(env: dict[str, str], may: bool) -> None:
    assert may_wait(env) is may
