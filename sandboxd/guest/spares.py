"""An interpreter that waits for its context: started beforehand, so that the next one begins at once.

At most one, of this sandbox's own: a process in a leaf of its own, as any worker, with the very words, variables,
user and working directory that the last context was started with. It serves a context that asks for just these, and
only while nothing that a start would read has changed since: the program that its name stands for now, what is mapped
into it, the loader's and OpenSSL's configuration, the working directory. Nothing of a user's has run in it. In every
other case it is dropped and an interpreter starts as ever, so a spare can only ever save time.

    armed --a while later, with room--> started --it says "parked" and what it has mapped--> parked --taken--> a worker
                                           |                                                   |
                                           +---- ended, idle for too long, frozen, outdated ---+--> gone

Of all that runs in the sandbox the kernel ends it first when memory is short (oom_score_adj).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import struct
import time
from collections.abc import Callable
from typing import Final

import msgpack

from ..linux.eventloop import EventLoop, Timer
from .leaf_cgroups import LeafCgroups
from .users import User
from .worker import Worker

#: After the start of a context: let that one begin its work first.
ARM_DELAY_S: Final = 0.4
#: What must be left of the sandbox's limits, or there is none: about three times what one takes.
ROOM_BYTES: Final = 192 * 1024 * 1024
ROOM_PROCESSES: Final = 64
#: What it says when it is parked: a list of some ten paths.
_MAX_PARKED_BYTES: Final = 64 * 1024
_MAX_FILES: Final = 256
#: Files that the loader and OpenSSL read by fixed names, there or not.
_CONFIGURATION: Final = ("/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/ssl/openssl.cnf", "/usr/lib/ssl/openssl.cnf")
#: A file that changed so shortly before the start may have done so after it: the kernel's clock of files ticks.
_CLOCK_TICK_NS: Final = 20_000_000

Stamp = tuple[int, ...] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Wish:
    """What a worker is started with."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    user: User
    source: str


def _stamp(path: str) -> Stamp:
    """Return what tells a version of a file from every other; None where there is none."""
    try:
        row = os.stat(path)
    except OSError:
        return None
    return (row.st_dev, row.st_ino, row.st_size, row.st_mtime_ns, row.st_ctime_ns)


def _find(wish: Wish) -> str | None:
    """Return the file that would be executed (spawn.py), if it can be told."""
    for directory in wish.env.get("PATH", "").split(":"):
        path = os.path.join(wish.cwd, directory, wish.argv[0])
        if os.path.isfile(path):
            return path
    return None


def _place(path: str) -> Stamp:
    """Return which directory is there: what is in it may change."""
    stamp = _stamp(path)
    return None if stamp is None else stamp[:2]


class Spare:
    """One of them."""

    def __init__(self, wish: Wish, worker: Worker, before: dict[str, Stamp], started_ns: int) -> None:
        self.wish = wish
        self.worker = worker
        self.is_parked = False
        self.timers: list[Timer] = []
        self._place = _place(wish.cwd)
        self._stamps = before
        self._started_ns = started_ns
        self._said = b""

    def hear(self, data: bytes) -> bool:
        """Take what it says; False when that is not what a spare says."""
        self._said += data
        size = struct.unpack_from(">I", self._said)[0] if len(self._said) >= 4 else 0
        if not data or self.is_parked or size > _MAX_PARKED_BYTES or len(self._said) > 4 + max(size, 1):
            return False
        if len(self._said) < 4 or len(self._said) < 4 + size:
            return True
        self.is_parked = self._take_files(self._said[4:])
        return self.is_parked

    def _take_files(self, frame: bytes) -> bool:
        """Note the versions of the files that it has mapped, its program first."""
        try:
            files = msgpack.unpackb(frame)["files"]
        except (ValueError, TypeError, KeyError):
            return False
        if not isinstance(files, list) or not 0 < len(files) <= _MAX_FILES:
            return False
        if not all(isinstance(path, str) and path.startswith("/") and "\0" not in path for path in files):
            return False
        program = _find(self.wish)
        if program is None or _stamp(program) != _stamp(files[0]):
            return False  # its name stands for something that started it: what that would do today nobody can tell
        for path in files:
            stamp = _stamp(path)
            if stamp is None or max(stamp[3:]) > self._started_ns - _CLOCK_TICK_NS:
                return False
            self._stamps[path] = stamp
        return True

    def serves(self, wish: Wish) -> bool:
        """Whether a start with that wish would give the same now."""
        if not (self.is_parked and self.worker.is_running and wish == self.wish):
            return False
        program = _find(wish)
        return (
            program is not None
            and self._stamps.get(program) == _stamp(program)
            and self._place == _place(wish.cwd)
            and all(_stamp(path) == stamp for path, stamp in self._stamps.items())
        )


class Spares:
    """The one of this sandbox; `start` makes a worker of a wish and a name."""

    def __init__(self, loop: EventLoop, leaves: LeafCgroups, start: Callable[[Wish, str], Worker]) -> None:
        self._loop = loop
        self._leaves = leaves
        self._start = start
        self._spare: Spare | None = None
        self._arming: Timer | None = None
        self._count = itertools.count(1)

    def take(self, wish: Wish) -> Worker | None:
        """Return the one that can be the worker; None where there is none."""
        self._disarm()
        spare, self._spare = self._spare, None
        if spare is None:
            return None
        for timer in spare.timers:
            timer.cancel()
        if spare.serves(wish) and self._set_first_to_die(spare.worker, on=False):
            return spare.worker
        self._end(spare)
        return None

    def arm(self, wish: Wish, park: bytes, idle_s: float) -> None:
        """Have one in a while; it is dropped when nobody has wanted it for that long. `park` is its first message."""
        self._disarm()
        self._arming = self._loop.call_later(ARM_DELAY_S, lambda: self._make(wish, park, idle_s))

    def drop(self) -> None:
        """Have none."""
        self._disarm()
        spare, self._spare = self._spare, None
        if spare is not None:
            self._end(spare)

    def _disarm(self) -> None:
        if self._arming is not None:
            self._arming.cancel()
            self._arming = None

    def _make(self, wish: Wish, park: bytes, idle_s: float) -> None:
        self.drop()
        program = _find(wish)
        if program is None or not self._leaves.has_room(ROOM_BYTES, ROOM_PROCESSES):
            return
        before = {path: _stamp(path) for path in (*_CONFIGURATION, program)}
        started_ns = time.time_ns()
        try:
            worker = self._start(wish, f"spare~{next(self._count)}")
        except OSError:
            return  # no room after all
        spare = self._spare = Spare(wish, worker, before, started_ns)
        worker.write(park, lambda error: None)
        worker.hear_first(lambda data: self._on_said(spare, data))
        spare.timers.append(self._loop.call_later(idle_s, self.drop))

    def _on_said(self, spare: Spare, data: bytes) -> None:
        if spare is not self._spare:
            return
        if not spare.hear(data):
            self.drop()
        elif spare.is_parked:
            spare.worker.acknowledge()
            # Not before: until its execve, its files in /proc are the host's root's.
            if not self._set_first_to_die(spare.worker, on=True):
                self.drop()

    @staticmethod
    def _end(spare: Spare) -> None:
        for timer in spare.timers:
            timer.cancel()
        spare.worker.kill("dropped")

    @staticmethod
    def _set_first_to_die(worker: Worker, *, on: bool) -> bool:
        """Let the kernel end it before all others when memory is short, or no longer; False where that failed."""
        with contextlib.suppress(OSError):
            fd = os.open(f"/proc/{worker.pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"1000" if on else b"0")
                return True
            finally:
                os.close(fd)
        return False
