"""Clones of git repositories: children of the template `git` (sandboxd/templates/git), from init's side.

A clone is an incoming child (`incoming.py`) in its own leaf, with the permissions of the sandbox's user. init gives it
its order and the pipe to the daemon, ends it (on request, at its deadline, or when the daemon is gone), reaps it, and
then ends the request.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable
from typing import Any, Final

from ..errors import InternalError, LimitExceeded, SandboxdError, ServerBusy
from ..linux.eventloop import EventLoop, Timer
from ..linux.kernel import Kernel
from ..wire import exhausted
from ..wire.messages import Event
from .commands import Commands
from .incoming import IncomingChild, IncomingChildren
from .leaf_cgroups import LeafCgroup, LeafCgroups
from .link_server import LinkServer

#: Clones at once: each holds a pack's table in memory.
MAX_CLONES: Final = 8
#: How long the template may take to load, on a busy machine, before its child comes.
ARRIVAL_TIMEOUT_S: Final = 90.0
#: How long a clone that is to end may take to remove what it made.
TIDY_S: Final = 5.0


class Clones:
    """Every clone under way."""

    def __init__(
        self, loop: EventLoop, kernel: Kernel, leaves: LeafCgroups, incoming: IncomingChildren, commands: Commands
    ) -> None:
        self._loop = loop
        self._kernel = kernel
        self._leaves = leaves
        self._incoming = incoming
        self._commands = commands
        self._clones: dict[str, _Clone] = {}
        self._next = 1
        self.operations: dict[str, Callable[[LinkServer, int, dict[str, Any]], None]] = {
            "clone": self._start,
            "clone_stop": self._stop,
        }

    def _start(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        """Expect a child, and tell the daemon where; the request is answered when the child has ended.

        Params: `order` (for the child; it has a password in it), `timeout_s`. With them come the end of a socket at
        which the child arrives, and the end of a pipe for what it tells.

        Raises:
            ServerBusy: there are too many.
        """
        handoff, pipe = peer.take_fds(2)
        name = str(params["order"]["temporary"])
        try:
            if len(self._clones) >= MAX_CLONES or name in self._clones:
                raise ServerBusy(f"cannot clone: {MAX_CLONES} clones are under way already")
            leaf = self._leaves.new(f"_git{self._next}")  # no process can have that id
            os.close(leaf.open())
        except BaseException as error:
            os.close(handoff)
            os.close(pipe)
            if isinstance(error, OSError):
                raise exhausted.known(error, "clone") from None
            raise
        self._next += 1
        self._clones[name] = clone = _Clone(self, peer, request, leaf, pipe, params["order"])
        clone.timer = self._loop.call_later(float(params["timeout_s"]), lambda: clone.end("it took too long"))
        clone.incoming = self._incoming.expect(
            handoff, clone.on_arrived, clone.on_begun, clone.on_failed, timeout_s=ARRIVAL_TIMEOUT_S
        )
        peer.send(Event(request, 0, time.time(), "expecting", {"leaf": leaf.name}))

    def _stop(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        """End a clone; one that is over is no error."""
        clone = self._clones.get(params["name"])
        if clone is not None and clone.peer is peer:
            clone.end("it was stopped")
        peer.reply(request, {})

    def cancel(self, peer: LinkServer, request: int) -> None:
        """End the clone of a request that nobody waits for."""
        for clone in list(self._clones.values()):
            if clone.peer is peer and clone.request == request:
                clone.end("it was cancelled")

    def drop(self, peer: LinkServer) -> None:
        """End the clones of a daemon that is gone."""
        for clone in list(self._clones.values()):
            if clone.peer is peer:
                clone.end("the caller stopped waiting for it")

    # --- for `_Clone` ---

    def send(self, clone: _Clone, pid: int) -> None:
        """Give the child that arrived its job."""
        self._commands.children[pid] = clone.on_exit
        assert clone.incoming is not None  # noqa: S101 - it is what calls
        clone.incoming.send(self._commands.user, "/", {}, [clone.pipe], clone.order)

    def full(self, leaf: LeafCgroup) -> SandboxdError | None:
        """Return the limit for which no process can begin in a leaf now; None where one can."""
        try:
            leaf.try_out(self._kernel)
        except OSError as error:
            return exhausted.limit_error(error, "clone")
        return None

    def later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Run something later."""
        return self._loop.call_later(seconds, callback)

    def over(self, clone: _Clone, error: SandboxdError | None) -> None:
        """Answer the request."""
        self._clones.pop(str(clone.order["temporary"]), None)
        if error is None:
            clone.peer.reply(clone.request, {})
        else:
            clone.peer.fail(clone.request, error)
        self._loop.defer(lambda: self._leaves.drop(clone.leaf))


class _Clone:
    """One clone: expected, then a process."""

    def __init__(
        self, clones: Clones, peer: LinkServer, request: int, leaf: LeafCgroup, pipe: int, order: dict[str, Any]
    ) -> None:
        self._clones = clones
        self.peer = peer
        self.request = request
        self.leaf = leaf
        self.pipe = pipe
        self.order = order
        self.pid = 0
        self.incoming: IncomingChild | None = None
        self.timer: Timer | None = None
        self._why: str | None = None
        self._is_over = False

    def on_arrived(self, pid: int) -> None:
        """The child is here."""
        self.pid = pid
        self._clones.send(self, pid)

    def on_begun(self) -> None:
        """It has its order and the pipe."""
        self.incoming = None
        self._let_go()

    def on_failed(self, why: str, declined: bool) -> None:
        """Nobody comes."""
        self.incoming = None
        if self.pid:
            self.leaf.kill()  # its status ends the request
            self._why = self._why or why
        else:
            self._finish(
                self._clones.full(self.leaf) or InternalError(f"cannot clone: its process did not start ({why})")
            )

    def end(self, why: str) -> None:
        """End it: it may remove what it made, then it is killed."""
        if self._is_over or self._why is not None:
            return
        self._why = why
        if self.incoming is not None:  # still on its way, with nothing made
            self.incoming.cancel()
            self.incoming = None
            self._let_go()
            if not self.pid:
                self._finish(InternalError(f"cannot clone: {why}"))
            else:
                self.leaf.kill()
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
            os.kill(self.pid, signal.SIGCONT)  # somebody may have stopped it
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self._clones.later(TIDY_S, self.leaf.kill)

    def on_exit(self, status: int, rusage: resource.struct_rusage) -> None:
        """Its status is here: the request is over."""
        if self.incoming is not None:
            self.incoming.cancel()
            self.incoming = None
        if status == 0 and self._why is None:
            self._finish(None)
        elif self._why is not None:
            self._finish(InternalError(f"cannot clone: {self._why}"))
        elif self.leaf.oom_kills():
            why = "cannot clone: the sandbox is out of memory"
            self._finish(LimitExceeded(why, limit="memory_bytes", oom_killed=True))
        else:
            self._finish(InternalError(f"cannot clone: its process ended with status {status:#x}"))

    def _let_go(self) -> None:
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1

    def _finish(self, error: SandboxdError | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._let_go()
        if self.timer is not None:
            self.timer.cancel()
        self._clones.over(self, error)
