"""ipykernel and the Jupyter Kernel Gateway, in a sandbox of the same rootfs with their packages laid on top."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from bench.contender import Contender, Unavailable
from bench.daemon import Daemon
from sandboxd import Sandbox
from sandboxd.errors import SandboxdError

if TYPE_CHECKING:
    from bench.figures.contexts import Interpreters
    from bench.workspace import Workspace

#: For the rootfs's Python; not in the default rootfs, which no context needs them in.
PACKAGES: Final = ("ipykernel==7.4.0", "jupyter-kernel-gateway==3.0.1", "websocket-client==1.9.2")
_PYTHON: Final = "3.13"
_CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME", "/var/cache"), "sandboxd-bench")


def layer() -> Path:
    """Return a tar of the packages; it is made once.

    Raises:
        Unavailable: they cannot be had.
    """
    key = hashlib.sha256(repr((PACKAGES, _PYTHON)).encode()).hexdigest()[:16]
    tar = _CACHE / f"jupyter-{key}.tar"
    if tar.exists():
        return tar
    _CACHE.mkdir(parents=True, exist_ok=True)
    target = _CACHE / f"jupyter-{key}"
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), "--only-binary=:all:"]
    argv += ["--python-version", _PYTHON, "--upgrade", *PACKAGES]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"its packages cannot be installed: {done.stderr.strip()[-300:]}")
    unfinished = tar.with_suffix(".new")
    with tarfile.open(unfinished, "w") as archive:
        archive.add(target, ".")
    unfinished.rename(tar)
    return tar


class _Held:
    """The measuring program in its sandbox."""

    def __init__(self, sandbox: Sandbox, kind: str) -> None:
        self._sandbox = sandbox
        argv = ["python3", "/opt/bench/program.py", kind]
        self._stream = sandbox.exec_stream(argv, stdin=True, env={"PYTHONPATH": "/opt/jupyter"})
        self._lines = b""
        self._read()

    def ask(self, what: str, **more: Any) -> float:  # noqa: ANN401 - JSON
        self._stream.write_stdin(json.dumps({"what": what, **more}).encode() + b"\n")
        return float(self._read()["value"])

    def start(self) -> float:
        return self.ask("start")

    def imports(self) -> float:
        return self.ask("imports")

    def round_trip(self) -> float:
        return self.ask("round_trip")

    def stdout(self, count: int) -> float:
        return self.ask("stdout", count=count)

    def prepare_png(self, count: int) -> None:
        self.ask("prepare_png", count=count)

    def png(self, count: int) -> float:
        return self.ask("png", count=count)

    def memory(self) -> float:
        return self.ask("memory")

    def crowd(self) -> float:
        raise Unavailable("fifty kernels would take 4.5 GB")

    def end(self) -> None:
        self._stream.close()
        self._sandbox.destroy()

    def _read(self) -> dict[str, Any]:
        errors = b""
        while b"\n" not in self._lines:
            chunk = next(self._stream, None)
            if chunk is None:
                raise Unavailable(errors.decode("utf-8", "replace")[-300:] or "it ended")
            if chunk.stream == "stdout":
                self._lines += chunk.data
            else:
                errors = (errors + chunk.data)[-4000:]
        line, self._lines = self._lines.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Unavailable(answer["error"])
        return answer


class _Jupyter(Contender):
    figures = frozenset({"contexts"})
    kind: ClassVar[str]

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def open(self) -> None:
        self._layer = layer()
        self._daemon = self._workspace.share(Daemon)

    @property
    def version(self) -> str:
        return ", ".join(PACKAGES[:2])

    @property
    def note(self) -> str:
        return "measured inside its sandbox, beside the kernel, so without sandboxd's HTTP"

    def interpreters(self) -> Interpreters:
        try:
            sandbox = Sandbox.create(rootfs=self._workspace.rootfs, client=self._daemon.client)
            with self._layer.open("rb") as file:
                sandbox.write_file("/opt/jupyter.tar", file)
            sandbox.exec("mkdir /opt/jupyter && tar -xf /opt/jupyter.tar -C /opt/jupyter").check()
            sandbox.exec("python3 -m compileall -q -j 0 /opt/jupyter")
            program = Path(__file__).parent.parent / "jupyter_program.py"
            sandbox.write_file("/opt/bench/program.py", program.read_bytes())
            return _Held(sandbox, self.kind)
        except SandboxdError as error:
            raise Unavailable(str(error)) from error


class IpyKernel(_Jupyter):
    """A kernel and jupyter_client's blocking client, over ZeroMQ on TCP."""

    name = "ipykernel"
    what = "jupyter_client, blocking"
    kind = "kernel"


class KernelGateway(_Jupyter):
    """The same kernels behind HTTP and a WebSocket."""

    name = "kernel gateway"
    what = "Jupyter Kernel Gateway, HTTP and WebSocket on loopback"
    kind = "gateway"
