"""One interpreter of a code context, as init sees it: a process, five pipes' ends, and no idea of what they carry.

    daemon ── send ──▶ fd 3 ┌────────┐ 1, 2 ── stdout, stderr ──▶ events of those names
                            │ worker │ 4 ───── frames ──────────▶ `frame` events, as they come
    init ──── tick ───▶ fd 5 └────────┘ 6 ◀──── which run to interrupt     7: its own program

Order. What a program printed before it sent a frame must reach the daemon before that frame, although they come
through different pipes. So the pipes of output are emptied before a frame is read, and each frame that has passed
is told to the worker by a tick (a byte), for which it waits before it lets the program go on.

Bounds. Nothing is kept here: a pipe is read when there is credit and room on the connection, else its writer waits.
Frames are only counted (a length each, for the ticks and so that a new daemon begins at a whole one); the worker is
hostile once a user's code ran in it, and what frames say is the daemon's to judge.

`worker_states.py` has the states.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import struct
import time
from collections.abc import Callable
from typing import Any, Final

from ..errors import InternalError, ProcessNotRunning
from ..linux.eventloop import READ, Timer
from ..transitions import next_state
from ..wire.exhausted import known
from ..wire.messages import EVENT_OVERHEAD, Event
from . import spawn, users
from .incoming import IncomingChild, IncomingChildren
from .link_server import LinkServer
from .processes import ORPHAN_GRACE_S, Deps, signal_name
from .stdin_writer import Done, StdinWriter
from .users import User
from .worker_states import ALIVE, COMING, TRANSITIONS, State
from .worker_states import Event as LifeEvent

#: One read, and so one event, at most; also the size of the pipes, so one read empties one.
READ_BYTES: Final = 256 * 1024
#: A frame above this is garbage. The largest is a result: 10 MiB of formats, and slack.
MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
#: How long a worker that closed its frames' pipe may take to exit by itself.
CLOSED_GRACE_S: Final = 0.2
_F_SETPIPE_SZ: Final = 1031
_OUTPUTS: Final = ("stdout", "stderr")


Reaped = dict[int, Callable[[int, resource.struct_rusage], None]]


def _forget(status: int, rusage: resource.struct_rusage) -> None:
    """Take the status of a child that was not the one."""


class FrameCounter:
    """Finds the ends of length-prefixed frames in a stream, without looking into them."""

    def __init__(self) -> None:
        self._left = 0
        self._header = b""

    @property
    def at_boundary(self) -> bool:
        """Whether the next byte begins a frame."""
        return not self._left and not self._header

    def feed(self, data: bytes) -> int:
        """Take what was read and return how many frames have ended in it.

        Raises:
            ValueError: a frame is over the bound.
        """
        ended, at = 0, 0
        while at < len(data):
            if not self._left:
                take = data[at : at + 4 - len(self._header)]
                self._header += take
                at += len(take)
                if len(self._header) < 4:
                    break
                (self._left,) = struct.unpack(">I", self._header)
                self._header = b""
                if not 0 < self._left <= MAX_FRAME_BYTES:
                    raise ValueError(f"a frame of {self._left} bytes")
            step = min(self._left, len(data) - at)
            self._left -= step
            at += step
            ended += not self._left
        return ended

    def skip(self, data: bytes) -> bytes:
        """Drop what belongs to a frame that began before, and return the rest uncounted."""
        if len(self._header):  # four bytes of no known meaning: count them in, and drop what they begin
            before, self._header = self._header, b""
            data = before + data
            if len(data) < 4:
                self._header = data
                return b""
            (self._left,) = struct.unpack_from(">I", data)
            data = data[4:]
        gone = min(self._left, len(data))
        self._left -= gone
        return data[gone:]


class Worker:
    """One interpreter's process."""

    def __init__(  # noqa: PLR0913, PLR0917 - what a worker is made of
        self,
        deps: Deps,
        name: str,
        argv: tuple[str, ...],
        env: dict[str, str],
        cwd: str,
        user: User,
        source_fd: int,
        reaped: Reaped,
        incoming: IncomingChildren,
        handoff: int | None = None,
    ) -> None:
        """Start it. `handoff`, ours from now on, is where a template's child may come instead of a fork of ours."""
        self.name = name
        self.pid = 0
        self._argv, self._env, self._cwd, self._user = argv, env, cwd, user
        self._reaped = reaped
        self._incoming: IncomingChild | None = None
        self._theirs: list[int] = []  # the program's ends of the pipes, until it has them
        self._state = State.STARTING
        self.leaf = deps.leaves.new(name)
        self._deps = deps
        self._loop = deps.loop
        self._pipes: dict[str, int] = {}
        self._watching = False
        self._follower: tuple[LinkServer, int] | None = None
        self._credit = 0
        self._offset = 0
        self._counter = FrameCounter()
        self._skipping = False
        self._status: int | None = None
        self._rusage: resource.struct_rusage | None = None
        self._reason: str | None = None
        self._muted = False
        self._dropped = 0
        self._timers: list[Timer] = []
        self._began = time.monotonic()
        self._result: dict[str, Any] = {}
        self._tick = self._interrupts = -1
        self._feed: StdinWriter | None = None
        #: Whether it ended without having read all that it was sent: its last message did nothing, then.
        self._is_unread = False
        try:
            self._open_pipes(source_fd)
            if handoff is None:
                self._start()
            else:
                self._expect(incoming, handoff)
        except BaseException:
            if handoff is not None and self._incoming is None:
                os.close(handoff)
            self._close_all()
            deps.leaves.drop(self.leaf)
            raise

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self._state is State.ENDED

    def _move(self, event: LifeEvent) -> bool:
        """Take an event; one that the table refuses is a bug of ours, which costs this interpreter and not init."""
        try:
            self._state = next_state(TRANSITIONS, self._state, event)
        except InternalError as error:
            self._reason = f"bug: {error.message}"  # init has no log: the end tells of it
            self._kill_all()
            return False
        return True

    # --- start ---

    def _open_pipes(self, source_fd: int) -> None:
        """Make the pipes; `_theirs` are the program's descriptors from 0 on."""
        theirs = self._theirs
        theirs.append(os.dup(self._deps.null_fd))
        for name in _OUTPUTS:
            theirs.append(self._output_pipe(name, *users.pipe_of(self._user)))
        theirs.append(self._control_pipe())
        theirs.append(self._output_pipe("frame", *os.pipe2(os.O_CLOEXEC)))
        for name in ("_tick", "_interrupts"):
            read_end, write_end = self._tick_pipe()
            theirs.append(read_end)
            setattr(self, name, write_end)
        theirs.append(os.dup(source_fd))

    def _close_theirs(self) -> None:
        while self._theirs:
            os.close(self._theirs.pop())

    def _start(self) -> None:
        """Fork the interpreter."""
        leaf = self.leaf.open()
        try:
            pid, pidfd = self._deps.kernel.clone3(0, cgroup_fd=leaf)
        finally:
            os.close(leaf)
        if pid == 0:
            order = spawn.SpawnRequest(self._argv, self._env, self._cwd, *self._user.ids)
            spawn.run_child(self._deps.kernel, order, self._theirs)
        os.close(pidfd)
        self.pid = pid
        self._reaped[pid] = self.on_exit
        self._move(LifeEvent.BEGIN)
        self._close_theirs()
        self.wake()

    # --- a child of a template's instead ---

    def _expect(self, incoming: IncomingChildren, handoff: int) -> None:
        """Wait for a child that a template forks into our leaf; without one, start as ever."""
        os.close(self.leaf.open())
        self._incoming = incoming.expect(handoff, self._on_arrived, self._on_begun, self._on_nobody)
        self._move(LifeEvent.EXPECT)

    def _on_arrived(self, pid: int) -> None:
        assert self._incoming is not None  # noqa: S101 - it is what calls
        self.pid = pid
        self._move(LifeEvent.ARRIVE)
        self._reaped[pid] = self.on_exit
        self._incoming.send(self._user, self._cwd, self._env, self._theirs, self.name)

    def _on_begun(self) -> None:
        self._incoming = None
        self._move(LifeEvent.BEGIN)
        self._close_theirs()
        self.wake()
        if self._state is State.EXITED:
            self._after_exit()  # the reaper was first to tell

    def _on_nobody(self, why: str, declined: bool) -> None:
        """Start as ever."""
        self._incoming = None
        self._move(LifeEvent.ABSENT)
        if self._follower is not None:
            self._send("declined" if declined else "absent", {"why": why})
        if self.pid:
            self._reaped[self.pid] = _forget
            self.pid = 0
        self._deps.leaves.drop(self.leaf)
        self._status = None
        self.leaf = self._deps.leaves.new(self.name)
        try:
            self._start()
        except OSError as error:
            follower, self._follower = self._follower, None
            if follower is not None:
                follower[0].fail(follower[1], known(error, "start an interpreter"))
            self._close_theirs()
            self.on_exit(spawn.NOT_EXECUTABLE << 8, None)
            self._end_grace()  # nobody has its pipes

    def _control_pipe(self) -> int:
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        self._feed = StdinWriter(self._loop, self.name, ours)
        return theirs

    @staticmethod
    def _tick_pipe() -> tuple[int, int]:
        # No eventfd: its two sides share one O_NONBLOCK, and a worker could fill it so that our write blocks.
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(ours, False)
        return theirs, ours

    def _output_pipe(self, name: str, ours: int, theirs: int) -> int:
        os.set_blocking(ours, False)
        with contextlib.suppress(OSError):  # over the user's pipe budget: the default size serves too
            fcntl.fcntl(ours, _F_SETPIPE_SZ, READ_BYTES)
        self._pipes[name] = ours
        return theirs

    # --- a spare's (spares.py) ---

    @property
    def is_running(self) -> bool:
        """Whether its process is there."""
        return self._state is State.RUNNING

    def hear_first(self, callback: Callable[[bytes], None]) -> None:
        """Give `callback` what it says in frames until somebody follows it; no bytes at the end."""
        fd = self._pipes["frame"]

        def on_readable() -> None:
            try:
                data = os.read(fd, READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                self._loop.unwatch(fd)
            callback(data)

        self._loop.watch(fd, READ, on_readable)

    def acknowledge(self) -> None:
        """Tick for a frame that `hear_first` gave."""
        self._poke(self._tick, b"\0")

    def become(self, name: str) -> None:
        """Be the worker of that name from now on."""
        self.name = name
        self._began = time.monotonic()
        self._loop.unwatch(self._pipes["frame"])

    # --- the daemon that listens ---

    def follow(self, peer: LinkServer, request: int, credit: int, *, is_spare: bool = False) -> None:
        """Send this peer all that comes from now on; an earlier follower's request is answered as over."""
        self.unfollow({"replaced": True})
        self._follower, self._credit = (peer, request), credit
        self._skipping = not self._counter.at_boundary
        self._send("start", {"id": self.name, "pid": self.pid, "spare": is_spare})
        if self._state in COMING:
            self._send("expecting", {"leaf": self.leaf.name})
        if self.ended:
            self._tell_exit()
        else:
            self.wake()

    def unfollow(self, result: dict[str, Any] | None = None) -> None:
        """Let go of the follower; its request is answered with `result` unless that is None."""
        follower, self._follower = self._follower, None
        if follower is not None and result is not None:
            follower[0].reply(follower[1], result)

    def is_followed_by(self, peer: LinkServer, request: int | None = None) -> bool:
        """Whether that peer (and request) is the follower."""
        follower = self._follower
        return follower is not None and follower[0] is peer and request in (None, follower[1])

    def add_credit(self, count: int) -> None:
        """The follower may be sent that much more."""
        self._credit += count
        self.wake()

    @property
    def _has_room(self) -> bool:
        return self._follower is not None and self._credit > 0 and self._follower[0].has_room

    def wake(self) -> None:
        """Read again if there is room."""
        if self._watching or not self._has_room:
            return
        self._watching = True
        for name, fd in list(self._pipes.items()):
            self._loop.watch(fd, READ, lambda name=name: self._on_readable(name))  # type: ignore[misc]
        if self._state is State.DRAINING:
            self._read_rest()

    def _pause(self) -> None:
        self._watching = False
        for fd in self._pipes.values():
            self._loop.unwatch(fd)

    def _send(self, kind: str, data: bytes | dict[str, Any]) -> None:
        assert self._follower is not None  # noqa: S101 - looked at before
        peer, request = self._follower
        peer.send(Event(request, self._offset, time.time(), kind, data))
        self._offset += 1
        self._credit -= EVENT_OVERHEAD + (len(data) if isinstance(data, bytes) else 0)

    # --- reading ---

    def _on_readable(self, name: str) -> None:
        if not self._has_room:
            self._pause()
        elif name == "frame":
            self._read_frames()
        else:
            self._read(name)
        self._maybe_finish()

    def _read(self, name: str) -> bytes | None:
        """Read a pipe once and send what came; None when there is nothing, no bytes at its end."""
        fd = self._pipes[name]
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            if self._state is State.DRAINING:
                self._drop(name)
            return None
        if not data:
            self._drop(name)
        elif name != "frame":
            if self._muted:
                self._dropped += len(data)
            else:
                self._send(name, data)
        return data

    def _read_frames(self) -> None:
        """Read what was printed before, then frames, then tick for each that has ended."""
        for name in _OUTPUTS:
            if name in self._pipes:
                self._read(name)
                if not self._has_room:
                    self._pause()
                    return
        data = self._read("frame")
        if data is None:
            return
        if not data:
            self._frames_closed()
            return
        if self._skipping:
            data = self._counter.skip(data)
            self._skipping = not data
        try:
            ended = self._counter.feed(data)
        except ValueError:
            self.kill("protocol error")
            return
        if data:
            self._send("frame", data)
        if ended:
            self._poke(self._tick, bytes(min(ended, 4096)))

    def _frames_closed(self) -> None:
        """A worker without a voice is of no use: end it, unless it is just exiting."""
        if self._state is State.RUNNING:
            self._timers.append(self._loop.call_later(CLOSED_GRACE_S, lambda: self.kill("closed its pipes")))

    def _drop(self, name: str) -> None:
        fd = self._pipes.pop(name)
        self._loop.unwatch(fd)
        os.close(fd)

    @staticmethod
    def _poke(fd: int, data: bytes) -> None:
        with contextlib.suppress(OSError):  # full, or closed by the worker: it waits for none, then
            os.write(fd, data)

    # --- what the daemon asks ---

    def write(self, data: bytes, done: Done) -> None:
        """Give the worker frames; `done` as of `StdinWriter.write`.

        Raises:
            ProcessNotRunning: it has ended. ServerBusy: too much waits.
        """
        if self._feed is None:
            raise ProcessNotRunning(f"cannot write to context {self.name}: it has ended", id=self.name)
        self._feed.write(data, done)

    def interrupt(self, run: int) -> None:
        """SIGINT to the worker and what it started in its group, as a terminal's Ctrl-C; name the run that is meant."""
        if self._state in ALIVE:
            self._poke(self._interrupts, struct.pack(">Q", run))
            for number in (signal.SIGINT, signal.SIGCONT):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, number)

    def mute(self, *, on: bool) -> int:
        """Read and drop what it prints, or no longer; return how many bytes were dropped since the last call."""
        self._muted = on
        dropped, self._dropped = self._dropped, 0
        return dropped

    def kill(self, reason: str) -> None:
        """SIGKILL the whole tree; `reason` names the end."""
        self._reason = self._reason or reason
        if self._state in COMING and self._incoming is not None:
            self._incoming.cancel()
            self._incoming = None
            self._close_theirs()
            self._move(LifeEvent.CANCEL)
            if self._state is State.EXITED:
                self._status = self._status or signal.SIGKILL  # nobody's will come
                self._after_exit()
        self._kill_all()

    def _kill_all(self) -> None:
        self.leaf.kill()
        if self._state in ALIVE:
            # Also where the leaf cannot (a cgroup2 that the sandbox's root has meddled with).
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    # --- the end ---

    def on_exit(self, status: int, rusage: resource.struct_rusage | None) -> None:
        """Take the process's status; called by the reaper."""
        if not self._move(LifeEvent.EXIT):
            return
        self._status = status
        self._rusage = rusage
        if self._state is State.LOST:
            self.pid = 0  # the end of its socket says the rest
        else:
            self._after_exit()

    def _after_exit(self) -> None:
        if self._feed is not None:
            self._is_unread = self._feed.unread > 0
            self._feed.close()
            self._feed = None
        self._timers.append(self._loop.call_later(ORPHAN_GRACE_S, self._end_grace))
        self._maybe_finish()

    def _end_grace(self) -> None:
        self.leaf.kill()
        if self._state is State.EXITED:
            self._move(LifeEvent.DRAIN)
            self._read_rest()

    def _read_rest(self) -> None:
        """Read what is left in the pipes and let go of them; without a follower it is lost."""
        for name in list(self._pipes):
            while name in self._pipes and (self._has_room or self._follower is None):
                if self._follower is None:
                    self._drop(name)
                else:
                    self._on_readable(name)
        if self._pipes and not self._has_room:
            self._pause()
        self._maybe_finish()

    def _maybe_finish(self) -> None:
        if self._state not in (State.EXITED, State.DRAINING) or self._pipes:
            return
        self._move(LifeEvent.END)
        self._result = self._make_result()
        self._close_all()
        if self._follower is not None:
            self._tell_exit()
        # After the flush that the end has deferred.
        self._loop.defer(lambda: self._deps.leaves.drop(self.leaf))

    def _tell_exit(self) -> None:
        self._send("exit", self._result)
        self.unfollow({})

    def _make_result(self) -> dict[str, Any]:
        status = self._status or 0
        signalled = os.WIFSIGNALED(status)
        oom = self.leaf.oom_kills() > 0
        return {
            "exit_code": None if signalled else os.waitstatus_to_exitcode(status),
            "signal": signal_name(os.WTERMSIG(status)) if signalled else None,
            "duration_s": round(time.monotonic() - self._began, 6),
            "timed_out": False,
            "oom_killed": oom,
            "usage": self.leaf.usage(self._rusage),
            "unread": self._is_unread,
            "reason": "oom" if oom else self._reason or ("signal" if signalled else "exit"),
        }

    def _close_all(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._close_theirs()
        for name in list(self._pipes):
            self._drop(name)
        if self._feed is not None:
            self._feed.close()
            self._feed = None
        for name in ("_tick", "_interrupts"):
            fd = getattr(self, name)
            if fd >= 0:
                setattr(self, name, -1)
                os.close(fd)
