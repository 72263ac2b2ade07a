"""sandboxd itself: by its SDK, by bare HTTP, and by its command line."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bench.contender import ECHO, TRUE, Cold, Contender, Held, Unavailable, check_stream
from bench.daemon import Daemon
from bench.http import UnixConnection
from bench.origin import Origin
from bench.peers.node import NodeContexts
from bench.peers.sandboxd_contexts import WITHOUT_TEMPLATE, ApiContexts, Contexts
from sandboxd import Client, Pty, Sandbox, Session, __version__
from sandboxd.errors import SandboxdError

if TYPE_CHECKING:
    from bench.figures.contexts import Interpreters
    from bench.figures.javascript import Scripts
    from bench.workspace import Workspace


class _Sandboxd(Contender):
    """What the three ways have in common: one daemon."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def open(self) -> None:
        """Start the daemon, or join it."""
        self._daemon = self._workspace.share(Daemon)
        self.cold()

    @property
    def version(self) -> str:
        """The package's."""
        return __version__

    @property
    def pid(self) -> int:
        """The daemon's; the launcher and the inits are below it."""
        return self._daemon.pid


class _HeldSdk:
    """A sandbox of the SDK's."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._session: Session | None = None

    def exec(self) -> float:
        began = time.perf_counter()
        result = self._sandbox.exec(TRUE)
        elapsed = time.perf_counter() - began
        if result.exit_code != 0:
            raise Unavailable(f"/bin/true ended with {result.exit_code}")
        return elapsed

    def session_exec(self) -> float:
        if self._session is None:
            self._session = self._sandbox.create_session()
            self._session.exec("cd /tmp; export A=1; f() { echo f; }")
        began = time.perf_counter()
        result = self._session.exec(":")
        elapsed = time.perf_counter() - began
        if result.exit_code != 0:
            raise Unavailable(f"a command in a session ended with {result.exit_code}")
        return elapsed

    def stdout(self, count: int) -> float:
        first, seen = 0.0, 0
        with self._sandbox.exec_stream(["head", "-c", str(count), "/dev/zero"]) as stream:
            for chunk in stream:
                first = first or time.perf_counter()
                seen += len(chunk.data)
            elapsed = time.perf_counter() - first
        check_stream(count, seen)
        return elapsed

    def start(self) -> float:
        began = time.perf_counter()
        self._sandbox.start_process(TRUE)
        return time.perf_counter() - began

    def follow(self, count: int) -> tuple[int, float]:
        process = self._sandbox.start_process(f"read go; exec head -c {count} /dev/zero", stdin=True)
        first, seen = 0.0, 0
        with self._sandbox.stream_process_logs(process) as stream:
            self._sandbox.write_stdin(process, "go\n")
            for chunk in stream:
                first = first or time.perf_counter()
                seen += len(chunk.data)
            elapsed = time.perf_counter() - first
            check_stream(count, seen + stream.dropped_bytes)
        self._sandbox.remove_process(process)
        return seen, elapsed

    def echo(self, count: int) -> list[float]:
        with self._sandbox.open_pty("stty raw -echo; echo; exec cat") as pty:
            shown = pty.read()
            while b"\n" not in shown:
                shown += pty.read()
            return [_echo(pty) for _ in range(count)]

    def put(self, source: Path) -> float:
        began = time.perf_counter()
        with source.open("rb") as file:
            self._sandbox.write_file("/workspace/file", file)
        return time.perf_counter() - began

    def get(self, target: Path) -> float:
        began = time.perf_counter()
        with target.open("wb") as file:
            self._sandbox.download("/workspace/file", file)
        return time.perf_counter() - began

    def end(self) -> None:
        self._sandbox.destroy()


def _echo(pty: Pty) -> float:
    began = time.perf_counter()
    pty.write(b"x")
    if pty.read() != b"x":
        raise Unavailable("the terminal shows something else than was typed")
    return time.perf_counter() - began


class SandboxdSdk(_Sandboxd):
    """The synchronous SDK over the unix socket, one client."""

    name = "sandboxd"
    what = "synchronous SDK, unix socket, one client"
    figures = frozenset(
        {
            "create",
            "exec",
            "session",
            "start",
            "memory",
            "stdout",
            "follow",
            "echo",
            "contexts",
            "files",
            "clone",
            "javascript",
        }
    )

    def clone(self, depth: int | None) -> float:
        try:
            return self._workspace.share(Origin).timed(depth, by_git=False)
        except SandboxdError as error:
            raise Unavailable(str(error)) from error

    def cold(self) -> Cold:
        try:
            return self._cold()
        except SandboxdError as error:
            raise Unavailable(str(error)) from error

    def _cold(self) -> Cold:
        marks = [time.perf_counter()]
        sandbox = Sandbox.create(rootfs=self._workspace.rootfs, client=self._daemon.client)
        try:
            marks.append(time.perf_counter())
            with sandbox.exec_stream(ECHO) as stream:
                next(stream)
                marks.append(time.perf_counter())
                stream.wait()
            marks.append(time.perf_counter())
        finally:
            sandbox.destroy()
        marks.append(time.perf_counter())
        names = ("create", "first output", "exit", "destroy")
        phases = dict(zip(names, (b - a for a, b in itertools.pairwise(marks)), strict=True))
        return Cold(marks[2] - marks[0], marks[-1] - marks[0], phases)

    def interpreters(self) -> Interpreters:
        sandbox = Sandbox.create(rootfs=self._workspace.rootfs, client=self._daemon.client)
        return Contexts(sandbox)

    def scripts(self) -> Scripts:
        return NodeContexts(Sandbox.create(rootfs=self._workspace.rootfs, client=self._daemon.client))

    def hold(self) -> Held:
        return _HeldSdk(Sandbox.create(rootfs=self._workspace.rootfs, client=self._daemon.client))


class _HeldApi:
    """A sandbox over bare HTTP."""

    def __init__(self, connection: UnixConnection, sandbox_id: str) -> None:
        self._connection = connection
        self._path = f"/v1/sandboxes/{sandbox_id}"

    def exec(self) -> float:
        began = time.perf_counter()
        result = self._connection.ask("POST", f"{self._path}/exec", {"command": TRUE})
        elapsed = time.perf_counter() - began
        if result["exit_code"] != 0:
            raise Unavailable(f"/bin/true ended with {result['exit_code']}")
        return elapsed

    def start(self) -> float:
        began = time.perf_counter()
        self._connection.ask("POST", f"{self._path}/processes", {"command": TRUE})
        return time.perf_counter() - began

    def stdout(self, count: int) -> float:
        raise NotImplementedError

    def end(self) -> None:
        self._connection.ask("DELETE", self._path)


class SandboxdApi(_Sandboxd):
    """JSON over the unix socket by the standard library: what the SDK costs is the difference."""

    name = "sandboxd API"
    what = "JSON over the unix socket with http.client"
    figures = frozenset({"create", "exec", "start"})
    figures = frozenset({"create", "exec", "contexts"})

    def open(self) -> None:
        daemon = self._workspace.share(Daemon)
        self._connection = UnixConnection(str(daemon.socket))
        self._workspace.defer(self._connection.close)
        super().open()

    def cold(self) -> Cold:
        began = time.perf_counter()
        sandbox = self._connection.ask("POST", "/v1/sandboxes", {"rootfs": self._workspace.rootfs})
        path = f"/v1/sandboxes/{sandbox['id']}"
        try:
            self._connection.ask("POST", f"{path}/exec", {"command": ECHO})
            first = time.perf_counter()
        finally:
            self._connection.ask("DELETE", path)
        return Cold(first - began, time.perf_counter() - began)

    def interpreters(self) -> Interpreters:
        sandbox = Sandbox.create(rootfs=self._workspace.rootfs, client=self._daemon.client)
        return ApiContexts(sandbox, self._connection)

    def hold(self) -> Held:
        made = self._connection.ask("POST", "/v1/sandboxes", {"rootfs": self._workspace.rootfs})
        return _HeldApi(self._connection, made["id"])


class SandboxdCli(_Sandboxd):
    """`sandboxd run`, a new Python each time."""

    name = "sandboxd run"
    what = "the command line, which starts a Python each time"
    figures: ClassVar[frozenset[str]] = frozenset({"create"})

    def open(self) -> None:
        daemon = self._workspace.share(Daemon)
        self._den = self._workspace.den()
        self._env = {"SANDBOXD_URL": daemon.url}
        super().open()

    def cold(self) -> Cold:
        argv = [sys.executable, "-m", "sandboxd", "run", "--rootfs", self._workspace.rootfs, "--", *ECHO]
        run = self._den.run(argv, env=self._env).check()
        return Cold(run.first_s or run.total_s, run.total_s)


class SandboxdTcp(_Sandboxd):
    """The synchronous SDK over TCP on loopback."""

    name = "sandboxd TCP"
    what = "synchronous SDK, TCP on loopback"
    figures: ClassVar[frozenset[str]] = frozenset({"contexts"})

    def open(self) -> None:
        self._daemon = self._workspace.share(Daemon)
        self._client = Client(self._daemon.tcp_url, self._daemon.token)
        self._workspace.defer(self._client.close)

    def interpreters(self) -> Interpreters:
        return Contexts(Sandbox.create(rootfs=self._workspace.rootfs, client=self._client))


class SandboxdStarted(_Sandboxd):
    """Contexts that are no children of a template."""

    name = "sandboxd started"
    what = "synchronous SDK, each interpreter started in the sandbox"
    figures: ClassVar[frozenset[str]] = frozenset({"contexts"})

    def open(self) -> None:
        self._daemon = self._workspace.share(Daemon)

    def interpreters(self) -> Interpreters:
        sandbox = Sandbox.create(rootfs=self._workspace.rootfs, client=self._daemon.client)
        return Contexts(sandbox, WITHOUT_TEMPLATE)
