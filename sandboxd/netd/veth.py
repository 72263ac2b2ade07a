"""Veths and the uplink: who is where, and which way packets go.

    sandbox: eth0 ── link ── router: <prefix><index> │ uplink ── host: <prefix>router ──▶ the host's own routes

Every device is without ARP and neighbour discovery; what each sends to is link-local, and a permanent neighbour.
"""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Iterable

from .netlink import UNICAST, Netlink
from .state import GATEWAY_4, GATEWAY_6, HOST_MAC, INSIDE, ROUTER_MAC, UPLINK, Host, State

_GATEWAYS = {4: GATEWAY_4, 6: GATEWAY_6}


@dataclasses.dataclass(frozen=True, slots=True)
class Places:
    """A socket of rtnetlink in the host's network namespace, one in the router's, and a descriptor of the latter."""

    host: Netlink
    router: Netlink
    namespace: int


def make_uplink(places: Places, host: Host) -> int:
    """Have the pair between the host and the router, up, with the router's way out; return the host's end's index."""
    if host.uplink not in places.host.names() or UPLINK not in places.router.names():
        places.host.remove(host.uplink)  # what a router that is gone had
        places.host.add_pair(host.uplink, (HOST_MAC, ROUTER_MAC), UPLINK, places.namespace, "sandboxd")
    ours, theirs = places.host.index_of(host.uplink), places.router.index_of(UPLINK)
    places.router.bring_up(theirs)
    places.host.bring_up(ours)
    for version, address in host.router_addresses:
        # What its refusals come from. First: where there is no address at all, no gateway is taken.
        places.router.add_address(theirs, version, address)
        places.router.add_neighbour(theirs, version, _GATEWAYS[version], HOST_MAC)
        places.router.add_route(theirs, version, None, _GATEWAYS[version])
        places.host.add_neighbour(ours, version, _GATEWAYS[version], ROUTER_MAC)
    return ours


def lead_back(places: Places, uplink: int, states: Iterable[State]) -> None:
    """Make the host's routes through the uplink those to these sandboxes, and no other."""
    wanted = {f"{address}/{32 if version == 4 else 128}" for state in states for version, address in state.addresses}
    present = {
        route.network
        for route in places.host.routes()
        if route.device == uplink and route.kind == UNICAST and route.network and route.has_gateway
    }
    for network in wanted - present:
        address = network.partition("/")[0]
        version = 6 if ":" in address else 4
        places.host.add_route(uplink, version, address, _GATEWAYS[version])
    for network in present - wanted:
        address = network.partition("/")[0]
        places.host.remove_route(uplink, 6 if ":" in address else 4, address)


def attach(places: Places, uplink: int, state: State, namespace: int, inside: Netlink) -> None:
    """Make a sandbox's link; `inside` is a socket of its network namespace, `namespace` a descriptor of that.

    Nothing passes: its name is in none of the rules' sets yet.
    """
    router = places.router
    router.remove(state.name)  # what a process that was killed half-way left
    router.add_pair(state.name, (HOST_MAC, state.mac), INSIDE, namespace, state.alias)
    theirs = inside.index_of(INSIDE)
    inside.bring_up(theirs)
    for version, address in state.addresses:
        inside.add_address(theirs, version, address)
        inside.add_neighbour(theirs, version, _GATEWAYS[version], HOST_MAC)
        inside.add_route(theirs, version, _GATEWAYS[version])
        inside.add_route(theirs, version, None, _GATEWAYS[version])
        places.host.add_route(uplink, version, address, _GATEWAYS[version])
    _lead_to(router, state)
    limit(router, inside, state)


def detach(places: Places, uplink: int, name: str, addresses: Iterable[tuple[int, str]]) -> None:
    """Take a link away; no error where there is none."""
    places.router.remove(name)
    places.host.remove(name)  # where an earlier version had it
    for version, address in addresses:
        places.host.remove_route(uplink, version, address)


def fetch(places: Places, states: Iterable[State]) -> None:
    """Move veths into the router that an earlier version made in the host's own namespace."""
    here, there = places.host.names(), places.router.names()
    for state in states:
        if state.name not in here or state.name in there:
            continue
        try:
            places.host.move(places.host.index_of(state.name), places.namespace)
        except OSError as error:
            if error.errno != errno.ENODEV:  # its sandbox has just ended
                raise
            continue
        _lead_to(places.router, state)
        places.router.limit(places.router.index_of(state.name), state.receive_bytes_per_s)


def _lead_to(router: Netlink, state: State) -> None:
    ours = router.index_of(state.name)
    router.bring_up(ours)
    for version, address in state.addresses:
        router.add_neighbour(ours, version, address, state.mac)
        router.add_route(ours, version, address)


def limit(router: Netlink, inside: Netlink, state: State) -> None:
    """Give both ends the speeds of `state`: each end limits what it sends, so nothing is lost, only late."""
    router.limit(router.index_of(state.name), state.receive_bytes_per_s)
    inside.limit(inside.index_of(INSIDE), state.send_bytes_per_s)
