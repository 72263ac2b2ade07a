"""The launcher's event loop: one daemon, a closed list of operations, and the sandboxes' ends.

It never waits for one thing: a birth goes on while its steps run in another process, a destruction while a cgroup
empties or a child removes files. A creation that fails and a destruction take the same way out (`_Removal`), so
nothing can be left by one that the other would have removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import selectors
import signal
import socket
from collections.abc import Callable
from typing import Any, Final

from ..errors import (
    Conflict,
    InternalError,
    InvalidRequest,
    LimitUnenforceable,
    NameTaken,
    RemoteProtocolError,
    RootfsNotFound,
    SandboxdError,
)
from ..linux import procfs
from ..linux.kernel import Kernel, SyscallError
from ..spec import Limits, check_id, check_rootfs
from ..wire.link import LinkConnection, Role
from ..wire.messages import Cancel, Credit, Event, Failure, Message, Reply, Request
from . import birth, profiles, rootfs
from .cgroups import SandboxCgroups
from .idranges import IdRange, RangeAllocator
from .plan import LaunchSpec
from .records import Record, RecordStore
from .settings import Settings
from .storage import INLINE_ENTRIES, DirectoryDriver, StorageDriver

log = logging.getLogger("sandboxd.launcher")

#: How long a killed cgroup may take to empty before it is looked at again; its end is also seen by the pidfd.
_RETRY_S: Final = 0.002
_RECV_BYTES: Final = 256 * 1024
#: Requests that may be under way at once; the daemon asks for far fewer.
_MAX_PENDING: Final = 4096

Serve = Callable[[socket.socket, int], None]
#: Called at the end of a removal, with why something had to be left.
Done = Callable[[SandboxdError | None], None]


@dataclasses.dataclass(slots=True)
class _Birth:
    """A creation under way."""

    request: int
    spec: LaunchSpec
    range: IdRange
    unenforced: list[str]
    status: birth.StatusReader
    embryo: int
    pid: int = 0
    pidfd: int = -1
    ready: tuple[list[int], dict[str, float]] | None = None
    failure: SandboxdError | None = None


@dataclasses.dataclass(slots=True)
class _Sandbox:
    """A running sandbox; `pidfd` is its init's."""

    record: Record
    pidfd: int
    ended: str | None = None


@dataclasses.dataclass(slots=True)
class _Removal:
    """A destruction under way: what it still waits for, and who waits for it."""

    id: str
    range_index: int | None
    done: list[Done]
    pidfd: int = -1
    helper: int = 0


