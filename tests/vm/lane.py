"""The host's side of the tests inside: one machine, one pytest in it, their reports in order, and what it all took."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from . import drives, machine
from .channel import MachineGone

#: The limit of each test inside, by its own pytest (with a stack). An emulated machine beside other work is slow.
INSIDE_S = float(os.environ.get("SANDBOXD_VM_TEST_S", "600"))
#: When a pytest that says nothing is ended from outside; the tests after the one that hangs go on in a new one. All
#: tests together have no limit: what is slow is not stuck.
TEST_S = 1.2 * INSIDE_S
PYTEST = (machine.PYTHON, "-m", "pytest", "-q", "-p", "tests.vm.reporter", "-p", "no:cacheprovider")
_TAIL = 6000


class Lane:
    """The machine of one pytest session."""

    def __init__(self, config: pytest.Config, ids: list[str]) -> None:
        self._config = config
        self._waiting = list(ids)
        self._reports: dict[str, list[pytest.TestReport]] = collections.defaultdict(list)
        self._ended: set[str] = set()
        self._stack = contextlib.ExitStack()
        self._machine: machine.Machine | None = None
        self._running = False
        self._current = ""
        self._pieces = b""
        self._output = b""
        self._trouble = ""
        self._missing: list[str] = []
        self._parts: list[tuple[str, float]] = []

    # --- begin and end --------------------------------------------------------------------------------------

    def open(self) -> None:
        """Boot, copy, install; what fails is told by each test."""
        self._missing = machine.missing()
        if self._missing:
            return
        try:
            with self._part("drives (kept when nothing changed)"):
                files = drives.get(self._say)
            directory = self._stack.enter_context(machine.directory())
            with self._part("boot"):
                self._machine = machine.boot(directory, files, self._say)
            self._stack.callback(self._machine.kill)
            with self._part("copy the tree and its wheel"):
                project = drives.project(files)
                self._machine.sync()
            with self._part("make install, first start of the service"):
                self._machine.install(project)
        except Exception as error:
            self._trouble = f"{type(error).__name__}: {error}\n{getattr(error, 'output', '')}"
        self._parts.append(("tests", time.monotonic()))

    def close(self) -> None:
        """End the machine."""
        self._stack.close()

    @contextlib.contextmanager
    def _part(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        self._say(name)
        try:
            yield
        finally:
            self._parts.append((name, time.monotonic() - begun))

    def _say(self, text: str) -> None:
        terminal: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None:
            terminal.ensure_newline()
            terminal.write_line(f"[machine] {text}")

    def summary(self) -> list[str]:
        """Return what each part took."""
        *before, (name, begun) = self._parts or [("", 0.0)]
        kind = self._machine.accelerator if self._machine else "none"
        lines = [f"{seconds:7.1f} s  {part}" for part, seconds in before]
        return [*lines, f"{time.monotonic() - begun:7.1f} s  {name} (accelerator: {kind})"] if name else lines

    # --- reports --------------------------------------------------------------------------------------------

    def reports(self, item: pytest.Item) -> list[pytest.TestReport]:
        """Return the reports of one test, waiting for them."""
        if self._missing:
            why = f"needs {', '.join(self._missing)} (make vm installs them)"
            required = "SANDBOXD_VM_REQUIRED" in os.environ
            return [_report(item, "failed" if required else "skipped", why)]
        if not self._trouble and item.nodeid not in self._ended:
            try:
                self._wait_for(item.nodeid)
            except MachineGone as error:
                self._trouble = f"the machine is gone: {error}\n{self._tail()}"
                if self._machine:
                    self._trouble += self._machine.console()
        found = self._reports.pop(item.nodeid, [])
        if item.nodeid not in self._ended:
            found.append(_report(item, "failed", self._trouble or "it was not run"))
            self._trouble = self._trouble.split("\n")[0]  # told whole once
        return found

    def _wait_for(self, nodeid: str) -> None:
        """Take frames until the test has ended; raises MachineGone."""
        assert self._machine
        if not self._running:
            self._start()
        quiet = time.monotonic() + TEST_S
        while nodeid not in self._ended:
            try:
                kind, payload = self._machine.channel.frame(quiet)
            except MachineGone:
                if time.monotonic() < quiet:
                    raise
                self._end_what_hangs(nodeid)
                return
            if kind == b"O":
                self._output = (self._output + payload)[-_TAIL:]
            elif kind == b"T":
                if self._take(payload):
                    quiet = time.monotonic() + TEST_S
            elif kind == b"X":
                self._running = False
                if nodeid not in self._ended:
                    raise MachineGone(f"pytest there ended with {json.loads(payload)['status']} before this test")

    def _start(self) -> None:
        assert self._machine
        env = {**machine.ENVIRONMENT, "COLUMNS": "120", "PYTEST_TIMEOUT": str(INSIDE_S)}
        self._machine.channel.start([*PYTEST, *self._waiting], cwd=machine.TREE, env=env)
        self._running = True

    def _take(self, payload: bytes) -> bool:
        """Take reports in; True when a test began or ended."""
        *lines, self._pieces = (self._pieces + payload).split(b"\n")
        moved = False
        for line in lines:
            message = json.loads(line)
            if "begin" in message:
                self._current, moved = message["begin"], True
            elif "end" in message:
                self._ended.add(message["end"])
                self._waiting.remove(message["end"])
                moved = True
            else:
                report = self._config.hook.pytest_report_from_serializable(config=self._config, data=message["report"])
                self._reports[report.nodeid].append(report)
        return moved

    def _end_what_hangs(self, nodeid: str) -> None:
        """End a pytest that is stuck; the tests after this one get a new one."""
        assert self._machine
        why = f"no answer in {TEST_S:g} s"
        self._machine.channel.signal(signal.SIGKILL)
        for kind, payload in self._machine.channel.events(time.monotonic() + 30):
            if kind == b"T":
                self._take(payload)
        self._running = False
        if nodeid not in self._ended:
            self._ended.add(nodeid)
            self._waiting.remove(nodeid)
            report = pytest.TestReport(nodeid, ("", None, nodeid), {}, "failed", f"{why}\n{self._tail()}", "call")
            self._reports[nodeid].append(report)

    def _tail(self) -> str:
        return "--- pytest in the machine said\n" + self._output.decode("utf-8", "replace")


def _report(item: pytest.Item, outcome: Any, why: str) -> pytest.TestReport:
    longrepr: Any = (str(item.path), 0, why) if outcome == "skipped" else why
    return pytest.TestReport(
        item.nodeid, item.location, {name: 1 for name in item.keywords}, outcome, longrepr, "setup"
    )
