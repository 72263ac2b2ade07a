"""What the launcher tells of the host's and of one sandbox's network."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import Any, Final

#: The device that a sandbox sees.
INSIDE: Final = "eth0"
#: What a sandbox sends to; link-local, and nobody has them: the neighbour entries are permanent.
GATEWAY_4: Final = "169.254.1.1"
GATEWAY_6: Final = "fe80::1"
#: Locally administered, and the same on every link: nothing else is on it.
HOST_MAC: Final = "02:73:62:78:64:01"
#: Ports of an entry: the first, the last.
Ports = tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The whole of it.

    Attributes:
        table: the nftables table's name.
        prefix: what the names of this launcher's links begin with.
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
    return ipaddress.ip_network(network, strict=False).version
