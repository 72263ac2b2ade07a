"""Births under way: the host's side, then what the zygote, the builder and pid 1 say, then the record."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import selectors
import signal
from collections.abc import Callable

from ..errors import SandboxdError, SandboxGone
from ..linux import procfs
from ..linux.kernel import Kernel
from ..spec import Limits
from . import birth, limits
from .cgroups import SandboxCgroups
from .idranges import IdRange, RangeAllocator
from .plan import LaunchSpec
from .records import Record
from .removals import Done, Removals
from .settings import Settings
from .storage.choice import Storage
from .zygote import Zygote


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A checked creation, and who waits for it.

    `on_born` gets the record, the init's pidfd (its owner's from then on) and how long each step took;
    `on_failed` gets the error when nothing is left of the birth.
    """

    id: str
    rootfs: str
    limits: Limits
    seccomp: str
    unenforced: list[str]
    on_born: Callable[[Record, int, dict[str, float]], None]
    on_failed: Callable[[SandboxdError], None]


@dataclasses.dataclass(slots=True)
class _Birth:
    """A creation under way."""

    order: Order
    spec: LaunchSpec
    range: IdRange
    status: birth.StatusReader
    builder: int = 0
    pid: int = 0
    pidfd: int = -1
    devices: list[int] | None = None
    timings: dict[str, float] = dataclasses.field(default_factory=dict)
    is_ready: bool = False
    failure: SandboxdError | None = None
    abandoned: list[Done] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What births are made with."""

    settings: Settings
    kernel: Kernel
    ranges: RangeAllocator
    cgroups: SandboxCgroups
    storage: Storage
    removals: Removals
    zygote: Zygote


class Births:
    """The births under way."""

    def __init__(self, selector: selectors.BaseSelector, means: Means) -> None:
        self._selector = selector
        self._means = means
        self._active: dict[str, _Birth] = {}

    def __len__(self) -> int:
        return len(self._active)

    def __contains__(self, sandbox_id: object) -> bool:
        return sandbox_id in self._active

    def begin(self, order: Order) -> None:
        """Start a birth; the order's callbacks tell its end.

        Raises:
            LaunchFailed, LimitExceeded: there is no range of ids.
        """
        try:
            range_ = self._means.ranges.take()
        except OSError as error:
            raise _failure("id-range", error, order.id) from None
        try:
            newborn = self._order(order, range_)
        except (OSError, SandboxdError) as error:
            failed = _failure("host-side", error, order.id) if isinstance(error, OSError) else error
            self._means.removals.begin(order.id, range_.index, lambda _: order.on_failed(failed))
            return
        self._active[order.id] = newborn
        self._selector.register(newborn.status.fd, selectors.EVENT_READ, lambda: self._on_status(newborn))

    def abandon(self, sandbox_id: str, done: Done) -> None:
        """End a birth that nobody wants any more, as soon as its init is known, and call `done` when all is gone."""
        newborn = self._active[sandbox_id]
        newborn.abandoned.append(done)
        newborn.failure = newborn.failure or SandboxGone(
            f"cannot create sandbox {sandbox_id}: it was destroyed meanwhile", id=sandbox_id
        )
        if newborn.pid and newborn.builder:
            self._stillborn(newborn, newborn.failure)

    def _order(self, order: Order, range_: IdRange) -> _Birth:
        """Do the host's side and have it forked; everything made here is removed by `Removals`."""
        means, settings = self._means, self._means.settings
        with contextlib.ExitStack() as undo:
            disk = means.storage.create(order.id, order.limits.disk_bytes or 0)
            places = means.cgroups.create(order.id, range_.base, order.limits)
            undo.callback(places.close)
            means.ranges.bind(range_, means.cgroups.path(order.id))
            listener = birth.listen(settings.links_dir, order.id, (settings.daemon_uid, settings.daemon_gid))
            undo.callback(listener.close)
            status_read, status_write = os.pipe2(os.O_CLOEXEC)
            undo.callback(os.close, status_write)
            os.set_blocking(status_read, False)
            reader = birth.StatusReader(status_read)
            spec = LaunchSpec(
                id=order.id,
                rootfs=order.rootfs,
                tree=settings.tree_of(order.rootfs),
                disk=disk,
                stage=settings.stage_dir,
                limits=order.limits,
                processes=limits.processes_of(order.limits, means.cgroups.controllers),
                seccomp=order.seccomp,
                range_base=range_.base,
                machine_id=os.urandom(16).hex(),
            )
            fds = birth.Fds(
                listener=listener.fileno(),
                builder_cgroup=places.builder,
                init_cgroup=places.init,
                status=status_write,
                disk_userns=range_.disk_userns,
                cgroup_ns=places.namespace,
            )
            try:
                means.zygote.fork(spec.order(), fds)
            except OSError:
                reader.close()
                raise
        return _Birth(order, spec, range_, reader)

    def _on_status(self, newborn: _Birth) -> None:
        """Take what is said of a birth; the processes' messages may come in any order."""
        messages, ended = newborn.status.read()
        for message in messages:
            if message[0] == "builder":
                newborn.builder = message[1]
            elif message[0] == "pid":
                newborn.pid = message[1]
                newborn.pidfd = os.pidfd_open(newborn.pid)
            elif message[0] == "failed":
                step, syscall, code, path = message[1:]
                # The first cause stands; what the other process says of its end is a consequence.
                newborn.failure = newborn.failure or birth.failure(step, syscall, code, path, newborn.spec.id)
            elif message[0] == "built":
                newborn.devices = message[1]
                newborn.timings.update(message[2])
            elif message[0] == "ready":
                newborn.is_ready = True
                newborn.timings.update(message[1])
        if newborn.pid and newborn.builder:
            if newborn.failure:
                self._stillborn(newborn, newborn.failure)
            elif newborn.is_ready:
                self._born(newborn)
        if ended and newborn.spec.id in self._active:
            died = birth.failure("start", "", "the process died", "", newborn.spec.id)
            self._stillborn(newborn, newborn.failure or died)

    def _close(self, newborn: _Birth) -> None:
        self._selector.unregister(newborn.status.fd)
        newborn.status.close()
        del self._active[newborn.spec.id]

    def _born(self, newborn: _Birth) -> None:
        os.waitpid(newborn.builder, 0)
        self._close(newborn)
        order = newborn.order
        record = Record(
            id=order.id,
            pid=newborn.pid,
            started=procfs.start_time(newborn.pid) or 0,
            range_index=newborn.range.index,
            rootfs=order.rootfs,
            seccomp=order.seccomp,
            devices=newborn.devices or [],
            limits=dataclasses.asdict(order.limits),
            unenforced=order.unenforced,
        )
        order.on_born(record, newborn.pidfd, newborn.timings)

    def _stillborn(self, newborn: _Birth, error: SandboxdError) -> None:
        self._close(newborn)
        if newborn.builder:
            with contextlib.suppress(ProcessLookupError):
                os.kill(newborn.builder, signal.SIGKILL)
            os.waitpid(newborn.builder, 0)
        order = newborn.order
        self._means.removals.begin(order.id, newborn.range.index, lambda _: order.on_failed(error), newborn.pidfd)
        for done in newborn.abandoned:
            if order.id in self._means.removals:
                self._means.removals.join(order.id, done)
            else:
                done(None)


def _failure(step: str, error: OSError, sandbox_id: str) -> SandboxdError:
    code = errno.errorcode.get(error.errno or 0, str(error.errno))
    return birth.failure(step, getattr(error, "syscall", ""), code, str(error.filename or ""), sandbox_id)
