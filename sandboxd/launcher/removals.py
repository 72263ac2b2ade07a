"""The one way out of every sandbox, born or stillborn: kill, wait until its cgroup is empty, give everything back.

A removal never blocks the loop: it is looked at again (`advance`) when an init's pidfd, a child or a short timeout
says that it may go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import selectors
import signal
from collections.abc import Callable
from typing import Final

from ..errors import InternalError, SandboxdError
from .cgroups import SandboxCgroups
from .idranges import RangeAllocator
from .records import RecordStore
from .storage.choice import Storage

log = logging.getLogger("sandboxd.launcher")

#: How soon a killed cgroup that is not empty yet is looked at again.
RETRY_S: Final = 0.002
#: Called at the end of a removal, with why something had to be left.
Done = Callable[[SandboxdError | None], None]


@dataclasses.dataclass(slots=True)
class _Removal:
    """A destruction under way: what it still waits for, and who waits for it."""

    id: str
    range_index: int | None
    done: list[Done]
    pidfd: int
    helper: int = 0


class Removals:
    """The removals under way."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        cgroups: SandboxCgroups,
        storage: Storage,
        records: RecordStore,
        ranges: RangeAllocator,
        links_dir: str,
    ) -> None:
        self._selector = selector
        self._cgroups = cgroups
        self._storage = storage
        self._records = records
        self._ranges = ranges
        self._links_dir = links_dir
        self._active: dict[str, _Removal] = {}

    def __len__(self) -> int:
        return len(self._active)

    def __contains__(self, sandbox_id: object) -> bool:
        return sandbox_id in self._active

    def begin(self, sandbox_id: str, range_index: int | None, done: Done, pidfd: int = -1) -> None:
        """Remove everything that belongs to an id, and its init behind `pidfd` (ours from now on); then call `done`."""
        removal = _Removal(sandbox_id, range_index, [done], pidfd)
        self._active[sandbox_id] = removal
        if pidfd >= 0:
            self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._on_end(removal))
        self._cgroups.kill(sandbox_id)
        self._advance(removal)

    def join(self, sandbox_id: str, done: Done) -> None:
        """Call `done` too at the end of a removal that is under way."""
        self._active[sandbox_id].done.append(done)

    def _on_end(self, removal: _Removal) -> None:
        self._selector.unregister(removal.pidfd)
        reap(removal.pidfd)
        os.close(removal.pidfd)
        removal.pidfd = -1

    def reap_helpers(self) -> None:
        """Notice children that have removed a large tree; called after SIGCHLD."""
        for removal in self._active.values():
            if removal.helper and os.waitpid(removal.helper, os.WNOHANG) != (0, 0):
                removal.helper = 0

    def advance(self) -> None:
        """Go on wherever something can."""
        for removal in list(self._active.values()):
            self._advance(removal)

    def _advance(self, removal: _Removal) -> None:
        if removal.helper or removal.pidfd >= 0 or not self._cgroups.remove(removal.id):
            return
        error: SandboxdError | None = None
        try:
            if not self._storage.remove(removal.id):
                removal.helper = self._remove_in_child(removal.id)
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._links_dir}/{removal.id}.sock")
            self._records.remove(removal.id)
        except OSError as failure:
            # A sick disk must not end the launcher; the next start sweeps again.
            log.exception("Cannot remove all of sandbox %s", removal.id)
            error = InternalError(f"cannot remove all of sandbox {removal.id}: {failure}", id=removal.id)
        if removal.range_index is not None:
            self._ranges.release(removal.range_index, self._cgroups.path(removal.id))
        else:
            self._ranges.sweep()  # an earlier launcher died before it recorded which range the sandbox had
        del self._active[removal.id]
        for callback in removal.done:
            callback(error)

    def _remove_in_child(self, sandbox_id: str) -> int:
        """Remove a large tree in a short child, so that other requests go on."""
        pid = os.fork()
        if pid:
            return pid
        try:
            signal.set_wakeup_fd(-1)
            self._storage.remove(sandbox_id, in_child=True)
        finally:
            os._exit(0)


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
