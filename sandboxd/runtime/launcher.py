"""The daemon's side of the launcher's socket: its closed list of operations as methods."""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import TYPE_CHECKING, Any, Final

from ..errors import LauncherGone, ProtocolError, SandboxdError
from ..network import NetworkSpec
from ..spec import Limits
from . import checks
from .link_client import LinkClient

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from ..spec import SandboxSpec

_log = logging.getLogger(__name__)


#: An address, the ports at which it may be reached, and for how many seconds.
Permit = tuple[str, tuple[tuple[int, int], ...], float]
#: Of a sandbox that has its loopback only.
NONE: Final = NetworkSpec(mode="none")


@dataclasses.dataclass(frozen=True, slots=True)
class Launched:
    """A sandbox as the launcher tells of it.

    Attributes:
        devices: the st_dev numbers that a file of this sandbox may have.
        limits: the effective ones, defaults filled in.
        frozen: whether it was asked to freeze, done or not.
        network: the effective one, defaults filled in.
        timings: seconds per step of its creation; empty for one that was found at start.
    """

    id: str
    pid: int
    alive: bool
    devices: frozenset[int]
    unenforced: tuple[str, ...]
    limits: Limits
    frozen: bool = False
    network: NetworkSpec = NONE
    timings: dict[str, float] = dataclasses.field(default_factory=dict)


