"""Devices, addresses, routes and queues by rtnetlink: what `ip` and `tc` would do, in a few packets.

pyroute2 knows the messages; the sockets are plain ones, since its own speak asyncio and are made here and now only.
What is read in bulk (routes) is read by hand: pyroute2 takes some 0.1 ms for each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any, Final

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import sched_tbf, tcmsg

# include/uapi/linux/rtnetlink.h, netlink.h, if.h, neighbour.h, if_addr.h
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
_RTM_GETLINK: Final = 18
_RTM_NEWADDR: Final = 20
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
_RTM_GETROUTE: Final = 26
_RTM_NEWNEIGH: Final = 28
_RTM_NEWQDISC: Final = 36
_RTM_DELQDISC: Final = 37
_REQUEST_ACK: Final = 0x1 | 0x4
_DUMP: Final = 0x300
_CREATE: Final = 0x400
_EXCL: Final = 0x200
_REPLACE: Final = 0x100
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_UP: Final = 0x1
_NOARP: Final = 0x80
_PERMANENT: Final = 0x80
_NODAD: Final = 0x02
_SCOPE_UNIVERSE: Final = 0
_SCOPE_LINK: Final = 253
_TABLE_MAIN: Final = 254
_PROTOCOL_STATIC: Final = 4
UNICAST: Final = 1
#: Types of routes to addresses of the host's own: RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST.
OWN: Final = (2, 3, 4)
_CLONED: Final = 0x200
_ONLINK: Final = 0x4
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
#: RTA_GATEWAY, RTA_VIA, RTA_NH_ID: where the next hop is another host.
_RTA_GATEWAYS: Final = (5, 18, 30)
_NO_ADDRESS_OF_ITS_OWN: Final = 1  # IN6_ADDR_GEN_MODE_NONE
_ROOT: Final = 0xFFFFFFFF
_TBF_HANDLE: Final = 0x10000
#: What a limited link may send at once, at least: two of the largest packets that offloading makes.
_MIN_BURST: Final = 131_072
_BURST_S: Final = 0.01
_QUEUE_US: Final = 100_000
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_HEADER: Final = struct.Struct("=IHHII")


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """One of the kernel's routes; `network` is None for a default route, `device` 0 where it has none or several."""

    network: str | None
    kind: int
    device: int
    has_gateway: bool


