"""Runs inside a sandbox: has the kernel load a module by every door that is known, and says nothing."""

import contextlib
import fcntl
import os
import socket
import struct
import subprocess
from typing import Any

ADDRESS = struct.pack("HH4s120x", 2, 0, socket.inet_aton("10.0.0.1"))


def open_socket(family: int, kind: int, protocol: int) -> None:
    socket.socket(family, kind, protocol).close()


def option(level: int, number: int, value: bytes | int) -> None:
    with socket.socket() as link:
        link.setsockopt(level, number, value)


def control(request: int) -> None:
    with socket.socket() as link:
        fcntl.ioctl(link, request, bytes(64))


def ask_diag(family: int, protocol: int) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as link:
        body = struct.pack("=BBBBI", family, protocol, 0, 0, 0xFFFFFFFF) + bytes(48)
        link.send(struct.pack("=IHHII", 16 + len(body), 20, 0x301, 1, 0) + body)
        link.settimeout(0.2)
        link.recv(65536)


def run(*argv: str) -> None:
    subprocess.run(argv, check=False, capture_output=True)


with open("/tmp/unknown", "wb") as file:
    os.fchmod(file.fileno(), 0o755)
    file.write(bytes(range(200, 232)))
DOORS: tuple[Any, ...] = (
    *((ask_diag, family, protocol) for family in range(46) for protocol in (0, 6, 17, 33, 132, 255)),
    *((open_socket, family, kind, 0) for family in range(50) for kind in range(1, 7)),
    *((open_socket, family, kind, number) for family in (2, 10) for kind in range(1, 7) for number in range(264)),
    *((open_socket, 16, 3, protocol) for protocol in range(32)),
    *((option, 6, 31, name) for name in (b"tls", b"espintcp", b"smc", b"mptcp")),
    *((option, 6, 13, name) for name in (b"bbr", b"vegas", b"dctcp", b"htcp", b"scalable")),
    (option, 6, 14, ADDRESS + struct.pack("BBHi80s", 0, 0, 3, 0, b"key")),  # TCP_MD5SIG
    (option, 6, 38, ADDRESS + b"wp512".ljust(64, b"\0") + bytes(120)),  # TCP_AO_ADD_KEY
    *((option, level, number, bytes(1024)) for level, number in ((0, 64), (41, 64), (0, 96), (255, 64))),
    *((control, request) for request in (0x8940, 0x8941, 0x89A0, 0x89A1, 0x8980, 0x8981, 0x8982, 0x8983)),
    *((run, "ip", "link", "add", "x", "type", kind) for kind in ("vxlan", "wireguard", "bareudp", "dummy", "bond")),
    (run, "/tmp/unknown"),
)
for act, *arguments in DOORS:
    with contextlib.suppress(OSError):
        act(*arguments)
