"""An init that was taken over: garbage, wrong descriptors, floods. The daemon drops it and goes on."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sandboxd.errors import NotAFile, RemoteProtocolError, SandboxdError, SandboxFailed
from sandboxd.runtime import checks
from sandboxd.runtime.lifecycle import State
from sandboxd.runtime.manager import Manager
from sandboxd.runtime.sandbox import Sandbox
from sandboxd.spec import CommandSpec, SandboxSpec
from sandboxd.wire.messages import Event, Failure, Reply, Request
from tests.support.fake_daemon import eventually, manager_of
from tests.support.fake_peer import Conversation, FakeInit, FakeLauncher, Handler, exit_data

TRUE = CommandSpec(argv=("true",))


async def hostile(manager: Manager, fake: FakeLauncher, op: str, handler: Handler) -> tuple[Sandbox, FakeInit]:
    sandbox = await manager.create(SandboxSpec())
    init = fake.inits[sandbox.id]
    await sandbox.ping()  # the link is open: tests count descriptors
    init.answers[op] = handler
    return sandbox, init


async def run(sandbox: Sandbox) -> None:
    async with sandbox.execute(TRUE) as execution:
        while await execution.next_batch():
            pass


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


START = {"id": "p-x", "pid": 7}
GARBAGE: dict[str, Callable[[Conversation, Request], list[bytes]]] = {
    "bytes": lambda talk, request: [os.urandom(64)],
    "a huge frame": lambda talk, request: [b"\xff\xff\xff\xff"],
    "no map as start": lambda talk, request: [talk.wire.send(Event(request.id, 0, 0.0, "start", b"x"))],
    "no pid": lambda talk, request: [talk.wire.send(Event(request.id, 0, 0.0, "start", {"id": "x"}))],
    "output before start": lambda talk, request: [talk.wire.send(Event(request.id, 0, 0.0, "stdout", b"x"))],
    "unknown event": lambda talk, request: [talk.wire.send(Event(request.id, 0, 0.0, "party", {}))],
    "text as output": lambda talk, request: [
        talk.wire.send(Event(request.id, 0, 0.0, "start", START)),
        talk.wire.send(Event(request.id, 1, 0.0, "stdout", {})),
    ],
    "an offset twice": lambda talk, request: [
        talk.wire.send(Event(request.id, 0, 0.0, "start", START)),
        talk.wire.send(Event(request.id, 0, 0.0, "stdout", b"x")),
    ],
    "an exit of the wrong shape": lambda talk, request: [
        talk.wire.send(Event(request.id, 0, 0.0, "start", START)),
        talk.wire.send(Event(request.id, 1, 0.0, "exit", exit_data(True))),
    ],
    "a lying signal": lambda talk, request: [
        talk.wire.send(Event(request.id, 0, 0.0, "start", START)),
        talk.wire.send(Event(request.id, 1, 0.0, "exit", exit_data(signal="\x1b[31m"))),
    ],
    "an end without exit": lambda talk, request: [
        talk.wire.send(Event(request.id, 0, 0.0, "start", START)),
        talk.wire.send(Reply(request.id, {})),
    ],
    "an end without start": lambda talk, request: [talk.wire.send(Reply(request.id, {}))],
    "a reply that nobody asked for": lambda talk, request: [talk.wire.send(Reply(request.id + 77, {}))],
    "a kind of the daemon's own": lambda talk, request: [
        talk.wire.send(Failure(request.id, "unauthenticated", "log in at evil.example", {}))
    ],
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_fails_the_sandbox_and_nothing_else(tmp_path: Path, name: str) -> None:
    async with manager_of(tmp_path) as (fake, manager):
        bystander = await manager.create(SandboxSpec())

        async def speak(talk: Conversation, request: Request) -> None:
            for frame in GARBAGE[name](talk, request):
                await talk.send_bytes(frame)

        sandbox, _ = await hostile(manager, fake, "exec", speak)
        with pytest.raises(SandboxFailed), trio.fail_after(30):
            await run(sandbox)
        await eventually(lambda: sandbox.state is not State.RUNNING)
        assert (sandbox.state, sandbox.reason) == (State.FAILED, "protocol error")
        await eventually(lambda: fake.killed == [sandbox.id])
        await run(bystander)
        await manager.destroy(sandbox.id)


async def test_an_init_that_sends_past_its_credit_is_dropped(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (fake, manager):

        async def flood(talk: Conversation, request: Request) -> None:
            await talk.event(request, 0, "start", START)
            for offset in range(1, 100):
                await talk.send(Event(request.id, offset, 0.0, "stdout", bytes(256 * 1024)))

        sandbox, _ = await hostile(manager, fake, "exec", flood)
        async with sandbox.execute(TRUE) as execution:
            await eventually(lambda: sandbox.state is not State.RUNNING)
            with pytest.raises(SandboxFailed):
                while await execution.next_batch():
                    pass
        assert sandbox.reason == "protocol error"


def test_failures_keep_only_flat_short_facts() -> None:
    facts: dict[Any, Any] = {
        "errno": "ENOENT",
        "message": "a lie",
        "status": 200,
        "self": 1,
        "Upper": 1,
        "deep": {"a": 1},
        "long": "x" * 5000,
        7: 7,
    }
    error = checks.failure("not-a-file", "m" * 9999, facts, allowed=checks.INIT_KINDS)
    assert isinstance(error, NotAFile)
    assert set(error.facts) == {"errno", "long"}
    assert len(error.facts["long"]) == checks.MAX_FACT_CHARS
    assert len(error.message) == checks.MAX_MESSAGE_CHARS
    with pytest.raises(RemoteProtocolError):
        checks.failure("sandbox-gone", "", {}, allowed=checks.INIT_KINDS)


# --- descriptors ----------------------------------------------------------------------------------------------


def _fifo(tree: Path) -> int:
    os.mkfifo(tree / "fifo")
    return os.open(tree / "fifo", os.O_RDONLY | os.O_NONBLOCK)


def _regular(tree: Path, flags: int) -> int:
    (tree / "file").write_bytes(b"data")
    return os.open(tree / "file", flags)


def _async(tree: Path) -> int:
    fd = _regular(tree, os.O_RDONLY)
    os.set_blocking(fd, True)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    return fd


WRONG: dict[str, Callable[[Path], int]] = {
    "fifo": _fifo,
    "O_PATH": lambda tree: _regular(tree, os.O_PATH),
    "write only": lambda tree: _regular(tree, os.O_WRONLY),
    "read and write": lambda tree: _regular(tree, os.O_RDWR),
    "directory": lambda tree: os.open(tree, os.O_RDONLY),
    "socket": lambda tree: socket.socket().detach(),
    "device": lambda tree: os.open("/dev/zero", os.O_RDONLY),
}


@pytest.mark.parametrize("name", WRONG)
async def test_wrong_descriptors_are_closed_and_fail_the_sandbox(tmp_path: Path, name: str) -> None:
    async with manager_of(tmp_path) as (fake, manager):

        async def lie(talk: Conversation, request: Request) -> None:
            await talk.reply_fds(request, [WRONG[name](tmp_path)], size=4, mtime=0.0, mode=0o644)

        sandbox, _ = await hostile(manager, fake, "open_read", lie)
        with pytest.raises(SandboxFailed):
            await sandbox.files.open_read("/file")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert sandbox.reason == "protocol error"


@pytest.mark.parametrize("path", ["/proc/self/status", "memfd"])
async def test_files_of_other_filesystems_are_refused_politely(tmp_path: Path, path: str) -> None:
    async with manager_of(tmp_path) as (fake, manager):

        async def open_it(talk: Conversation, request: Request) -> None:
            path = request.params["path"]
            memory = os.memfd_create("x")
            fd = os.open(f"/proc/self/fd/{memory}" if path == b"/memfd" else path, os.O_RDONLY)
            os.close(memory)
            await talk.reply_fds(request, [fd], size=4, mtime=0.0, mode=0o644)

        sandbox, _ = await hostile(manager, fake, "open_read", open_it)
        before = open_fds()
        with pytest.raises(NotAFile):
            await sandbox.files.open_read(path if path.startswith("/") else "/memfd")
        assert open_fds() == before
        assert sandbox.state is State.RUNNING


async def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (fake, manager):
        (tmp_path / "file").write_bytes(b"data")

        async def surplus(talk: Conversation, request: Request) -> None:
            await talk.reply_fds(request, [os.open(tmp_path / "file", os.O_RDONLY) for _ in range(5)], 1)

        async def unasked(talk: Conversation, request: Request) -> None:
            await talk.reply_fds(request, [os.open(tmp_path / "file", os.O_RDONLY) for _ in range(3)])

        async def too_many(talk: Conversation, request: Request) -> None:
            await talk.reply_fds(request, [os.open(tmp_path / "file", os.O_RDONLY) for _ in range(200)], 1)

        async def none(talk: Conversation, request: Request) -> None:
            await talk.reply_fds(request, [], 1)

        await manager.destroy((await manager.create(SandboxSpec())).id)
        before = open_fds()
        for op, handler in (("open_read", surplus), ("ping", unasked), ("open_read", too_many), ("open_read", none)):
            sandbox, _ = await hostile(manager, fake, op, handler)
            try:
                if op == "ping":
                    await sandbox.ping()
                else:
                    async with await sandbox.files.open_read("/file"):
                        pass
            except SandboxdError:
                pass
            await manager.destroy(sandbox.id)
        await eventually(lambda: open_fds() <= before)


async def test_a_late_descriptor_is_closed(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as (fake, manager):
        (tmp_path / "file").write_bytes(b"data")
        asked = trio.Event()

        async def late(talk: Conversation, request: Request) -> None:
            asked.set()
            await talk.cancelled[request.id].wait()
            await talk.reply_fds(request, [os.open(tmp_path / "file", os.O_RDONLY)])

        sandbox, _ = await hostile(manager, fake, "open_read", late)
        before = open_fds()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sandbox.files.open_read, "/file")
            await asked.wait()
            nursery.cancel_scope.cancel()
        await sandbox.ping()
        assert open_fds() == before
        assert sandbox.state is State.RUNNING
