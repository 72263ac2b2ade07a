"""How much a socket of a sandbox may hold: net.ipv4.tcp_rmem and tcp_wmem of its own network namespace.

What all TCP sockets hold is one budget of the host (net.ipv4.tcp_mem), however many memory limits there are: above its
pressure the kernel shrinks everybody's buffers. No namespace has a part of it, so what one socket may grow to is cut to
a part here: `BUSY_SOCKETS` full ones of a sandbox take `SHARE` of the pressure in each direction. From Linux 6.19 on
a namespace's sockets can count against their cgroup's memory alone (net.core.bypass_prot_mem).
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

BUSY_SOCKETS: Final = 256
SHARE: Final = 1 / 8
#: Below the one a download over 20 ms slows to under 6 MB/s; above the other nothing gets faster.
LEAST_BYTES: Final = 256 * 1024
MOST_BYTES: Final = 4 * 1024 * 1024
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_SYSCTLS: Final = "/proc/sys/net/ipv4"


class Buffers(NamedTuple):
    """Least, first and greatest bytes of a socket, as the kernel writes them: "4096 131072 6291456"."""

    tcp_rmem: str
    tcp_wmem: str


def of_host(sysctls: str = _SYSCTLS) -> Buffers:
    """Return what a sandbox's namespace is given on this host.

    Raises:
        OSError, ValueError: the host's own cannot be read.
    """
    try:
        pressure = _numbers(f"{sysctls}/tcp_mem")[1] * _PAGE
    except FileNotFoundError:
        pressure = 0  # the launcher's own network namespace is not the host's
    most = int(min(MOST_BYTES, max(LEAST_BYTES, pressure * SHARE / BUSY_SOCKETS)))
    return Buffers(*(_cut(_numbers(f"{sysctls}/{name}"), most) for name in Buffers._fields))


def _numbers(path: str) -> list[int]:
    with open(path) as file:
        return [int(word) for word in file.read().split()]


def _cut(values: list[int], most: int) -> str:
    return " ".join(str(min(value, most)) for value in values)
