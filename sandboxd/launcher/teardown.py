"""Tears down every sandbox, whether it ran or failed: kill, wait until its cgroup is empty, release everything.

A teardown never blocks the loop: it continues (`advance`) when an init's pidfd, a child, the network process or a
short timer signals that it can.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import signal
import time
from collections.abc import Callable
from typing import Final

from ..errors import InternalError, SandboxdError
from ..linux.eventloop import READ, Alarm, EventLoop
from .cgroups import SandboxCgroups
from .idranges import RangeAllocator
from .records import RecordStore
from .storage.choice import Storage
from .veth import Veths

log = logging.getLogger("sandboxd.launcher")

#: How soon a killed cgroup that is not empty yet is looked at again.
RETRY_S: Final = 0.002
#: How many cgroups are removed in one turn of the loop, of all sandboxes together: 5 ms. A sandbox may have 4,096.
GROUPS_A_TURN: Final = 64
#: How soon one is tried again that the host refused: no descriptors, a disk that fails.
AGAIN_S: Final = 1.0
#: Called at the end of a removal, with why something had to be left.
Done = Callable[[SandboxdError | None], None]


@dataclasses.dataclass(slots=True)
class _Teardown:
    """A destruction under way: what it still waits for, and who waits for it; `error` once something was refused."""

    id: str
    range_index: int | None
    done: list[Done]
    pidfd: int
    helper: int = 0
    detaching: bool = False
    error: SandboxdError | None = None
    again_at: float = 0.0


class Teardowns:
    """The removals under way."""

    def __init__(
        self,
        loop: EventLoop,
        cgroups: SandboxCgroups,
        storage: Storage,
        records: RecordStore,
        ranges: RangeAllocator,
        veths: Veths,
        init_sockets_dir: str,
    ) -> None:
        self._loop = loop
        self._alarm = Alarm(loop, self.advance)
        self._cgroups = cgroups
        self._storage = storage
        self._records = records
        self._ranges = ranges
        self._veths = veths
        self._init_sockets_dir = init_sockets_dir
        self._active: dict[str, _Teardown] = {}

    def __len__(self) -> int:
        return len(self._active)

    def __contains__(self, sandbox_id: object) -> bool:
        return sandbox_id in self._active

    def begin(self, sandbox_id: str, range_index: int | None, done: Done, pidfd: int = -1) -> None:
        """Remove everything that belongs to an id, and its init behind `pidfd` (ours from now on); then call `done`."""
        teardown = _Teardown(sandbox_id, range_index, [done], pidfd)
        self._active[sandbox_id] = teardown
        if pidfd >= 0:
            self._loop.watch(pidfd, READ, lambda: self._on_end(teardown))
        self._cgroups.kill(sandbox_id)
        self._advance(teardown)
        self._set_alarm()

    @property
    def wait_s(self) -> float | None:
        """How soon something may go on; None where nothing is under way."""
        if not self._active:
            return None
        return AGAIN_S if all(teardown.error for teardown in self._active.values()) else RETRY_S

    def await_end(self, sandbox_id: str, done: Done) -> None:
        """Call `done` too at the end of a removal that is under way."""
        teardown = self._active[sandbox_id]
        if teardown.error:
            done(teardown.error)
        else:
            teardown.done.append(done)

    def _on_end(self, teardown: _Teardown) -> None:
        self._loop.unwatch(teardown.pidfd)
        reap(teardown.pidfd)
        os.close(teardown.pidfd)
        teardown.pidfd = -1
        self._alarm.after(0)

    def reap_helpers(self) -> None:
        """Notice children that have removed a large tree; called after SIGCHLD."""
        for teardown in list(self._active.values()):  # who hears of a failure may begin or end one
            if not teardown.helper:
                continue
            ended, status = os.waitpid(teardown.helper, os.WNOHANG)
            if ended:
                teardown.helper = 0
                self._alarm.after(0)
                if status:
                    self._postpone(teardown, OSError(errno.EIO, "the child that removes its files failed"))

    def advance(self) -> None:
        """Go on wherever something can."""
        budget = GROUPS_A_TURN
        for teardown in list(self._active.values()):
            budget -= self._advance(teardown, budget)
            if budget <= 0:
                # The others first at the next turn.
                if teardown.id in self._active:
                    self._active[teardown.id] = self._active.pop(teardown.id)
                break
        self._set_alarm()

    def _set_alarm(self) -> None:
        wait_s = self.wait_s
        if wait_s is not None:
            self._alarm.after(wait_s)

    def _advance(self, teardown: _Teardown, budget: int = GROUPS_A_TURN) -> int:
        """Go on with one, for at most `budget` cgroups; returns how many it removed."""
        if teardown.helper or teardown.detaching or teardown.pidfd >= 0:
            return 0
        if teardown.error and time.monotonic() < teardown.again_at:
            return 0
        removed = 0
        try:
            gone, removed = self._cgroups.remove(teardown.id, budget)
            if not gone or not self._detached(teardown) or not self._take_away(teardown):
                return removed
        except OSError as failure:
            self._postpone(teardown, failure)
            return removed
        del self._active[teardown.id]
        for callback in teardown.done:
            callback(None)
        return removed

    def _detached(self, teardown: _Teardown) -> bool:
        """Give back its veth, once nothing runs that could use it; return whether it has none any more."""
        if teardown.id not in self._veths:
            return True
        teardown.detaching = True

        def detached(error: SandboxdError | None) -> None:
            teardown.detaching = False
            self._alarm.after(0)
            if error:
                self._postpone(teardown, OSError(errno.EIO, error.message))

        self._veths.detach(teardown.id, detached)
        return teardown.id not in self._veths

    def _take_away(self, teardown: _Teardown) -> bool:
        """Give back all that is left once the cgroup is; return whether it is gone, else a child is at it."""
        if not self._storage.remove(teardown.id):
            teardown.helper = self._remove_in_child(teardown.id)
            return False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._init_sockets_dir}/{teardown.id}.sock")
        self._records.remove(teardown.id)
        if teardown.range_index is not None:
            self._ranges.release(teardown.range_index, self._cgroups.path(teardown.id))
        else:
            self._ranges.sweep()  # an earlier launcher died before it recorded which range the sandbox had
        return True

    def _postpone(self, teardown: _Teardown, failure: OSError) -> None:
        """Tell who waits, and try again later: descriptors may come back, a disk may heal. So does the next start."""
        if not teardown.error:
            log.exception("Cannot remove all of sandbox %s yet", teardown.id)
            text = f"cannot remove all of sandbox {teardown.id} yet: {failure}"
            teardown.error = InternalError(text, id=teardown.id)
        teardown.again_at = time.monotonic() + AGAIN_S
        waiting, teardown.done = teardown.done, []
        for callback in waiting:
            callback(teardown.error)

    def _remove_in_child(self, sandbox_id: str) -> int:
        """Remove a large tree in a short child, so that other requests go on."""
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            self._storage.remove(sandbox_id, in_child=True)
            status = 0
        finally:
            os._exit(status)


def reap(pidfd: int) -> str:
    """Reap an init that has ended and say how; one that an earlier launcher started is not ours to reap."""
    try:
        status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        status = None
    if status is None:
        return "init ended"
    if status.si_code == os.CLD_EXITED:
        return f"init exited with status {status.si_status}"
    return f"init was killed by {signal.Signals(status.si_status).name}"
