"""The host's own addresses and the networks on its links: out of reach of sandboxes whatever they are, public ones too.

The rules that refuse their packets are the network process's own (`sandboxd/netd/`); here it is for names,
which must not be answered with them.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..allow import Address, Network

#: Looked at anew after so long: addresses come and go.
_FRESH_S: Final = 5.0
#: A host with more routes than this is a router; those on its links come first.
_ROUTES_BYTES: Final = 1 << 20
_IPV4_FLAG_GATEWAY: Final = 0x2
_IPV6_FLAGS_ELSEWHERE: Final = 0x2 | 0x200  # RTF_GATEWAY, RTF_REJECT


class Nearby:
    """Tells which addresses are the host's or on its links."""

    def __init__(self) -> None:
        self._networks: tuple[Network, ...] = ()
        self._own: frozenset[Address] = frozenset()
        self._looked = -_FRESH_S

    def why(self, address: Address) -> str | None:
        """Return why an address is out of reach, or None."""
        if time.monotonic() - self._looked >= _FRESH_S:
            self._look()
        if address in self._own:
            return f"{address} is the host's own"
        for network in self._networks:
            if address.version == network.version and address in network:
                return f"{address} is in {network}, which is on a link of the host"
        return None

    def _look(self) -> None:
        own: set[Address] = set()
        for rows in psutil.net_if_addrs().values():
            for row in rows:
                if row.family in (socket.AF_INET, socket.AF_INET6):
                    own.add(ipaddress.ip_address(row.address.partition("%")[0]))
        self._own = frozenset(own)
        self._networks = (*routes_4(_lines("/proc/net/route")), *routes_6(_lines("/proc/net/ipv6_route")))
        self._looked = time.monotonic()


def routes_4(lines: Iterable[str]) -> list[Network]:
    """Return the networks that a text like /proc/net/route says are reached without a gateway."""
    found: list[Network] = []
    for line in lines:
        words = line.split()
        if len(words) < 8 or words[0] == "Iface":
            continue
        to, flags, mask = int(words[1], 16), int(words[3], 16), int(words[7], 16)
        if mask and not flags & _IPV4_FLAG_GATEWAY:
            # Addresses are printed as the machine's numbers, whose bytes are in the network's order.
            address, bits = (socket.ntohl(number) for number in (to, mask))
            found.append(ipaddress.IPv4Network((address, bits.bit_count()), strict=False))
    return found


def routes_6(lines: Iterable[str]) -> list[Network]:
    """Return the networks that a text like /proc/net/ipv6_route says are reached without a gateway."""
    found: list[Network] = []
    for line in lines:
        words = line.split()
        if len(words) < 10:
            continue
        to, length, flags = bytes.fromhex(words[0]), int(words[1], 16), int(words[8], 16)
        if length and not flags & _IPV6_FLAGS_ELSEWHERE:
            found.append(ipaddress.IPv6Network((to, length), strict=False))
    return found


def _lines(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.read(_ROUTES_BYTES).splitlines()
    except OSError:
        return []  # a kernel without that version of IP
