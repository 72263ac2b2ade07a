"""How long the loop's thread works between two checkpoints, in CPU time: what no load of the machine changes."""

from __future__ import annotations

import contextlib
import gc
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import trio

#: What the design allows.
MAX_STEP_S = 0.05
#: Where the tests are; the checkout itself may lie in a directory of that name.
_TESTS = f"{pathlib.Path(__file__).parents[1]}/"


class Steps(trio.abc.Instrument):
    """The longest step of a task, and the longest round: all steps between two looks at sockets and timers.

    Steps of the test's own tasks are left out: by whose code runs outermost, but for trio's own.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self.longest_round = 0.0
        self.where = ""
        self.count = 0
        self._round = 0.0
        self._began = 0.0
        self._is_counted = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._is_counted = not _is_ours(task)
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if not self._is_counted:
            return
        took = time.thread_time() - self._began
        self.count += 1
        self._round += took
        if took > self.longest:
            self.longest, self.where = took, task.name

    def before_io_wait(self, timeout: float) -> None:
        self.longest_round = max(self.longest_round, self._round)
        self._round = 0.0


def _is_ours(task: trio.lowlevel.Task) -> bool:
    awaited: Any = task.coro
    while awaited is not None:
        code = getattr(awaited, "cr_code", None) or getattr(awaited, "ag_code", None)
        name = "" if code is None else code.co_filename
        if name.startswith(_TESTS) or "/pytest_trio/" in name:
            return True
        if "/sandboxd/" in name:
            return False
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
    return False


@contextlib.contextmanager
def watched() -> Iterator[Steps]:
    """Watch the steps of this loop; the garbage collector rests, whose time grows with the test run's own objects."""
    steps = Steps()
    gc.collect()
    gc.disable()
    trio.lowlevel.add_instrument(steps)
    try:
        yield steps
    finally:
        trio.lowlevel.remove_instrument(steps)
        gc.enable()
