"""A child that waits to become the sandbox's next command, so that a start is a message and not a fork.

Theory of operation. A fork of init costs it twice: its memory map is copied, and then it faults on every page that it
writes (some 550 for one command: CPython counts references). So while commands follow each other, init forks once:

    init ── leaf ──▶ forker ── clone3, CLONE_PARENT, into the leaf ──▶ standby
    init ◀── its pid, one end of its socket ── forker
    init ── what to become, descriptors ──▶ standby ── execve

The forker is a fork of init that does nothing but this, so little of it is ever written, and it works while a command
runs. A standby is init's own child and in a leaf of its own, the command's from then on; it has done all that is the
same for every program (spawn.py) and gone through the rest for practice. Neither is ever listened to but for that
answer, neither can be looked into from the sandbox (like init they are not dumpable), and neither has more than init.

There is none in a sandbox that runs a command now and then: the forker comes at the second command within `idle_s`, and
goes when none has come for so long. Whatever is wrong (the sandbox killed or stopped one of them, an order is too
large, the limits are others by now, there is no room), the command is forked from init as ever.
"""

from __future__ import annotations

import array
import contextlib
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

from ..linux.kernel import CLONE_PARENT, Kernel
from . import spawn
from .leaves import Leaf, Leaves
from .loop import READ, Loop, Timer

#: An order over this is a fork's: a message of a socket pair must fit its buffer.
MAX_ORDER_BYTES: Final = 32 * 1024
MAX_FDS: Final = 8
#: What must be left of the sandbox's limits, or there is none.
ROOM_BYTES: Final = 32 * 1024 * 1024
ROOM_PROCESSES: Final = 32
#: How long after its predecessor has become a command that still runs another one is asked for.
RENEW_S: Final = 0.02
_LIMITS: Final = (resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE)
_PID: Final = struct.Struct("=i")
#: Where both have their socket; below it is /dev/null.
_SOCKET_FD: Final = 3

#: Children that are no commands, and who takes their status.
Children = dict[int, Callable[[int, resource.struct_rusage], None]]


