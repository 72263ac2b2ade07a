"""Who answers each sandbox's questions about names: one `Resolver` for each that has a network."""

from __future__ import annotations

import functools
import logging
import socket
from typing import TYPE_CHECKING, Final

import trio

from ..errors import SandboxdError
from .nearby import Nearby
from .resolver import Policy, Resolver, host_nameservers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .launcher import Launcher
    from .sandbox import Sandbox

_log = logging.getLogger(__name__)

#: How long until it is tried again to answer a sandbox that has nobody to ask: at first, and at most.
RETRY_S: Final = 0.5
MAX_RETRY_S: Final = 30.0


class Names:
    """The resolvers.

    Args:
        launcher: makes their sockets.
        upstreams: whom they ask; the host's nameservers where there are none.
        denied: told of each name that was refused, with the sandbox's id.
        degraded: told of a sandbox that has nobody to ask any more, and why; and that it has again (None).
    """

    def __init__(
        self,
        launcher: Launcher,
        upstreams: Sequence[tuple[str, int]],
        denied: Callable[[str, dict[str, object]], None],
        degraded: Callable[[Sandbox, str | None], None],
    ) -> None:
        self._launcher = launcher
        self._upstreams = tuple(upstreams)
        self._denied = denied
        self._degraded = degraded
        self._nearby = Nearby()
        #: The sandboxes that are served, each with its resolver once it has one.
        self._served: dict[str, Resolver | None] = {}

    def __repr__(self) -> str:
        return f"<Names of {len(self._served)} sandboxes>"

    async def serve(
        self,
        sandbox: Sandbox,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
        *,
        is_new: bool = True,
    ) -> None:
        """Answer a sandbox's questions until it is gone; says that it has started when they can come.

        One that is not new may have taken the resolver's place while no daemon held it. That costs it its names,
        and nothing else: they are tried again until it is gone.

        Raises:
            SandboxdError: before that, when there are no sockets for a new one.
        """
        if sandbox.id in self._served:
            task_status.started()
            return
        self._served[sandbox.id] = None
        try:
            resolver = await (self._resolver if is_new else self._try)(sandbox)
            task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_disconnected, sandbox, nursery.cancel_scope)
                await self._keep(sandbox, resolver)
        finally:
            self._served.pop(sandbox.id, None)

    def update(self, sandbox: Sandbox) -> None:
        """Answer by the rules that a sandbox's network has now."""
        resolver = self._served.get(sandbox.id)
        if resolver is not None:
            resolver.update(policy_of(sandbox))

    async def _keep(self, sandbox: Sandbox, resolver: Resolver | None) -> None:
        """Run the resolver, and another one when it ends or where there is none."""
        pause = RETRY_S
        while True:
            if resolver is not None:
                await self._serve_names(sandbox, resolver)
                pause = RETRY_S
            await trio.sleep(pause)
            pause = min(2 * pause, MAX_RETRY_S)
            resolver = await self._try(sandbox)

    async def _try(self, sandbox: Sandbox) -> Resolver | None:
        try:
            resolver = await self._resolver(sandbox)
        except SandboxdError as error:
            self._degraded(sandbox, error.message)
            return None
        self._degraded(sandbox, None)
        return resolver

    async def _resolver(self, sandbox: Sandbox) -> Resolver:
        datagrams, listener = (socket.socket(fileno=fd) for fd in await self._launcher.resolver(sandbox.id))
        resolver = Resolver(
            datagrams,
            listener,
            policy_of(sandbox),
            self._upstreams or host_nameservers(),
            functools.partial(self._launcher.permit, sandbox.id),
            lambda name, why: self._denied(sandbox.id, {"name": name, "reason": why}),
            self._nearby.why,
        )
        self._served[sandbox.id] = resolver
        return resolver

    async def _serve_names(self, sandbox: Sandbox, resolver: Resolver) -> None:
        try:
            await resolver.run()
        except* Exception as failures:
            # One sandbox's names, and not the daemon.
            _log.exception("The resolver of sandbox %s ended", sandbox.id)
            self._degraded(sandbox, f"its resolver ended: {failures.exceptions[0]}")


async def _until_disconnected(sandbox: Sandbox, scope: trio.CancelScope) -> None:
    await sandbox.disconnected.wait()
    scope.cancel()


def policy_of(sandbox: Sandbox) -> Policy:
    """Return what a sandbox's network says of names."""
    return Policy(sandbox.network.mode or "none", sandbox.network.allow_list)
