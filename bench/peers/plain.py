"""Peers without containers: a raw pipe, unshare(1), and bubblewrap with nsenter."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import time
import tty
from pathlib import Path
from typing import TYPE_CHECKING

from bench.contender import ECHO, TRUE, Cold, Contender, Held, Unavailable, check_stream
from bench.workspace import Workspace, wait_until

if TYPE_CHECKING:
    from bench.den import Den

_START_S = 5.0


def first_line(text: str) -> str:
    """Return a version command's first line."""
    return text.splitlines()[0].strip() if text else ""


class _Plain(Contender):
    """A contender with a den of its own."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._version = ""

    def open(self) -> None:
        self._den = self._workspace.den()

    @property
    def version(self) -> str:
        return self._version

    @property
    def pid(self) -> int:
        return self._den.pid

    def _cold(self, argv: list[str]) -> Cold:
        run = self._den.run(argv).check()
        if run.first_s is None:
            raise Unavailable("gave no output")
        return Cold(run.first_s, run.total_s)


class _HeldPipe:
    """No sandbox at all."""

    def __init__(self, den: Den, directory: Path) -> None:
        self._den = den
        self._file = directory / "file"

    def exec(self) -> float:
        return self._den.run(TRUE).check().total_s

    def stdout(self, count: int) -> float:
        run = self._den.run(["head", "-c", str(count), "/dev/zero"]).check()
        check_stream(count, run.bytes)
        return run.stream_s or run.total_s

    def follow(self, count: int) -> tuple[int, float]:
        return count, self.stdout(count)

    def echo(self, count: int) -> list[float]:
        """A terminal of this machine's, without anything between."""
        ours, theirs = pty.openpty()
        tty.setraw(theirs)
        with subprocess.Popen(["cat"], stdin=theirs, stdout=theirs) as child:
            os.close(theirs)
            try:
                return [_echo(ours) for _ in range(count)]
            finally:
                os.close(ours)
                child.terminate()

    def put(self, source: Path) -> float:
        return self._copy(source, self._file)

    def get(self, target: Path) -> float:
        return self._copy(self._file, target)

    def _copy(self, source: Path, target: Path) -> float:
        line = f"cat {shlex.quote(str(source))} | cat > {shlex.quote(str(target))}"
        return self._den.run(["/bin/sh", "-c", line]).check().total_s

    def end(self) -> None:
        self._file.unlink(missing_ok=True)


def _echo(terminal: int) -> float:
    began = time.perf_counter()
    os.write(terminal, b"x")
    os.read(terminal, 100)
    return time.perf_counter() - began


class Pipe(_Plain):
    """A subprocess and its pipe: no isolation, the floor of what a pipe gives."""

    name = "raw pipe"
    what = "subprocess without a sandbox"
    figures = frozenset({"stdout", "follow", "echo", "files"})

    def hold(self) -> Held:
        return _HeldPipe(self._den, self._workspace.directory("pipe"))


class Unshare(_Plain):
    """unshare(1) with a root: no pivot, no seccomp, no limits."""

    name = "unshare"
    what = "unshare(1) with --root: namespaces only"
    figures = frozenset({"create"})

    def open(self) -> None:
        super().open()
        self._version = first_line(self._den.run(["unshare", "--version"]).check().stdout)
        self.cold()

    def cold(self) -> Cold:
        namespaces = ["--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child"]
        return self._cold(["unshare", *namespaces, f"--root={self._workspace.tree}", "--mount-proc=/proc", *ECHO])


class _HeldBwrap:
    """A bwrap that sleeps; exec is nsenter."""

    def __init__(self, den: Den, pid: int, inside: int) -> None:
        self._den = den
        self._pid = pid
        self._inside = inside

    def exec(self) -> float:
        return self._den.run(["nsenter", "--all", "--target", str(self._inside), *TRUE]).check().total_s

    def stdout(self, count: int) -> float:
        argv = ["nsenter", "--all", "--target", str(self._inside), "head", "-c", str(count), "/dev/zero"]
        run = self._den.run(argv).check()
        check_stream(count, run.bytes)
        return run.stream_s or run.total_s

    def end(self) -> None:
        self._den.stop(self._pid)


class Bwrap(_Plain):
    """bubblewrap over the read-only tree; nsenter for exec."""

    name = "bwrap"
    what = "bubblewrap, read-only root; exec by nsenter(1)"
    figures = frozenset({"create", "exec", "memory"})

    def open(self) -> None:
        super().open()
        self._home = self._workspace.directory("bwrap")
        self._count = 0
        self._version = first_line(self._den.run(["bwrap", "--version"]).check().stdout)
        self.cold()

    def _argv(self, *options: str) -> list[str]:
        view = ["--ro-bind", str(self._workspace.tree), "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108
        return ["bwrap", "--unshare-all", "--die-with-parent", *view, *options]

    def cold(self) -> Cold:
        return self._cold([*self._argv(), *ECHO])

    def hold(self) -> Held:
        self._count += 1
        log = self._home / f"{self._count}"
        pid = self._den.spawn([*self._argv("--json-status-fd", "1"), "/bin/sleep", "infinity"], log)
        found: list[int] = []
        wait_until(lambda: bool(found) or _child_pid(log, found), _START_S)
        if not found:
            raise Unavailable(log.read_text()[-300:] or "does not say its child's pid")
        return _HeldBwrap(self._den, pid, found[0])


def _child_pid(log: Path, found: list[int]) -> bool:
    for line in log.read_text().splitlines():
        try:
            found.append(int(json.loads(line)["child-pid"]))
        except (ValueError, KeyError, TypeError):
            continue
    return bool(found)
