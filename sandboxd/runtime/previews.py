"""Previews, for all sandboxes: expose, unexpose, and how the proxy comes to a sandbox's port.

The proxy connects sockets that the launcher made inside the sandbox's network namespace. They come in batches, kept per
sandbox and IP version, so that a request seldom waits for the launcher.
"""

from __future__ import annotations

import collections
import dataclasses
import socket
import weakref
from typing import TYPE_CHECKING, Final

import trio

from ..errors import LaunchFailed, PreviewGone, SandboxFrozen
from .lifecycle import State
from .ports import PortSpec, new_token

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .control import Control
    from .counters import Counters
    from .launcher import Launcher
    from .ports import Port
    from .preview_urls import PreviewUrls
    from .registry import Registry
    from .sandbox import Sandbox
    from .store import Store
    from .tombstones import Tombstones

#: Sockets that are made at once: the launcher's own bound.
BATCH: Final = 8


@dataclasses.dataclass(slots=True)
class _Stock:
    """Unconnected sockets of one sandbox and IP version, and who may ask for more."""

    fds: collections.deque[socket.socket] = dataclasses.field(default_factory=collections.deque)
    lock: trio.Lock = dataclasses.field(default_factory=trio.Lock)


class Previews:
    """Made by the manager. `wake` lets a request thaw a frozen sandbox."""

    def __init__(
        self,
        launcher: Launcher,
        registry: Registry,
        store: Store,
        control: Control,
        tombstones: Tombstones,
        counters: Counters,
    ) -> None:
        self._launcher = launcher
        self._registry = registry
        self._store = store
        self._control = control
        self.wake = False
        self.counters = counters
        #: Where previews are; None where they are turned off.
        self.urls: PreviewUrls | None = None
        self._stocks: weakref.WeakKeyDictionary[Sandbox, dict[int, _Stock]] = weakref.WeakKeyDictionary()
        self._tombstones = tombstones
        self._tombstone_turn = trio.Lock()

    def __repr__(self) -> str:
        return f"<Previews of {self._registry!r}>"

    # --- the API's side ---------------------------------------------------------------------------------

    async def expose(
        self, ref: str, port: int, *, name: str | None = None, token: str | None = None, public: bool = False
    ) -> Port:
        """Expose a port, with a token that nobody guesses unless one is given or it is public.

        Raises:
            InvalidRequest, PortExposed, NameTaken, LimitExceeded, SandboxNotFound: as their names say.
        """
        spec = PortSpec(port=port, name=name, token=None if public else new_token() if token is None else token)
        sandbox = self._registry.find(ref)
        async with sandbox.changing:
            self._check(sandbox)
            added = sandbox.ports.add(spec)
            with trio.CancelScope(shield=True):
                try:
                    await self._save(sandbox)
                except BaseException:
                    sandbox.ports.remove(port)
                    raise
            return added

    async def unexpose(self, ref: str, port: int) -> None:
        """Take a port back; open connections are cut.

        Raises:
            SandboxNotFound, PortNotFound: as their names say.
        """
        sandbox = self._registry.find(ref)
        async with sandbox.changing:
            self.counters.closed_ports.add(sandbox.ports.remove(port))
            with trio.CancelScope(shield=True):
                await self._save(sandbox)

    @staticmethod
    def _check(sandbox: Sandbox) -> None:
        if sandbox.state is not State.FROZEN:
            sandbox.check_usable()

    async def _save(self, sandbox: Sandbox) -> None:
        try:
            await trio.to_thread.run_sync(self._store.save, sandbox.record())
        except OSError as error:
            raise LaunchFailed(
                f"cannot write the record of sandbox {sandbox.id}: {error.strerror}", step="record"
            ) from error
        if self._registry.get(sandbox.id) is not sandbox:
            await trio.to_thread.run_sync(self._store.drop, sandbox.id)  # it was destroyed in the meantime

    def add_tombstone(self, sandbox: Sandbox) -> None:
        """Cut the ports of a sandbox that is being destroyed, and remember whom to tell."""
        for port in sandbox.ports:
            if not port.closed:  # a destruction that broke off is asked for again
                self.counters.closed_ports.add(port)
        sandbox.ports.cut()
        self._tombstones.add(sandbox.id, sandbox.ports.specs())
        for stock in self._stocks.pop(sandbox, {}).values():
            while stock.fds:
                stock.fds.pop().close()

    async def keep(self, sandbox_id: str, specs: tuple[PortSpec, ...]) -> None:
        """Remember the ports of a sandbox that is gone for the daemons to come."""
        if specs:
            self._tombstones.add(sandbox_id, specs)
            async with self._tombstone_turn:
                await trio.to_thread.run_sync(self._tombstones.write, sandbox_id, specs)

    async def recover(self) -> None:
        """Read what daemons before have kept."""
        await trio.to_thread.run_sync(self._tombstones.load)

    # --- the proxy's side -------------------------------------------------------------------------------

    def find(self, sandbox_id: str, port: int) -> tuple[PortSpec, Port | None] | None:
        """Return an exposed port and what may be shown for it; None in its place when its sandbox was destroyed."""
        sandbox = self._registry.get(sandbox_id)
        found = None if sandbox is None else sandbox.ports.get(port)
        if found is not None:
            return found.spec, found
        tombstone = self._tombstones.get(sandbox_id, port)
        return None if tombstone is None else (tombstone, None)

    def ports(self) -> Iterator[Port]:
        """Yield every exposed port."""
        for sandbox in self._registry:
            yield from sandbox.ports

    async def sandbox_of(self, port: Port) -> Sandbox:
        """Return the sandbox, running.

        Raises:
            PreviewGone: it was destroyed.
            SandboxFrozen: it is frozen, and a request does not wake it.
            SandboxFailed, Conflict: as their names say.
        """
        sandbox = self._registry.get(port.sandbox_id)
        if sandbox is None or sandbox.state in (State.DESTROYING, State.DESTROYED):
            raise PreviewGone(f"cannot reach sandbox {port.sandbox_id}: it was destroyed")
        if sandbox.state is State.RUNNING:
            return sandbox
        if sandbox.state is State.FROZEN:
            if not self.wake:
                raise SandboxFrozen(f"cannot reach sandbox {sandbox.id}: it is frozen", id=sandbox.id)
            await self._control.thaw(sandbox.id)
        sandbox.check_usable()
        return sandbox

    async def socket(self, sandbox: Sandbox, family: int) -> socket.socket:
        """Return an unconnected, non-blocking TCP socket of the sandbox's network, of IP version `family`.

        Raises:
            SandboxNotFound, LimitExceeded: as their names say.
        """
        stock = self._stocks.setdefault(sandbox, {}).setdefault(family, _Stock())
        if not stock.fds:
            async with stock.lock:
                if not stock.fds:
                    await self._fill(sandbox, stock, family)
        return stock.fds.popleft()

    async def _fill(self, sandbox: Sandbox, stock: _Stock, family: int) -> None:
        # ::1 is seldom where a service is; those who look there find it once and are remembered (Port.family).
        for fd in await self._launcher.sockets(sandbox.id, family, BATCH if family == 4 else BATCH // 2):
            stock.fds.append(socket.socket(fileno=fd))
        if sandbox.state in (State.DESTROYING, State.DESTROYED):
            sockets, stock.fds = stock.fds, collections.deque()
            for sock in sockets:
                sock.close()
            raise PreviewGone(f"cannot reach sandbox {sandbox.id}: it was destroyed")
