"""A den: a mount and a pid namespace in which a contender lives, and outside of which nothing of it is left."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from bench import runner
from bench.contender import Unavailable

#: A den whose runner does not end by itself is killed after this long.
_END_S = 15.0


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """How a command went: seconds from its start, or between first and last output (`stream_s`)."""

    status: int
    total_s: float
    first_s: float | None
    stream_s: float | None
    bytes: int
    stdout: str
    stderr: str

    def check(self) -> Self:
        """Return itself.

        Raises:
            Unavailable: the command failed; its own words are the reason.
        """
        if self.status != 0:
            words = " ".join((self.stderr or self.stdout).split())
            raise Unavailable(words[-300:] or f"ended with status {self.status}")
        return self


class Den:
    """Started at once; ended by `close` or as a context manager, or by this process's own end.

    Args:
        covers: directories that look empty inside.
        net: whether it gets a network namespace of its own too.
    """

    def __init__(self, *, covers: Sequence[str] = (), net: bool = False) -> None:
        options = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
        program = [sys.executable, "-I", str(Path(runner.__file__))]
        # A session of its own: Ctrl-C is for this process, which then ends the den in order.
        self._process = subprocess.Popen(
            ["unshare", *options, *(["--net"] if net else []), *program, *covers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The root of the den's processes."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, capture: bool = True) -> Run:
        """Run a command to its end; without `capture` its output goes nowhere, as for one that leaves a child.

        Raises:
            Unavailable: it could not be started.
        """
        answer = self._ask({"op": "run", "argv": list(argv), "env": dict(env or {}), "capture": capture})
        return Run(**answer)

    def spawn(self, argv: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None) -> int:
        """Start a program that stays, and return its pid as the den counts."""
        return int(self._ask({"op": "spawn", "argv": list(argv), "log": str(log), "env": dict(env or {})})["pid"])

    def ended(self, pid: int) -> bool:
        """Return whether a program that was to stay has ended."""
        return self._ask({"op": "ended", "pid": pid})["status"] is not None

    def stop(self, pid: int) -> None:
        """End a program that stays."""
        self._ask({"op": "stop", "pid": pid})

    def close(self) -> None:
        """End everything in the den."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise Unavailable(f"its den is gone: {error}") from None
        answer = self._read()
        if "error" in answer:
            raise Unavailable(str(answer["error"]))
        return answer

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Unavailable("its den ended (are namespaces allowed here?)")
        answer: dict[str, Any] = json.loads(line)
        return answer
