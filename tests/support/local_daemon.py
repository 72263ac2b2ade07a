"""The daemon for tests of the SDK and the command line: the real application, whose sandboxes are this machine.

It runs on trio in a thread of its own, so that blocking clients and real processes can use it. A command is a plain
process, so standard input, exit statuses and disconnects are real; files lie in a directory for each sandbox.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

import httpx
import pytest
import trio

from sandboxd.errors import FileNotFound, ProcessNotRunning, SandboxdError
from sandboxd.guest import file_operations
from sandboxd.linux.kernel import Kernel
from sandboxd.wire.messages import Reply, Request
from tests.support.fake_daemon import TOKEN, FakeDaemon, daemon_in
from tests.support.fake_peer import Conversation, FakeInit, exit_data

#: One read of a pipe, as init's at most.
READ_BYTES = 256 * 1024


@dataclasses.dataclass
class Program:
    """A command that runs: its process, and how its input is fed."""

    process: trio.Process
    stdin: trio.abc.SendStream | None


class LocalInit(FakeInit):
    """An init whose commands are processes of this machine; `ended` tells of each (id, whether its caller left)."""

    ended: queue.Queue[tuple[str, bool]]
    #: Commands that are no programs: what they print, by their first word, and how they end.
    scripts: dict[str, tuple[list[tuple[str, bytes]], dict[str, Any]]]

    def __init__(self, path: pathlib.Path, tree: pathlib.Path) -> None:
        super().__init__(path, tree)
        self.programs: dict[str, Program] = {}
        self.answers |= {"signal": self.op_signal, "stat": self.op_stat, "info": self.op_configure}

    async def op_exec(self, talk: Conversation, request: Request) -> None:
        params = request.params
        if params["argv"][0] in self.scripts:
            self.script, self.exit = self.scripts[params["argv"][0]]
            await super().op_exec(talk, request)
            return
        await talk.event(request, 0, "start", {"id": params["process"], "pid": 7})
        program = await self._start(params)
        if program is None:
            await talk.event(request, 1, "stderr", f"cannot run '{params['argv'][0]}': not found\n".encode())
            await talk.event(request, 2, "exit", exit_data(127))
            await talk.reply(request)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._feed, program, params["stdin"])
            end = await self._follow(talk, request, program)
            nursery.cancel_scope.cancel()
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if not end.pop("left"):
                await talk.event(request, end.pop("offset"), "exit", exit_data(**end))
            await talk.reply(request)

    async def _start(self, params: dict[str, Any]) -> Program | None:
        try:
            process = await trio.lowlevel.open_process(
                params["argv"],
                env={**os.environ, **params["env"]},
                cwd=params["cwd"],
                stdin=subprocess.DEVNULL if params["stdin"] is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError:
            return None
        self.programs[params["process"]] = program = Program(process, process.stdin)
        return program

    async def _feed(self, program: Program, data: bytes | bool | None) -> None:
        if program.stdin is not None and not isinstance(data, bool):
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await program.stdin.send_all(data or b"")
                await program.stdin.aclose()

    async def _follow(self, talk: Conversation, request: Request, program: Program) -> dict[str, Any]:
        """Tell what it prints, until it has ended or its caller has left; return how it ended."""
        timeout, detach = request.params["timeout_s"], request.params["detach"]
        facts: dict[str, Any] = {"offset": 1, "left": False, "timed_out": False}

        async def tell(kind: str, stream: trio.abc.ReceiveStream) -> None:
            async with stream:
                while data := await stream.receive_some(READ_BYTES):
                    offset, facts["offset"] = facts["offset"], facts["offset"] + 1
                    await talk.event(request, offset, kind, bytes(data))

        async def watch(scope: trio.CancelScope) -> None:
            await talk.cancelled[request.id].wait()
            facts["left"] = True
            if not detach:
                scope.cancel()

        process = program.process
        assert process.stdout is not None
        assert process.stderr is not None
        code = 0
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, nursery.cancel_scope)
                with trio.move_on_after(float("inf") if timeout is None else timeout) as clock:
                    async with trio.open_nursery() as pipes:
                        pipes.start_soon(tell, "stdout", process.stdout)
                        pipes.start_soon(tell, "stderr", process.stderr)
                if clock.cancelled_caught:
                    facts["timed_out"] = True
                    _kill(process)
                await process.wait()
                nursery.cancel_scope.cancel()
        except BaseException:  # of several tasks the cancellations come as a group
            facts["left"] = True  # the sandbox itself is destroyed
            raise
        finally:
            _kill(process)
            with trio.CancelScope(shield=True):
                code = await process.wait()
            self.ended.put((request.params["process"], facts["left"]))
        facts["code"] = None if code < 0 else code
        facts["signal"] = signal.Signals(-code).name if code < 0 else None
        return facts

    def _running(self, request: Request) -> Program:
        program = self.programs.get(request.params["process"])
        if program is None or program.process.returncode is not None:
            raise ProcessNotRunning("cannot write to the process: it has ended", id=request.params["process"])
        return program

    async def op_stdin(self, talk: Conversation, request: Request) -> None:
        program = self._running(request)
        if program.stdin is None:
            raise ProcessNotRunning("cannot write to the process: it has no input")
        try:
            await program.stdin.send_all(request.params["data"])
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ProcessNotRunning("cannot write to the process: its input is closed") from None
        await talk.reply(request)

    async def op_stdin_close(self, talk: Conversation, request: Request) -> None:
        program = self._running(request)
        if program.stdin is not None:
            await program.stdin.aclose()
        await talk.reply(request)

    async def op_signal(self, talk: Conversation, request: Request) -> None:
        os.killpg(self._running(request).process.pid, request.params["signal"])
        await talk.reply(request)

    async def op_stat(self, talk: Conversation, request: Request) -> None:
        path = self._local(request.params["path"])
        try:
            row = file_operations.stat_file(Kernel(), {"path": str(path), "follow": request.params["follow"]})
        except FileNotFound as error:
            raise FileNotFound("cannot look at it: no such file or directory", **error.facts) from None
        await talk.send(Reply(request.id, {**row, "path": request.params["path"]}))

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            await super().run(task_status)
        finally:
            for program in self.programs.values():
                _kill(program.process)


def _kill(process: trio.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class LocalDaemon:
    """A running daemon; `url` is where it listens, and `tcp_url` where it asks for the token."""

    token = TOKEN

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self.url = f"unix://{directory}/api.sock"
        self.ended: queue.Queue[tuple[str, bool]] = queue.Queue()
        self.scripts: dict[str, tuple[list[tuple[str, bytes]], dict[str, Any]]] = {}
        self.before_create: Callable[[], object] = lambda: None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._directory.mkdir(exist_ok=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self._failure = error
        finally:
            self._started.set()

    async def _main(self) -> None:
        self._stop = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        async with daemon_in(self._directory) as self._daemon:
            fake = self._daemon.fake
            fake.init_class = self._init
            fake.before_create = self._wait_for_test
            self._started.set()
            await self._stop.wait()

    def _init(self, path: pathlib.Path, tree: pathlib.Path) -> LocalInit:
        made = LocalInit(path, tree)
        made.ended, made.scripts = self.ended, self.scripts
        return made

    async def _wait_for_test(self) -> None:
        act = self.before_create  # as it is by now
        await trio.to_thread.run_sync(act, abandon_on_cancel=True)

    @property
    def inside(self) -> FakeDaemon:
        """The parts of the daemon; they belong to its thread."""
        return self._daemon

    @property
    def tcp_url(self) -> str:
        """Where it listens over TCP."""
        host, port = self._daemon.tcp
        return f"http://{host}:{port}"

    @property
    def sandboxes(self) -> list[str]:
        """The ids of those that have an init."""
        return list(self._daemon.fake.inits)

    @property
    def count(self) -> int:
        """How many sandboxes were ever made."""
        return len(self._daemon.fake.created)

    def names(self) -> list[str | None]:
        """Return the names of its sandboxes."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=self.url.removeprefix("unix://"))) as client:
            items = client.get("http://sandboxd/v1/sandboxes").json()["items"]
        return [item["name"] for item in items]

    def refuse(self, op: str, error: SandboxdError) -> None:
        """Let an operation of the launcher fail."""

        async def fail(talk: Conversation, request: Request) -> None:
            raise error

        self._daemon.fake.answers[op] = fail

    def file(self, path: str) -> pathlib.Path:
        """Return where a file of the only sandbox lies here."""
        (init,) = self._daemon.fake.inits.values()
        return init.tree / path.lstrip("/")

    def asked(self, op: str) -> list[dict[str, Any]]:
        """Return what the inits were asked for."""
        return [params for init in self._daemon.fake.inits.values() for params in init.asked(op)]

    @property
    def created(self) -> list[dict[str, Any]]:
        """What the launcher was asked to create."""
        return self._daemon.fake.created


@contextlib.contextmanager
def local_daemon(directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalDaemon]:
    """Run a daemon that the SDK and the command line find by the environment."""
    with LocalDaemon(directory / "daemon") as daemon:
        monkeypatch.setenv("SANDBOXD_URL", daemon.url)
        monkeypatch.delenv("SANDBOXD_TOKEN", raising=False)
        yield daemon


@dataclasses.dataclass
class Sent:
    """One request as a client sent it; `body` is what its JSON says."""

    method: str
    path: str
    body: Any


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Sent]:
    """Record what clients of this process send from now on."""
    found: list[Sent] = []
    send = httpx.Client.send

    @functools.wraps(send)
    def record(self: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        is_json = request.headers.get("Content-Type") == "application/json"
        body = json.loads(request.content) if is_json else None
        found.append(Sent(request.method, request.url.raw_path.decode(), body))
        return send(self, request, **options)

    monkeypatch.setattr(httpx.Client, "send", record)
    return found
