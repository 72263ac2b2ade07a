"""The one owner of all sandboxes: creates, destroys, watches and recovers them.

Structured concurrency: `run` holds the nursery in which each sandbox has one task that serves its link. That task never
raises, so that a failing sandbox does not affect the others. Creations are shielded: if the caller leaves in the
middle, the creation finishes and the sandbox is then destroyed, so a sandbox is listed complete or not at all.
"""

from __future__ import annotations

import functools
import logging
import time
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import (
    LauncherGone,
    LaunchFailed,
    ProtocolError,
    SandboxdError,
    SandboxGone,
    SandboxNotFound,
    ServerBusy,
)
from ..spec import new_id
from . import recovery
from .budget import Budget
from .control import Control
from .counters import Counters
from .events import Events
from .host import check_room
from .lifecycle import ALIVE, State
from .names import Names
from .previews import Previews
from .registry import Registry
from .sandbox import CONNECT_TIMEOUT_S, REASON_TIMEOUT_S, Sandbox
from .services import Services
from .store import Store
from .tombstones import Tombstones

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from ..spec import SandboxSpec
    from .launcher import Launched, Launcher
    from .link_client import LinkClient
    from .store import Record

_log = logging.getLogger(__name__)

#: Creations under way at once: the launcher makes one after the other, more would only queue there.
CONCURRENT_CREATES: Final = 8
#: Creations that may wait; more are told to come again.
QUEUED_CREATES: Final = 256
#: A creation takes 10 ms; after this long it has failed.
CREATE_TIMEOUT_S: Final = 60.0
#: A destruction unmounts and deletes; a full disk makes that slow.
DESTROY_TIMEOUT_S: Final = 60.0
CONCURRENT_TAKE_OVERS: Final = 16


