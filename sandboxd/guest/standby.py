"""A child that waits to become the sandbox's next command, so that a start is a message and not a fork.

Theory of operation. A fork of init costs it twice: its memory map is copied, and then it faults on every page that it
writes (some 550 for one command: CPython counts references). So while commands follow each other, init forks once:

    init ── leaf ──▶ forker ── clone3, CLONE_PARENT, into the leaf ──▶ standby
    init ◀── one end of its socket ── forker
    init ◀── a byte, with which the kernel tells its pid ── standby
    init ── what to become, descriptors ──▶ standby ── execve

The forker is a fork of init that does nothing but this, so little of it is ever written, and it works while a command
runs. A standby is init's own child and in a leaf of its own, the command's from then on; it has done all that is the
same for every program (spawn.py) and gone through the rest for practice, before it says so. Neither is listened to
but for these answers, neither can be looked into from the sandbox (like init they are not dumpable), and neither has
more than init.

There is none in a sandbox that runs a command now and then: the forker comes at the second command within `idle_s`, and
goes when none has come for so long. Whatever is wrong (the sandbox killed or stopped one of them or changed its
limits, an order is too large, there is no room), the command is forked from init as ever.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import itertools
import marshal
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import prctl

from ..linux.eventloop import READ, EventLoop, Timer
from ..linux.kernel import CLONE_PARENT, Kernel
from ..wire.sendqueue import descriptors, rights
from . import spawn
from .leaf_cgroups import LeafCgroup, LeafCgroups

#: An order over this is a fork's: a message of a socket pair must fit its buffer.
MAX_ORDER_BYTES: Final = 32 * 1024
MAX_FDS: Final = 8
#: What must be left of the sandbox's limits, or there is none.
ROOM_BYTES: Final = 32 * 1024 * 1024
ROOM_PROCESSES: Final = 32
#: How long after its predecessor has become a command that still runs another one is asked for.
RENEW_S: Final = 0.02
#: A forker that takes this long to answer is stopped, or what it works with is.
ANSWER_TIMEOUT_S: Final = 1.0
_LIMITS: Final = tuple(
    getattr(resource, f"RLIMIT_{name}")
    for name in (
        *("AS", "CORE", "CPU", "DATA", "FSIZE", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE", "NPROC", "RSS", "RTPRIO"),
        *("SIGPENDING", "STACK"),
    )
)
_CREDENTIALS: Final = struct.Struct("=3i")
#: Where both have their socket; below it is /dev/null.
_SOCKET_FD: Final = 3

#: Children that are no commands, and who takes their status.
Children = dict[int, Callable[[int, resource.struct_rusage], None]]


@dataclasses.dataclass(eq=False, slots=True)
class _Child:
    """A forker or a standby, as init knows it; a standby has no pid until it has said that it is ready."""

    leaf: LeafCgroup
    socket: socket.socket
    pid: int = 0


class Standby:
    """The one of this sandbox, and its forker."""

    def __init__(self, loop: EventLoop, kernel: Kernel, leaves: LeafCgroups, children: Children) -> None:
        #: How long they wait for a command, in seconds; 0 is no time at all.
        self.idle_s = 0.0
        #: /dev/null, for their first descriptors.
        self.null_fd = -1
        #: Whether a command has that pid.
        self.is_command: Callable[[int], bool] = lambda pid: False
        self._loop = loop
        self._kernel = kernel
        self._leaves = leaves
        self._children = children
        self._count = itertools.count(1)
        self._forker: _Child | None = None
        self._asked: LeafCgroup | None = None
        self._coming: _Child | None = None
        self._ready: _Child | None = None
        self._wanted_at = float("-inf")
        self._due: Timer | None = None
        self._is_watched = False

    def take(self, order: spawn.SpawnRequest, fds: Sequence[int]) -> tuple[int, LeafCgroup] | None:
        """Have the standby become a program; return its pid and leaf, or None where init must fork.

        If commands follow each other, another one is asked for when one has ended, or after a moment: the forker would
        take the processor from a short command.
        """
        before, self._wanted_at = self._wanted_at, time.monotonic()
        if self._wanted_at - before < self.idle_s and self._due is None:
            self._due = self._loop.call_later(RENEW_S, self._renew)
        child = self._ready
        if child is None:
            return None
        data = marshal.dumps(tuple(order))
        if len(data) > MAX_ORDER_BYTES or len(fds) > MAX_FDS:
            return None  # it may wait for the next one
        if not self._send(child, data, fds):
            self.drop()  # what is wrong with it may come of the forker
            return None
        self._ready = None
        del self._children[child.pid]
        child.socket.close()
        return child.pid, child.leaf

    def drop(self) -> None:
        """Have none."""
        for child in (self._ready, self._coming, self._forker):
            if child is not None:
                self._end(child)
        if self._asked is not None:
            self._leaves.drop(self._asked)
        self._ready = self._coming = self._forker = self._asked = None

    def _send(self, child: _Child, data: bytes, fds: Sequence[int]) -> bool:
        """Send an order; False if the child has ended, is stopped, or is not as one of init's own would be by now."""
        with contextlib.suppress(OSError):
            if (
                _lives(child.pid)
                and [resource.prlimit(child.pid, each) for each in _LIMITS] == _limits()
                and os.getpriority(os.PRIO_PROCESS, child.pid) == os.getpriority(os.PRIO_PROCESS, 0)
            ):
                child.socket.sendmsg([data], [rights(fds)], socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
                return True
        return False

    def _end(self, child: _Child) -> None:
        """Let go of a child: it is killed, and its leaf goes when it has gone."""
        self._loop.unwatch(child.socket.fileno())
        child.socket.close()
        if child.pid:
            self._children.pop(child.pid, None)  # the reaper takes it for an orphan
        self._leaves.drop(child.leaf)

    # --- a new one ---

    def on_command_end(self) -> None:
        """A command has ended, and its caller knows: now is the time."""
        if self._due is not None:
            self._due.cancel()
            self._renew()

    def _drop_if_idle(self) -> None:
        left = self._wanted_at + self.idle_s - time.monotonic()
        self._is_watched = left > 0
        if left > 0:
            self._loop.call_later(left, self._drop_if_idle)
        else:
            self.drop()

    def _renew(self) -> None:
        self._due = None
        if not self._is_watched:
            self._is_watched = True
            self._loop.call_later(self.idle_s, self._drop_if_idle)
        if not self._leaves.has_room(ROOM_BYTES, ROOM_PROCESSES):
            self.drop()
            return
        with contextlib.suppress(OSError):  # no room after all
            if self._forker is None:
                self._fork()
            if self._forker is not None and not (self._ready or self._coming or self._asked):
                self._ask(self._forker)

    def _new_leaf(self) -> LeafCgroup:
        return self._leaves.new(f"~{next(self._count)}")  # no process can have that id

    def _fork(self) -> None:
        """Fork the forker."""
        leaf = self._new_leaf()
        fd = leaf.open()
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                try:
                    pid, pidfd = self._kernel.clone3(0, cgroup_fd=fd)
                except OSError:
                    ours.close()
                    raise
                if pid == 0:
                    _be_forker(self._kernel, theirs.fileno(), self.null_fd)
                os.close(pidfd)
        except OSError:
            self._leaves.drop(leaf)
            raise
        finally:
            os.close(fd)
        self._forker = child = _Child(leaf, ours, pid)
        self._watch(child, self._on_answer)
        self._know(child)

    def _watch(self, child: _Child, callback: Callable[[_Child], None]) -> None:
        child.socket.setblocking(False)
        self._loop.watch(child.socket.fileno(), READ, functools.partial(callback, child))

    def _ask(self, forker: _Child) -> None:
        leaf = self._new_leaf()
        fd = leaf.open()
        try:
            forker.socket.sendmsg([b"1"], [rights([fd])], socket.MSG_NOSIGNAL)
        except OSError:
            self._leaves.drop(leaf)
            raise
        finally:
            os.close(fd)
        self._asked = leaf
        self._loop.call_later(ANSWER_TIMEOUT_S, functools.partial(self._on_no_answer, leaf))

    def _on_no_answer(self, leaf: LeafCgroup) -> None:
        if self._asked is leaf or (self._coming is not None and self._coming.leaf is leaf):
            self.drop()

    def _on_answer(self, forker: _Child) -> None:
        """Take the socket of the standby that was asked for."""
        try:
            data, ancillary, _, _ = forker.socket.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        leaf, self._asked = self._asked, None
        if not data or not ancillary or leaf is None:  # it has ended, or somebody has no descriptors left
            if leaf is not None:
                self._leaves.drop(leaf)
            self.drop()
            return
        fd = descriptors(ancillary)[0]
        self._coming = child = _Child(leaf, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd))
        self._watch(child, self._on_ready)

    def _on_ready(self, child: _Child) -> None:
        """Take the standby's word, and its pid from the kernel."""
        try:
            data, ancillary, _, _ = child.socket.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        pid = 0
        for level, kind, sent in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                pid = _CREDENTIALS.unpack(sent[: _CREDENTIALS.size])[0]
        # It may have ended since, and been reaped, and its number be another child's.
        if not data or pid == 0 or pid in self._children or self.is_command(pid) or not _lives(pid):
            self.drop()
            return
        self._loop.unwatch(child.socket.fileno())
        child.pid = pid
        self._coming, self._ready = None, child
        self._know(child)

    def _know(self, child: _Child) -> None:
        def on_exit(_status: int, _rusage: resource.struct_rusage) -> None:
            self.drop()  # one without the other is of no use, and both will have been meant

        self._children[child.pid] = on_exit


