"""The asynchronous SDK on trio and on asyncio, against the real application, whose sandboxes are this machine."""

from __future__ import annotations

import asyncio
import io
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
import trio

import sandboxd
from sandboxd import AsyncClient, AsyncSandbox, errors
from sandboxd.wire import raw
from tests.support import canned
from tests.support.canned import Asked, CannedServer, stream_answer
from tests.support.local_daemon import LocalDaemon, local_daemon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalDaemon]:
    with local_daemon(tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    def on_asyncio(scenario: Any) -> None:
        asyncio.run(scenario())

    return trio.run if request.param == "trio" else on_asyncio


def test_the_whole_way(daemon: LocalDaemon, run: Run) -> None:
    async def scenario() -> None:
        async with AsyncClient() as client:
            await client.health()
            assert (await client.info())["version"] == "0"
            assert "sandboxd_" in await client.metrics()
        async with AsyncSandbox.create(name="a", labels={"x": "y"}) as sandbox:
            assert sandbox.name == "a"
            assert "a" in repr(sandbox)
            result = await sandbox.exec("echo out; echo err >&2; exit 3", timeout=60)
            assert (result.exit_code, result.stdout, result.stderr) == (3, "out\n", "err\n")
            with pytest.raises(sandboxd.CommandFailed):
                result.check()
            [found] = await AsyncSandbox.list()
            assert found.id == sandbox.id
            other = await AsyncSandbox.connect("a")
            assert (await other.refresh()).labels == {"x": "y"}
            await other.close()
        assert not daemon.sandboxes
        with pytest.raises(errors.SandboxNotFound):
            await AsyncSandbox.connect("a")

    run(scenario)


def test_create_by_await_stays_until_destroy(daemon: LocalDaemon, run: Run) -> None:
    async def scenario() -> None:
        async with AsyncClient() as client:
            sandbox = await AsyncSandbox.create(client=client)
            assert sandbox.id in daemon.sandboxes
            await sandbox.destroy()
            await sandbox.destroy()
            async with await AsyncSandbox.create(client=client):
                assert daemon.sandboxes
            assert not daemon.sandboxes

    run(scenario)


def test_stream_iterates_calls_back_and_feeds(daemon: LocalDaemon, run: Run) -> None:
    async def scenario() -> None:
        seen: list[str] = []

        async def later(text: str) -> None:
            await anyio.lowlevel.checkpoint()
            seen.append(text)

        async with AsyncSandbox.create() as sandbox:
            command = "echo ready; read answer; echo got $answer; echo err >&2"
            async with sandbox.exec_stream(command, stdin=True, on_stdout=later, on_stderr=seen.append) as stream:
                assert (await anext(stream)).text == "ready\n"
                await stream.write_stdin("yes\n")
                await stream.close_stdin()
                assert (await stream.wait()).ok
            assert sorted(seen) == ["err\n", "got yes\n", "ready\n"]
            assert "exit code 0" in repr(stream)

    run(scenario)


def test_many_at_once(daemon: LocalDaemon, run: Run) -> None:
    async def scenario() -> None:
        results: list[bytes] = []

        async def work(sandbox: AsyncSandbox, number: int) -> None:
            results.append((await sandbox.exec(["cat"], stdin=bytes([number]) * 100_000)).stdout_bytes)

        async with AsyncSandbox.create() as sandbox, anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(work, sandbox, number)
        assert sorted(results) == [bytes([number]) * 100_000 for number in range(20)]

    run(scenario)


def test_files(daemon: LocalDaemon, run: Run, tmp_path: Path) -> None:
    async def generate() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    async def scenario() -> None:
        async with AsyncSandbox.create() as sandbox:
            assert await sandbox.write_file("/a", "häh") == 4
            assert await sandbox.read_text("/a") == "häh"
            assert await sandbox.write_file("/b", io.BytesIO(bytes(700_000))) == 700_000
            assert await sandbox.write_file("/c", generate()) == 2
            assert await sandbox.write_file("/d", [b"x", b"y"]) == 2
            await anyio.Path(tmp_path / "file").write_bytes(b"on disk")
            async with await anyio.open_file(tmp_path / "file", "rb") as file:
                assert await sandbox.write_file("/e", file) == 7
            target = io.BytesIO()
            assert await sandbox.download("/b", target) == 700_000
            async with sandbox.read_file_stream("/b") as stream:
                assert stream.size == 700_000
            with pytest.raises(errors.FileNotFound):
                await sandbox.read_file("/none")

    run(scenario)


def test_what_is_not_entered_says_so(daemon: LocalDaemon, run: Run) -> None:
    async def scenario() -> None:
        async with AsyncSandbox.create() as sandbox:
            stream = sandbox.exec_stream("true")
            with pytest.raises(errors.LocalProtocolError, match="async with"):
                await stream.wait()
            with pytest.raises(errors.LocalProtocolError, match="async with"):
                [piece async for piece in sandbox.read_file_stream("/x")]
            async with stream:
                await stream.wait()
            with pytest.raises(errors.LocalProtocolError):
                await stream.__aenter__()

    run(scenario)


def test_leaving_a_stream_kills_the_command(daemon: LocalDaemon, run: Run) -> None:
    async def scenario() -> None:
        async with AsyncSandbox.create() as sandbox:
            async with sandbox.exec_stream("echo ready; sleep 600") as stream:
                await anext(stream)
            assert daemon.ended.get(timeout=10) == (stream.process_id, True)
            with pytest.raises(errors.LocalProtocolError):
                await stream.wait()

    run(scenario)


def test_cancelling_a_command_kills_it_and_destroys_the_sandbox(daemon: LocalDaemon, run: Run) -> None:
    async def scenario() -> None:
        with anyio.CancelScope() as scope:
            async with AsyncSandbox.create() as sandbox:

                def cancel(text: str) -> None:
                    assert text == "ready\n"
                    scope.cancel()

                async with sandbox.exec_stream("echo ready; sleep 600", on_stdout=cancel) as stream:
                    await stream.wait()
        assert scope.cancelled_caught
        assert daemon.ended.get(timeout=10)[1]
        assert not daemon.sandboxes

    run(scenario)


def test_asyncio_cancel_kills_the_command_and_destroys_the_sandbox(daemon: LocalDaemon) -> None:
    async def scenario() -> None:
        async def work() -> None:
            async with AsyncSandbox.create() as sandbox:
                task = asyncio.current_task()
                assert task is not None
                async with sandbox.exec_stream("echo ready; sleep 600", on_stdout=lambda _: task.cancel()) as stream:
                    await stream.wait()

        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(work())
        assert daemon.ended.get(timeout=10)[1]
        assert not daemon.sandboxes

    asyncio.run(scenario())


class Gate:
    """Holds the daemon in a create until the test lets it go."""

    def __init__(self, daemon: LocalDaemon) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        daemon.before_create = self.wait

    def wait(self) -> None:
        self.reached.set()
        assert self.opened.wait(10)


def test_cancelling_a_create_leaves_no_sandbox(daemon: LocalDaemon, run: Run) -> None:
    async def scenario() -> None:
        gate = Gate(daemon)
        scope = anyio.CancelScope()

        async def work() -> None:
            with scope:
                async with AsyncSandbox.create():
                    await anyio.sleep_forever()

        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await anyio.to_thread.run_sync(gate.reached.wait, 10)
            scope.cancel()
            gate.opened.set()
        assert daemon.count == 1
        assert not daemon.sandboxes

    run(scenario)


def test_asyncio_cancel_of_a_create_leaves_no_sandbox(daemon: LocalDaemon) -> None:
    async def scenario() -> None:
        gate = Gate(daemon)

        async def work() -> None:
            await AsyncSandbox.create()

        task = asyncio.create_task(work())
        await asyncio.to_thread(gate.reached.wait, 10)
        task.cancel()
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert daemon.count == 1
        assert not daemon.sandboxes

    asyncio.run(scenario())


def test_a_failing_create_raises_its_error(daemon: LocalDaemon, run: Run) -> None:
    async def scenario() -> None:
        async with AsyncSandbox.create(name="a"):
            with pytest.raises(errors.NameTaken):
                await AsyncSandbox.create(name="a")

    run(scenario)


def test_a_failing_destroy_is_noted_on_the_error_of_the_block(daemon: LocalDaemon, run: Run) -> None:
    async def scenario() -> None:
        with pytest.raises(ZeroDivisionError) as caught:
            async with AsyncSandbox.create():
                daemon.refuse("destroy", errors.Conflict("cannot destroy it: not today"))
                _ = 1 / 0
        assert "could not be destroyed" in caught.value.__notes__[0]

    run(scenario)


def test_streams_that_break(tmp_path: Path, run: Run) -> None:
    answers = iter(
        [
            stream_answer(raw.encode(raw.STDOUT, b"half")[:-1], ends=False),
            stream_answer(b"\x09\x00\x00\x00\x00"),
            canned.json_answer(200, {}),
            stream_answer(canned.exit_frame()),
        ]
    )

    def answer(asked: Asked) -> bytes:
        return next(answers) if asked.path[-1] == "exec" else canned.json_answer(200, canned.sandbox_object(1))

    async def scenario() -> None:
        async with AsyncClient(server.url) as client:
            sandbox = await AsyncSandbox.connect("x", client=client)
            with pytest.raises(errors.DaemonUnavailable):
                await sandbox.exec("cut")
            with pytest.raises(errors.RemoteProtocolError):
                await sandbox.exec("malformed")
            with pytest.raises(errors.RemoteProtocolError):
                await sandbox.exec("no stream")
            assert (await sandbox.exec("true")).ok

    with CannedServer(tmp_path / "broken.sock", answer) as server:
        run(scenario)


def test_no_daemon(tmp_path: Path, run: Run) -> None:
    async def scenario() -> None:
        async with AsyncClient(f"unix://{tmp_path}/none") as client:
            with pytest.raises(errors.DaemonUnavailable, match="sandboxd serve") as caught:
                await client.health()
            assert caught.value.errno == "ENOENT"
        with pytest.raises(errors.LocalProtocolError):
            await client.health()
        assert "closed" in repr(client)

    run(scenario)
