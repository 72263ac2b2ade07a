"""Links by rtnetlink: what `ip link add`, `ip addr add`, `ip route add` and `tc qdisc add` would do, in a few packets.

pyroute2 knows the messages; the sockets are plain ones, since its own speak asyncio and are made here and now only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from typing import Any, Final

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import sched_tbf, tcmsg

from .state import GATEWAY_4, GATEWAY_6, HOST_MAC, INSIDE, State

# include/uapi/linux/rtnetlink.h, netlink.h, if.h, neighbour.h, if_addr.h
_RTM_NEWLINK: Final = 16
_RTM_DELLINK: Final = 17
_RTM_GETLINK: Final = 18
_RTM_NEWADDR: Final = 20
_RTM_NEWROUTE: Final = 24
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
_UNICAST: Final = 1
_NO_ADDRESS_OF_ITS_OWN: Final = 1  # IN6_ADDR_GEN_MODE_NONE
_ROOT: Final = 0xFFFFFFFF
_TBF_HANDLE: Final = 0x10000
#: What a limited link may send at once, at least: two of the largest packets that offloading makes.
_MIN_BURST: Final = 131_072
_BURST_S: Final = 0.01
_QUEUE_US: Final = 100_000
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


class Netlink:
    """One rtnetlink socket. Raises OSError with the kernel's errno."""

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        else:
            self._socket = socket.socket(fileno=fd)
        self._socket.settimeout(5)
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

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
            packet = self._socket.recv(1 << 18)
            at = 0
            while at + 16 <= len(packet):
                length, answered, _, sequence, _ = struct.unpack_from("=IHHII", packet, at)
                if sequence == self._sequence:
                    if answered in (_NLMSG_ERROR, _NLMSG_DONE):
                        number = -struct.unpack_from("=i", packet, at + 16)[0] if length >= 20 else 0
                        if number > 0:
                            raise OSError(number, os.strerror(number), type(message).__name__)
                        return answers
                    answers.append(packet[at : at + length])
                at += (length + 3) & ~3

    # --- links ---

    def index_of(self, name: str) -> int:
        """Return the index of the device called so."""
        message = ifinfmsg()
        message["attrs"] = [("IFLA_IFNAME", name)]
        return int(struct.unpack_from("=i", self.ask(_RTM_GETLINK, message)[0], 20)[0])

    def names(self) -> list[str]:
        """Return the names of all devices."""
        found = []
        for packet in self.ask(_RTM_GETLINK, ifinfmsg(), _DUMP):
            message = ifinfmsg(packet)
            message.decode()
            found.append(str(message.get_attr("IFLA_IFNAME")))
        return found

    def add_pair(self, name: str, alias: str, inside_mac: str, namespace: int) -> None:
        """Make a pair: `name` here, INSIDE in the network namespace of that descriptor; both are down."""
        peer = {
            "attrs": [("IFLA_IFNAME", INSIDE), ("IFLA_ADDRESS", inside_mac), ("IFLA_NET_NS_FD", namespace)],
        }
        message = ifinfmsg()
        message["attrs"] = [
            ("IFLA_IFNAME", name),
            ("IFLA_ADDRESS", HOST_MAC),
            ("IFLA_IFALIAS", alias),
            (
                "IFLA_LINKINFO",
                {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]})]},
            ),
        ]
        self.ask(_RTM_NEWLINK, message, _CREATE | _EXCL)

    def bring_up(self, index: int) -> None:
        """Bring a device up, with no ARP and no address that the kernel would give it."""
        message = ifinfmsg()
        message["index"] = index
        family = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _NO_ADDRESS_OF_ITS_OWN)]})]}
        message["attrs"] = [("IFLA_AF_SPEC", family)]
        with contextlib.suppress(OSError):  # a host without IPv6 has no such mode
            self.ask(_RTM_NEWLINK, message)
        message = ifinfmsg()
        message["index"] = index
        message["flags"] = message["change"] = _UP | _NOARP
        self.ask(_RTM_NEWLINK, message)

    def remove(self, name: str) -> None:
        """Remove a device, with its other end; one that is not there is no error."""
        message = ifinfmsg()
        message["attrs"] = [("IFLA_IFNAME", name)]
        try:
            self.ask(_RTM_DELLINK, message)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    # --- addresses ---

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
        """Route one address, or (None) everything, to a device."""
        message = rtmsg()
        message["family"] = _FAMILIES[version]
        message["table"], message["type"], message["proto"] = _TABLE_MAIN, _UNICAST, _PROTOCOL_STATIC
        message["scope"] = _SCOPE_LINK if gateway is None and version == 4 else _SCOPE_UNIVERSE
        attributes: list[tuple[str, object]] = [("RTA_OIF", index)]
        if to is not None:
            message["dst_len"] = 32 if version == 4 else 128
            attributes.append(("RTA_DST", to))
        if gateway is not None:
            attributes.append(("RTA_GATEWAY", gateway))
        message["attrs"] = attributes
        self.ask(_RTM_NEWROUTE, message, _CREATE | _REPLACE)

    def add_neighbour(self, index: int, version: int, address: str, mac: str) -> None:
        """Say for good which Ethernet address an address has."""
        message = ndmsg()
        message["family"] = _FAMILIES[version]
        message["ifindex"] = index
        message["state"] = _PERMANENT
        message["attrs"] = [("NDA_DST", address), ("NDA_LLADDR", mac)]
        self.ask(_RTM_NEWNEIGH, message, _CREATE | _REPLACE)

    def networks_on_link(self, own: str) -> list[str]:
        """Return the networks that the host reaches without a gateway, but for links whose names begin with `own`."""
        names: dict[int, str] = {}
        for packet in self.ask(_RTM_GETLINK, ifinfmsg(), _DUMP):
            link = ifinfmsg(packet)
            link.decode()
            names[int(link["index"])] = str(link.get_attr("IFLA_IFNAME"))
        found = []
        for packet in self.ask(_RTM_GETROUTE, rtmsg(), _DUMP):
            route = rtmsg(packet)
            route.decode()
            device = names.get(int(route.get_attr("RTA_OIF") or 0), "")
            to, length = route.get_attr("RTA_DST"), int(route["dst_len"])
            if to is None or length == 0 or route.get_attr("RTA_GATEWAY") is not None or route["type"] != _UNICAST:
                continue
            if device and not device.startswith(own):
                found.append(f"{to}/{length}")
        return found

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


def attach(host: Netlink, state: State, namespace: int, inside: Netlink) -> None:
    """Make a sandbox's link; `inside` is a socket of its network namespace, `namespace` a descriptor of that."""
    host.remove(state.name)  # what a process that was killed half-way left
    host.add_pair(state.name, state.alias, state.mac, namespace)
    ours, theirs = host.index_of(state.name), inside.index_of(INSIDE)
    host.bring_up(ours)
    inside.bring_up(theirs)
    gateways = {4: GATEWAY_4, 6: GATEWAY_6}
    for version, address in state.addresses:
        inside.add_address(theirs, version, address)
        inside.add_neighbour(theirs, version, gateways[version], HOST_MAC)
        inside.add_route(theirs, version, gateways[version])
        inside.add_route(theirs, version, None, gateways[version])
        host.add_neighbour(ours, version, address, state.mac)
        host.add_route(ours, version, address)
    limit(host, inside, state)


def limit(host: Netlink, inside: Netlink, state: State) -> None:
    """Give both ends the speeds of `state`: each end limits what it sends, so nothing is lost, only late."""
    host.limit(host.index_of(state.name), state.receive_bytes_per_s)
    inside.limit(inside.index_of(INSIDE), state.send_bytes_per_s)
