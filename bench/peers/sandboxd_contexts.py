"""sandboxd's own code contexts for bench/figures/contexts.py: by the SDK, and by bare HTTP."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.contender import check_stream
from bench.jupyter_program import IMPORTS

if TYPE_CHECKING:
    from bench.http import UnixConnection
    from sandboxd import CodeContext, Sandbox


class Contexts:
    """The synchronous SDK over the unix socket, its events decoded."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._held = self._started("1+1")[1]

    def _started(self, code: str) -> tuple[float, CodeContext]:
        began = time.perf_counter()
        context = self._sandbox.create_code_context("python")
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

    def end(self) -> None:
        self._sandbox.destroy()


class ApiContexts(Contexts):
    """JSON over one connection of the unix socket: what the SDK and its events cost is the difference."""

    def __init__(self, sandbox: Sandbox, connection: UnixConnection) -> None:
        self._connection = connection
        super().__init__(sandbox)

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


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
