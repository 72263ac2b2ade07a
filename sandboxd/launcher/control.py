"""What can be asked for a sandbox that runs: other limits, a freeze, a thaw, and what it uses.

All of it acts on the cgroups of an id that this launcher has; nothing else comes from the daemon but numbers.
Lowering a limit of memory below what is in use waits while the kernel reclaims and kills, so a child does that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ..errors import CgroupError, Conflict, InvalidRequest, SandboxdError, SandboxGone, SandboxNotFound
from ..spec import Limits, check_id
from . import stats
from .cgroups import SandboxCgroups
from .limits import processes_of
from .records import Record, RecordStore
from .storage.choice import Storage


@dataclasses.dataclass(slots=True)
class Running:
    """A sandbox that was born; `pidfd` is its init's, -1 once that has ended, and `ended` says how."""

    record: Record
    pidfd: int
    ended: str | None = None


class Judge(Protocol):
    """Fills limits in and refuses what cannot be; returns them and the names of those that nobody enforces."""

    def __call__(self, wanted: object) -> tuple[Limits, list[str]]:
        """Raises InvalidRequest, LimitUnenforceable."""
        ...


@dataclasses.dataclass(slots=True)
class _Change:
    """A change of limits that a child makes; `request` waits for it."""

    request: int
    record: Record


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """How requests that take longer are answered."""

    reply: Callable[[int, dict[str, Any]], None]
    fail: Callable[[int, SandboxdError], None]


class Controls:
    """The operations `limit`, `freeze`, `thaw` and `stats`."""

    def __init__(
        self,
        sandboxes: Mapping[str, Running],
        cgroups: SandboxCgroups,
        storage: Storage,
        records: RecordStore,
        judge: Judge,
        answers: Answers,
    ) -> None:
        self._sandboxes = sandboxes
        self._cgroups = cgroups
        self._storage = storage
        self._records = records
        self._judge = judge
        self._answers = answers
        self._changes: dict[int, _Change] = {}

    def operations(self) -> dict[str, Callable[[int, dict[str, Any]], dict[str, Any] | None]]:
        """Return the operations by their names."""
        return {"limit": self._limit, "freeze": self._freeze, "thaw": self._thaw, "stats": self._stats}

    # --- limits ---

    def _limit(self, request: int, params: dict[str, Any]) -> dict[str, Any] | None:
        sandbox = self._find(params, {"id", "limits"})
        old = sandbox.record
        if any(change.record.id == old.id for change in self._changes.values()):
            raise Conflict(f"cannot limit sandbox {old.id}: another change is under way", id=old.id)
        limits, unenforced = self._judge(params.get("limits"))
        record = dataclasses.replace(old, limits=dataclasses.asdict(limits), unenforced=unenforced)
        if limits.disk_bytes is not None and limits.disk_bytes != old.limits.get("disk_bytes"):
            self._storage.resize(old.id, limits.disk_bytes)
        if (limits.memory_bytes or 0) < self._cgroups.used_memory(old.id):
            self._changes[self._in_child(old.id, limits)] = _Change(request, record)
            return None
        try:
            self._cgroups.change(old.id, limits)
        except CgroupError:
            self._undo(old)
            raise
        return self._done(sandbox, record)

    def _in_child(self, sandbox_id: str, limits: Limits) -> int:
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            self._cgroups.change(sandbox_id, limits)
            status = 0
        finally:
            os._exit(status)

    def reap_helpers(self) -> None:
        """Notice children that have changed limits; called after SIGCHLD."""
        for pid in list(self._changes):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._changed(self._changes.pop(pid), status)

    def _changed(self, change: _Change, status: int) -> None:
        sandbox_id = change.record.id
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.ended is not None:
            self._answers.fail(change.request, SandboxGone(f"cannot limit {sandbox_id}: it is gone", id=sandbox_id))
        elif status:
            self._undo(sandbox.record)
            self._answers.fail(change.request, CgroupError(f"cannot limit {sandbox_id}: the kernel refused it"))
        else:
            try:
                self._answers.reply(change.request, self._done(sandbox, change.record))
            except OSError as error:
                self._answers.fail(change.request, CgroupError(f"cannot record the limits of {sandbox_id}: {error}"))

    def _undo(self, record: Record) -> None:
        with contextlib.suppress(SandboxdError, OSError):
            self._cgroups.change(record.id, Limits(**record.limits))

    def _done(self, sandbox: Running, record: Record) -> dict[str, Any]:
        """Keep the new limits; commands that start from now on have the new RLIMIT_NPROC too."""
        self._records.save(record)
        sandbox.record = record
        number = processes_of(Limits(**record.limits), self._cgroups.controllers)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            resource.prlimit(record.pid, resource.RLIMIT_NPROC, (number, number))
        return {"limits": record.limits, "unenforced": record.unenforced}

    # --- freeze, thaw, stats ---

    def _freeze(self, request: int, params: dict[str, Any]) -> dict[str, Any]:
        """Ask the kernel to stop everything; `frozen` in the answer says whether that is done already."""
        sandbox_id = self._find(params, {"id"}).record.id
        self._cgroups.freeze(sandbox_id, True)
        return {"frozen": self._cgroups.is_frozen(sandbox_id)}

    def _thaw(self, request: int, params: dict[str, Any]) -> dict[str, Any]:
        self._cgroups.freeze(self._find(params, {"id"}).record.id, False)
        return {}

    def _stats(self, request: int, params: dict[str, Any]) -> dict[str, Any]:
        record = self._find(params, {"id"}).record
        found = {**self._cgroups.stats(record.id), "disk_bytes": self._storage.used(record.id)}
        return {**found, "network": stats.veth(record.pid) if record.network else None}

    def _find(self, params: dict[str, Any], known: set[str]) -> Running:
        return running_of(self._sandboxes, params, known)


def running_of(sandboxes: Mapping[str, Running], params: dict[str, Any], known: set[str]) -> Running:
    """Return the sandbox that a request names, which has parameters out of `known` alone.

    Raises:
        InvalidRequest, SandboxNotFound: as their names say, or it has ended.
    """
    if set(params) - known:
        raise InvalidRequest("cannot accept the request: unknown parameters", field="params")
    sandbox_id = id_of(params)
    sandbox = sandboxes.get(sandbox_id)
    if sandbox is None or sandbox.ended is not None:
        raise SandboxNotFound(f"cannot find sandbox {sandbox_id}: it is not running", id=sandbox_id)
    return sandbox


def id_of(params: dict[str, Any]) -> str:
    """Return the id that a request names.

    Raises:
        InvalidRequest: it is none.
    """
    sandbox_id = params.get("id")
    if not isinstance(sandbox_id, str):
        raise InvalidRequest("cannot tell which sandbox is meant: id must be text", field="id")
    return check_id(sandbox_id)