class Manager:
    """See the module's theory of operation. Its owner runs `run` and stops with its cancellation."""

    def __init__(
        self,
        launcher: Launcher,
        registry_dir: Path,
        init_sockets: Path,
        tombstones: Path | None = None,
        nameservers: Sequence[tuple[str, int]] = (),
        *,
        spare_s: int = 0,
        standby_s: int = 0,
    ) -> None:
        self.launcher = launcher
        self.registry = Registry()
        self.counters = Counters()
        self.events = Events()
        self.budget = Budget()
        self._store = Store(registry_dir)
        self._init_sockets = init_sockets
        self._names = Names(launcher, nameservers, self._denied, self._degraded)
        self.control = Control(launcher, self.registry, self._store, self.connect, self.events, self._names)
        self.previews = Previews(
            launcher, self.registry, self._store, self.control, Tombstones(tombstones), self.counters
        )
        self._services = Services(
            counters=self.counters,
            budget=self.budget,
            open_link=self._open_link,
            enter=launcher.enter,
            start_soon=self._start_soon,
            tell_move=self._tell_end,
            standby_s=standby_s,
            spare_s=spare_s,
        )
        self._creates = trio.Semaphore(CONCURRENT_CREATES)
        self._waiting = 0
        self._prepared: str | None = None  # the id that the launcher holds a prepared sandbox for
        self._nursery: trio.Nursery | None = None
        self._stopping = False
        #: Awaited when the launcher is gone, before `run` raises: lets callers hear why their requests end.
        self.on_shutdown: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint

    def __repr__(self) -> str:
        return f"<Manager {self.registry!r}>"

    def statistics(self) -> dict[str, int]:
        """Return how many sandboxes there are in each shown state, and how many creations wait."""
        found = {state.value: 0 for state in State}
        for sandbox in self.registry:
            found[sandbox.state.value] += 1
        return {**found, "waiting_creates": self._waiting}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Recover, say that it is ready, then serve for ever.

        Raises:
            LauncherGone: the launcher died.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._follow_launcher)
            nursery.start_soon(self.launcher.watch, self._init_ended, self._denied)
            await self._recover()
            task_status.started()

    async def _follow_launcher(self) -> None:
        try:
            await self.launcher.run()
        except LauncherGone:
            # Before the daemon's tasks are cancelled: a cancelled exec would tell its init to kill the command.
            self.stop()
            await self.on_shutdown()
            raise

    def stop(self) -> None:
        """Refuse new creations and end every stream; sandboxes go on running."""
        self._stopping = True
        self.events.close()
        for sandbox in self.registry:
            sandbox.stop()

    # --- creation ------------------------------------------------------------------------------------------

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Create a sandbox and return it running.

        Raises:
            NameTaken, RootfsNotFound, LimitUnenforceable, InvalidRequest: nothing was made.
            LaunchFailed: a step of the creation failed; nothing was left.
            ServerBusy: too many creations wait, the host has no memory to spare, or the daemon stops.
        """
        began = trio.current_time()
        try:
            sandbox = await self._create(spec)
        except SandboxdError as error:
            self.counters.create_failures[error.kind] += 1
            raise
        self.counters.created(trio.current_time() - began, sandbox.timings)
        if self._nursery is not None:
            self._nursery.start_soon(self._prepare)
        return sandbox

    async def _prepare(self) -> None:
        """Have the next sandbox's prepared sandbox made, since who creates one often creates another."""
        if self._prepared is not None or self._stopping:
            return
        self._prepared = sandbox_id = new_id()
        try:
            await self.launcher.prepare(sandbox_id)
        except SandboxdError as error:
            _log.debug("No prepared sandbox is held: %s", error)
            if self._prepared == sandbox_id:
                self._prepared = None

    async def _create(self, spec: SandboxSpec) -> Sandbox:
        if self._stopping:
            raise ServerBusy("cannot create a sandbox: the daemon is stopping")
        if self._waiting >= QUEUED_CREATES:
            raise ServerBusy(f"cannot create a sandbox: {QUEUED_CREATES} creations are waiting", bound=QUEUED_CREATES)
        check_room()
        prepared, self._prepared = self._prepared, None
        sandbox = Sandbox(prepared or new_id(), spec, time.time(), self._services)
        self.registry.add(sandbox)
        self._waiting += 1
        try:
            async with self._creates:
                with trio.CancelScope(shield=True):
                    await self._launch_init(sandbox)
        except BaseException:
            if sandbox.state is State.CREATING:
                self.registry.remove(sandbox)
            raise
        finally:
            self._waiting -= 1
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._destroy_quietly(sandbox)
            raise
        return sandbox

    async def _launch_init(self, sandbox: Sandbox) -> None:
        started = trio.current_time()
        try:
            with trio.fail_after(CREATE_TIMEOUT_S):
                await self._launch(sandbox)
                await self._answer_for_names(sandbox, is_new=True)
                if sandbox.spec.has_own_place:
                    await self.connect(sandbox)  # only init can tell whether there are such a directory and user
                sandbox.move(State.RUNNING)
        except BaseException as error:
            await self._clean_up(sandbox)
            if isinstance(error, trio.TooSlowError | OSError):
                raise LaunchFailed(f"cannot reach the init of sandbox {sandbox.id}: {error}", step="connect") from error
            raise
        self.events.add("created", sandbox.id, sandbox.spec.name)
        _log.info("Created sandbox %s in %.1f ms", sandbox.id, 1000 * (trio.current_time() - started))

    async def _launch(self, sandbox: Sandbox) -> None:
        """Ask the launcher, and write the record beside it: fsync takes about as long as the creation."""
        failure: Exception | None = None

        async def save() -> None:
            nonlocal failure
            try:
                await trio.to_thread.run_sync(self._store.save, sandbox.record())
            except OSError as error:
                failure = error

        async with trio.open_nursery() as nursery:
            nursery.start_soon(save)
            try:
                sandbox.take_over(await self.launcher.create(sandbox.id, sandbox.spec))
            except SandboxdError as error:
                failure = error
        if isinstance(failure, OSError):
            raise LaunchFailed(
                f"cannot write the record of sandbox {sandbox.id}: {failure.strerror}", step="record"
            ) from failure
        if failure is not None:
            raise failure

    async def connect(self, sandbox: Sandbox) -> None:
        """Connect to init, serve the link in the manager's nursery, and configure it."""
        self._running.start_soon(self._serve, sandbox, sandbox.connect(self._init_sockets))
        await sandbox.configure()
        if not sandbox.has_link:
            raise LaunchFailed(f"cannot keep the init of sandbox {sandbox.id}: its link ended", step="configure")

    @property
    def _running(self) -> trio.Nursery:
        """Where what belongs to sandboxes runs.

        Raises:
            LaunchFailed: `run` has not begun.
        """
        if self._nursery is None:
            raise LaunchFailed("cannot create a sandbox: the daemon is not running", step="connect")
        return self._nursery

    def _start_soon(self, task: Callable[[], Awaitable[object]]) -> None:
        self._running.start_soon(task)

    def _open_link(self, sandbox: Sandbox) -> LinkClient:
        """Connect to an init at the first request to it: one that serves nobody has touched 0.8 MiB less."""
        running = self._running
        try:
            peer = sandbox.connect(self._init_sockets)
        except OSError as error:
            _log.warning("Cannot reach the init of sandbox %s: %s", sandbox.id, error)
            peer = sandbox.connect_nowhere()
        running.start_soon(self._serve, sandbox, peer)
        if peer.ended is None:
            running.start_soon(self._await_configured, sandbox, peer, peer.begin("configure", sandbox.settings))
        return peer

    async def _await_configured(
        self, sandbox: Sandbox, peer: LinkClient, answer: Callable[[], Awaitable[tuple[dict[str, Any], list[int]]]]
    ) -> None:
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                sandbox.note_fields((await answer())[0])
        except (SandboxdError, trio.TooSlowError) as error:
            if peer.ended is None and sandbox.mark_failed(f"its init cannot be configured: {error}"):
                self.counters.losses += 1
                _log.warning("Sandbox %s failed: its init cannot be configured: %s", sandbox.id, error)

    async def _clean_up(self, sandbox: Sandbox) -> None:
        """Leave nothing of a creation that failed."""
        sandbox.disconnect(SandboxGone(f"cannot use sandbox {sandbox.id}: its creation failed"))
        with trio.move_on_after(DESTROY_TIMEOUT_S):
            try:
                await self.launcher.destroy(sandbox.id)
            except SandboxdError as error:
                _log.warning("Cannot clean up sandbox %s: %s", sandbox.id, error)
            await trio.to_thread.run_sync(self._store.drop, sandbox.id)

    # --- life -------------------------------------------------------------------------------------------

    async def _serve(self, sandbox: Sandbox, peer: LinkClient) -> None:
        """Serve one sandbox's link to its end, then say what that means."""
        error = await peer.run()
        if sandbox.state not in ALIVE or self._stopping:
            return
        reason = "init closed its link"
        if isinstance(error, ProtocolError) and peer.broke_protocol:
            reason = sandbox.version_refusal or "protocol error"
        if not peer.broke_protocol:
            with trio.move_on_after(REASON_TIMEOUT_S):
                await sandbox.disconnected.wait()
        if sandbox.mark_failed(reason):
            self.counters.losses += 1
            _log.warning("Sandbox %s failed: %s (%s)", sandbox.id, reason, error)

    def _init_ended(self, sandbox_id: str, reason: str) -> None:
        sandbox = self.registry.get(sandbox_id)
        if sandbox is not None and sandbox.mark_failed(reason):
            self.counters.losses += 1
            _log.warning("Sandbox %s failed: %s", sandbox_id, reason)

    def _tell_end(self, sandbox: Sandbox) -> None:
        """Note an event where a move means that a sandbox has come to an end; what failed is killed."""
        if sandbox.state is State.FAILED:
            self.events.add("failed", sandbox.id, sandbox.spec.name, reason=sandbox.reason or "unknown")
            if self._nursery is not None:
                self._nursery.start_soon(self._kill, sandbox.id)
        elif sandbox.state is State.DESTROYED:
            self.events.add("destroyed", sandbox.id, sandbox.spec.name)

    async def _kill(self, sandbox_id: str) -> None:
        """End what a failed sandbox runs: nobody can ask it anything, and it must not go on unseen."""
        try:
            await self.launcher.kill(sandbox_id)
        except SandboxdError as error:
            _log.warning("Cannot kill sandbox %s: %s", sandbox_id, error)

    def _degraded(self, sandbox: Sandbox, why: str | None) -> None:
        """Note that a sandbox has nobody to ask for names, or has again."""
        if why == sandbox.names_lost:
            return
        sandbox.names_lost = why
        self.events.add("degraded", sandbox.id, sandbox.spec.name, reason=why and f"names: {why}")
        if why is None:
            _log.info("Sandbox %s has names again", sandbox.id)
        else:
            _log.warning("Sandbox %s has no names: %s", sandbox.id, why)

    def _denied(self, sandbox_id: str, facts: dict[str, Any]) -> None:
        """Note that a sandbox wanted to go where it may not."""
        self.counters.network_denied += 1
        sandbox = self.registry.get(sandbox_id)
        if sandbox is not None:
            self.events.deny(sandbox_id, sandbox.spec.name, facts)
        _log.debug("Sandbox %s was refused: %s", sandbox_id, facts)

    async def _answer_for_names(self, sandbox: Sandbox, *, is_new: bool) -> None:
        if sandbox.network.has_veth:
            serve = functools.partial(self._names.serve, is_new=is_new)
            await self._running.start(serve, sandbox)

    # --- end --------------------------------------------------------------------------------------------

    async def destroy(self, ref: str) -> None:
        """Destroy the sandbox with that id or name; a caller that goes away does not stop it.

        Raises:
            SandboxNotFound: there is none.
            Conflict: it is being created.
        """
        sandbox = self.registry.find(ref)
        if sandbox.state is State.CREATING:
            sandbox.check_usable()
        with trio.CancelScope(shield=True):
            await self._destroy(sandbox)

    async def _destroy(self, sandbox: Sandbox) -> None:
        began = trio.current_time()
        sandbox.move(State.DESTROYING)
        self.previews.add_tombstone(sandbox)
        sandbox.disconnect(SandboxGone(f"cannot continue in sandbox {sandbox.id}: it was destroyed"))
        try:
            with trio.fail_after(DESTROY_TIMEOUT_S):
                await self.launcher.destroy(sandbox.id)
                await self.previews.keep(sandbox.id, sandbox.ports.specs())
                await trio.to_thread.run_sync(self._store.drop, sandbox.id)
        except (SandboxdError, trio.TooSlowError, OSError) as error:
            sandbox.move(State.FAILED, f"cannot destroy it: {error}")
            known = error if isinstance(error, SandboxdError) else None
            self.counters.destroy_failures[LaunchFailed.kind if known is None else known.kind] += 1
            if known is not None:
                raise
            raise LaunchFailed(f"cannot destroy sandbox {sandbox.id}: {error}", step="destroy") from error
        sandbox.move(State.DESTROYED)
        self.registry.remove(sandbox)
        self.counters.destroys.add(trio.current_time() - began)
        _log.info("Destroyed sandbox %s", sandbox.id)

    async def _take_away(self, sandbox: Sandbox) -> None:
        """Have it destroyed and drop its record, at once: who restarts in between destroys what has no record."""
        failure: OSError | None = None

        async def drop() -> None:
            nonlocal failure
            try:
                await trio.to_thread.run_sync(self._store.drop, sandbox.id)
            except OSError as error:
                failure = error

        refusal: SandboxdError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drop)
            try:
                await self.launcher.destroy(sandbox.id)
            except SandboxdError as error:
                refusal = error
        if refusal is not None:
            raise refusal
        if failure is not None:
            raise failure

    async def _destroy_quietly(self, sandbox: Sandbox) -> None:
        try:
            await self._destroy(sandbox)
        except SandboxdError as error:
            _log.warning("Cannot destroy sandbox %s: %s", sandbox.id, error)

    # --- start ------------------------------------------------------------------------------------------

    async def _recover(self) -> None:
        launched = await self.launcher.sandboxes()
        records = await trio.to_thread.run_sync(self._store.load)
        directories = await trio.to_thread.run_sync(self._store.names)
        found = recovery.decide(launched, records, directories)
        await self.previews.recover()
        swept = set(found.drop)
        for note in found.notes:
            _log.warning("%s", note)
        for sandbox_id in found.destroy:
            try:
                await self.launcher.destroy(sandbox_id)
            except SandboxdError as error:
                _log.warning("Cannot sweep sandbox %s: %s", sandbox_id, error)
        for record in records:
            if record.id in swept:
                await self.previews.keep(record.id, record.ports)
        for sandbox_id in found.drop:
            try:
                await trio.to_thread.run_sync(self._store.drop, sandbox_id)
            except (OSError, SandboxdError) as error:
                _log.warning("Cannot drop the record of sandbox %s: %s", sandbox_id, error)
        limiter = trio.CapacityLimiter(CONCURRENT_TAKE_OVERS)
        async with trio.open_nursery() as nursery:
            for record, one in found.take_over:
                nursery.start_soon(self._take_over, record, one, limiter)

    async def _take_over(self, record: Record, launched: Launched, limiter: trio.CapacityLimiter) -> None:
        sandbox = Sandbox(record.id, record.spec, record.created_at, self._services)
        sandbox.take_over(launched)
        for port in record.ports:
            sandbox.ports.add(port)
        self.registry.add(sandbox)
        if launched.frozen:
            sandbox.move(State.FROZEN)  # its init can answer nobody: it is reached when it is thawed
            await self._answer_for_names(sandbox, is_new=False)
            _log.info("Found sandbox %s again, frozen", sandbox.id)
            return
        try:
            async with limiter:
                await self._answer_for_names(sandbox, is_new=False)
                await self.connect(sandbox)
            sandbox.move(State.RUNNING)
            await sandbox.contexts.recover()
            _log.info("Found sandbox %s again", sandbox.id)
        except (OSError, trio.TooSlowError, SandboxdError) as error:
            sandbox.move(State.FAILED, sandbox.version_refusal or f"its init cannot be reached: {error}")
            sandbox.disconnect(SandboxNotFound("its init cannot be reached"))
            _log.warning("Sandbox %s failed: %s", sandbox.id, sandbox.reason)

    async def rootfs(self) -> list[dict[str, Any]]:
        """Return the rootfs that there are."""
        return await self.launcher.rootfs()
