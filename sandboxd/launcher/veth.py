"""Sandboxes' networks: which addresses each has, what its rules say, and when its veth comes and goes.

The launcher decides: which addresses a sandbox has (by the number of its range, which nothing else on the host has),
and what its rules say. It holds the whole state; two processes of its own make veths and rules (network_process.py),
which end in a network namespace that outlives all of them (router.py). It opens a sandbox's network namespace and
makes the one socket of rtnetlink in it that is needed: who uses it holds CAP_NET_ADMIN, and nothing to enter with.

The processes are started for the first sandbox that has a network. The router goes with the last one, they some minutes
later: loading them takes a part of a second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import ipaddress
import logging
import os
import socket
from collections.abc import Callable
from typing import Any, Final

from ..allow import FORBIDDEN_4, FORBIDDEN_6, AllowList, forbidden
from ..errors import InvalidRequest, NetworkUnavailable, SandboxdError
from ..linux.eventloop import EventLoop
from ..linux.kernel import Kernel
from ..network import NetworkSpec
from .network_process import Deps, Done, NetworkProcess
from .router import Router
from .settings import Settings

log = logging.getLogger("sandboxd.launcher")

#: Addresses of one answer, and for how long.
_MAX_ITEMS: Final = 64
_MAX_TTL_S: Final = 3600.0
#: Ranges of ports in one answer, so that it fits into one message.
_MAX_RANGES: Final = 4096
_FORWARDING: Final = {4: "/proc/sys/net/ipv4/ip_forward", 6: "/proc/sys/net/ipv6/conf/all/forwarding"}


@dataclasses.dataclass(slots=True)
class _Veth:
    """A sandbox's network; `attached` once it was made, and `networks` are what its list names by address."""

    id: str
    index: int
    pid: int
    spec: NetworkSpec
    generation: int = 1
    attached: bool = False
    networks: list[tuple[str, int, int]] | None = None


