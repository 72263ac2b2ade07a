"""Packets that the rules denied, as netfilter's log tells them: where somebody wanted to go.

Messages of nfnetlink_log (include/uapi/linux/netfilter/nfnetlink_log.h). The heads in them are a sandbox's: a field
that is not there makes no event.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import socket
import struct
from collections.abc import Iterator
from typing import Final

_NFNL_SUBSYS_ULOG: Final = 4
_NFULNL_MSG_PACKET: Final = 0
_NFULNL_MSG_CONFIG: Final = 1
_NFULA_CFG_CMD: Final = 1
_NFULA_CFG_MODE: Final = 2
_NFULNL_CFG_CMD_BIND: Final = 1
_NFULNL_COPY_PACKET: Final = 2
_NFULA_PAYLOAD: Final = 9
_REQUEST_ACK: Final = 0x1 | 0x4
#: A longest IPv4 head and the ports.
_HEAD_BYTES: Final = 64
_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp", 132: "sctp"}
_WITH_PORTS: Final = ("tcp", "udp", "sctp")
_HEADER: Final = struct.Struct("=IHHII")


@dataclasses.dataclass(frozen=True, slots=True)
class Attempt:
    """A packet that was denied; `port` is None where the protocol has none."""

    source: str
    address: str
    protocol: str
    port: int | None


class Log:
    """The socket that the kernel tells one group's packets to; readable when there are some."""

    def __init__(self, group: int, connection: socket.socket) -> None:
        """Bind a netfilter socket, which hears of packets in the namespace that it was made in."""
        self.socket = connection
        self.socket.settimeout(5)
        for kind, value in (
            (_NFULA_CFG_CMD, struct.pack("=B", _NFULNL_CFG_CMD_BIND)),
            (_NFULA_CFG_MODE, struct.pack(">IBx", _HEAD_BYTES, _NFULNL_COPY_PACKET)),
        ):
            self._configure(group, kind, value)
        self.socket.setblocking(False)

    def _configure(self, group: int, kind: int, value: bytes) -> None:
        attribute = struct.pack("=HH", 4 + len(value), kind) + value
        attribute += bytes(-len(attribute) % 4)
        body = struct.pack(">BBH", socket.AF_UNSPEC, 0, group) + attribute
        message = _NFNL_SUBSYS_ULOG << 8 | _NFULNL_MSG_CONFIG
        self.socket.send(_HEADER.pack(16 + len(body), message, _REQUEST_ACK, 1, 0) + body)
        answer = self.socket.recv(4096)
        number = -struct.unpack_from("=i", answer, 16)[0]
        if number:
            raise OSError(number, "cannot hear of denied packets", "NFULNL_MSG_CONFIG")

    def read(self) -> list[Attempt]:
        """Return what there is; where more came than the socket holds, the rest is lost."""
        with contextlib.suppress(BlockingIOError, OSError):
            return list(attempts(self.socket.recv(1 << 17)))
        return []


def attempts(packet: bytes) -> Iterator[Attempt]:
    """Yield the attempts in one datagram of netlink."""
    at = 0
    while at + 20 <= len(packet):
        length, kind, _, _, _ = _HEADER.unpack_from(packet, at)
        if length < 20:
            return
        if kind == _NFNL_SUBSYS_ULOG << 8 | _NFULNL_MSG_PACKET:
            payload = _payload(packet[at + 20 : at + length])
            found = parse(payload) if payload else None
            if found is not None:
                yield found
        at += (length + 3) & ~3


def _payload(body: bytes) -> bytes | None:
    at = 0
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if length < 4:
            return None
        if kind & 0x7FFF == _NFULA_PAYLOAD:
            return body[at + 4 : at + length]
        at += (length + 3) & ~3
    return None


def parse(head: bytes) -> Attempt | None:
    """Return what the head of an IP packet says; None where it says too little."""
    if len(head) < 20:
        return None
    version = head[0] >> 4
    if version == 4:
        size, number = (head[0] & 15) * 4, head[9]
        source, address = ipaddress.IPv4Address(head[12:16]), ipaddress.IPv4Address(head[16:20])
    elif version == 6 and len(head) >= 40:
        size, number = 40, head[6]
        source, address = ipaddress.IPv6Address(head[8:24]), ipaddress.IPv6Address(head[24:40])  # type: ignore[assignment]
    else:
        return None
    protocol = _PROTOCOLS.get(number, str(number))
    port = None
    if protocol in _WITH_PORTS and len(head) >= size + 4:
        port = struct.unpack_from(">H", head, size + 2)[0]
    return Attempt(str(source), str(address), protocol, port)
