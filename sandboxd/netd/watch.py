"""What the host's own network is, and that it changed: its addresses, what is on its interfaces, and its rules.

The router cannot look: `fib` there means the router's own addresses. So the host's stand in sets, and notifications of
the host's kernel say when those are to be read again, and when somebody took away what the host has for the router.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import socket
import struct
from typing import TYPE_CHECKING, Final

from . import netlink
from .state import version_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_NETLINK_NETFILTER: Final = 12
_SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_NETLINK_DROP_MEMBERSHIP: Final = 2
_NLM_F_REQUEST: Final = 1
_NFNLGRP_NFTABLES: Final = 7
#: RTMGRP_LINK, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE: an address comes and goes with its route.
_ROUTE_GROUPS: Final = 0x1 | 0x40 | 0x400
_NFNL_SUBSYS_NFTABLES: Final = 10
_NFT_MSG_GETGEN: Final = 16
_NFTA_GEN_ID: Final = 1
#: NFT_MSG_DEL…: table, chain, rule, set, elements (include/uapi/linux/netfilter/nf_tables.h).
_DELETIONS: Final = (2, 5, 8, 11, 14)
_NAME_OF_TABLE: Final = 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE …
#: Datagrams of notifications that are read before there is a look at what is asked.
_AT_ONCE: Final = 256
_IFF_UP: Final = 0x1
_RECEIVE_BYTES: Final = 1 << 17
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h
#: What may wait in a socket: some ten thousand elements of sets, which a batch of orders may bring.
_QUEUE_BYTES: Final = 8 * 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class HostNetwork:
    """The host's own addresses (with broadcast and anycast ones), and the networks on its interfaces, as CIDR."""

    own_addresses: frozenset[str] = frozenset()
    near_networks: frozenset[str] = frozenset()

    def own(self, version: int) -> list[str]:
        """Return those of one IP version."""
        return [network for network in self.own_addresses if version_of(network) == version]

    def near(self, version: int) -> list[str]:
        """Return those of one IP version."""
        return [network for network in self.near_networks if version_of(network) == version]


def facts_of(routes: Iterable[netlink.Route], uplink: int) -> HostNetwork:
    """Return what the host's routes say, but for those to sandboxes, which lead through the uplink."""
    own, near = set(), set()
    for route in routes:
        if route.network is None or route.device == uplink:
            continue
        if route.kind in netlink.OWN:
            own.add(route.network)
        elif route.kind == netlink.UNICAST and route.device and not route.has_gateway:
            near.add(route.network)
    return HostNetwork(frozenset(own), frozenset(near))


@dataclasses.dataclass(slots=True)
class Change:
    """What happened meanwhile: the host's addresses or networks are others, or its part of our network is harmed."""

    facts: bool = False
    harmed: bool = False


class Watch:
    """Hears of what changes in the host's network namespace, in which it must be made."""

    def __init__(self, table: str) -> None:
        self._table = table.encode() + b"\0"
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._routes = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._routes.bind((0, _ROUTE_GROUPS))
        self._rules = socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
        self._rules.bind((0, 0))
        self._rules.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        for link in self.sockets:
            with contextlib.suppress(OSError):  # else what overflows is looked at anew
                link.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _QUEUE_BYTES)
        self._questions = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        self._questions.settimeout(5)

    @property
    def sockets(self) -> list[socket.socket]:
        """What is readable when something changed."""
        return [self._routes, self._rules]

    def read(self, uplink: int, ours: set[int]) -> Change:
        """Return what happened since the last time; `ours` are the ports whose doing it does not tell."""
        change = Change()
        with contextlib.suppress(BlockingIOError):
            for _ in range(_AT_ONCE):
                self._take_routes(self._read(self._routes, change), uplink, ours, change)
        with contextlib.suppress(BlockingIOError):
            for _ in range(_AT_ONCE):
                self._take_rules(self._read(self._rules, change), ours, change)
        return change

    @contextlib.contextmanager
    def passing_over(self, change: Change) -> Iterator[None]:
        """Hear nothing of the rules while one transaction of ours makes them anew.

        The kernel tells of each element of each set: more than any socket holds, and what was lost would be taken for
        harm, which is healed by making all of it anew. That there was another transaction its count says (`harmed`).
        """
        before = self._generation()
        self._rules.setsockopt(_SOL_NETLINK, _NETLINK_DROP_MEMBERSHIP, _NFNLGRP_NFTABLES)
        try:
            yield
        finally:
            self._rules.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        change.harmed = self._generation() - before not in (1, 2 - (1 << 32))  # 0 is left out

    def _generation(self) -> int:
        """Return how many transactions there were in this network namespace."""
        kind = _NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_GETGEN
        self._questions.send(struct.pack("=IHHIIBBH", 20, kind, _NLM_F_REQUEST, 0, 0, 0, 0, 0))
        return int.from_bytes(netlink.attribute(self._questions.recv(4096), 20, _NFTA_GEN_ID), "big")

    @staticmethod
    def _read(link: socket.socket, change: Change) -> bytes:
        try:
            return link.recv(_RECEIVE_BYTES)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            change.facts = change.harmed = True  # more happened than the socket holds
            return b""

    @staticmethod
    def _take_routes(packet: bytes, uplink: int, ours: set[int], change: Change) -> None:
        for kind, _, port, message in netlink.messages(packet):
            if kind in (netlink.RTM_NEWROUTE, netlink.RTM_DELROUTE):
                route = netlink.read_route(message)
                if route is None:
                    continue
                if route.device != uplink:
                    # Not what a routing daemon does all day: routes through gateways say nothing of the host itself.
                    change.facts |= facts_of([route], uplink) != HostNetwork()
                elif kind == netlink.RTM_DELROUTE and port not in ours:
                    change.harmed = True
            elif kind in (netlink.RTM_NEWLINK, netlink.RTM_DELLINK):
                # Also where somebody set it down: its routes go without being told.
                device, flags = struct.unpack_from("=iI", message, 20)
                change.harmed |= device == uplink and (kind == netlink.RTM_DELLINK or not flags & _IFF_UP)

    def _take_rules(self, packet: bytes, ours: set[int], change: Change) -> None:
        for kind, _, port, message in netlink.messages(packet):
            if kind >> 8 == _NFNL_SUBSYS_NFTABLES and kind & 255 in _DELETIONS and port not in ours:
                change.harmed |= netlink.attribute(message, 20, _NAME_OF_TABLE) == self._table
