"""Births under way: the host's side, then what the zygote, the builder and pid 1 say, then the record.

A birth has two halves: what is the same for every sandbox (processes, namespaces, ids, /proc, /sys, /dev), and what
its order names (the rootfs, limits). One *newborn*, no more, may be held between them: it has cgroups, a range of ids
and a socket under the id that the daemon will order it by, waits, and costs two processes' memory. It ends with the
launcher, whose successor sweeps what it had like all that has no record. An order for another id, or for what the
newborn was not made for, has a birth of its own: the same two halves, one right after the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable

from ..errors import NameTaken, SandboxdError, SandboxGone
from ..linux import procfs
from ..linux.kernel import Kernel
from ..network import NetworkSpec
from ..spec import Limits
from . import buffers, create_child, limits
from .cgroups import SandboxCgroups
from .idranges import IdRange, RangeAllocator
from .plan import LaunchSpec, NewbornSpec
from .records import Record
from .settings import Settings
from .storage.choice import Storage
from .teardown import Done, Removals
from .veth import Links
from .zygote import Zygote

log = logging.getLogger("sandboxd.launcher")


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
    network: NetworkSpec
    unenforced: list[str]
    on_born: Callable[[Record, int, dict[str, float]], None]
    on_failed: Callable[[SandboxdError], None]


@dataclasses.dataclass(slots=True)
class _Birth:
    """A creation under way, or a newborn that waits for its `order`."""

    id: str
    limits: Limits
    processes: int
    seccomp: str
    range: IdRange
    status: create_child.StatusReader
    orders: socket.socket
    order: Order | None = None
    was_held: bool = False
    builder: int = 0
    pid: int = 0
    pidfd: int = -1
    devices: list[int] | None = None
    timings: dict[str, float] = dataclasses.field(default_factory=dict)
    is_ready: bool = False
    is_linked: bool = False
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
    links: Links


class Births:
    """The births under way."""

    def __init__(self, selector: selectors.BaseSelector, means: Means) -> None:
        self._selector = selector
        self._means = means
        self._buffers = buffers.of_host()
        self._active: dict[str, _Birth] = {}
        self._ending: list[int] = []

    def __len__(self) -> int:
        """How many are ordered."""
        return sum(newborn.order is not None for newborn in self._active.values())

    def __contains__(self, sandbox_id: object) -> bool:
        return sandbox_id in self._active

    @property
    def held(self) -> str | None:
        """The id of the newborn that is held for an order."""
        return next((one.id for one in self._active.values() if one.order is None and not one.failure), None)

    @property
    def unordered(self) -> list[str]:
        """The ids of newborns that nobody has ordered: the one that is held, and those that are ending."""
        return [newborn.id for newborn in self._active.values() if newborn.order is None]

    def prepare(self, sandbox_id: str, limits: Limits, seccomp: str) -> None:
        """Have the newborn that is held ready; it fits an order with the same processes and profile.

        Raises:
            OSError, SandboxdError: it cannot be made, and leaves nothing.
        """
        self._conceive(sandbox_id, limits, seccomp).was_held = True

    def begin(self, order: Order) -> None:
        """Start a birth, of the newborn that is held where it has this id; the order's callbacks tell its end."""
        if order.id in self._means.removals:
            # Of a newborn that has just died, for one.
            self._means.removals.join(order.id, lambda error: order.on_failed(error) if error else self.begin(order))
            return
        newborn = self._active.get(order.id)
        if newborn and newborn.order:
            taken = NameTaken(f"cannot create sandbox {order.id}: the id is in use", id=order.id)
            order.on_failed(taken)
            return
        if newborn and not self._fits(newborn, order):
            self.abandon(order.id, lambda _: self.begin(order))
            return
        try:
            newborn = newborn or self._conceive(order.id, order.limits, order.seccomp)
        except (OSError, SandboxdError) as error:
            self._fail(order, _failure("host-side", error, order.id) if isinstance(error, OSError) else error)
            return
        newborn.order = order
        try:
            self._complete(newborn, order)
        except (OSError, SandboxdError) as error:
            failed = _failure("host-side", error, order.id) if isinstance(error, OSError) else error
            self._abandon(newborn, failed)

    def _fits(self, newborn: _Birth, order: Order) -> bool:
        """Return whether a newborn is what the order would have had made."""
        processes = limits.processes_of(order.limits, self._means.cgroups.controllers)
        return not newborn.failure and (newborn.processes, newborn.seccomp) == (processes, order.seccomp)

    def abandon(self, sandbox_id: str, done: Done) -> None:
        """End a birth that nobody wants any more, as soon as its init is known, and call `done` when all is gone."""
        newborn = self._active[sandbox_id]
        newborn.abandoned.append(done)
        self._abandon(newborn, _unwanted(sandbox_id))

    def _abandon(self, newborn: _Birth, error: SandboxdError) -> None:
        newborn.failure = newborn.failure or error
        if newborn.pid and newborn.builder:
            self._stillborn(newborn, newborn.failure)

    def _conceive(self, sandbox_id: str, limits_: Limits, seccomp: str) -> _Birth:
        """Do the host's side of the first half and have it forked.

        Raises:
            LaunchFailed, LimitExceeded: there is no range of ids.
            OSError, SandboxdError: the host's side failed; what was made of it is being removed.
        """
        try:
            range_ = self._means.ranges.take()
        except OSError as error:
            raise _failure("id-range", error, sandbox_id) from None
        try:
            newborn = self._fork(sandbox_id, limits_, seccomp, range_)
        except (OSError, SandboxdError):
            self._means.removals.begin(sandbox_id, range_.index, lambda _: None)
            raise
        self._active[sandbox_id] = newborn
        self._selector.register(newborn.status.fd, selectors.EVENT_READ, lambda: self._on_status(newborn))
        return newborn

    def _fail(self, order: Order, error: SandboxdError) -> None:
        """Tell that an order failed, once nothing is left of it."""
        if order.id in self._means.removals:
            self._means.removals.join(order.id, lambda _: order.on_failed(error))
        else:
            order.on_failed(error)

    def _fork(self, sandbox_id: str, limits_: Limits, seccomp: str, range_: IdRange) -> _Birth:
        means, settings = self._means, self._means.settings
        with contextlib.ExitStack() as undo:
            places = means.cgroups.create(sandbox_id, range_.base, limits_)
            undo.callback(places.close)
            means.ranges.bind(range_, means.cgroups.path(sandbox_id))
            listener = create_child.listen(settings.links_dir, sandbox_id, (settings.daemon_uid, settings.daemon_gid))
            undo.callback(listener.close)
            status_read, status_write = os.pipe2(os.O_CLOEXEC)
            undo.callback(os.close, status_write)
            os.set_blocking(status_read, False)
            failed = undo.enter_context(contextlib.ExitStack())
            reader = create_child.StatusReader(status_read)
            failed.callback(reader.close)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(theirs.close)
            failed.callback(ours.close)
            spec = NewbornSpec(
                id=sandbox_id,
                stage=settings.stage_dir,
                processes=limits.processes_of(limits_, means.cgroups.controllers),
                seccomp=seccomp,
                range_base=range_.base,
                **self._buffers._asdict(),
            )
            fds = create_child.Fds(
                listener=listener.fileno(),
                builder_cgroup=places.builder,
                init_cgroup=places.init,
                status=status_write,
                orders=theirs.fileno(),
                disk_userns=range_.disk_userns,
                cgroup_ns=places.namespace,
            )
            means.zygote.fork(spec.order(), fds)
            failed.pop_all()
        return _Birth(sandbox_id, limits_, spec.processes, seccomp, range_, reader, ours)

    def _complete(self, newborn: _Birth, order: Order) -> None:
        """Do the host's side of the second half, and give the order; all that is made here `Removals` removes."""
        means, settings = self._means, self._means.settings
        if newborn.pid:
            self._attach(newborn, order)
        disk = means.storage.create(order.id, order.limits.disk_bytes or 0)
        if order.limits != newborn.limits:
            means.cgroups.change(order.id, order.limits)
        spec = LaunchSpec(
            id=order.id,
            rootfs=order.rootfs,
            tree=settings.tree_of(order.rootfs),
            disk=disk,
            limits=order.limits,
            machine_id=os.urandom(16).hex(),
            has_link=order.network.has_link,
        )
        with contextlib.suppress(BrokenPipeError):  # it has failed: its status says why
            newborn.orders.send(spec.pack(), socket.MSG_NOSIGNAL)

    def _on_status(self, newborn: _Birth) -> None:
        """Take what is said of a birth; the processes' messages may come in any order."""
        messages, ended = newborn.status.read()
        for message in messages:
            if message[0] == "builder":
                newborn.builder = message[1]
            elif message[0] == "pid":
                newborn.pid = message[1]
                newborn.pidfd = os.pidfd_open(newborn.pid)
                if newborn.order:
                    self._attach(newborn, newborn.order)
            elif message[0] == "failed":
                step, syscall, code, path = message[1:]
                # The first cause stands; what the other process says of its end is a consequence.
                newborn.failure = newborn.failure or create_child.failure(step, syscall, code, path, newborn.id)
            elif message[0] == "built":
                newborn.devices = message[1]
                newborn.timings.update(message[2])
            elif message[0] == "ready":
                newborn.is_ready = True
                newborn.timings.update(message[1])
        self._judge(newborn)
        if ended and newborn.is_ready and newborn.id in self._active:
            self._selector.unregister(newborn.status.fd)  # only its link is waited for
        elif ended and newborn.id in self._active:
            died = create_child.failure("start", "", "the process died", "", newborn.id)
            self._stillborn(newborn, newborn.failure or died)

    def _judge(self, newborn: _Birth) -> None:
        """End a birth that is over, one way or the other."""
        if newborn.pid and newborn.builder and newborn.id in self._active:
            if newborn.failure:
                self._stillborn(newborn, newborn.failure)
            elif newborn.is_ready and newborn.is_linked and newborn.order:
                self._born(newborn, newborn.order)

    def _attach(self, newborn: _Birth, order: Order) -> None:
        """Have its link made beside the rest: pid 1 is in its network namespace from the start."""
        if not order.network.has_link:
            newborn.is_linked = True
            return
        began = time.perf_counter()

        def attached(error: SandboxdError | None) -> None:
            newborn.is_linked = True
            newborn.timings["attach-network"] = time.perf_counter() - began
            newborn.failure = newborn.failure or error
            self._judge(newborn)

        try:
            self._means.links.attach(newborn.id, newborn.range.index, newborn.pid, order.network, attached)
        except (OSError, SandboxdError) as error:
            failed = _failure("attach-network", error, newborn.id) if isinstance(error, OSError) else error
            newborn.failure = newborn.failure or failed

    def _close(self, newborn: _Birth) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(newborn.status.fd)
        newborn.status.close()
        newborn.orders.close()
        del self._active[newborn.id]

    def reap_builders(self) -> None:
        """Reap builders that have handed over; called after SIGCHLD."""
        self._ending = [pid for pid in self._ending if not os.waitpid(pid, os.WNOHANG)[0]]

    def _born(self, newborn: _Birth, order: Order) -> None:
        self._ending.append(newborn.builder)  # its end may take longer than pid 1's last steps
        self.reap_builders()
        self._close(newborn)
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
            network=dataclasses.asdict(order.network) if order.network.has_link else {},
        )
        order.on_born(record, newborn.pidfd, newborn.timings)

    def _stillborn(self, newborn: _Birth, error: SandboxdError) -> None:
        self._close(newborn)
        if newborn.builder:
            with contextlib.suppress(ProcessLookupError):
                os.kill(newborn.builder, signal.SIGKILL)
            os.waitpid(newborn.builder, 0)
        on_failed = self._hearer(newborn)
        self._means.removals.begin(newborn.id, newborn.range.index, lambda _: on_failed(error), newborn.pidfd)
        for done in newborn.abandoned:
            if newborn.id in self._means.removals:
                self._means.removals.join(newborn.id, done)
            else:
                done(None)

    def _hearer(self, newborn: _Birth) -> Callable[[SandboxdError], None]:
        """Return who is to hear why a birth failed, once nothing is left of it."""
        order = newborn.order
        if order is None:
            return _note
        if newborn.was_held and not newborn.abandoned:
            return lambda _: self.begin(order)  # it may have died long ago; a birth of the order's own tells the cause
        return order.on_failed


def _note(error: SandboxdError) -> None:
    if not isinstance(error, SandboxGone):
        log.warning("Cannot hold a newborn: %s", error)


def _unwanted(sandbox_id: str) -> SandboxdError:
    return SandboxGone(f"cannot create sandbox {sandbox_id}: it was destroyed meanwhile", id=sandbox_id)


def _failure(step: str, error: OSError, sandbox_id: str) -> SandboxdError:
    code = errno.errorcode.get(error.errno or 0, str(error.errno))
    return create_child.failure(step, getattr(error, "syscall", ""), code, str(error.filename or ""), sandbox_id)