def _lives(pid: int) -> bool:
    """Return whether a child runs: it is ours, has not ended, and is not stopped."""
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


def _limits() -> list[tuple[int, int]]:
    return [resource.getrlimit(each) for each in _LIMITS]


# --- in the children ---


def _drop_inherited(kernel: Kernel, connection: int, name: str) -> socket.socket:
    """Keep nothing of the parent's but /dev/null and the connection."""
    os.dup2(connection, _SOCKET_FD, inheritable=False)
    kernel.close_range(_SOCKET_FD + 1, 2**32 - 1)
    prctl.set_name(name)
    prctl.set_proctitle(f"sandboxd: {name}")
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, _SOCKET_FD)


def _be_forker(kernel: Kernel, connection: int, null_fd: int) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        gc.disable()
        for target in range(_SOCKET_FD):
            os.dup2(null_fd, target, inheritable=False)
        init = _drop_inherited(kernel, connection, "forker")
        while True:
            data, ancillary, _, _ = init.recvmsg(1, socket.CMSG_SPACE(4))
            if not data:
                break
            leaf = descriptors(ancillary)[0]
            inits, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            inits.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            # Its exit signal is the forker's own: SIGCHLD, and to init.
            pid, pidfd = kernel.clone3(CLONE_PARENT, cgroup_fd=leaf, exit_signal=0)
            if pid == 0:
                _be_standby(kernel, theirs.fileno())
            os.close(leaf)
            os.close(pidfd)
            theirs.close()
            init.sendmsg([b"1"], [rights([inits.fileno()])])
            inits.close()
    finally:
        os._exit(0)


def _be_standby(kernel: Kernel, connection: int) -> NoReturn:
    try:
        init = _drop_inherited(kernel, connection, "standby")
        spawn.prepare(kernel)
        spawn.warm_up(kernel, spawn.SpawnRequest(*marshal.loads(_PRACTICE)))  # noqa: S302 - our own
        init.send(b"1")
        data, ancillary, _, _ = init.recvmsg(MAX_ORDER_BYTES + 1, socket.CMSG_SPACE(4 * MAX_FDS))
        if data:
            order = spawn.SpawnRequest(*marshal.loads(data))  # noqa: S302 - it is init's
            spawn.run(kernel, order, descriptors(ancillary))
    finally:
        os._exit(spawn.NOT_EXECUTABLE)


_PRACTICE: Final = marshal.dumps((("/",), {"PATH": "/"}, "/", 0, 0, (0,)))
