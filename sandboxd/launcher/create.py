"""Creations in progress: the host's side, then the reports of the zygote, the builder and pid 1, then the record.

A creation has two halves: the parts that are the same for every sandbox (processes, namespaces, ids, /proc, /sys,
/dev), and the parts that depend on the order (the rootfs, limits). At most one *prepared sandbox* may wait between the
halves. It has cgroups, a range of ids and a socket, under the id that the daemon will use in its next order, and costs
the memory of two processes. It ends with the launcher; the next launcher sweeps its remains like everything without a
record. An order for another id, or one that the prepared sandbox does not fit, gets its own creation: the same two
halves, one right after the other. `creation_states.py` has the states.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from ..errors import InternalError, NameTaken, SandboxdError, SandboxGone
from ..linux import procfs
from ..linux.eventloop import READ, EventLoop
from ..linux.kernel import Kernel
from ..network import NetworkSpec
from ..spec import Limits
from ..transitions import next_state
from . import buffers, create_child, limits
from .cgroups import SandboxCgroups
from .creation_states import ORDERABLE, OVER, TRANSITIONS, UNKNOWN, Event, State
from .idranges import IdRange, RangeAllocator
from .plan import LaunchSpec, PreparedSpec
from .records import Record
from .settings import Settings
from .storage.choice import Storage
from .teardown import Done, Teardowns
from .veth import Veths
from .zygote import Zygote

log = logging.getLogger("sandboxd.launcher")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """A checked creation, and who waits for it.

    `on_created` gets the record, the init's pidfd (its owner's from then on) and how long each step took;
    `on_failed` gets the error when nothing is left of the creation.
    """

    id: str
    rootfs: str
    limits: Limits
    seccomp: str
    network: NetworkSpec
    unenforced: list[str]
    on_created: Callable[[Record, int, dict[str, float]], None]
    on_failed: Callable[[SandboxdError], None]


@dataclasses.dataclass(slots=True)
class _Creation:
    """A creation under way, or a prepared sandbox that waits for its `order`; `told` is what waits to be understood."""

    id: str
    limits: Limits
    processes: int
    seccomp: str
    range: IdRange
    status: create_child.StatusReader
    orders: socket.socket
    state: State = State.BEGUN
    order: CreateRequest | None = None
    was_held: bool = False
    builder: int = 0
    pid: int = 0
    pidfd: int = -1
    devices: list[int] | None = None
    timings: dict[str, float] = dataclasses.field(default_factory=dict)
    told: list[list[Any]] = dataclasses.field(default_factory=list)
    failure: SandboxdError | None = None
    abandoned: list[Done] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Deps:
    """What creations are made with."""

    settings: Settings
    kernel: Kernel
    ranges: RangeAllocator
    cgroups: SandboxCgroups
    storage: Storage
    teardowns: Teardowns
    zygote: Zygote
    veths: Veths


class Creations:
    """The creations under way."""

    def __init__(self, loop: EventLoop, deps: Deps) -> None:
        self._loop = loop
        self._deps = deps
        self._buffers = buffers.of_host()
        self._active: dict[str, _Creation] = {}
        self._ending: list[int] = []

    def __len__(self) -> int:
        """How many are ordered."""
        return sum(prepared.order is not None for prepared in self._active.values())

    def __contains__(self, sandbox_id: object) -> bool:
        return sandbox_id in self._active

    @property
    def held(self) -> str | None:
        """The id of the prepared sandbox that is held for an order."""
        return next((one.id for one in self._active.values() if one.state in ORDERABLE), None)

    @property
    def unordered(self) -> list[str]:
        """The ids of prepared sandboxes that nobody has ordered: the one that is held, and those that are ending."""
        return [prepared.id for prepared in self._active.values() if prepared.order is None]

    def prepare(self, sandbox_id: str, limits: Limits, seccomp: str) -> None:
        """Have the prepared sandbox that is held ready; it fits an order with the same processes and profile.

        Raises:
            OSError, SandboxdError: it cannot be made, and leaves nothing.
        """
        self._begin(sandbox_id, limits, seccomp).was_held = True

    def begin(self, order: CreateRequest) -> None:
        """Start a creation, of the prepared sandbox where it has this id; the order's callbacks tell its end."""
        if order.id in self._deps.teardowns:
            # Of a prepared sandbox that has just died, for one.
            self._deps.teardowns.await_end(
                order.id, lambda error: order.on_failed(error) if error else self.begin(order)
            )
            return
        prepared = self._active.get(order.id)
        if prepared and prepared.order:
            taken = NameTaken(f"cannot create sandbox {order.id}: the id is in use", id=order.id)
            order.on_failed(taken)
            return
        if prepared and not self._fits(prepared, order):
            self.abandon(order.id, lambda _: self.begin(order))
            return
        try:
            prepared = prepared or self._begin(order.id, order.limits, order.seccomp)
        except (OSError, SandboxdError) as error:
            self._fail(order, _failure("host-side", error, order.id) if isinstance(error, OSError) else error)
            return
        prepared.order = order
        self._move(prepared, Event.ORDER)
        if prepared.state in OVER:
            return  # its veth cannot be made
        try:
            self._complete(prepared, order)
        except (OSError, SandboxdError) as error:
            failed = _failure("host-side", error, order.id) if isinstance(error, OSError) else error
            self._abandon(prepared, failed)

    def _fits(self, prepared: _Creation, order: CreateRequest) -> bool:
        """Return whether a prepared sandbox is what the order would have had made."""
        processes = limits.processes_of(order.limits, self._deps.cgroups.controllers)
        return prepared.state in ORDERABLE and (prepared.processes, prepared.seccomp) == (processes, order.seccomp)

    def abandon(self, sandbox_id: str, done: Done) -> None:
        """End a creation that nobody wants any more, as soon as its init is known, and call `done` when all is gone."""
        prepared = self._active[sandbox_id]
        prepared.abandoned.append(done)
        self._abandon(prepared, _unwanted(sandbox_id))

    def _abandon(self, creation: _Creation, error: SandboxdError) -> None:
        """End a creation that failed: at once, or when it is known whom to kill. The first cause stands."""
        creation.failure = creation.failure or error
        self._move(creation, Event.FAIL)

    def _move(self, creation: _Creation, event: Event) -> None:
        """Take an event, and do what the new state asks for. A bug costs this creation, not the launcher."""
        old = creation.state
        try:
            creation.state = next_state(TRANSITIONS, old, event)
        except InternalError as error:
            log.exception("Bug in the creation of sandbox %s", creation.id)
            if old in OVER:
                return
            creation.failure = creation.failure or error
            creation.state = TRANSITIONS[old][Event.FAIL]
        if creation.state is old:
            return
        if creation.state is State.BUILDING and creation.order:
            self._attach(creation, creation.order)
        elif creation.state is State.CREATED and creation.order:
            self._created(creation, creation.order)
        elif creation.state is State.FAILED:
            died = create_child.failure("start", "", "the process died", "", creation.id)
            self._fail_creation(creation, creation.failure or died)

    def _begin(self, sandbox_id: str, limits_: Limits, seccomp: str) -> _Creation:
        """Do the host's side of the first half and have it forked.

        Raises:
            LaunchFailed, LimitExceeded: there is no range of ids.
            OSError, SandboxdError: the host's side failed; what was made of it is being removed.
        """
        try:
            range_ = self._deps.ranges.take()
        except OSError as error:
            raise _failure("id-range", error, sandbox_id) from None
        try:
            prepared = self._fork(sandbox_id, limits_, seccomp, range_)
        except (OSError, SandboxdError):
            self._deps.teardowns.begin(sandbox_id, range_.index, lambda _: None)
            raise
        self._active[sandbox_id] = prepared
        self._loop.watch(prepared.status.fd, READ, lambda: self._on_status(prepared))
        return prepared

    def _fail(self, order: CreateRequest, error: SandboxdError) -> None:
        """Tell that an order failed, once nothing is left of it."""
        if order.id in self._deps.teardowns:
            self._deps.teardowns.await_end(order.id, lambda _: order.on_failed(error))
        else:
            order.on_failed(error)

    def _fork(self, sandbox_id: str, limits_: Limits, seccomp: str, range_: IdRange) -> _Creation:
        deps, settings = self._deps, self._deps.settings
        with contextlib.ExitStack() as undo:
            places = deps.cgroups.create(sandbox_id, range_.base, limits_)
            undo.callback(places.close)
            deps.ranges.bind(range_, deps.cgroups.path(sandbox_id))
            listener = create_child.listen(
                settings.init_sockets_dir, sandbox_id, (settings.daemon_uid, settings.daemon_gid)
            )
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
            spec = PreparedSpec(
                id=sandbox_id,
                stage=settings.stage_dir,
                processes=limits.processes_of(limits_, deps.cgroups.controllers),
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
            deps.zygote.fork(spec.order(), fds)
            failed.pop_all()
        return _Creation(sandbox_id, limits_, spec.processes, seccomp, range_, reader, ours)

    def _complete(self, prepared: _Creation, order: CreateRequest) -> None:
        """Do the host's side of the second half, and give the order; all that is made here `Teardowns` removes."""
        deps, settings = self._deps, self._deps.settings
        disk = deps.storage.create(order.id, order.limits.disk_bytes or 0)
        if order.limits != prepared.limits:
            deps.cgroups.change(order.id, order.limits)
        spec = LaunchSpec(
            id=order.id,
            rootfs=order.rootfs,
            tree=settings.tree_of(order.rootfs),
            disk=disk,
            limits=order.limits,
            machine_id=os.urandom(16).hex(),
            has_veth=order.network.has_veth,
        )
        with contextlib.suppress(BrokenPipeError):  # it has failed: its status says why
            prepared.orders.send(spec.pack(), socket.MSG_NOSIGNAL)

    def _on_status(self, creation: _Creation) -> None:
        """Take what is said of a creation; the processes' messages may come in any order."""
        messages, ended = creation.status.read()
        for message in messages:
            if message[0] == "builder":
                creation.builder = message[1]
            elif message[0] == "pid":
                creation.pid = message[1]
                creation.pidfd = os.pidfd_open(creation.pid)
            else:
                creation.told.append(message)
        if creation.state in UNKNOWN and creation.pid and creation.builder:
            self._move(creation, Event.KNOWN)
        self._take_told(creation)
        if ended and creation.state not in OVER:
            self._move(creation, Event.SILENCE)
            if creation.state is State.READY:
                self._loop.unwatch(creation.status.fd)  # only its veth is waited for

    def _take_told(self, creation: _Creation) -> None:
        """Take what the builder and pid 1 have said, a success only once both are known.

        It is taken in the pipe's order, but for failures, which do not wait: whoever failed first told why, and `built`
        comes before `ready`, since the builder says it before it lets pid 1 go on.
        """
        told, creation.told = creation.told, []
        for message in told:
            if creation.state in OVER:
                return
            if message[0] == "failed":
                step, syscall, code, path = message[1:]
                # What the other process says of its end is a consequence.
                self._abandon(creation, create_child.failure(step, syscall, code, path, creation.id))
            elif creation.state in UNKNOWN:
                creation.told.append(message)
            elif message[0] == "built":
                creation.devices = message[1]
                creation.timings.update(message[2])
            elif message[0] == "ready":
                creation.timings.update(message[1])
                self._move(creation, Event.READY)

    def _attach(self, creation: _Creation, order: CreateRequest) -> None:
        """Have its veth made beside the rest: pid 1 is in its network namespace from the start."""
        if not order.network.has_veth:
            self._move(creation, Event.ATTACH)
            return
        began = time.perf_counter()

        def attached(error: SandboxdError | None) -> None:
            if creation.state in OVER:
                return  # it failed meanwhile: its veth goes with all else
            creation.timings["attach-network"] = time.perf_counter() - began
            if error:
                self._abandon(creation, error)
            else:
                self._move(creation, Event.ATTACH)

        try:
            self._deps.veths.attach(creation.id, creation.range.index, creation.pid, order.network, attached)
        except (OSError, SandboxdError) as error:
            failed = _failure("attach-network", error, creation.id) if isinstance(error, OSError) else error
            self._abandon(creation, failed)

    def _close(self, prepared: _Creation) -> None:
        self._loop.unwatch(prepared.status.fd)
        prepared.status.close()
        prepared.orders.close()
        del self._active[prepared.id]

    def reap_builders(self) -> None:
        """Reap builders that have handed over; called after SIGCHLD."""
        self._ending = [pid for pid in self._ending if not os.waitpid(pid, os.WNOHANG)[0]]

    def _created(self, prepared: _Creation, order: CreateRequest) -> None:
        self._ending.append(prepared.builder)  # its end may take longer than pid 1's last steps
        self.reap_builders()
        self._close(prepared)
        record = Record(
            id=order.id,
            pid=prepared.pid,
            started=procfs.start_time(prepared.pid) or 0,
            range_index=prepared.range.index,
            rootfs=order.rootfs,
            seccomp=order.seccomp,
            devices=prepared.devices or [],
            limits=dataclasses.asdict(order.limits),
            unenforced=order.unenforced,
            network=dataclasses.asdict(order.network) if order.network.has_veth else {},
        )
        order.on_created(record, prepared.pidfd, prepared.timings)

    def _fail_creation(self, prepared: _Creation, error: SandboxdError) -> None:
        self._close(prepared)
        if prepared.builder:
            with contextlib.suppress(ProcessLookupError):
                os.kill(prepared.builder, signal.SIGKILL)
            os.waitpid(prepared.builder, 0)
        on_failed = self._hearer(prepared)
        self._deps.teardowns.begin(prepared.id, prepared.range.index, lambda _: on_failed(error), prepared.pidfd)
        for done in prepared.abandoned:
            if prepared.id in self._deps.teardowns:
                self._deps.teardowns.await_end(prepared.id, done)
            else:
                done(None)

    def _hearer(self, prepared: _Creation) -> Callable[[SandboxdError], None]:
        """Return who is to hear why a creation failed, once nothing is left of it."""
        order = prepared.order
        if order is None:
            return _note
        if prepared.was_held and not prepared.abandoned:
            return lambda _: self.begin(
                order
            )  # it may have died long ago; a creation of the order's own tells the cause
        return order.on_failed


def _note(error: SandboxdError) -> None:
    if not isinstance(error, SandboxGone):
        log.warning("Cannot hold a prepared sandbox: %s", error)


def _unwanted(sandbox_id: str) -> SandboxdError:
    return SandboxGone(f"cannot create sandbox {sandbox_id}: it was destroyed in the meantime", id=sandbox_id)


def _failure(step: str, error: OSError, sandbox_id: str) -> SandboxdError:
    code = errno.errorcode.get(error.errno or 0, str(error.errno))
    return create_child.failure(step, getattr(error, "syscall", ""), code, str(error.filename or ""), sandbox_id)
