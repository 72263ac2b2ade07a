"""Names of hosts, resolved by what the sandbox says and by no code of it.

glibc's getaddrinfo loads the modules that /etc/nsswitch.conf names, from the root that the process has: here, the
sandbox's (CVE-2019-14271's class). So `install` puts this resolver in the place of `socket.getaddrinfo` and its kin,
for all of the process: a literal address is itself, then /etc/hosts, then DNS (dnspython) by /etc/resolv.conf.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Any, Final

import dns.exception
import dns.resolver

_HOSTS: Final = "/etc/hosts"
_RESOLV_CONF: Final = "/etc/resolv.conf"
#: What is read of the two files; they are the sandbox's, and may be anything.
_MAX_FILE_BYTES: Final = 256 * 1024
#: DNS, over all servers and repetitions.
LIFETIME_S: Final = 10.0
_LOCAL: Final = {"localhost": ["127.0.0.1", "::1"]}

_Info = tuple[int, int, int, str, tuple[Any, ...]]


def install() -> None:
    """From now on, every library of this process resolves names here."""
    socket.getaddrinfo = getaddrinfo  # type: ignore[assignment]
    for name in ("gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo", "getfqdn"):
        setattr(socket, name, _refuse)


def _refuse(*args: object) -> Any:  # noqa: ANN401 - never returns
    raise socket.gaierror(socket.EAI_FAIL, "only getaddrinfo resolves names here")


def getaddrinfo(
    host: bytes | str | None,
    port: bytes | str | int | None,
    family: int = 0,
    type: int = 0,  # noqa: A002 - socket's own name for it
    proto: int = 0,
    flags: int = 0,
) -> list[_Info]:
    """Resolve as `socket.getaddrinfo` does, for stream sockets.

    Raises:
        socket.gaierror: there is no address.
    """
    name = host.decode("ascii") if isinstance(host, bytes) else host or ""
    number = int(port or 0)
    found: list[_Info] = []
    for address in addresses(name):
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        if family in (0, kind):
            place: tuple[Any, ...] = (address, number) if kind == socket.AF_INET else (address, number, 0, 0)
            found.append((kind, type or socket.SOCK_STREAM, proto or socket.IPPROTO_TCP, "", place))
    if not found:
        raise socket.gaierror(socket.EAI_NONAME, "no address of that family")
    return found


def addresses(name: str) -> list[str]:
    """Return the addresses of a host.

    Raises:
        socket.gaierror: it has none, or nobody who would know answers.
    """
    try:
        return [str(ipaddress.ip_address(name))]
    except ValueError:
        pass
    wanted = name.rstrip(".").lower()
    found = _from_hosts(wanted) or _LOCAL.get(wanted)
    return found or _from_dns(wanted)


def _from_hosts(name: str) -> list[str]:
    found = []
    for line in _read(_HOSTS).splitlines():
        words = line.partition("#")[0].split()
        if name in (word.lower() for word in words[1:]):
            try:
                found.append(str(ipaddress.ip_address(words[0])))
            except ValueError:
                continue
    return found


def _from_dns(name: str) -> list[str]:
    servers = []
    for line in _read(_RESOLV_CONF).splitlines():
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            try:
                servers.append(str(ipaddress.ip_address(words[1])))
            except ValueError:
                continue
    if not servers:
        raise socket.gaierror(socket.EAI_AGAIN, "the sandbox has no nameserver")
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers = servers[:3]
    resolver.lifetime = LIFETIME_S
    try:
        return list(resolver.resolve_name(name).addresses())
    except dns.resolver.NXDOMAIN:
        raise socket.gaierror(socket.EAI_NONAME, "no such name") from None
    except dns.resolver.NoAnswer:
        raise socket.gaierror(socket.EAI_NODATA, "the name has no address") from None
    except dns.exception.DNSException as error:
        raise socket.gaierror(socket.EAI_AGAIN, f"no nameserver answers ({type(error).__name__})") from None


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO keeps nobody waiting
    except OSError:
        return ""
    with open(fd, "rb") as file:
        try:
            return (file.read(_MAX_FILE_BYTES) or b"").decode("utf-8", "replace")
        except OSError:
            return ""
