"""sandboxd's own code contexts for bench/figures/contexts.py: by the SDK, and by bare HTTP."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.contender import Unavailable, check_stream
from bench.jupyter_program import IMPORTS
from sandboxd import Sandbox

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.http import UnixConnection
    from sandboxd import CodeContext

#: With a variable that Python reads when it starts, an interpreter of the sandbox' own does.
WITHOUT_TEMPLATE: Final = {"PYTHONNOUSERSITE": "1"}
CROWD: Final = 50
_LOAD_S: Final = 60.0


class Contexts:
    """The synchronous SDK over the unix socket, its events decoded."""

    def __init__(self, sandbox: Sandbox, env: Mapping[str, str] | None = None) -> None:
        self._sandbox = sandbox
        self._env = env
        self._held = self._started("1+1")[1]
        if env is None:
            _wait_for_template(sandbox)

    def _started(self, code: str) -> tuple[float, CodeContext]:
        began = time.perf_counter()
        context = self._sandbox.create_code_context("python", env=self._env)
        self._run(code, context)
        return time.perf_counter() - began, context

    def _run(self, code: str, context: CodeContext) -> float:
        began = time.perf_counter()
        found = self._sandbox.run_code(code, context=context)
        elapsed = time.perf_counter() - began
        assert found.text == "2", found
        return elapsed

    def _start_and_end(self, code: str) -> float:
        elapsed, context = self._started(code)
        self._sandbox.delete_code_context(context)
        return elapsed

    def start(self) -> float:
        return self._start_and_end("1+1")

    def imports(self) -> float:
        return self._start_and_end(IMPORTS)

    def round_trip(self) -> float:
        return self._run("1+1", self._held)

    def stdout(self, count: int) -> float:
        began = time.perf_counter()
        found = self._sandbox.run_code(f"print('x' * {count})", context=self._held)
        elapsed = time.perf_counter() - began
        check_stream(count + 1, len(found.stdout))
        return elapsed

    def prepare_png(self, count: int) -> None:
        code = f"import os\nfrom IPython.display import Image\nd = b'\\x89PNG\\r\\n\\x1a\\n' + os.urandom({count})"
        self._sandbox.run_code(code, context=self._held).check()

    def png(self, count: int) -> float:
        began = time.perf_counter()
        found = self._sandbox.run_code("Image(data=d, format='png')", context=self._held)
        elapsed = time.perf_counter() - began
        check_stream(count + 8, len(found.results[0].png or b""))
        return elapsed

    def memory(self) -> float:
        contexts = [self._started(IMPORTS)[1] for _ in range(5)]
        inside = [self._sandbox.run_code("import os; os.getpid()", context=one).text for one in contexts]
        sizes = [_pss(pid) for pid in _outside({str(pid) for pid in inside})]
        for one in contexts:
            self._sandbox.delete_code_context(one)
        assert len(sizes) == 5, sizes
        return sum(sizes) / len(sizes)

    def crowd(self) -> float:
        """A sandbox has 16 contexts at most: the fifty are in four."""
        if self._env is not None:
            raise Unavailable("fifty of 76 MiB would take 3.8 GB")
        more = [Sandbox.create(rootfs=self._sandbox.info.rootfs, client=self._sandbox.client) for _ in range(4)]
        try:
            for number in range(CROWD):
                sandbox = more[number % len(more)]
                context = sandbox.create_code_context("python", env=self._env)
                sandbox.run_code(IMPORTS, context=context).check()
            sizes = [_pss(pid) for sandbox in more for pid in _workers_of(sandbox.id)]
            assert len(sizes) == CROWD, sizes
            return sum(sizes) / len(sizes)
        finally:
            for sandbox in more:
                sandbox.destroy()

    def end(self) -> None:
        self._sandbox.destroy()


class ApiContexts(Contexts):
    """JSON over one connection of the unix socket: what the SDK and its events cost is the difference."""

    def __init__(self, sandbox: Sandbox, connection: UnixConnection) -> None:
        self._connection = connection
        super().__init__(sandbox)

    def crowd(self) -> float:
        raise Unavailable("as by the SDK")

    def _run(self, code: str, context: CodeContext) -> float:
        path = f"/v1/sandboxes/{self._sandbox.id}/contexts/{context.id}/run"
        began = time.perf_counter()
        found = self._connection.ask("POST", path, {"code": code})
        elapsed = time.perf_counter() - began
        assert found["results"][0]["text"] == "2", found
        return elapsed


def _outside(pids: set[str]) -> list[int]:
    """Return the host's pids of workers with those pids in their own pid namespace."""
    found = []
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
            names = fields["NSpid"].split()
            if len(names) == 2 and names[1] in pids and b"os.pread(7" in (path.parent / "cmdline").read_bytes():
                found.append(int(names[0]))
        except OSError:
            continue
    return found


def _workers_of(sandbox_id: str) -> list[int]:
    """Return the host's pids of the interpreters of a sandbox's contexts."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            if f"/{sandbox_id}/work/c-" in path.read_text():
                found.append(int(path.parent.name))
    return found


def _wait_for_template(sandbox: Sandbox) -> None:
    """Wait until the rootfs's template is loaded, which the first context has asked for."""
    deadline = time.monotonic() + _LOAD_S
    while not any(item["ready"] for item in sandbox.client.info()["launcher"]["templates"]):
        if time.monotonic() > deadline:
            raise Unavailable("the template was not loaded")
        time.sleep(0.05)


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