class Launcher:
    """Owns every sandbox's resources on behalf of one daemon."""

    def __init__(self, settings: Settings, connection: socket.socket, kernel: Kernel, serve: Serve) -> None:
        self._settings = settings
        for directory in (settings.pool_dir, settings.records_dir, settings.stage_dir):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        self._socket = connection
        self._kernel = kernel
        self._serve = serve
        self._link = LinkConnection(Role.ANSWERER)
        self._out = bytearray()
        self._selector = selectors.DefaultSelector()
        self._ranges = RangeAllocator(kernel)
        self._cgroups = SandboxCgroups(kernel, settings.cgroup_name)
        self._records = RecordStore(settings.records_dir)
        self._storage: StorageDriver = DirectoryDriver(settings.pool_dir)
        self._filters = profiles.compile_all(settings.profile_dir)
        self._births: dict[str, _Birth] = {}
        self._sandboxes: dict[str, _Sandbox] = {}
        self._removals: dict[str, _Removal] = {}
        self._watch: tuple[int, int] | None = None  # request id, next offset
        self._operations: dict[str, Callable[[int, dict[str, Any]], dict[str, Any] | None]] = {
            "create": self._create,
            "destroy": self._destroy,
            "list": self._list,
            "watch": self._start_watch,
            "rootfs": self._list_rootfs,
            "info": self._info,
        }

    # --- the loop ---

    def run(self) -> None:
        """Serve until the daemon's end of the socket closes; running sandboxes go on."""
        self._socket.setblocking(False)
        self._out += self._link.greet()
        self._selector.register(self._socket, selectors.EVENT_READ, self._on_daemon)
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._selector.register(wake_read, selectors.EVENT_READ, lambda: self._on_child(wake_read))
        self._adopt()
        try:
            while True:
                self._turn()
        except EOFError:
            log.info("The daemon is gone; %d sandboxes go on", len(self._sandboxes))
        finally:
            self._ranges.close()
            if not self._sandboxes:
                self._cgroups.close()

    def _turn(self) -> None:
        busy = bool(self._births or self._removals)
        timeout = _RETRY_S if self._removals else None
        ready = self._selector.select(0 if not busy else timeout)
        if not ready and not busy:
            # Idle: have the next sandbox's ids ready, then wait for good.
            self._prepare()
            self._flush()
            ready = self._selector.select(None)
        for key, _ in ready:
            key.data()
        self._advance_removals()
        self._flush()

    def _prepare(self) -> None:
        try:
            self._ranges.prepare()
        except (SandboxdError, OSError) as error:
            log.warning("Cannot prepare ids: %s", error)

    # --- the daemon's socket ---

    def _on_daemon(self) -> None:
        try:
            data = self._socket.recv(_RECV_BYTES)
        except BlockingIOError:
            data = None
        except ConnectionResetError:
            data = b""
        if data == b"":
            raise EOFError
        try:
            messages = self._link.receive(data) if data else []
        except RemoteProtocolError as error:
            log.error("The daemon broke the protocol: %s", error)  # noqa: TRY400 - the text says it all
            raise EOFError from None
        for message in messages:
            self._take(message)

    def _take(self, message: Message) -> None:
        if isinstance(message, Request):
            operation = self._operations.get(message.op)
            try:
                if operation is None:
                    raise InvalidRequest(f"cannot do {message.op[:40]!r}: no such operation", field="op")
                if len(self._births) + len(self._removals) > _MAX_PENDING:
                    raise Conflict("cannot take more requests: too many are under way")
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

    def _send(self, message: Message) -> None:
        self._out += self._link.send(message)

    def _reply(self, request: int, result: dict[str, Any]) -> None:
        self._send(Reply(request, result))

    def _fail(self, request: int, error: SandboxdError) -> None:
        self._send(Failure(request, error.kind, error.message, error.facts))

    def _flush(self) -> None:
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            raise EOFError from None
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
        self._selector.modify(self._socket, events, self._on_daemon)

    # --- create ---

    def _create(self, request: int, params: dict[str, Any]) -> dict[str, Any] | None:
        sandbox_id, rootfs_name, limits, profile = self._checked(params)
        unenforced = self._unenforced(limits)
        range_ = self._take_range()
        try:
            self._begin(request, sandbox_id, rootfs_name, limits, profile, range_, unenforced)
        except (SyscallError, SandboxdError) as error:
            range_.close_namespaces()
            failed = (
                error
                if isinstance(error, SandboxdError)
                else birth.failure(
                    "host-side",
                    error.syscall,
                    _errno_name(error),
                    str(error.filename or ""),
                    sandbox_id,
                )
            )
            self._remove(sandbox_id, range_.index, lambda _: self._fail(request, failed))
        return None

    def _checked(self, params: dict[str, Any]) -> tuple[str, str, Limits, str]:
        """Check everything again: the daemon may have been taken over."""
        if set(params) - {"id", "rootfs", "limits", "network", "seccomp"}:
            raise InvalidRequest("cannot create: unknown parameters", field="params")
        values = (params.get("id"), params.get("rootfs"), params.get("seccomp", "default"))
        wanted = params.get("limits") or {}
        if not all(isinstance(value, str) for value in values) or not isinstance(wanted, dict):
            raise InvalidRequest("cannot create: a parameter has the wrong type", field="params")
        sandbox_id, name, profile = (str(value) for value in values)
        check_id(sandbox_id)
        check_rootfs(name)
        if params.get("network", "none") != "none":
            raise InvalidRequest("cannot create: only network mode none is built", field="network")
        if sandbox_id in self._births or sandbox_id in self._sandboxes or sandbox_id in self._removals:
            raise NameTaken(f"cannot create sandbox {sandbox_id}: the id is in use", id=sandbox_id)
        if not rootfs.exists(self._settings.rootfs_dir, name):
            available = [item["name"] for item in rootfs.items(self._settings.rootfs_dir)]
            raise RootfsNotFound(
                f"cannot create a sandbox of rootfs {name!r}: no such rootfs", rootfs=name, available=available
            )
        if profile not in self._filters:
            raise InvalidRequest(
                f"cannot use seccomp profile {profile!r}: the profiles are {', '.join(sorted(self._filters))}",
                field="seccomp",
            )
        try:
            limits = Limits(**wanted).merged(self._settings.default_limits)
        except TypeError as error:
            raise InvalidRequest(f"cannot read the limits: {error}", field="limits") from None
        return sandbox_id, name, limits, profile

    def _unenforced(self, limits: Limits) -> list[str]:
        missing = self._missing()
        asked = {field.name for field in dataclasses.fields(limits) if getattr(limits, field.name) is not None}
        lacking = sorted(asked & set(missing))
        if lacking and not self._settings.allow_unenforced:
            why = "; ".join(f"{name} needs {missing[name]}" for name in lacking)
            raise LimitUnenforceable(
                f"cannot enforce limits on this host: {why} (allow_unenforced accepts that)",
                limits=lacking,
                missing={name: missing[name] for name in lacking},
            )
        return lacking

    def _missing(self) -> dict[str, str]:
        missing = self._cgroups.unenforceable()
        if not self._storage.enforces_limit:
            missing["disk_bytes"] = f"a storage driver that can limit (this is {self._storage.name!r})"
        return missing

    def _take_range(self) -> IdRange:
        try:
            return self._ranges.take()
        except SyscallError as error:
            raise birth.failure("id-range", error.syscall, _errno_name(error), str(error.filename or ""), "") from None

    def _begin(
        self,
        request: int,
        sandbox_id: str,
        rootfs_name: str,
        limits: Limits,
        profile: str,
        range_: IdRange,
        unenforced: list[str],
    ) -> None:
        """Do the host's side and fork; everything made here is removed by `_remove`."""
        settings, kernel = self._settings, self._kernel
        with contextlib.ExitStack() as undo:
            disk = self._storage.create(kernel, sandbox_id, limits.disk_bytes or 0)
            cgroup_fd, init_fd = self._cgroups.create(sandbox_id, range_.base)
            undo.callback(os.close, cgroup_fd)
            undo.callback(os.close, init_fd)
            self._ranges.bind(range_, self._cgroups.path(sandbox_id))
            listener = birth.listen(settings.links_dir, sandbox_id, (settings.daemon_uid, settings.daemon_gid))
            undo.callback(listener.close)
            status_read, status_write = os.pipe2(os.O_CLOEXEC)
            undo.callback(os.close, status_write)
            os.set_blocking(status_read, False)
            reader = birth.StatusReader(status_read)
            spec = LaunchSpec(
                id=sandbox_id,
                rootfs=rootfs_name,
                tree=settings.tree_of(rootfs_name),
                disk=disk,
                stage=settings.stage_dir,
                limits=limits,
                seccomp=profile,
                range_base=range_.base,
                machine_id=os.urandom(16).hex(),
            )
            parts = birth.Parts(
                listener=listener,
                cgroup_fd=cgroup_fd,
                init_cgroup_fd=init_fd,
                status_fd=status_write,
                sandbox_userns=range_.sandbox_userns,
                disk_userns=range_.disk_userns,
                filters=self._filters[profile],
            )
            try:
                embryo = birth.spawn(kernel, spec, parts, self._serve)
            except OSError:
                reader.close()
                raise
        newborn = _Birth(request, spec, range_, unenforced, reader, embryo)
        self._births[sandbox_id] = newborn
        self._selector.register(reader.fd, selectors.EVENT_READ, lambda: self._on_status(newborn))

    def _on_status(self, newborn: _Birth) -> None:
        """Take what the embryo and the newborn say; their messages may come in either order."""
        messages, ended = newborn.status.read()
        for message in messages:
            if message[0] == "pid":
                newborn.pid = message[1]
                newborn.pidfd = os.pidfd_open(newborn.pid)
                os.waitpid(newborn.embryo, 0)
                newborn.embryo = 0
                self._limit(newborn)
            elif message[0] == "failed":
                newborn.failure = birth.failure(*message[1:], newborn.spec.id)
            elif message[0] == "ready":
                newborn.ready = (message[1], message[2])
        if newborn.pid and newborn.failure:
            self._stillborn(newborn, newborn.failure)
        elif newborn.pid and newborn.ready:
            self._born(newborn, *newborn.ready)
        elif ended:
            died = birth.failure("start", "", "the process died", "", newborn.spec.id)
            self._stillborn(newborn, newborn.failure or died)

    def _limit(self, newborn: _Birth) -> None:
        """Apply the limits: `<id>` has no process of its own once the embryo is gone."""
        try:
            self._cgroups.apply(newborn.spec.id, newborn.spec.limits)
        except SandboxdError as error:
            newborn.failure = error

    def _close_birth(self, newborn: _Birth) -> None:
        self._selector.unregister(newborn.status.fd)
        newborn.status.close()
        newborn.range.close_namespaces()
        del self._births[newborn.spec.id]

    def _born(self, newborn: _Birth, devices: list[int], timings: dict[str, float]) -> None:
        self._close_birth(newborn)
        spec = newborn.spec
        record = Record(
            id=spec.id,
            pid=newborn.pid,
            started=procfs.start_time(newborn.pid) or 0,
            range_index=newborn.range.index,
            rootfs=spec.rootfs,
            seccomp=spec.seccomp,
            devices=devices,
            limits=dataclasses.asdict(spec.limits),
            unenforced=newborn.unenforced,
        )
        self._records.save(record)
        self._keep(record, newborn.pidfd)
        self._reply(newborn.request, {**_facts(record), "timings": timings})

    def _stillborn(self, newborn: _Birth, error: SandboxdError) -> None:
        self._close_birth(newborn)
        if newborn.embryo:
            with contextlib.suppress(ProcessLookupError):
                os.kill(newborn.embryo, signal.SIGKILL)
            os.waitpid(newborn.embryo, 0)
        self._remove(newborn.spec.id, newborn.range.index, lambda _: self._fail(newborn.request, error), newborn.pidfd)

    def _keep(self, record: Record, pidfd: int) -> None:
        sandbox = _Sandbox(record, pidfd)
        self._sandboxes[record.id] = sandbox
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._on_end(sandbox))

    # --- ends ---

    def _on_end(self, sandbox: _Sandbox) -> None:
        """An init is dead: its namespace dies with it. Tell the daemon, which decides what becomes of the rest."""
        self._selector.unregister(sandbox.pidfd)
        sandbox.ended = _reason(sandbox.pidfd)
        os.close(sandbox.pidfd)
        sandbox.pidfd = -1
        self._cgroups.kill(sandbox.record.id)
        if self._watch:
            request, offset = self._watch
            self._watch = (request, offset + 1)
            self._send(Event(request, offset, 0.0, "ended", {"id": sandbox.record.id, "reason": sandbox.ended}))

    def _on_child(self, wake: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)
        for removal in self._removals.values():
            if removal.helper and os.waitpid(removal.helper, os.WNOHANG) != (0, 0):
                removal.helper = 0

    # --- destroy ---

    def _destroy(self, request: int, params: dict[str, Any]) -> dict[str, Any] | None:
        sandbox_id = params.get("id")
        if not isinstance(sandbox_id, str):
            raise InvalidRequest("cannot destroy: id must be text", field="id")
        check_id(sandbox_id)
        if sandbox_id in self._births:
            raise Conflict(f"cannot destroy sandbox {sandbox_id}: it is being created", id=sandbox_id)
        if sandbox_id in self._removals:
            self._removals[sandbox_id].done.append(lambda error: self._destroyed(request, error))
            return None
        sandbox = self._sandboxes.pop(sandbox_id, None)
        if sandbox is None:
            return {}
        if sandbox.pidfd >= 0:
            self._selector.unregister(sandbox.pidfd)
        self._remove(
            sandbox_id, sandbox.record.range_index, lambda error: self._destroyed(request, error), sandbox.pidfd
        )
        return None

    def _destroyed(self, request: int, error: SandboxdError | None) -> None:
        if error:
            self._fail(request, error)
        else:
            self._reply(request, {})

    def _remove(
        self, sandbox_id: str, range_index: int | None, done: Done, pidfd: int = -1
    ) -> None:
        """Begin to remove everything that belongs to an id, its init behind `pidfd` too; then call `done`."""
        removal = _Removal(sandbox_id, range_index, [done], pidfd)
        self._removals[sandbox_id] = removal
        if pidfd >= 0:
            self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._on_removed_end(removal))
        self._cgroups.kill(sandbox_id)
        self._advance_removals()

    def _on_removed_end(self, removal: _Removal) -> None:
        self._selector.unregister(removal.pidfd)
        _reason(removal.pidfd)
        os.close(removal.pidfd)
        removal.pidfd = -1

    def _advance_removals(self) -> None:
        for removal in list(self._removals.values()):
            if removal.helper or removal.pidfd >= 0 or not self._cgroups.remove(removal.id):
                continue
            error = None
            try:
                if not self._storage.remove(removal.id, budget=INLINE_ENTRIES):
                    removal.helper = self._remove_in_child(removal.id)
                    continue
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{self._settings.links_dir}/{removal.id}.sock")
                self._records.remove(removal.id)
            except OSError as failure:
                # A sick disk must not end the launcher; the next start sweeps again.
                log.exception("Cannot remove all of sandbox %s", removal.id)
                error = InternalError(f"cannot remove all of sandbox {removal.id}: {failure}", id=removal.id)
            if removal.range_index is not None:
                self._ranges.release(removal.range_index)
            del self._removals[removal.id]
            for callback in removal.done:
                callback(error)

    def _remove_in_child(self, sandbox_id: str) -> int:
        """Remove a large tree in a short child, so that other requests go on."""
        pid = os.fork()
        if pid:
            return pid
        try:
            signal.set_wakeup_fd(-1)
            self._storage.remove(sandbox_id, budget=None)
        finally:
            os._exit(0)

    # --- after a start ---

    def _adopt(self) -> None:
        """Take over what an earlier launcher left: what lives goes on, all else is removed."""
        records = self._records.load()
        for record in records.values():
            if record.is_alive:
                with contextlib.suppress(ProcessLookupError):
                    pidfd = os.pidfd_open(record.pid)
                    if record.is_alive:  # the pid was not used again between the two
                        self._keep(record, pidfd)
                    else:
                        os.close(pidfd)
        known = {*self._records.names(), *self._storage.stored(), *self._cgroups.present(), *self._linked()}
        for sandbox_id in sorted(known - set(self._sandboxes)):
            record_ = records.get(sandbox_id)
            log.info("Sweeping sandbox %s: its init is gone", sandbox_id)
            self._remove(sandbox_id, record_.range_index if record_ else None, lambda _: None)

    def _linked(self) -> list[str]:
        return [name.removesuffix(".sock") for name in os.listdir(self._settings.links_dir)]

    # --- facts ---

    def _list(self, request: int, params: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        return {
            "sandboxes": [
                {**_facts(sandbox.record), "alive": sandbox.ended is None, "reason": sandbox.ended}
                for sandbox in self._sandboxes.values()
            ]
        }

    def _start_watch(self, request: int, params: dict[str, Any]) -> None:  # noqa: ARG002
        if self._watch:
            raise Conflict("cannot watch: a watch is under way")
        self._watch = (request, 0)

    def _list_rootfs(self, request: int, params: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        return {"items": rootfs.items(self._settings.rootfs_dir)}

    def _info(self, request: int, params: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        missing = self._missing()
        names = [field.name for field in dataclasses.fields(Limits)]
        return {
            "pid": os.getpid(),
            "kernel": os.uname().release,
            "storage": self._storage.name,
            "profiles": sorted(self._filters),
            "enforceable": [name for name in names if name not in missing],
            "missing": [{"limit": name, "why": why} for name, why in sorted(missing.items())],
            "sandboxes": len(self._sandboxes),
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
    }


def _errno_name(error: OSError) -> str:
    return birth.errno.errorcode.get(error.errno or 0, str(error.errno))


def _reason(pidfd: int) -> str:
    """Reap an init and say how it ended; one that an earlier launcher started is not ours to reap."""
    try:
        status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        return "init ended"
    if status is None:
        return "init ended"
    if status.si_code == os.CLD_EXITED:
        return f"init exited with status {status.si_status}"
    return f"init was killed by {signal.Signals(status.si_status).name}"
