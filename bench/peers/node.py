"""Node in one of sandboxd's sandboxes: contexts with and without a spare interpreter, and the command itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from bench.contender import Contender, Unavailable
from bench.daemon import Daemon
from sandboxd import Sandbox

if TYPE_CHECKING:
    from bench.figures.javascript import Scripts
    from bench.workspace import Workspace

#: With such a variable none waits.
_WITHOUT: Final = {"NODE_WITHOUT_SPARE": "1"}
#: Until the next one waits, on a busy machine.
_PATIENCE_S: Final = 15.0


class NodeContexts:
    """Contexts over the SDK; where one is to wait, it does before the clock runs."""

    def __init__(self, sandbox: Sandbox, env: Mapping[str, str] | None = None) -> None:
        self._sandbox = sandbox
        self._env = env

    def start(self, language: str, code: str) -> float:
        if self._env is None and not self._waits():
            self._once(language, code)
            end = time.monotonic() + _PATIENCE_S
            while not self._waits():
                if time.monotonic() > end:
                    raise Unavailable("no spare interpreter came")
        return self._once(language, code)

    def _once(self, language: str, code: str) -> float:
        began = time.perf_counter()
        context = self._sandbox.create_code_context(language, env=self._env)
        found = self._sandbox.run_code(code, context=context)
        elapsed = time.perf_counter() - began
        assert found.text == "2", found
        self._sandbox.delete_code_context(context)
        return elapsed

    def _waits(self) -> bool:
        return bool(self._sandbox.exec("grep -lx 1000 /proc/[0-9]*/oom_score_adj 2>/dev/null").stdout)

    def end(self) -> None:
        self._sandbox.destroy()


class _Commands:
    """`node -p` as a command."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def start(self, language: str, code: str) -> float:
        kind = ["--input-type=commonjs-typescript"] if language == "typescript" else []
        began = time.perf_counter()
        found = self._sandbox.exec(["node", "--no-warnings", *kind, "-p", code])
        elapsed = time.perf_counter() - began
        assert found.stdout == "2\n", found
        return elapsed

    def end(self) -> None:
        self._sandbox.destroy()


class _Node(Contender):
    figures = frozenset({"javascript"})

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def open(self) -> None:
        self._daemon = self._workspace.share(Daemon)

    def _sandbox(self) -> Sandbox:
        return Sandbox.create(rootfs=self._workspace.rootfs, client=self._daemon.client)


class WithoutSpare(_Node):
    """A context for which none waits."""

    name = "sandboxd, no spare"
    what = "SDK, unix socket; an interpreter that starts"

    def scripts(self) -> Scripts:
        return NodeContexts(self._sandbox(), _WITHOUT)


class NodeCommand(_Node):
    """Node itself, which keeps nothing."""

    name = "node -p"
    what = "a command of the same sandbox, by the SDK"

    def scripts(self) -> Scripts:
        return _Commands(self._sandbox())
