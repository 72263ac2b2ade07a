"""docker on a dockerd of its own: by its command line, and by its HTTP API."""

from __future__ import annotations

import itertools
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.contender import ECHO, TRUE, Cold, Contender, Held, Unavailable, check_stream
from bench.dockerd import Dockerd
from bench.http import UnixConnection

if TYPE_CHECKING:
    from bench.workspace import Workspace

_IDS = itertools.count(1)
_READ_BYTES = 1024 * 1024


class _Docker(Contender):
    """What both ways have in common."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def open(self) -> None:
        self._dockerd = self._workspace.share(Dockerd)
        self.cold()

    @property
    def version(self) -> str:
        return self._dockerd.version

    @property
    def pid(self) -> int:
        return self._dockerd.den.pid


class _HeldCli:
    """A container that sleeps, run by the command line."""

    def __init__(self, dockerd: Dockerd, command: list[str], name: str) -> None:
        self._dockerd = dockerd
        self._command = command
        self._name = name

    def exec(self) -> float:
        return self._dockerd.den.run([*self._command, "exec", self._name, *TRUE]).check().total_s

    def start(self) -> float:
        argv = [*self._command, "exec", "--detach", self._name, *TRUE]
        return self._dockerd.den.run(argv, capture=False).check().total_s

    def stdout(self, count: int) -> float:
        raise NotImplementedError

    def put(self, source: Path) -> float:
        return self._dockerd.den.run([*self._command, "cp", str(source), f"{self._name}:/file"]).check().total_s

    def get(self, target: Path) -> float:
        return self._dockerd.den.run([*self._command, "cp", f"{self._name}:/file", str(target)]).check().total_s

    def end(self) -> None:
        self._dockerd.den.run([*self._command, "rm", "--force", self._name]).check()


class DockerCli(_Docker):
    """`docker run` and `docker exec`."""

    name = "docker"
    what = "docker run --rm --network none, /usr bound read-only"
    figures: ClassVar[frozenset[str]] = frozenset({"create", "exec", "start", "files"})

    @property
    def _command(self) -> list[str]:
        return ["docker", "--host", f"unix://{self._dockerd.socket}"]

    def _argv(self, *options: str) -> list[str]:
        return [*self._command, "run", "--network", "none", "--volume", self._dockerd.bind, *options, Dockerd.image]

    def cold(self) -> Cold:
        run = self._dockerd.den.run([*self._argv("--rm"), *ECHO]).check()
        return Cold(run.first_s or run.total_s, run.total_s)

    def hold(self) -> Held:
        name = f"idle-{next(_IDS)}"
        self._dockerd.den.run([*self._argv("--detach", "--name", name), "/bin/sleep", "infinity"]).check()
        return _HeldCli(self._dockerd, self._command, name)


class _HeldApi:
    """A container that sleeps, run by the API."""

    def __init__(self, dockerd: Dockerd, container: str) -> None:
        self._dockerd = dockerd
        self._path = f"/containers/{container}"

    def _exec(self, argv: tuple[str, ...], expected: int) -> float:
        """Run a command, read its output to the end; return the seconds from the first piece to the last."""
        ask = self._dockerd.connection.ask
        made = ask("POST", f"{self._path}/exec", {"AttachStdout": True, "AttachStderr": True, "Cmd": argv})
        stream = UnixConnection(str(self._dockerd.socket))
        try:
            response = stream.open("POST", f"/exec/{made['Id']}/start", {"Detach": False, "Tty": False})
            count, elapsed = read_multiplexed(response)
        finally:
            stream.close()
        status = ask("GET", f"/exec/{made['Id']}/json")["ExitCode"]
        if status != 0:
            raise Unavailable(f"{argv[0]} ended with {status}")
        check_stream(expected, count)
        return elapsed

    def exec(self) -> float:
        began = time.perf_counter()
        self._exec(TRUE, 0)
        return time.perf_counter() - began

    def start(self) -> float:
        ask = self._dockerd.connection.ask
        began = time.perf_counter()
        made = ask("POST", f"{self._path}/exec", {"Cmd": TRUE})
        ask("POST", f"/exec/{made['Id']}/start", {"Detach": True})
        return time.perf_counter() - began

    def stdout(self, count: int) -> float:
        return self._exec(("head", "-c", str(count), "/dev/zero"), count)

    def end(self) -> None:
        self._dockerd.connection.ask("DELETE", f"{self._path}?force=true")


class DockerApi(_Docker):
    """The Engine API over its unix socket, one kept-alive connection beside the hijacked ones."""

    name = "docker API"
    what = "Engine API over its unix socket, /usr bound read-only"
    figures: ClassVar[frozenset[str]] = frozenset({"create", "exec", "start", "memory", "stdout"})

    def _create(self, argv: tuple[str, ...]) -> str:
        host = {"NetworkMode": "none", "Binds": [self._dockerd.bind]}
        body = {"Image": Dockerd.image, "Cmd": argv, "AttachStdout": True, "HostConfig": host}
        return str(self._dockerd.connection.ask("POST", "/containers/create", body)["Id"])

    def cold(self) -> Cold:
        ask = self._dockerd.connection.ask
        began = time.perf_counter()
        path = f"/containers/{self._create(ECHO)}"
        stream = UnixConnection(str(self._dockerd.socket))
        try:
            output = stream.open("POST", f"{path}/attach?stream=1&stdout=1&stderr=1")
            ask("POST", f"{path}/start")
            output.read(1)
            first = time.perf_counter()
            output.read()
            ask("POST", f"{path}/wait")
        finally:
            stream.close()
            ask("DELETE", f"{path}?force=true")
        return Cold(first - began, time.perf_counter() - began)

    def hold(self) -> Held:
        container = self._create(("/bin/sleep", "infinity"))
        self._dockerd.connection.ask("POST", f"/containers/{container}/start")
        return _HeldApi(self._dockerd, container)


def read_multiplexed(response: Any) -> tuple[int, float]:  # noqa: ANN401 - anything with read and readinto
    """Read docker's stream of 8-byte headers and pieces to its end; return how many bytes, in how many seconds."""
    count, first, last = 0, 0.0, 0.0
    buffer = memoryview(bytearray(_READ_BYTES))
    while header := response.read(8):
        _, left = struct.unpack(">B3xI", header)
        first = first or time.perf_counter()
        while left:
            size = response.readinto(buffer[: min(left, _READ_BYTES)])
            if not size:
                raise Unavailable("its stream broke off")
            left -= size
            count += size
        last = time.perf_counter()
    return count, last - first