class Netlink:
    """One rtnetlink socket, which acts in the namespace that it was made in. Raises OSError with the kernel's errno."""

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
            self._socket.bind((0, 0))
        else:
            self._socket = socket.socket(fileno=fd)
        self._socket.settimeout(5)
        # Not from 0: a process that died may have left answers in a socket that we were given.
        self._sequence = int.from_bytes(os.urandom(3)) << 7

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    @property
    def port(self) -> int:
        """What the kernel's notifications call this socket."""
        return int(self._socket.getsockname()[0])

    def ask(self, kind: int, message: Any, flags: int = 0) -> list[bytes]:  # noqa: ANN401 - untyped library
        """Send one message and return the messages that answer it, their headers included."""
        self._sequence += 1
        message["header"]["type"] = kind
        message["header"]["flags"] = _REQUEST_ACK | flags
        message["header"]["sequence_number"] = self._sequence
        message.encode()
        self._socket.send(bytes(message.data))
        answers: list[bytes] = []
        while True:
            for kind_, sequence, _, whole in messages(self._socket.recv(1 << 18)):
                if sequence != self._sequence:
                    continue
                if kind_ in (_NLMSG_ERROR, _NLMSG_DONE):
                    number = -struct.unpack_from("=i", whole, 16)[0] if len(whole) >= 20 else 0
                    if number > 0:
                        raise OSError(number, os.strerror(number), type(message).__name__)
                    return answers
                answers.append(whole)

    # --- devices ---

    def index_of(self, name: str) -> int:
        """Return the index of the device called so."""
        message = ifinfmsg()
        message["attrs"] = [("IFLA_IFNAME", name)]
        return int(struct.unpack_from("=i", self.ask(_RTM_GETLINK, message)[0], 20)[0])

    def names(self) -> set[str]:
        """Return the names of all devices."""
        found = set()
        for packet in self.ask(_RTM_GETLINK, ifinfmsg(), _DUMP):
            name = dict(_attributes(packet, 32)).get(3, b"")  # IFLA_IFNAME
            found.add(name.rstrip(b"\0").decode(errors="replace"))
        return found

    def add_pair(self, name: str, macs: tuple[str, str], peer: str, namespace: int, alias: str = "") -> None:
        """Make a pair: `name` here, `peer` in the network namespace of that descriptor; both are down."""
        other = {"attrs": [("IFLA_IFNAME", peer), ("IFLA_ADDRESS", macs[1]), ("IFLA_NET_NS_FD", namespace)]}
        pair = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", other)]})]}
        message = ifinfmsg()
        message["attrs"] = [("IFLA_IFNAME", name), ("IFLA_ADDRESS", macs[0]), ("IFLA_LINKINFO", pair)]
        if alias:
            message["attrs"].append(("IFLA_IFALIAS", alias))
        self.ask(RTM_NEWLINK, message, _CREATE | _EXCL)

    def move(self, index: int, namespace: int) -> None:
        """Move a device to the network namespace of that descriptor; there it is down, without routes and queue."""
        message = ifinfmsg()
        message["index"] = index
        message["attrs"] = [("IFLA_NET_NS_FD", namespace)]
        self.ask(RTM_NEWLINK, message)

    def bring_up(self, index: int) -> None:
        """Bring a device up, with no ARP and no address that the kernel would give it."""
        message = ifinfmsg()
        message["index"] = index
        family = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _NO_ADDRESS_OF_ITS_OWN)]})]}
        message["attrs"] = [("IFLA_AF_SPEC", family)]
        with contextlib.suppress(OSError):  # a host without IPv6 has no such mode
            self.ask(RTM_NEWLINK, message)
        message = ifinfmsg()
        message["index"] = index
        message["flags"] = message["change"] = _UP | _NOARP
        self.ask(RTM_NEWLINK, message)

    def remove(self, name: str) -> None:
        """Remove a device, with its other end; one that is not there is no error."""
        message = ifinfmsg()
        message["attrs"] = [("IFLA_IFNAME", name)]
        try:
            self.ask(RTM_DELLINK, message)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    # --- addresses and routes ---

    def add_address(self, index: int, version: int, address: str) -> None:
        """Give a device one address of its own, with nothing beside it on the link."""
        message = ifaddrmsg()
        message["family"] = _FAMILIES[version]
        message["prefixlen"] = 32 if version == 4 else 128
        message["index"] = index
        message["flags"] = _NODAD
        message["attrs"] = [("IFA_LOCAL", address), ("IFA_ADDRESS", address)]
        self.ask(_RTM_NEWADDR, message, _CREATE | _REPLACE)

    def add_route(self, index: int, version: int, to: str | None, gateway: str | None = None) -> None:
        """Route one address, or (None) everything, to a device, or to a gateway that is right behind it."""
        self.ask(RTM_NEWROUTE, _route(index, version, to, gateway), _CREATE | _REPLACE)

    def remove_route(self, index: int, version: int, to: str) -> None:
        """Take back a route of one address; one that is not there is no error."""
        message = _route(index, version, to, None)
        message["scope"] = 255 if version == 4 else _SCOPE_UNIVERSE  # RT_SCOPE_NOWHERE: any
        message["proto"] = 0
        try:
            self.ask(RTM_DELROUTE, message)
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.ENODEV):
                raise

    def add_neighbour(self, index: int, version: int, address: str, mac: str) -> None:
        """Say for good which Ethernet address an address has."""
        message = ndmsg()
        message["family"] = _FAMILIES[version]
        message["ifindex"] = index
        message["state"] = _PERMANENT
        message["attrs"] = [("NDA_DST", address), ("NDA_LLADDR", mac)]
        self.ask(_RTM_NEWNEIGH, message, _CREATE | _REPLACE)

    def routes(self) -> list[Route]:
        """Return all routes of all tables."""
        packets: list[bytes] = []
        for family in _FAMILIES.values():  # a message without one asks for IPv4 alone
            message = rtmsg()
            message["family"] = family
            packets += self.ask(_RTM_GETROUTE, message, _DUMP)
        return [found for packet in packets if (found := read_route(packet))]

    # --- speed ---

    def limit(self, index: int, bytes_per_s: int | None) -> None:
        """Limit what a device sends; None lifts that."""
        message = tcmsg()
        message["index"], message["parent"] = index, _ROOT
        if bytes_per_s is None:
            try:
                self.ask(_RTM_DELQDISC, message)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EINVAL):
                    raise
            return
        burst = max(_MIN_BURST, int(bytes_per_s * _BURST_S))
        message["handle"] = _TBF_HANDLE
        options = sched_tbf.get_parameters({"rate": bytes_per_s, "burst": burst, "latency": _QUEUE_US})
        message["attrs"] = [("TCA_KIND", "tbf"), ("TCA_OPTIONS", options)]
        self.ask(_RTM_NEWQDISC, message, _CREATE | _REPLACE)


def _route(index: int, version: int, to: str | None, gateway: str | None) -> Any:  # noqa: ANN401 - untyped library
    message = rtmsg()
    message["family"] = _FAMILIES[version]
    message["table"], message["type"], message["proto"] = _TABLE_MAIN, UNICAST, _PROTOCOL_STATIC
    message["scope"] = _SCOPE_LINK if gateway is None and version == 4 else _SCOPE_UNIVERSE
    attributes: list[tuple[str, object]] = [("RTA_OIF", index)]
    if to is not None:
        message["dst_len"] = 32 if version == 4 else 128
        attributes.append(("RTA_DST", to))
    if gateway is not None:
        message["flags"] = _ONLINK
        attributes.append(("RTA_GATEWAY", gateway))
    message["attrs"] = attributes
    return message


def messages(packet: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield the messages of one datagram: kind, sequence, the port of who caused it, and the whole of it."""
    at = 0
    while at + 16 <= len(packet):
        length, kind, _, sequence, port = _HEADER.unpack_from(packet, at)
        if length < 16:
            return
        yield kind, sequence, port, packet[at : at + length]
        at += (length + 3) & ~3


def read_route(message: bytes) -> Route | None:
    """Return the route that an RTM_NEWROUTE or RTM_DELROUTE tells of; None for one that the kernel cached."""
    if len(message) < 28:
        return None
    family, size, flags = message[16], message[17], struct.unpack_from("=I", message, 24)[0]
    if flags & _CLONED or family not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = dict(_attributes(message, 28))
    network = None
    if size:
        address = found.get(_RTA_DST, bytes(4 if family == socket.AF_INET else 16))
        network = f"{ipaddress.ip_address(address)}/{size}"
    device = struct.unpack_from("=i", found[_RTA_OIF])[0] if _RTA_OIF in found else 0
    return Route(network, message[23], device, any(kind in found for kind in _RTA_GATEWAYS))


def _attributes(message: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if length < 4:
            return
        yield kind & 0x3FFF, message[at + 4 : at + length]
        at += (length + 3) & ~3


def attribute(message: bytes, at: int, kind: int) -> bytes:
    """Return an attribute of a message whose own head ends at `at`; nothing where there is none."""
    return dict(_attributes(message, at)).get(kind, b"")
