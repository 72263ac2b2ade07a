"""Commands: start, journal, follow, feed, end.

A command is a process in a cgroup leaf of its own (`work/<id>`), so that its whole tree can be counted and killed.
It ends when its main process has exited and its pipes gave end-of-file, or a grace after that exit; what the leaf
still holds is then killed, unless the caller keeps orphans.

While a *lossless* follower (an exec's client) is attached, the pipes are read only as far as that follower has
room: the program waits. Otherwise the journal drops its oldest events and the program never waits.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import fcntl
import os
import resource
import signal
import time
from collections.abc import Callable
from typing import Any, Final

from ..errors import ProcessNotRunning, ServerBusy
from ..linux.kernel import Kernel
from ..spec import CommandSpec
from ..wire.journal import Entry, Journal
from ..wire.messages import Event
from . import spawn
from .loop import READ, WRITE, Loop, Timer
from .peer import Peer
from .users import User

#: How long after its main process' exit a command's pipes may stay open (DESIGN section 8).
ORPHAN_GRACE_S: Final = 0.1
#: One read, and so one event, at most: it fits a frame, and is large enough for 1 GB/s.
READ_BYTES: Final = 256 * 1024
#: Pieces of stdin that may wait for the program; each is at most 256 KiB.
MAX_STDIN_PIECES: Final = 16
_PIPE_BYTES: Final = 256 * 1024
_F_SETPIPE_SZ: Final = 1031


@dataclasses.dataclass(slots=True, eq=False)
class Follower:
    """One stream to the daemon: `position` is the next offset it wants, `credit` what it may still send."""

    peer: Peer
    request: int
    position: int
    credit: int
    lossless: bool
    seen_bytes: int = 0

    def pump(self, journal: Journal) -> bool:
        """Send what there is and may be sent; return whether the exit event has gone out."""
        while self.credit > 0 and self.peer.has_room:
            entry = journal.read(self.position)
            if entry is None:
                return False
            if entry.offset > self.position:
                lost = {"dropped_bytes": max(0, entry.base - self.seen_bytes)}
                self._send(Entry(entry.offset - 1, entry.base, entry.time, "truncated", lost))
            self._send(entry)
            if entry.type == "exit":
                return True
        return False

    def _send(self, entry: Entry) -> None:
        self.peer.send(Event(self.request, entry.offset, entry.time, entry.type, entry.data))
        self.credit -= entry.size
        self.position = entry.offset + 1
        self.seen_bytes = entry.base + entry.output_bytes


class Process:
    """One command of the sandbox."""

    def __init__(  # noqa: PLR0913 - what a command is made of
        self,
        *,
        loop: Loop,
        kernel: Kernel,
        work_fd: int,
        null_fd: int,
        process_id: str,
        spec: CommandSpec,
        env: dict[str, str],
        cwd: str,
        user: User,
        on_end: Callable[[Process], None],
    ) -> None:
        self.id = process_id
        self.spec = spec
        self.journal = Journal()
        self.pid = 0
        self.ended_at: float | None = None
        self.followers: list[Follower] = []
        self._loop = loop
        self._work_fd = work_fd
        self._null_fd = null_fd
        self._on_end = on_end
        self._pipes: dict[int, str] = {}
        self._paused: set[int] = set()
        self._discarding: set[int] = set()
        self._stdin: int | None = None
        self._stdin_queue: collections.deque[tuple[memoryview, Callable[[ProcessNotRunning | None], None] | None]]
        self._stdin_queue = collections.deque()
        self._stdin_close_after = spec.stdin is not True
        self._status: int | None = None
        self._rusage: resource.struct_rusage | None = None
        self._grace_over = False
        self._timed_out = False
        self._kill_reason: str | None = None
        self._timers: list[Timer] = []
        self._began = time.monotonic()
        self._start(kernel, env, cwd, user)

    # --- start ---

    def _start(self, kernel: Kernel, env: dict[str, str], cwd: str, user: User) -> None:
        with contextlib.ExitStack() as undo:
            theirs = [self._stdin_pipe(), *(self._output_pipe(name) for name in ("stdout", "stderr"))]
            for fd in theirs:
                undo.callback(os.close, fd)
            os.mkdir(self.id, dir_fd=self._work_fd)
            leaf = os.open(self.id, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._work_fd)
            undo.callback(os.close, leaf)
            pid, pidfd = kernel.clone3(0, cgroup_fd=leaf)
            if pid == 0:
                spawn.run_child(kernel, self.spec.argv, env, cwd, user, (theirs[0], theirs[1], theirs[2]))
            undo.callback(os.close, pidfd)
            self.pid = pid
        self._append("start", {"id": self.id, "pid": pid})
        for fd in self._pipes:
            self._loop.watch(fd, READ, lambda fd=fd: self._on_readable(fd))  # type: ignore[misc]
        if isinstance(self.spec.stdin, bytes):
            self._stdin_queue.append((memoryview(self.spec.stdin), None))
            self._feed()
        if self.spec.timeout_s is not None:
            self._timers.append(self._loop.call_later(self.spec.timeout_s, self._on_timeout))

    def _stdin_pipe(self) -> int:
        if self.spec.stdin is None or self.spec.stdin is False:
            return os.dup(self._null_fd)  # never by its path, which the sandbox may have made a FIFO
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(ours, False)
        self._stdin = ours
        return theirs

    def _output_pipe(self, name: str) -> int:
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(ours, False)
        with contextlib.suppress(OSError):  # over the user's pipe budget: the default size serves too
            fcntl.fcntl(ours, _F_SETPIPE_SZ, _PIPE_BYTES)
        self._pipes[ours] = name
        return theirs

    # --- output ---

    def _on_readable(self, fd: int) -> None:
        """Read until the pipe is empty, at its end, or the follower has no room."""
        room = self._room()
        while fd in self._pipes:
            if room <= 0:
                self._paused.add(fd)
                self._loop.watch(fd, 0, lambda: None)
                break
            try:
                data = os.read(fd, min(READ_BYTES, room))
            except BlockingIOError:
                if self._grace_over:
                    self._drop_pipe(fd)
                break
            if not data:
                self._drop_pipe(fd)
                break
            self._append(self._pipes[fd], data)
            if len(data) < min(READ_BYTES, room) and not self._grace_over:
                break  # very likely empty now; the loop says when there is more
            self._pump()
            room = self._room()
        self._pump()
        self._maybe_finish()

    def _room(self) -> int:
        """Return how much may be read: anything for a background command, else what the followers have room for."""
        floors = [follower.position for follower in self.followers if follower.lossless]
        return self.journal.room(min(floors)) if floors else READ_BYTES

    def _append(self, type_: str, data: bytes | dict[str, Any]) -> None:
        self.journal.append(type_, data, time.time())

    def _drop_pipe(self, fd: int) -> None:
        del self._pipes[fd]
        self._paused.discard(fd)
        if self._grace_over and self.spec.keep_orphans:
            # An orphan may go on writing: its output has no reader any more, but must not kill it by SIGPIPE.
            self._discarding.add(fd)
            self._loop.watch(fd, READ, lambda: self._discard(fd))
            return
        self._loop.watch(fd, 0, lambda: None)
        os.close(fd)

    def _discard(self, fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            if not os.read(fd, READ_BYTES):
                self._loop.watch(fd, 0, lambda: None)
                self._discarding.discard(fd)
                os.close(fd)

    # --- followers ---

    def follow(self, follower: Follower) -> None:
        """Attach a stream; it is answered when the exit event has gone out."""
        self.followers.append(follower)
        self.wake()

    def unfollow(self, follower: Follower) -> None:
        """Detach a stream."""
        with contextlib.suppress(ValueError):
            self.followers.remove(follower)
        self.wake()

    def wake(self) -> None:
        """Go on after credit or room came: send, and read what was held back."""
        self._pump()
        if self._paused and self._room() > 0:
            paused, self._paused = self._paused, set()
            for fd in paused:
                self._loop.watch(fd, READ, lambda fd=fd: self._on_readable(fd))  # type: ignore[misc]
                if self._grace_over:
                    self._on_readable(fd)

    def _pump(self) -> None:
        for follower in list(self.followers):
            if follower.pump(self.journal):
                self.followers.remove(follower)
                follower.peer.reply(follower.request, {})

    # --- stdin ---

    def write_stdin(self, data: bytes, done: Callable[[ProcessNotRunning | None], None]) -> None:
        """Feed the program; `done` is called when all of `data` is in the pipe, or with why it will not be.

        Raises:
            ProcessNotRunning: there is no stdin to write to.
            ServerBusy: as much as may wait waits already; nothing of `data` was taken.
        """
        if self._stdin is None or self._stdin_close_after:
            raise ProcessNotRunning(f"cannot write to process {self.id}: it has no open stdin", id=self.id)
        if len(self._stdin_queue) >= MAX_STDIN_PIECES:
            raise ServerBusy(f"cannot write to process {self.id}: {MAX_STDIN_PIECES} writes wait", id=self.id)
        self._stdin_queue.append((memoryview(data), done))
        self._feed()

    def close_stdin(self) -> None:
        """Give the program end-of-file after what is queued.

        Raises:
            ProcessNotRunning: there is no stdin to close.
        """
        if self._stdin is None:
            raise ProcessNotRunning(f"cannot close stdin of process {self.id}: it has none", id=self.id)
        self._stdin_close_after = True
        self._feed()

    def _feed(self) -> None:
        if self._stdin is None:
            return
        try:
            while self._stdin_queue:
                view, done = self._stdin_queue[0]
                written = os.write(self._stdin, view) if view else 0
                if written < len(view):
                    self._stdin_queue[0] = (view[written:], done)
                    continue
                self._stdin_queue.popleft()
                if done:
                    done(None)
        except BlockingIOError:
            self._loop.watch(self._stdin, WRITE, self._feed)
            return
        except OSError:
            self._end_stdin()
            return
        self._loop.watch(self._stdin, 0, self._feed)
        if self._stdin_close_after:
            self._end_stdin()

    def _end_stdin(self) -> None:
        """Close the pipe; what still waits will not arrive."""
        if self._stdin is not None:
            self._loop.watch(self._stdin, 0, self._feed)
            os.close(self._stdin)
            self._stdin = None
        while self._stdin_queue:
            done = self._stdin_queue.popleft()[1]
            if done:
                done(ProcessNotRunning(f"cannot write to process {self.id}: it closed its stdin", id=self.id))

    # --- the end ---

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group.

        Raises:
            ProcessNotRunning: it has ended.
        """
        if self._status is not None:
            raise ProcessNotRunning(f"cannot signal process {self.id}: it has ended", id=self.id)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self, reason: str) -> None:
        """SIGKILL the whole tree; `reason` names the end."""
        if self.ended_at is None:
            self._kill_reason = self._kill_reason or reason
            self._write_leaf("cgroup.kill", b"1")

    def _on_timeout(self) -> None:
        if self._status is None:
            self._timed_out = True
            self.kill("timeout")

    def on_exit(self, status: int, rusage: resource.struct_rusage) -> None:
        """Take the main process' status; called by the reaper."""
        self._status = status
        self._rusage = rusage
        self._end_stdin()
        for timer in self._timers:
            timer.cancel()
        self._timers = [self._loop.call_later(ORPHAN_GRACE_S, self._end_grace)]
        for fd in list(self._pipes):
            self._on_readable(fd)
        self._maybe_finish()

    def _end_grace(self) -> None:
        self._grace_over = True
        if not self.spec.keep_orphans:
            self._write_leaf("cgroup.kill", b"1")
        for fd in list(self._pipes):
            if fd not in self._paused:
                self._on_readable(fd)
        self._maybe_finish()

    def _maybe_finish(self) -> None:
        if self._status is None or self._pipes or self.ended_at is not None:
            return
        self.ended_at = time.time()
        for timer in self._timers:
            timer.cancel()
        self._append("exit", self._result())
        self._pump()
        # After the flush that the pump has deferred: who waits for the exit need not wait for the tidying up.
        self._loop.defer(lambda: self._on_end(self))

    def _result(self) -> dict[str, Any]:
        status = self._status or 0
        signalled = os.WIFSIGNALED(status)
        oom = self._oom_kills() > 0  # of any process in the leaf: a shell outlives what it started
        reason = (
            "timeout" if self._timed_out else "oom" if oom else self._kill_reason or "signal" if signalled else "exit"
        )
        return {
            "exit_code": None if signalled else os.waitstatus_to_exitcode(status),
            "signal": _signal_name(os.WTERMSIG(status)) if signalled else None,
            "duration_s": round(time.monotonic() - self._began, 6),
            "timed_out": self._timed_out,
            "oom_killed": oom,
            "usage": self._usage(),
            "reason": reason,
        }

    def _usage(self) -> dict[str, Any]:
        """What the whole tree used, from the leaf; the main process' own numbers where the leaf has none."""
        rusage = self._rusage
        cpu = (rusage.ru_utime + rusage.ru_stime) if rusage else 0.0
        for line in self._read_leaf("cpu.stat").splitlines():
            if line.startswith("usage_usec "):
                cpu = int(line.split(" ")[1]) / 1e6
        peak = self._read_leaf("memory.peak").strip()
        memory = int(peak) if peak.isdigit() else (rusage.ru_maxrss * 1024 if rusage else 0)
        return {"cpu_s": round(cpu, 6), "memory_peak_bytes": memory}

    def _oom_kills(self) -> int:
        for line in self._read_leaf("memory.events").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split(" ")[1])
        return 0

    # --- the leaf ---

    def remove_leaf(self) -> bool:
        """Remove the cgroup leaf; False while something is in it."""
        try:
            os.rmdir(self.id, dir_fd=self._work_fd)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EBUSY:
                return True
        else:
            return True
        if not self.spec.keep_orphans:
            self._write_leaf("cgroup.kill", b"1")
        return False

    def _write_leaf(self, name: str, data: bytes) -> None:
        with contextlib.suppress(OSError):
            fd = os.open(f"{self.id}/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._work_fd)
            try:
                os.write(fd, data)
            finally:
                os.close(fd)

    def _read_leaf(self, name: str) -> str:
        try:
            fd = os.open(f"{self.id}/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._work_fd)
        except OSError:
            return ""
        try:
            return os.read(fd, 4096).decode()
        finally:
            os.close(fd)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
