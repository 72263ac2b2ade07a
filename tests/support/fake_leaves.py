"""What a command or interpreter of init's is made with, without cgroups and forks: the loop is real."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from sandboxd.linux.eventloop import EventLoop

#: No process has it, and none can.
PID = 2**22 + 1


class FakeLeaf:
    """A leaf with nobody in it."""

    name = "leaf"
    is_gone = False

    def __init__(self) -> None:
        self.kills = 0

    def kill(self) -> None:
        self.kills += 1

    def open(self) -> int:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def is_populated(self) -> bool:
        return False

    def pids(self) -> list[int]:
        return []

    def oom_kills(self) -> int:
        return 0

    def usage(self, _rusage: object) -> dict[str, Any]:
        return {"cpu_s": 0.0, "memory_peak_bytes": None}


class FakeDeps:
    """What a command is made with; its standby is always there, or never can become anything."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.loop.open()
        self.kernel = None
        self.leaves = self.standby = self
        self.null_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self.is_broken = False
        self.made: list[FakeLeaf] = []

    def close(self) -> None:
        self.loop.close()
        os.close(self.null_fd)

    def new(self, _process_id: str) -> FakeLeaf:
        return FakeLeaf()

    def drop(self, leaf: FakeLeaf, *, keep_rest: bool = False) -> None: ...

    def take(self, _order: object, _fds: object) -> tuple[int, FakeLeaf]:
        if self.is_broken:
            raise OSError("no room")
        self.made.append(FakeLeaf())
        return PID, self.made[-1]


def happen(deps: FakeDeps, what: Callable[[], None]) -> None:
    """Have something happen within a turn of the loop, as all that happens to init."""
    deps.loop.call_later(0.0, what)
    deps.loop.turn()


def turn_until(deps: FakeDeps, is_met: Callable[[], bool]) -> None:
    while not is_met():
        deps.loop.turn()
