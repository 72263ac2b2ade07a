"""Who listens in this network namespace: sock_diag(7), and /proc/net/tcp where a kernel has none.

Asked with a filter for one port and one state, so that the answer is a few sockets however many there are.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
from typing import Final

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST_DUMP: Final = 0x1 | 0x300
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_INET_DIAG_REQ_BYTECODE: Final = 1
_INET_DIAG_BC_S_EQ: Final = 11
_TCP_LISTEN: Final = 10
_HEADER: Final = struct.Struct("=IHHII")
#: An answer is one or two sockets of about 120 bytes; SO_REUSEPORT may make more, of which we need none.
_RECEIVE_BYTES: Final = 32 * 1024
#: Listening sockets come first in /proc/net/tcp, so that reading more would find none.
_PROC_BYTES: Final = 256 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket: its family and the address that it is bound to."""

    family: socket.AddressFamily
    address: str


class ListenerQuery:
    """Asks the kernel; owns one netlink socket, and does not block."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, _NETLINK_SOCK_DIAG
            )
        except OSError:
            return  # no such protocol in this kernel, or not for us

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()

    def find(self, port: int) -> Listener | None:
        """Return a socket that listens on a TCP port, or None."""
        for family in (socket.AF_INET, socket.AF_INET6):
            found = self._ask(family, port) if self._socket is not None else None
            if self._socket is None:
                found = _from_proc(family, port)
            if found is not None:
                return found
        return None

    def _ask(self, family: socket.AddressFamily, port: int) -> Listener | None:
        assert self._socket is not None  # noqa: S101 - the caller looked
        try:
            self._socket.send(_request(family, port))
            found = None
            while True:  # a dump's pieces are made as they are received: the next is there at once
                listener, is_over = _parse(self._socket.recv(_RECEIVE_BYTES), port)
                found = found or listener
                if is_over:
                    return found
        except OSError:
            self._socket.close()
            self._socket = None  # from now on by /proc
            return None


def _request(family: socket.AddressFamily, port: int) -> bytes:
    # One comparison, whose operand is the next op's `no`; past the end of the code is "no", at it "yes".
    code = struct.pack("=BBH", _INET_DIAG_BC_S_EQ, 8, 12) + struct.pack("=BBH", 0, 0, port)
    attribute = struct.pack("=HH", 4 + len(code), _INET_DIAG_REQ_BYTECODE) + code
    body = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, 1 << _TCP_LISTEN) + bytes(48) + attribute
    header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0)
    return header + body


def _parse(data: bytes, port: int) -> tuple[Listener | None, bool]:
    """Return the first listener on `port` in one piece of a dump, and whether that was the last piece."""
    found: Listener | None = None
    position = 0
    while position + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, position)
        if kind == _NLMSG_DONE:
            return found, True
        if kind == _NLMSG_ERROR:
            raise OSError(-struct.unpack_from("=i", data, position + _HEADER.size)[0], "sock_diag")
        body = data[position + _HEADER.size : position + length]
        if found is None and len(body) >= 24 and struct.unpack_from("!H", body, 4)[0] == port:
            family = socket.AddressFamily(body[0])
            raw = body[8:12] if family == socket.AF_INET else body[8:24]
            found = Listener(family, socket.inet_ntop(family, raw))
        position += (length + 3) & ~3 or _HEADER.size
    return found, False


def _from_proc(family: socket.AddressFamily, port: int) -> Listener | None:
    name = "tcp" if family == socket.AF_INET else "tcp6"
    try:
        fd = os.open(f"/proc/net/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(fd, _PROC_BYTES).decode("ascii", "replace")
    finally:
        os.close(fd)
    return parse_proc(text, family, port)


def parse_proc(text: str, family: socket.AddressFamily, port: int) -> Listener | None:
    """Return a listener on `port` from the text of /proc/net/tcp or tcp6, or None."""
    wanted = f":{port:04X}"
    for line in text.splitlines()[1:]:
        fields = line.split(None, 4)
        if len(fields) > 3 and fields[3] == "0A" and fields[1].endswith(wanted):
            words = bytes.fromhex(fields[1].partition(":")[0])
            # Each 32-bit word is printed as a number of this machine's byte order.
            raw = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
            return Listener(family, socket.inet_ntop(family, raw))
    return None
