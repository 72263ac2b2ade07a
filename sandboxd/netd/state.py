"""What the launcher tells of the host's and of one sandbox's network."""

from __future__ import annotations

import dataclasses
import ipaddress
import socket
from typing import Any, Final

#: The device that a sandbox sees.
INSIDE: Final = "eth0"
#: What a sandbox sends to; link-local, and nobody has them: the neighbour entries are permanent.
GATEWAY_4: Final = "169.254.1.1"
GATEWAY_6: Final = "fe80::1"
#: Locally administered, and the same on every link: nothing else is on it. The router's end of a sandbox's link has the
#: first one, and so has the host's end of the uplink.
HOST_MAC: Final = "02:73:62:78:64:01"
ROUTER_MAC: Final = "02:73:62:78:64:02"
#: The router's end of the pair between it and the host.
UPLINK: Final = "uplink"
#: Ports of an entry: the first, the last.
Ports = tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The whole of it.

    Attributes:
        table: the nftables tables' name, the router's and the host's.
        prefix: what the names of this launcher's veths begin with.
        pool_4, pool_6: the networks that sandboxes' addresses are of; None is none of that version.
        group: the group of netlink's log that denied packets are told to.
        forbidden_4, forbidden_6: networks that nobody reaches who does not list them.
    """

    table: str
    prefix: str
    pool_4: str
    pool_6: str | None
    group: int
    forbidden_4: tuple[str, ...]
    forbidden_6: tuple[str, ...]

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Host:
        """Return what a message says."""
        for name in ("forbidden_4", "forbidden_6"):
            message[name] = tuple(message[name])
        return cls(**message)

    @property
    def uplink(self) -> str:
        """The name of the host's end of the pair between it and the router."""
        return f"{self.prefix}router"

    @property
    def pools(self) -> tuple[tuple[int, str], ...]:
        """The networks that there are, with their versions."""
        return tuple((version, pool) for version, pool in ((4, self.pool_4), (6, self.pool_6)) if pool)

    @property
    def router_addresses(self) -> tuple[tuple[int, str], ...]:
        """The first address of each pool, which is no sandbox's, with its version."""
        return tuple((version, str(ipaddress.ip_network(pool)[0])) for version, pool in self.pools)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One sandbox's.

    Attributes:
        id: the sandbox's; index: its range's number, which nothing else on the host has.
        name: of the host's end.
        mode: "internet" or "allowlist".
        networks: what an allow list names by address: network, first port, last port.
        receive_bytes_per_s, send_bytes_per_s: as the sandbox sees it; None is no limit.
        connections: how many it may have at once; None is no limit.
        generation: the mark of connections that this sandbox's present allow list let through; others are judged anew.
    """

    id: str
    index: int
    name: str
    mode: str
    address_4: str
    address_6: str | None
    networks: tuple[tuple[str, int, int], ...] = ()
    receive_bytes_per_s: int | None = None
    send_bytes_per_s: int | None = None
    connections: int | None = None
    generation: int = 1

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> State:
        """Return what a message says."""
        networks = tuple((str(item[0]), int(item[1]), int(item[2])) for item in message["networks"])
        return cls(**{**message, "networks": networks})

    @property
    def mac(self) -> str:
        """The Ethernet address of the sandbox's end."""
        return f"02:73:62:{self.index >> 16 & 255:02x}:{self.index >> 8 & 255:02x}:{self.index & 255:02x}"

    @property
    def alias(self) -> str:
        """What `ip link` shows beside the host's end."""
        return f"sandboxd {self.id}"

    @property
    def addresses(self) -> tuple[tuple[int, str], ...]:
        """Its addresses with their versions."""
        found = ((4, self.address_4), (6, self.address_6))
        return tuple((version, address) for version, address in found if address is not None)


def version_of(network: str) -> int:
    """Return the IP version of an address or a network."""
    return 6 if ":" in network else 4


def parse(network: str) -> tuple[int, int, int]:
    """Return the bits of its version's addresses, a network's first address and its length; it is known to be one.

    The module ipaddress takes ten times as long, and lists have thousands of entries.
    """
    address, _, length = network.partition("/")
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    bits = 8 * len(packed)
    return bits, int.from_bytes(packed), int(length) if length else bits


def show(bits: int, first: int, length: int) -> str:
    """Return a network as text."""
    family = socket.AF_INET if bits == 32 else socket.AF_INET6
    return f"{socket.inet_ntop(family, first.to_bytes(bits // 8))}/{length}"
