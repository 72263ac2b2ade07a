"""Who answers each sandbox's questions about names: one `Resolver` for each that has a network."""

from __future__ import annotations

import functools
import logging
import socket
from typing import TYPE_CHECKING

import trio

from .resolver import Policy, Resolver, host_nameservers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .launcher import Launcher
    from .sandbox import Sandbox

_log = logging.getLogger(__name__)


class Names:
    """The resolvers. `denied(sandbox id, facts)` is told of each name that was refused."""

    def __init__(
        self, launcher: Launcher, upstreams: Sequence[tuple[str, int]], denied: Callable[[str, dict[str, object]], None]
    ) -> None:
        self._launcher = launcher
        self._upstreams = tuple(upstreams)
        self._denied = denied
        self._resolvers: dict[str, Resolver] = {}

    def __repr__(self) -> str:
        return f"<Names of {len(self._resolvers)} sandboxes>"

    async def serve(self, sandbox: Sandbox, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer a sandbox's questions until it is gone; says that it has started when they can come.

        Raises:
            SandboxdError: before that, when there are no sockets.
        """
        if sandbox.id in self._resolvers:
            task_status.started()
            return
        datagrams, listener = (socket.socket(fileno=fd) for fd in await self._launcher.resolver(sandbox.id))
        resolver = Resolver(
            datagrams,
            listener,
            policy_of(sandbox),
            self._upstreams or host_nameservers(),
            functools.partial(self._launcher.permit, sandbox.id),
            lambda name, why: self._denied(sandbox.id, {"name": name, "reason": why}),
        )
        self._resolvers[sandbox.id] = resolver
        sandbox.network_changed = lambda: resolver.update(policy_of(sandbox))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(resolver.run)
                task_status.started()
                await sandbox.settled.wait()
                nursery.cancel_scope.cancel()
        except* Exception:
            # One sandbox's names, and not the daemon: it goes on without them.
            _log.exception("Sandbox %s has nobody to ask for names any more", sandbox.id)
        finally:
            del self._resolvers[sandbox.id]


def policy_of(sandbox: Sandbox) -> Policy:
    """Return what a sandbox's network says of names."""
    return Policy(sandbox.network.mode or "none", sandbox.network.allow_list)