class Launcher:
    """Client of the launcher. Its owner runs `run`; when that returns, the launcher is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._peer = LinkClient(sock, "the launcher")

    def __repr__(self) -> str:
        return f"<Launcher {self._peer!r}>"

    def statistics(self) -> dict[str, int]:
        """Return its connection's figures."""
        return self._peer.statistics()

    async def run(self) -> None:
        """Serve the connection until the launcher is gone.

        Raises:
            LauncherGone: always, unless cancelled.
        """
        error = await self._peer.run()
        raise LauncherGone(f"the launcher is gone: {error}")

    def close(self) -> None:
        """End the connection; the launcher ends with it."""
        self._peer.abort(LauncherGone("the daemon is stopping"))

    async def _ask(self, op: str, **params: object) -> dict[str, Any]:
        return (await self._ask_fds(op, params, 0))[0]

    async def _ask_fds(self, op: str, params: dict[str, Any], fds: int) -> tuple[dict[str, Any], list[int]]:
        try:
            return await self._peer.request(op, params, fds=fds)
        except ProtocolError as error:
            raise LauncherGone(f"cannot ask the launcher: {error}") from error

    async def create(self, sandbox_id: str, spec: SandboxSpec) -> Launched:
        """Give creation to a sandbox. Sends names and numbers only: its memory is every init's memory.

        Raises:
            LaunchFailed, RootfsNotFound, LimitUnenforceable, InvalidRequest: as their names say.
            LauncherGone: the launcher died.
        """
        result = await self._ask(
            "create",
            id=sandbox_id,
            rootfs=spec.rootfs,
            limits=dataclasses.asdict(spec.limits),
            network=dataclasses.asdict(spec.network),
            seccomp=spec.seccomp,
        )
        return _launched({"id": sandbox_id, "alive": True, **result})

    async def prepare(self, sandbox_id: str) -> None:
        """Have what every sandbox has made ahead, when it is quiet, for a creation of this id; one at a time is held.

        Raises:
            NameTaken: the id is in use.
        """
        await self._ask("prepare", id=sandbox_id)

    async def destroy(self, sandbox_id: str) -> None:
        """End a sandbox and give back all it had; one that does not exist is no error."""
        await self._ask("destroy", id=sandbox_id)

    async def kill(self, sandbox_id: str) -> None:
        """End every process of a sandbox; its files stay until `destroy`."""
        await self._ask("kill", id=sandbox_id)

    async def limit(self, sandbox_id: str, limits: Limits) -> tuple[Limits, tuple[str, ...]]:
        """Give a running sandbox other limits; return the effective ones, and those that nobody enforces.

        Raises:
            InvalidRequest, LimitUnenforceable, CgroupError, Conflict: nothing was changed.
        """
        result = await self._ask("limit", id=sandbox_id, limits=dataclasses.asdict(limits))
        return _limits(result), tuple(result.get("unenforced") or ())

    async def freeze(self, sandbox_id: str) -> bool:
        """Ask the kernel to stop every process; return whether all have stopped already."""
        return checks.flag(await self._ask("freeze", id=sandbox_id), "frozen")

    async def thaw(self, sandbox_id: str) -> None:
        """Let every process go on."""
        await self._ask("thaw", id=sandbox_id)

    async def stats(self, sandbox_id: str) -> dict[str, Any]:
        """Return what a sandbox uses; a number that nobody counts is None."""
        return await self._ask("stats", id=sandbox_id)

    async def sockets(self, sandbox_id: str, family: int, count: int) -> list[int]:
        """Return descriptors of `count` (8 at most) unconnected TCP sockets of IP version `family` in its network.

        Raises:
            SandboxNotFound, LimitExceeded: as their names say.
        """
        _, fds = await self._ask_fds("sockets", {"id": sandbox_id, "family": family, "count": count}, count)
        return fds

    async def network(self, sandbox_id: str, network: NetworkSpec) -> NetworkSpec:
        """Give a sandbox that has a network other rules; return the effective ones.

        Raises:
            InvalidRequest, Conflict, NetworkUnavailable: nothing was changed, or not all.
        """
        result = await self._ask("network", id=sandbox_id, network=dataclasses.asdict(network))
        return _network(result.get("network"))

    async def resolver(self, sandbox_id: str) -> list[int]:
        """Return descriptors of the sockets on which a sandbox asks for names: UDP, and TCP that listens.

        Raises:
            SandboxNotFound, LimitExceeded: as their names say.
        """
        _, fds = await self._ask_fds("resolver", {"id": sandbox_id}, 2)
        return fds

    async def permit(self, sandbox_id: str, items: list[Permit]) -> None:
        """Let addresses be reached that a listed name was answered with.

        Raises:
            InvalidRequest, NetworkUnavailable: none is.
        """
        rows = [[address, [list(ports) for ports in ranges], ttl_s] for address, ranges, ttl_s in items]
        await self._ask("permit", id=sandbox_id, items=rows)

    async def enter(self, sandbox_id: str, template: str, leaf: str, handoff: int, wait: bool) -> None:
        """Have a child of a template enter a sandbox, into the leaf that init has made; returns when it was forked.

        A duplicate of `handoff`, a unix socket whose other end init has, goes to the child; it stays the caller's.

        Args:
            sandbox_id: which sandbox.
            template: "git", or "python" for that of the sandbox's rootfs.
            leaf: what init calls the leaf.
            handoff: a unix stream socket.
            wait: whether to wait for a template that has to be loaded first.

        Raises:
            TemplateUnavailable: there is none, now or ever; whoever asks does without.
            SandboxNotFound: it does not run.
        """
        params = {"id": sandbox_id, "template": template, "leaf": leaf, "wait": wait}
        try:
            await self._peer.request("enter", params, passing=[os.dup(handoff)])
        except ProtocolError as error:
            raise LauncherGone(f"cannot ask the launcher: {error}") from error

    async def sandboxes(self) -> list[Launched]:
        """Return every sandbox that the launcher has a record of."""
        return [_launched(row) for row in checks.items(await self._ask("list"), "sandboxes", dict)]

    async def rootfs(self) -> list[dict[str, Any]]:
        """Return the rootfs that there are."""
        return checks.items(await self._ask("rootfs"), "items", dict)

    async def info(self) -> dict[str, Any]:
        """Return what the launcher knows of itself and the host."""
        return await self._ask("info")

    async def watch(
        self, ended: Callable[[str, str], None], denied: Callable[[str, dict[str, Any]], None] = lambda *_: None
    ) -> None:
        """Call `ended(id, reason)` for each sandbox whose init ended, and `denied(id, facts)` for each packet refused.

        The facts are `address`, `protocol` and `port` (None where there is none). It ends with the launcher.
        """
        try:
            async with self._peer.stream("watch", {}) as stream:
                async for event in stream:
                    if event.type == "ended" and isinstance(event.data, dict):
                        ended(checks.text(event.data, "id"), str(event.data.get("reason") or "init ended")[:300])
                    elif event.type == "denied" and isinstance(event.data, dict):
                        facts = {name: event.data.get(name) for name in ("address", "protocol", "port")}
                        denied(checks.text(event.data, "id"), facts)
        except SandboxdError as error:
            _log.debug("The watch ended: %s", error)  # `run` tells why


def _launched(row: dict[str, Any]) -> Launched:
    alive = checks.flag(row, "alive")
    return Launched(
        id=checks.text(row, "id"),
        pid=int(row.get("pid") or 0),
        alive=alive,
        devices=frozenset(checks.items(row, "devices", int)) if alive else frozenset(),
        unenforced=tuple(row.get("unenforced") or ()),
        limits=_limits(row),
        frozen=row.get("frozen") is True,
        network=_network(row.get("network")),
        timings={str(name): float(value) for name, value in (row.get("timings") or {}).items()},
    )


def _network(row: object) -> NetworkSpec:
    if not isinstance(row, dict) or not row:
        return NONE
    return NetworkSpec(**{**row, "allow": tuple(row.get("allow") or ())})


def _limits(row: dict[str, Any]) -> Limits:
    known = {field.name for field in dataclasses.fields(Limits)}
    return Limits(**{name: value for name, value in (row.get("limits") or {}).items() if name in known})