class Standby:
    """The one of this sandbox, and its forker."""

    def __init__(self, loop: Loop, kernel: Kernel, leaves: Leaves, children: Children) -> None:
        #: How long they wait for a command, in seconds; 0 is no time at all.
        self.idle_s = 0.0
        #: /dev/null, for their first descriptors.
        self.null_fd = -1
        self._loop = loop
        self._kernel = kernel
        self._leaves = leaves
        self._children = children
        self._count = itertools.count(1)
        self._forker: _Child | None = None
        self._ready: _Child | None = None
        self._asked: Leaf | None = None
        self._limits: list[tuple[int, int]] = []
        self._wanted_at = float("-inf")
        self._due: Timer | None = None
        self._is_watched = False

    def take(self, order: spawn.Order, fds: Sequence[int]) -> tuple[int, Leaf] | None:
        """Have the standby become a program; return its pid and leaf, or None where init must fork.

        If commands follow each other, another one is asked for when one has ended, or after a moment: the forker would
        take the processor from a short command.
        """
        before, self._wanted_at = self._wanted_at, time.monotonic()
        if self._wanted_at - before < self.idle_s and self._due is None:
            self._due = self._loop.call_later(RENEW_S, self._renew)
        child, self._ready = self._ready, None
        if child is None:
            return None
        if not self._send(child, order, fds):
            self._end(child)
            return None
        del self._children[child.pid]
        child.socket.close()
        return child.pid, child.leaf

    def drop(self) -> None:
        """Have none."""
        for child in (self._ready, self._forker):
            if child is not None:
                self._end(child)
        self._ready = self._forker = None
        self._give_up_asked()

    def _give_up_asked(self) -> None:
        """Expect none any more; one that is there by now dies with its leaf."""
        leaf, self._asked = self._asked, None
        if leaf is not None:
            self._leaves.drop(leaf, keep_orphans=False)

    def _send(self, child: _Child, order: spawn.Order, fds: Sequence[int]) -> bool:
        data = marshal.dumps(
            (order.argv, order.env, order.cwd, order.uid, order.gid, order.groups, order.terminal, order.first)
        )
        if len(data) > MAX_ORDER_BYTES or len(fds) > MAX_FDS or self._limits != _limits():
            return False
        if not _can_run(child.pid):
            return False
        with contextlib.suppress(OSError):
            child.socket.sendmsg([data], [_rights(fds)], socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            return True
        return False

    def _end(self, child: _Child) -> None:
        self._loop.watch(child.socket.fileno(), 0, _nothing)
        child.socket.close()
        self._leaves.drop(child.leaf, keep_orphans=False)

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
        if self._limits != _limits():
            self.drop()
        with contextlib.suppress(OSError):  # no room after all
            if self._forker is None and self._leaves.has_room(ROOM_BYTES, ROOM_PROCESSES):
                self._fork()
            if self._forker is not None and self._ready is None and self._asked is None:
                self._ask(self._forker)

    def _fork(self) -> None:
        """Fork the forker."""
        leaf = self._leaves.new(f"~{next(self._count)}")  # no process can have that id
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                fd = leaf.open()
                try:
                    pid, pidfd = self._kernel.clone3(0, cgroup_fd=fd)
                finally:
                    os.close(fd)
            except OSError:
                ours.close()
                self._leaves.drop(leaf, keep_orphans=False)
                raise
            if pid == 0:
                _be_forker(self._kernel, theirs.fileno(), self.null_fd)
            os.close(pidfd)
        ours.setblocking(False)
        self._limits = _limits()
        self._forker = child = _Child(pid, leaf, ours)
        self._know(child)
        self._loop.watch(ours.fileno(), READ, functools.partial(self._on_answer, child))

    def _ask(self, forker: _Child) -> None:
        leaf = self._leaves.new(f"~{next(self._count)}")
        fd = leaf.open()
        try:
            forker.socket.sendmsg([b"1"], [_rights([fd])], socket.MSG_NOSIGNAL)
        except OSError:
            self._leaves.drop(leaf, keep_orphans=False)
            raise
        finally:
            os.close(fd)
        self._asked = leaf

    def _on_answer(self, forker: _Child) -> None:
        """Take the pid and the socket of the standby that was asked for."""
        try:
            data, ancillary, _, _ = forker.socket.recvmsg(_PID.size, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        except OSError:
            data, ancillary = b"", []
        if not data or not ancillary or self._asked is None:
            self._give_up_asked()
            self._loop.watch(forker.socket.fileno(), 0, _nothing)  # it ends, or has no room
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, _fds(ancillary)[0])
        pid = _PID.unpack(data)[0]
        if not _can_run(pid):  # its status was a stranger's, or will be: nobody is to wait for that
            sock.close()
            self._give_up_asked()
            return
        self._ready = child = _Child(pid, self._asked, sock)
        self._asked = None
        self._know(child)

    def _know(self, child: _Child) -> None:
        def on_exit(_status: int, _rusage: resource.struct_rusage) -> None:
            if self._ready is child:
                self._ready = None
            if self._forker is child:
                self._forker = None
                self._give_up_asked()
            self._loop.watch(child.socket.fileno(), 0, _nothing)
            child.socket.close()
            self._loop.defer(lambda: self._leaves.drop(child.leaf, keep_orphans=False))

        self._children[child.pid] = on_exit


class _Child:
    """A forker or a standby, as init knows it."""

    def __init__(self, pid: int, leaf: Leaf, sock: socket.socket) -> None:
        self.pid = pid
        self.leaf = leaf
        self.socket = sock


def _limits() -> list[tuple[int, int]]:
    return [resource.getrlimit(each) for each in _LIMITS]


def _can_run(pid: int) -> bool:
    """Whether it is a child that has neither ended nor stopped; whatever it was that told its pid."""
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    return False


def _rights(fds: Sequence[int]) -> tuple[int, int, array.array[int]]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds)


def _fds(ancillary: list[tuple[int, int, bytes]]) -> array.array[int]:
    return array.array("i", ancillary[0][2])


def _nothing() -> None:
    pass


# --- in the children ---


def _settle(kernel: Kernel, connection: int, name: str) -> socket.socket:
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
        init = _settle(kernel, connection, "forker")
        while True:
            data, ancillary, _, _ = init.recvmsg(1, socket.CMSG_SPACE(4))
            if not data:
                break
            leaf = _fds(ancillary)[0]
            inits, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            # Its exit signal is the forker's own: SIGCHLD, and to init.
            pid, pidfd = kernel.clone3(CLONE_PARENT, cgroup_fd=leaf, exit_signal=0)
            if pid == 0:
                _be_standby(kernel, theirs.fileno())
            os.close(leaf)
            os.close(pidfd)
            theirs.close()
            init.sendmsg([_PID.pack(pid)], [_rights([inits.fileno()])])
            inits.close()
    finally:
        os._exit(0)


def _be_standby(kernel: Kernel, connection: int) -> NoReturn:
    try:
        init = _settle(kernel, connection, "standby")
        spawn.prepare(kernel)
        spawn.practise(kernel, spawn.Order(*marshal.loads(_PRACTICE)))  # noqa: S302 - our own
        data, ancillary, _, _ = init.recvmsg(MAX_ORDER_BYTES + 1, socket.CMSG_SPACE(4 * MAX_FDS))
        if data:
            spawn.run(kernel, spawn.Order(*marshal.loads(data)), _fds(ancillary))  # noqa: S302 - it is init's
    finally:
        os._exit(spawn.NOT_EXECUTABLE)


_PRACTICE: Final = marshal.dumps((("/",), {"PATH": "/"}, "/", 0, 0, (0,), False, 3))
