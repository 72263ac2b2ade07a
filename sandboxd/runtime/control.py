"""Operations on an existing sandbox: PATCH, freeze, thaw and stats.

Each runs under the sandbox's lock and is shielded, so that a caller who leaves does not interrupt it half-way. A change
that fails is rolled back. A sandbox is marked frozen before the kernel freezes it; otherwise a request that arrives a
moment later would wait for the thaw without an error.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import CgroupError, LaunchFailed, SandboxdError, SandboxFailed
from .lifecycle import ALIVE, State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..spec import SandboxSpec
    from .events import Events
    from .launcher import Launcher
    from .names import Names
    from .registry import Registry
    from .sandbox import Sandbox
    from .store import Store

_log = logging.getLogger(__name__)

#: A process stops within microseconds; one in a system call that nothing interrupts does so when that has ended.
FREEZE_TIMEOUT_S: Final = 10.0
_FIRST_LOOK_S: Final = 0.001
_LAST_LOOK_S: Final = 0.1


class Control:
    """Made by the manager; `connect` connects to an init and configures it."""

    def __init__(
        self,
        launcher: Launcher,
        registry: Registry,
        store: Store,
        connect: Callable[[Sandbox], Awaitable[None]],
        events: Events,
        names: Names,
    ) -> None:
        self._launcher = launcher
        self._registry = registry
        self._store = store
        self._connect = connect
        self._events = events
        self._names = names

    def __repr__(self) -> str:
        return f"<Control of {self._registry!r}>"

    # --- freeze and thaw --------------------------------------------------------------------------------

    async def freeze(self, ref: str) -> Sandbox:
        """Stop every process where it is; one that is frozen stays so.

        Raises:
            SandboxNotFound, SandboxFailed, SandboxGone: as their names say.
            CgroupError: a process did not stop in time; all go on.
        """
        sandbox = self._registry.find(ref)
        async with sandbox.changing:
            if sandbox.state is State.FROZEN:
                return sandbox
            sandbox.check_usable()
            with trio.CancelScope(shield=True):
                await self._freeze(sandbox)
        return sandbox

    async def _freeze(self, sandbox: Sandbox) -> None:
        await sandbox.contexts.drop_spare()
        sandbox.move(State.FROZEN)
        try:
            with trio.fail_after(FREEZE_TIMEOUT_S):
                pause = _FIRST_LOOK_S
                while not await self._launcher.freeze(sandbox.id):
                    await trio.sleep(pause)
                    pause = min(2 * pause, _LAST_LOOK_S)
        except (SandboxdError, trio.TooSlowError) as error:
            if sandbox.state is not State.FROZEN:
                sandbox.check_usable()  # it failed or was destroyed meanwhile: say that
            with contextlib.suppress(SandboxdError):
                await self._launcher.thaw(sandbox.id)
            if sandbox.state is State.FROZEN:
                sandbox.move(State.RUNNING)
            if isinstance(error, SandboxdError):
                raise
            raise CgroupError(f"cannot freeze sandbox {sandbox.id}: one of its processes does not stop") from error
        _expect(sandbox, State.FROZEN)
        self._events.add("frozen", sandbox.id, sandbox.spec.name)
        _log.info("Froze sandbox %s", sandbox.id)

    async def thaw(self, ref: str) -> Sandbox:
        """Let every process go on; one that runs goes on running.

        Raises:
            SandboxNotFound, SandboxFailed, SandboxGone: as their names say.
        """
        sandbox = self._registry.find(ref)
        async with sandbox.changing:
            if sandbox.state is not State.FROZEN:
                sandbox.check_usable()
                return sandbox
            with trio.CancelScope(shield=True):
                await self._thaw(sandbox)
        return sandbox

    async def _thaw(self, sandbox: Sandbox) -> None:
        await self._launcher.thaw(sandbox.id)
        known = sandbox.has_link
        try:
            if known:
                await sandbox.configure()  # what a PATCH said meanwhile
            else:
                await self._connect(sandbox)  # a daemon that started found it frozen
        except (OSError, trio.TooSlowError, SandboxdError) as error:
            if sandbox.state is State.FROZEN:
                sandbox.mark_failed(sandbox.version_refusal or f"its init cannot be reached: {error}")
            sandbox.check_usable()
            raise
        _expect(sandbox, State.FROZEN)
        sandbox.move(State.RUNNING)
        self._events.add("thawed", sandbox.id, sandbox.spec.name)
        if not known:
            await sandbox.contexts.recover()
        _log.info("Thawed sandbox %s", sandbox.id)

    # --- PATCH ------------------------------------------------------------------------------------------

    async def change(self, ref: str, make: Callable[[SandboxSpec], SandboxSpec]) -> Sandbox:
        """Replace a sandbox's spec by what `make` makes of it: name, env, cwd, labels, limits, network.

        Raises:
            InvalidRequest, NameTaken, LimitUnenforceable, CgroupError, Conflict: nothing was changed.
        """
        sandbox = self._registry.find(ref)
        async with sandbox.changing:
            if sandbox.state not in ALIVE:
                sandbox.check_usable()
            with trio.CancelScope(shield=True):
                await self._change(sandbox, make(sandbox.spec))
        return sandbox

    async def _change(self, sandbox: Sandbox, new: SandboxSpec) -> None:
        old, limits, unenforced, network = sandbox.spec, sandbox.limits, sandbox.unenforced, sandbox.network
        if new.cwd != old.cwd:
            sandbox.check_usable()  # only init can tell whether there is such a directory, and it must not be frozen
        self._set(sandbox, new)
        try:
            if (new.env, new.cwd) != (old.env, old.cwd) and sandbox.state is State.RUNNING:
                await sandbox.configure()
            if new.limits != old.limits:
                sandbox.limits, sandbox.unenforced = await self._launcher.limit(sandbox.id, new.limits)
            if new.network != old.network:
                sandbox.network = await self._launcher.network(sandbox.id, new.network)
                self._names.update(sandbox)
            await trio.to_thread.run_sync(self._store.save, sandbox.record())
            if sandbox.state is State.DESTROYING or sandbox.state is State.DESTROYED:
                await trio.to_thread.run_sync(self._store.drop, sandbox.id)  # its end has dropped the record before
                sandbox.check_usable()
        except (SandboxdError, OSError, trio.TooSlowError) as error:
            self._set(sandbox, old)
            await self._take_back(sandbox, new)
            sandbox.limits, sandbox.unenforced, sandbox.network = limits, unenforced, network
            if isinstance(error, SandboxdError):
                raise
            if isinstance(error, trio.TooSlowError):
                raise SandboxFailed(f"cannot change sandbox {sandbox.id}: its init does not answer") from error
            raise LaunchFailed(
                f"cannot write the record of sandbox {sandbox.id}: {error.strerror}", step="record"
            ) from error

    def _set(self, sandbox: Sandbox, spec: SandboxSpec) -> None:
        self._registry.rename(sandbox, spec.name)
        sandbox.spec = spec

    async def _take_back(self, sandbox: Sandbox, refused: SandboxSpec) -> None:
        with contextlib.suppress(SandboxdError, trio.TooSlowError):
            if refused.limits != sandbox.spec.limits:
                await self._launcher.limit(sandbox.id, sandbox.spec.limits)
        with contextlib.suppress(SandboxdError, trio.TooSlowError):
            if refused.network != sandbox.spec.network:
                await self._launcher.network(sandbox.id, sandbox.spec.network)
                self._names.update(sandbox)
        with contextlib.suppress(SandboxdError, trio.TooSlowError):
            if refused.env != sandbox.spec.env and sandbox.state is State.RUNNING:
                await sandbox.configure()

    # --- stats ------------------------------------------------------------------------------------------

    async def stats(self, ref: str) -> tuple[Sandbox, dict[str, Any]]:
        """Return a sandbox and what it uses (`launcher/stats.py` has the keys); frozen ones have figures too.

        Raises:
            SandboxNotFound, SandboxFailed: as their names say.
        """
        sandbox = self._registry.find(ref)
        if sandbox.state not in ALIVE:
            sandbox.check_usable()
        return sandbox, await self._launcher.stats(sandbox.id)


def _expect(sandbox: Sandbox, state: State) -> None:
    """Raise why a sandbox is not in that state any more, if so: it failed or was destroyed meanwhile."""
    if sandbox.state is not state:
        sandbox.check_usable()