class Veths:
    """Every network that this launcher's sandboxes have."""

    def __init__(
        self,
        loop: EventLoop,
        settings: Settings,
        kernel: Kernel,
        denied: Callable[[dict[str, Any]], None],
        mounts: int,
    ) -> None:
        """Keep the router in the mount namespace behind the descriptor `mounts`."""
        self._settings = settings
        self._kernel = kernel
        self._veths: dict[str, _Veth] = {}
        self._detaching: dict[str, list[Done]] = {}
        mark = settings.cgroup_name.rpartition("-")[2]
        self._table, self._prefix = f"sandboxd_{mark}", f"sd{mark[:6]}-"
        self._group = int(mark[:4], 16) | 1
        self._router = Router(kernel, settings.router_file, mounts)
        deps = Deps(settings.stage_dir, self._router, self._is_needed, self._all, denied)
        self._process = NetworkProcess(loop, kernel, deps)

    def __contains__(self, sandbox_id: object) -> bool:
        return sandbox_id in self._veths or sandbox_id in self._detaching

    # --- what the rest of the launcher asks ---

    def check(self, spec: NetworkSpec) -> NetworkSpec:
        """Return `spec` with the configuration's values where it says nothing.

        Raises:
            InvalidRequest: they do not go together.
            NetworkUnavailable: this host does not forward packets.
        """
        mode = spec.mode or ("allowlist" if spec.allow else self._settings.network)
        found = dataclasses.replace(spec, mode=mode)
        if found.has_veth:
            if not _is_on(_FORWARDING[4]):
                raise NetworkUnavailable(
                    f"cannot provide network mode {mode}: this host does not forward packets",
                    mode=mode,
                    remedy="sysctl -w net.ipv4.ip_forward=1 (the operator's decision: it affects the whole host)",
                )
            if found.connections is None:
                found = dataclasses.replace(found, connections=self._settings.network_connections)
        return found

    def attach(self, sandbox_id: str, index: int, pid: int, spec: NetworkSpec, done: Done) -> None:
        """Make a sandbox's veth and rules; `pid` is in its network namespace.

        Raises:
            OSError: it has ended.
        """
        veth = _Veth(sandbox_id, index, pid, spec)
        state = self._state(veth)
        fds = self._enter(pid)
        self._veths[sandbox_id] = veth

        def attached(error: SandboxdError | None) -> None:
            veth.attached = error is None
            done(error)

        self._process.ask("attach", state, fds, attached)

    def take_over(self, sandbox_id: str, index: int, pid: int, spec: NetworkSpec, generation: int) -> None:
        """Take over the network of a sandbox that an earlier launcher made: the process is told of all at its start."""
        veth = _Veth(sandbox_id, index, pid, spec, generation)
        self._veths[sandbox_id] = veth
        try:
            self._state(veth)
            veth.attached = True
        except NetworkUnavailable as error:  # the pool is another one by now: what has no rules is shut
            log.error("The network of sandbox %s is shut: %s", sandbox_id, error)

    def resume_or_end(self) -> None:
        """Begin with what was adopted, or take away what an earlier launcher left of networks that are gone."""
        if self._is_needed():
            self._process.start()
        elif self._router.exists:
            self._end_if_last()

    def sweep(self, sandbox_id: str, index: int) -> None:
        """Know of a network whose sandbox is dead: `detach` takes it away."""
        self._veths[sandbox_id] = _Veth(sandbox_id, index, 0, NetworkSpec(mode="none"))

    def detach(self, sandbox_id: str, done: Done) -> None:
        """Take a sandbox's veth and rules away; no error where it has none."""
        if sandbox_id in self._detaching:
            self._detaching[sandbox_id].append(done)
            return
        veth = self._veths.get(sandbox_id)
        if veth is None:
            done(None)
            return
        self._detaching[sandbox_id] = [done]

        def detached(error: SandboxdError | None) -> None:
            if error is None:
                self._veths.pop(sandbox_id, None)
            for callback in self._detaching.pop(sandbox_id):
                callback(error)
            self._end_if_last()

        veth.attached = False
        params: dict[str, Any] = {"id": sandbox_id, "name": self._name(veth.index), "addresses": []}
        with contextlib.suppress(NetworkUnavailable):
            params["addresses"] = self._addresses(veth.index)
        self._process.ask("detach", params, [], detached)

    def _end_if_last(self) -> None:
        if not self._veths and not self._process.is_busy:
            self._process.ask("end", {}, [], _ignore)

    def change(self, sandbox_id: str, spec: NetworkSpec, done: Done) -> None:
        """Give a sandbox that has a network other rules.

        Raises:
            OSError: it has ended.
        """
        veth = self._veths[sandbox_id]
        fds = self._enter(veth.pid)
        before = veth.spec, veth.generation
        veth.spec, veth.generation, veth.networks = spec, veth.generation + 1, None

        def changed(error: SandboxdError | None) -> None:
            if error:
                veth.spec, veth.generation = before
                veth.networks = None
            done(error)

        self._process.ask("change", self._state(veth), fds, changed)

    def permit(self, sandbox_id: str, items: object, done: Done) -> None:
        """Let addresses that a name was answered with be reached: [address, [[first port, last port]], seconds].

        Raises:
            InvalidRequest: they are none, or never to be reached but where they are listed.
        """
        veth = self._veths.get(sandbox_id)
        if veth is None or veth.spec.mode != "allowlist":
            done(None)
            return
        self._process.ask("permit", {"id": sandbox_id, "items": _checked(items, veth.spec.allow_list)}, [], done)

    def close(self) -> None:
        """Let the processes end; veths and rules stay, where there are any."""
        self._process.close()
        self._router.close()

    # --- state ---

    def _name(self, index: int) -> str:
        return f"{self._prefix}{index:x}"

    def _all(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return what there is, but for what is being made or taken away: the host's, and each sandbox's."""
        host = {
            "table": self._table,
            "prefix": self._prefix,
            "pool_4": self._settings.network_ipv4,
            "pool_6": self._pool_6(),
            "group": self._group,
            "forbidden_4": [str(network) for network in FORBIDDEN_4],
            "forbidden_6": [str(network) for network in FORBIDDEN_6],
        }
        return host, [self._state(veth) for veth in self._veths.values() if veth.attached and veth.spec.has_veth]

    def _is_needed(self) -> bool:
        return any(veth.attached for veth in self._veths.values())

    def _state(self, veth: _Veth) -> dict[str, Any]:
        if veth.networks is None:
            listed = veth.spec.allow_list.networks if veth.spec.mode == "allowlist" else ()
            veth.networks = [(str(network), low, high) for network, (low, high) in listed]
        addresses = dict(self._addresses(veth.index))
        return {
            "id": veth.id,
            "index": veth.index,
            "name": self._name(veth.index),
            "mode": veth.spec.mode,
            "address_4": addresses[4],
            "address_6": addresses.get(6),
            "networks": veth.networks,
            "receive_bytes_per_s": veth.spec.receive_bytes_per_s,
            "send_bytes_per_s": veth.spec.send_bytes_per_s,
            "connections": veth.spec.connections,
            "generation": _mark(veth),
        }

    def _addresses(self, index: int) -> list[tuple[int, str]]:
        """Return the addresses of a range's number, with their versions."""
        pools = ((4, self._settings.network_ipv4), (6, self._pool_6()))
        return [(version, _address(pool, index)) for version, pool in pools if pool]

    def _pool_6(self) -> str | None:
        """Return the pool of IPv6 where this host forwards IPv6, else None: sandboxes then have none of it."""
        return self._settings.network_ipv6 if _is_on(_FORWARDING[6]) else None

    def _enter(self, pid: int) -> list[int]:
        """Return a descriptor of a process's network namespace, and of a socket of rtnetlink in it."""
        namespace = self._kernel.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            with self._router.entered(namespace):
                inside = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        except BaseException:
            os.close(namespace)
            raise
        return [namespace, inside.detach()]


def _checked(items: object, allow: AllowList) -> list[Any]:
    """Check what the daemon says of answers: it may have been taken over, and never opens what no list names."""
    found: list[tuple[str, list[list[int]], float]] = []
    try:
        for address, ranges, ttl_s in items:  # type: ignore[attr-defined]
            plain = ipaddress.ip_address(address)
            why = forbidden(plain)
            if why and not allow.lists(plain):
                raise InvalidRequest(f"cannot permit an address: {why}", field="items")
            pairs = [[int(low), int(high)] for low, high in ranges]
            if not all(1 <= low <= high <= 65_535 for low, high in pairs) or not 0 < float(ttl_s) <= _MAX_TTL_S:
                raise ValueError
            found.append((str(plain), pairs, float(ttl_s)))
    except (TypeError, ValueError):
        raise InvalidRequest(
            "cannot permit addresses: each item must be an address, port ranges and seconds", field="items"
        ) from None
    if len(found) > _MAX_ITEMS or sum(len(pairs) for _, pairs, _ in found) > _MAX_RANGES:
        raise InvalidRequest(
            f"cannot permit addresses: at most {_MAX_ITEMS} of them, with {_MAX_RANGES} port ranges", field="items"
        )
    return found


def _address(pool: str, index: int) -> str:
    """Return the address of a range's number; the pool's first one is nobody's."""
    network = ipaddress.ip_network(pool)
    if index + 1 >= network.num_addresses:
        raise NetworkUnavailable(f"cannot assign an address: {pool} has too few", pool=pool)
    return str(network[index + 1])


def _mark(veth: _Veth) -> int:
    """Return what marks the connections of a sandbox's present allow list; never 0, which is that of all others.

    It is of the sandbox's own id too: connection tracking remembers for days what a dead sandbox had open, and the next
    one with its address must not go on with that.
    """
    digest = hashlib.sha256(f"{veth.id}.{veth.generation}".encode()).digest()
    return int.from_bytes(digest[:4], "big") or 1


def _is_on(path: str) -> bool:
    try:
        with open(path) as file:
            return file.read().strip() != "0"
    except OSError:
        return False


def _ignore(error: SandboxdError | None) -> None:
    """Nobody waits for it; what failed is logged."""
    if error:
        log.error("%s", error)
