"""The launcher's server: serves one daemon, a closed list of operations, and the ends of sandboxes.

It never blocks on one task: a creation continues while its steps run in another process (`create.py`), a teardown
while a cgroup empties or a child deletes files (`teardown.py`). One loop (`linux/eventloop.py`) watches everything that
they wait for. When nothing has happened for a moment, the launcher prepares what the next creation needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from ..errors import (
    Conflict,
    InternalError,
    InvalidRequest,
    LimitUnenforceable,
    NameTaken,
    ProfileNotFound,
    RemoteProtocolError,
    RootfsNotFound,
    SandboxdError,
    StorageFull,
)
from ..linux.eventloop import READ, WRITE, Alarm, EventLoop
from ..linux.kernel import Kernel
from ..spec import Limits, check_id, check_rootfs
from ..wire.framing import MAX_PENDING_FDS
from ..wire.link import LinkConnection, Role
from ..wire.messages import Cancel, Credit, Event, Failure, Message, Reply, Request
from ..wire.sendqueue import SendQueue, descriptors
from . import rootfs
from .cgroups import SandboxCgroups
from .control import Answers, Controls, Running, id_of
from .create import CreateRequest, Creations, Deps
from .idranges import RangeAllocator
from .limits import Host
from .networks import Networks, network_of
from .profiles import Filters
from .records import Record, RecordStore
from .settings import Settings
from .sockets import Sockets
from .storage.choice import open_storage
from .teardown import RETRY_S, Teardowns, reap
from .templates import Templates
from .veth import Veths
from .zygote import Zygote

log = logging.getLogger("sandboxd.launcher")

_RECV_BYTES: Final = 256 * 1024
_ANCILLARY_BYTES: Final = socket.CMSG_LEN(4 * MAX_PENDING_FDS)
#: How long nobody may have asked for anything before the next sandbox's ids are made ready.
QUIET_S: Final = 0.02
#: How much longer before a prepared sandbox is made: that takes a processor for some 8 ms, and a first command is
#: short.
HOLD_AFTER_S: Final = 0.05
#: How often the pool's limit follows what others do with the host's disk, while there are sandboxes.
TEND_S: Final = 5.0
#: How long the end of the launcher may wait for that of a prepared sandbox that nobody has ordered.
LET_GO_S: Final = 1.0
#: The profile of an order that names none.
DEFAULT_PROFILE: Final = "default"
#: Creations and removals that may be under way at once; the daemon asks for far fewer.
_MAX_PENDING: Final = 4096
#: Answers that may wait for a daemon; a list of all sandboxes that there can be is a quarter of it.
_MAX_UNREAD: Final = 8 * 1024 * 1024
#: Above this much that waits for the daemon, denied packets are not told.
_MAX_TOLD: Final = 1024 * 1024


class Launcher:
    """Owns every sandbox's resources on behalf of one daemon."""

    def __init__(
        self,
        settings: Settings,
        connection: socket.socket,
        kernel: Kernel,
        zygote: Zygote,
        filters: Filters,
    ) -> None:
        self._settings = settings
        self._zygote = zygote
        self._profiles = frozenset(filters.profiles)
        for directory in (settings.pool_dir, settings.records_dir, settings.stage_dir):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        self._socket = connection
        self._link = LinkConnection(Role.ANSWERER)
        self._out = SendQueue(_MAX_TOLD, _MAX_UNREAD)
        self._loop = EventLoop()
        self._loop.open()
        self._ranges = RangeAllocator(kernel)
        self._storage = open_storage(kernel, settings)
        parent, directories = settings.cgroup_parent, (self._storage.driver.path, settings.rootfs_dir)
        self._cgroups = SandboxCgroups(kernel, settings.cgroup_name, parent=parent, directories=directories)
        self._records = RecordStore(settings.records_dir)
        self._sandboxes: dict[str, Running] = {}
        self._veths = Veths(self._loop, settings, kernel, self._denied, zygote.hosts_mounts)
        sockets = settings.init_sockets_dir
        self._teardowns = Teardowns(
            self._loop, self._cgroups, self._storage, self._records, self._ranges, self._veths, sockets
        )
        deps = Deps(
            settings=settings,
            kernel=kernel,
            ranges=self._ranges,
            cgroups=self._cgroups,
            storage=self._storage,
            teardowns=self._teardowns,
            zygote=zygote,
            veths=self._veths,
        )
        self._creations = Creations(self._loop, deps)
        self._host = Host.look(self._storage.driver.capacity)
        answers = Answers(reply=self._reply, fail=self._fail)
        self._templates = Templates(self._loop, settings, kernel, self._cgroups, filters, self._sandboxes, answers)
        self._controls = Controls(self._sandboxes, self._cgroups, self._storage, self._records, self._judged, answers)
        self._wanted: str | None = None  # the id of the prepared sandbox that is to be held
        self._rested = False  # whether the present pause has been used to prepare
        self._active_at = time.monotonic()
        self._pause = Alarm(self._loop, self._on_pause)
        self._watch: tuple[int, int] | None = None  # request id, next offset
        self._operations = self._table(kernel, answers)
        #: Those that a descriptor comes with.
        self._taking: dict[str, Callable[[int, dict[str, Any], int], None]] = self._templates.operations()

    def _table(
        self, kernel: Kernel, answers: Answers
    ) -> dict[str, Callable[[int, dict[str, Any]], dict[str, Any] | None]]:
        return {
            "create": self._create,
            "prepare": self._prepare_next,
            "destroy": self._destroy,
            "kill": self._kill,
            "list": self._list,
            "watch": self._start_watch,
            "rootfs": self._list_rootfs,
            "info": self._info,
            **self._controls.operations(),
            **Sockets(self._sandboxes, kernel, self._reply).operations(),
            **Networks(self._sandboxes, self._veths, self._records, answers).operations(),
        }

    # --- the loop ---

    def run(self) -> None:
        """Serve until the daemon's end of the socket closes; running sandboxes go on."""
        self._socket.setblocking(False)
        self._out.put(self._link.greet())
        self._loop.watch(self._socket.fileno(), READ, self._on_daemon)
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._loop.watch(wake_read, READ, lambda: self._on_child(wake_read))
        self._loop.watch(self._zygote.pidfd, READ, self._on_zygote_end)
        self._take_over()
        self._pause.after(QUIET_S)
        try:
            while True:
                if self._out.size:
                    self._flush()
                if self._loop.turn():
                    self._rested, self._active_at = False, time.monotonic()
                    self._pause.by(self._active_at + QUIET_S)
        except EOFError:
            log.info("The daemon is gone; %d sandboxes go on", len(self._sandboxes))
        finally:
            self._let_go()
            self._templates.close()
            self._veths.close()
            self._zygote.close()
            self._ranges.close()
            if not self._sandboxes:
                self._cgroups.close()
            self._loop.close()

    def _let_go(self) -> None:
        """End the prepared sandbox that is held; what is not gone in time is the next launcher's to sweep."""
        self._loop.unwatch(self._socket.fileno())
        self._loop.unwatch(self._zygote.pidfd)
        self._pause.cancel()
        ids = self._creations.unordered
        if self._creations.held is not None:
            self._creations.abandon(self._creations.held, lambda _: None)
        self._loop.run_while(lambda: any(one in self._creations or one in self._teardowns for one in ids), LET_GO_S)

    def _on_pause(self) -> None:
        """Do what waits for a moment in which nothing else happens, one thing after the other."""
        if self._creations:
            return  # the pause begins anew at its end, which is an event
        if not self._rested and time.monotonic() < self._active_at + QUIET_S:
            return self._pause.by(self._active_at + QUIET_S)
        removing = self._teardowns.wait_s
        if not self._rested:
            self._rested = True
            # Not at once: what asked for the last sandbox is now running its first command on these processors.
            self._prepare_ids()
            self._ranges.rest()
        elif self._wanted and not removing:
            self._hold()
        elif removing != RETRY_S:
            self._tend()
        if removing:
            self._pause.after(max(removing, QUIET_S))
        elif self._wanted:
            self._pause.after(HOLD_AFTER_S)
        elif self._sandboxes:
            self._pause.after(TEND_S)

    def _tend(self) -> None:
        try:
            self._storage.tend()
        except OSError as error:
            log.warning("Cannot keep the pool in step: %s", error)

    def _hold(self) -> None:
        wanted, self._wanted = self._wanted, None
        if wanted is None or self._creations.held is not None:
            return
        try:
            limits, _ = self._judged({})
            self._creations.prepare(wanted, limits, DEFAULT_PROFILE)
        except (SandboxdError, OSError) as error:
            log.warning("Cannot hold a prepared sandbox: %s", error)

    def _use_the_wait(self) -> None:
        # While a sandbox's processes end there is nothing else to do, and who takes one away often asks for another.
        if not self._creations:
            self._prepare_ids()

    def _prepare_ids(self) -> None:
        try:
            self._ranges.prepare()
        except (SandboxdError, OSError) as error:
            log.warning("Cannot prepare ids: %s", error)

    # --- the daemon's socket ---

    def _on_daemon(self) -> None:
        data: bytes | None = None
        ancillary: list[tuple[int, int, bytes]] = []
        try:
            # Not recv_fds(), which drops its flags.
            data, ancillary, _, _ = self._socket.recvmsg(_RECV_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            pass  # there was room to write, or nothing after all
        except ConnectionResetError:
            data = b""
        if data == b"":
            raise EOFError
        try:
            messages = self._link.receive(data, descriptors(ancillary)) if data else []
        except RemoteProtocolError as error:
            log.error("The daemon broke the protocol: %s", error)
            raise EOFError from None
        for message in messages:
            self._on_message(message)

    def _on_message(self, message: Message) -> None:
        if isinstance(message, Request):
            operation, taking = self._operations.get(message.op), self._taking.get(message.op)
            try:
                if taking is not None:
                    return taking(message.id, message.params, self._one_descriptor())
                if operation is None:
                    raise InvalidRequest(f"cannot do {message.op[:40]!r}: no such operation", field="op")
                if len(self._creations) + len(self._teardowns) > _MAX_PENDING:
                    raise Conflict("cannot accept more requests: too many are under way")
                result = operation(message.id, message.params)
                if result is not None:
                    self._reply(message.id, result)
            except SandboxdError as error:
                self._fail(message.id, error)
            except OSError as error:
                self._fail(message.id, InternalError(f"cannot {message.op}: {error}"))
        elif isinstance(message, Cancel) and self._watch and self._watch[0] == message.id:
            self._watch = None
            self._reply(message.id, {})
        elif isinstance(message, Credit):
            pass  # only `watch` streams, and an end is one small event a sandbox

    def _one_descriptor(self) -> int:
        try:
            return self._link.take_fds(1)[0]
        except RemoteProtocolError as error:
            log.error("The daemon broke the protocol: %s", error)
            raise EOFError from None

    def _send(self, message: Message, fds: Sequence[int] = ()) -> None:
        self._out.put(self._link.send(message), fds)
        if self._out.is_over:
            log.error("The daemon asks and does not read the answers")
            raise EOFError

    def _reply(self, request: int, result: dict[str, Any], fds: Sequence[int] = ()) -> None:
        self._send(Reply(request, result, len(fds)), fds)

    def _fail(self, request: int, error: SandboxdError) -> None:
        self._send(Failure(request, error.kind, error.message, error.facts))

    def _flush(self) -> None:
        try:
            self._out.flush(self._socket)
        except (BrokenPipeError, ConnectionResetError):
            raise EOFError from None
        self._loop.watch(self._socket.fileno(), READ | (WRITE if self._out.size else 0), self._on_daemon)

    # --- create ---

    def _prepare_next(self, request: int, params: dict[str, Any]) -> dict[str, Any]:
        """Hold a prepared sandbox for an order of this id, as soon as it is quiet, and for no earlier one."""
        if set(params) - {"id"}:
            raise InvalidRequest("cannot prepare a sandbox: unknown parameters", field="params")
        sandbox_id = id_of(params)
        self._check_free(sandbox_id)
        held = self._creations.held
        if held is not None:
            self._creations.abandon(held, lambda _: None)
        self._wanted = sandbox_id
        return {}

    def _check_free(self, sandbox_id: str) -> None:
        if sandbox_id in self._creations or sandbox_id in self._sandboxes or sandbox_id in self._teardowns:
            raise NameTaken(f"cannot create sandbox {sandbox_id}: the id is in use", id=sandbox_id)

    def _create(self, request: int, params: dict[str, Any]) -> dict[str, Any] | None:
        sandbox_id, rootfs_name, profile = self._checked(params)
        network = self._veths.check(network_of(params.get("network")))
        limits, unenforced = self._judged(params.get("limits") or {})

        def on_created(record: Record, pidfd: int, timings: dict[str, float]) -> None:
            try:
                self._records.save(record)
            except OSError as failure:
                error = StorageFull(f"cannot record sandbox {record.id}: {failure}")
                self._teardowns.begin(record.id, record.range_index, lambda _: self._fail(request, error), pidfd)
                return
            self._keep(record, pidfd)
            self._reply(request, {**_facts(record), "timings": timings})

        self._storage.admit()
        if sandbox_id == self._wanted:
            self._wanted = None
        order = CreateRequest(
            id=sandbox_id,
            rootfs=rootfs_name,
            limits=limits,
            seccomp=profile,
            network=network,
            unenforced=unenforced,
            on_created=on_created,
            on_failed=lambda error: self._fail(request, error),
        )
        self._creations.begin(order)
        return None

    def _checked(self, params: dict[str, Any]) -> tuple[str, str, str]:
        """Check everything again: the daemon may have been taken over."""
        if set(params) - {"id", "rootfs", "limits", "network", "seccomp"}:
            raise InvalidRequest("cannot create: unknown parameters", field="params")
        values = (params.get("id"), params.get("rootfs"), params.get("seccomp", DEFAULT_PROFILE))
        if not all(isinstance(value, str) for value in values):
            raise InvalidRequest("cannot create: a parameter has the wrong type", field="params")
        sandbox_id, name, profile = (str(value) for value in values)
        check_id(sandbox_id)
        check_rootfs(name)
        # A prepared sandbox's own end, and a removal, are waited for.
        if sandbox_id not in self._creations.unordered and sandbox_id not in self._teardowns:
            self._check_free(sandbox_id)
        if not rootfs.exists(self._settings.rootfs_dir, name):
            available = [item["name"] for item in rootfs.items(self._settings.rootfs_dir)]
            raise RootfsNotFound(
                f"cannot create a sandbox of rootfs {name!r}: no such rootfs", rootfs=name, available=available
            )
        if profile not in self._profiles:
            available = sorted(self._profiles)
            raise ProfileNotFound(
                f"cannot use seccomp profile {profile[:40]!r}: the profiles are {', '.join(available)}",
                field="seccomp",
                profile=profile[:40],
                available=available,
            )
        return sandbox_id, name, profile

    def _judged(self, wanted: object) -> tuple[Limits, list[str]]:
        """Return limits with every default filled in, and the names of those that nobody enforces."""
        if not isinstance(wanted, dict):
            raise InvalidRequest("cannot read the limits: they must be a map", field="limits")
        try:
            asked = Limits(**wanted)
        except TypeError as error:
            raise InvalidRequest(f"cannot read the limits: {error}", field="limits") from None
        self._host.check(asked)
        limits = asked.merged(self._host.fit(self._settings.default_limits))
        return limits, self._unenforced(limits)

    def _unenforced(self, limits: Limits) -> list[str]:
        missing = self._missing()
        asked = {field.name for field in dataclasses.fields(limits) if getattr(limits, field.name) is not None}
        lacking = sorted(asked & set(missing))
        if lacking and not self._settings.allow_unenforced:
            why = "; ".join(f"{name} needs {missing[name]}" for name in lacking)
            raise LimitUnenforceable(
                f"cannot enforce limits on this host: {why} (set allow_unenforced to accept that)",
                limits=lacking,
                missing={name: missing[name] for name in lacking},
            )
        return lacking

    def _missing(self) -> dict[str, str]:
        missing = self._cgroups.unenforceable()
        driver = self._storage.driver
        if not driver.enforces_limit:
            missing["disk_bytes"] = driver.unenforced_because
        return missing

    def _keep(self, record: Record, pidfd: int) -> None:
        sandbox = Running(record, pidfd)
        self._sandboxes[record.id] = sandbox
        self._loop.watch(pidfd, READ, lambda: self._on_end(sandbox))

    def _denied(self, attempt: dict[str, Any]) -> None:
        """Tell the daemon of a packet that the rules refused."""
        if self._watch and self._out.has_room:
            request, offset = self._watch
            self._watch = (request, offset + 1)
            self._send(Event(request, offset, 0.0, "denied", attempt))

    # --- ends ---

    def _on_end(self, sandbox: Running) -> None:
        """An init is dead: its namespace dies with it. Tell the daemon, which decides what becomes of the rest."""
        self._loop.unwatch(sandbox.pidfd)
        sandbox.ended = reap(sandbox.pidfd)
        os.close(sandbox.pidfd)
        sandbox.pidfd = -1
        self._cgroups.kill(sandbox.record.id)
        if self._watch:
            request, offset = self._watch
            self._watch = (request, offset + 1)
            self._send(Event(request, offset, 0.0, "ended", {"id": sandbox.record.id, "reason": sandbox.ended}))

    def _on_zygote_end(self) -> None:
        log.critical("The zygote is gone, so no sandbox can be created: ending")
        raise EOFError

    def _on_child(self, wake: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)
        self._creations.reap_builders()
        self._teardowns.reap_helpers()
        self._controls.reap_helpers()

    # --- destroy ---

    def _destroy(self, request: int, params: dict[str, Any]) -> dict[str, Any] | None:
        sandbox_id = id_of(params)
        if sandbox_id in self._creations:
            self._creations.abandon(sandbox_id, lambda error: self._destroyed(request, error))
            return None
        if sandbox_id in self._teardowns:
            self._teardowns.await_end(sandbox_id, lambda error: self._destroyed(request, error))
            return None
        sandbox = self._sandboxes.pop(sandbox_id, None)
        if sandbox is None:
            return {}
        if sandbox.pidfd >= 0:
            self._loop.unwatch(sandbox.pidfd)
        self._teardowns.begin(
            sandbox_id, sandbox.record.range_index, lambda error: self._destroyed(request, error), sandbox.pidfd
        )
        self._loop.call_later(0, self._use_the_wait)
        return None

    def _kill(self, request: int, params: dict[str, Any]) -> dict[str, Any]:
        """End every process of a sandbox that is not to be trusted; what it has stays until `destroy`."""
        sandbox_id = id_of(params)
        if sandbox_id in self._sandboxes:
            self._cgroups.kill(sandbox_id)
        return {}

    def _destroyed(self, request: int, error: SandboxdError | None) -> None:
        if error:
            self._fail(request, error)
        else:
            self._reply(request, {})

    # --- after a start ---

    def _take_over(self) -> None:
        """Take over what an earlier launcher left: what lives goes on, all else is removed."""
        records = self._records.load()
        for record in records.values():
            if record.is_alive:
                with contextlib.suppress(ProcessLookupError):
                    pidfd = os.pidfd_open(record.pid)
                    if record.is_alive:  # the pid was not used again between the two
                        self._ranges.take_over(record.range_index, self._cgroups.path(record.id))
                        self._keep(record, pidfd)
                        if record.network:
                            spec = network_of(record.network)
                            self._veths.take_over(record.id, record.range_index, record.pid, spec, record.generation)
                    else:
                        os.close(pidfd)
        self._templates.sweep()
        known = {*self._records.names(), *self._storage.stored(), *self._cgroups.present(), *self._with_sockets()}
        for sandbox_id in sorted(known - set(self._sandboxes)):
            record_ = records.get(sandbox_id)
            log.info("Sweeping sandbox %s: its init is gone", sandbox_id)
            if record_ is not None and record_.network:
                self._veths.sweep(sandbox_id, record_.range_index)
            self._teardowns.begin(sandbox_id, record_.range_index if record_ else None, lambda _: None)
        self._ranges.sweep()
        self._veths.resume_or_end()

    def _with_sockets(self) -> list[str]:
        return [name.removesuffix(".sock") for name in os.listdir(self._settings.init_sockets_dir)]

    # --- facts ---

    def _list(self, request: int, params: dict[str, Any]) -> dict[str, Any]:
        return {
            "sandboxes": [
                {
                    **_facts(sandbox.record),
                    "alive": sandbox.ended is None,
                    "reason": sandbox.ended,
                    "frozen": self._cgroups.is_to_freeze(sandbox.record.id),
                }
                for sandbox in self._sandboxes.values()
            ]
        }

    def _start_watch(self, request: int, params: dict[str, Any]) -> None:
        if self._watch:
            raise Conflict("cannot watch: another watch is under way")
        self._watch = (request, 0)

    def _list_rootfs(self, request: int, params: dict[str, Any]) -> dict[str, Any]:
        return {"items": rootfs.items(self._settings.rootfs_dir)}

    def _info(self, request: int, params: dict[str, Any]) -> dict[str, Any]:
        missing = self._missing()
        names = [field.name for field in dataclasses.fields(Limits)]
        return {
            "pid": os.getpid(),
            "kernel": os.uname().release,
            "storage": self._storage.driver.name,
            "pool": self._storage.driver.facts(),
            "profiles": sorted(self._profiles),
            "enforceable": [name for name in names if name not in missing],
            "missing": [{"limit": name, "why": why} for name, why in sorted(missing.items())],
            "sandboxes": len(self._sandboxes),
            "newborn": self._creations.held,
            "templates": self._templates.facts(),
        }


def _facts(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "pid": record.pid,
        "rootfs": record.rootfs,
        "seccomp": record.seccomp,
        "devices": record.devices,
        "limits": record.limits,
        "unenforced": record.unenforced,
        "network": record.network,
    }
