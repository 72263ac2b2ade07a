"""Allow lists: which names and networks a sandbox may reach, and which addresses nobody reaches who does not list them.

Pure. An entry is a name, `*.name` (every name below it, not itself), an address or a network (CIDR), each with
`:port` or `:low-high` where not every TCP and UDP port is meant; an IPv6 address with ports stands in brackets. Parsing
is strict on purpose: what two parsers read differently is how allow lists are passed by (a NUL, a trailing dot, an
address written as one number), so there is one way to write each entry and all else is refused.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Final

from .errors import InvalidRequest

MAX_ENTRIES: Final = 256
#: A name of the DNS as text (RFC 1035, 2.3.4), and brackets and ports.
MAX_ENTRY_CHARS: Final = 300
ALL_PORTS: Final = (1, 65_535)
Ports = tuple[int, int]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_PORTS: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?\Z", re.ASCII)
_BRACKETS: Final = re.compile(r"\[([0-9A-Fa-f:./]+)\](?:/(\d{1,3}))?(?::(.*))?\Z", re.ASCII)
_VISIBLE: Final = re.compile(r"[!-~]+\Z", re.ASCII)
#: What some parsers take for an address: one number, or parts that are octal or hexadecimal.
_NUMERIC_LABEL: Final = re.compile(r"(0x[0-9a-f]*|[0-9]+)\Z", re.ASCII)

#: Special addresses (IANA's registries for IPv4 and IPv6, RFC 6890): the host's, its neighbours', metadata services.
#: Documentation and benchmarking networks are nobody's, so they are not among them.
FORBIDDEN_4: Final = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
#: Those that carry an IPv4 address inside are forbidden whole: a gateway that translates is a way around.
FORBIDDEN_6: Final = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "::/96",
        "::ffff:0:0/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/32",
        "2002::/16",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    )
)


@dataclasses.dataclass(frozen=True, slots=True)
class AllowList:
    """A parsed list.

    Attributes:
        entries: as they are written canonically: lower case, networks by their own notation.
        names: exact names with their ports; below: names of which every name below is meant.
        networks: networks with their ports.
    """

    entries: tuple[str, ...] = ()
    names: tuple[tuple[str, Ports], ...] = ()
    below: tuple[tuple[str, Ports], ...] = ()
    networks: tuple[tuple[Network, Ports], ...] = ()

    def matches(self, name: str) -> tuple[Ports, ...] | None:
        """Return the ports that a name may be reached at, as ranges that do not overlap; None where it is not listed.

        `name` is a DNS name as text, with or without its trailing dot.
        """
        lower = name.lower().removesuffix(".")
        found = [ports for listed, ports in self.names if listed == lower]
        found += [ports for listed, ports in self.below if lower.endswith("." + listed)]
        return merged(found) if found else None

    def lists(self, address: Address) -> bool:
        """Return whether an address that is otherwise out of reach is listed as such (see `lists_special`)."""
        return any(
            address.version == network.version and address in network and lists_special(network)
            for network, _ in self.networks
        )


def parse_allow(entries: Sequence[str], field: str = "network.allow") -> AllowList:
    """Return what a list of entries means.

    Raises:
        InvalidRequest: an entry is none, or there are over 256; `entry` is the one that is wrong.
    """
    if len(entries) > MAX_ENTRIES:
        raise InvalidRequest(
            f"cannot accept {field}: it has {len(entries)} entries, the limit is {MAX_ENTRIES}", field=field
        )
    shown: dict[str, None] = {}
    names: dict[tuple[str, Ports], None] = {}
    below: dict[tuple[str, Ports], None] = {}
    networks: dict[tuple[Network, Ports], None] = {}
    for entry in entries:
        host, ports = _split(entry, field)
        suffix = "" if ports == ALL_PORTS else f":{ports[0]}" if ports[0] == ports[1] else f":{ports[0]}-{ports[1]}"
        network = _network(host, entry, field)
        if network is not None:
            networks[network, ports] = None
            text = str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)
            shown[f"[{text}]{suffix}" if network.version == 6 and suffix else text + suffix] = None
        elif host.startswith("*."):
            name = _name(host[2:], entry, field)
            below[name, ports] = None
            shown[f"*.{name}{suffix}"] = None
        else:
            name = _name(host, entry, field)
            names[name, ports] = None
            shown[name + suffix] = None
    return AllowList(tuple(shown), tuple(names), tuple(below), tuple(networks))


def forbidden(address: Address) -> str | None:
    """Return why an address is out of reach for who does not list it; None where it is anybody's."""
    for network in FORBIDDEN_4 if address.version == 4 else FORBIDDEN_6:
        if address in network:
            return f"{address} is in {network}, which is not on the internet"
    return None


def lists_special(network: Network) -> bool:
    """Return whether a listed network means special addresses in it: it is one address, or special as a whole.

    A wider one (0.0.0.0/0, say) means the public addresses in it, and opens neither the host nor a metadata service.
    """
    if network.prefixlen == network.max_prefixlen:
        return True
    if isinstance(network, ipaddress.IPv4Network):
        return any(network.subnet_of(special) for special in FORBIDDEN_4)
    return any(network.subnet_of(special) for special in FORBIDDEN_6)


def merged(ranges: Iterable[Ports]) -> tuple[Ports, ...]:
    """Return ranges of ports that do not overlap."""
    found: list[Ports] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return tuple(found)


def _fail(entry: str, field: str, why: str) -> InvalidRequest:
    shown = entry[:80]
    return InvalidRequest(f"cannot accept {field}: entry {shown!r}: {why}", field=field, entry=shown)


def _split(entry: str, field: str) -> tuple[str, Ports]:
    if not isinstance(entry, str) or not entry or len(entry) > MAX_ENTRY_CHARS:
        raise _fail(str(entry), field, f"an entry is 1 to {MAX_ENTRY_CHARS} characters of text")
    if not entry.isascii():
        raise _fail(entry, field, "a name with non-ASCII letters must be written in its xn-- form")
    if not _VISIBLE.match(entry):
        raise _fail(entry, field, "it has a space, a NUL or another control character")
    if "@" in entry or "//" in entry or "?" in entry or "#" in entry or "\\" in entry or "%" in entry:
        raise _fail(entry, field, "it must be a name, an address or a network, not a URL")
    bracketed = _BRACKETS.match(entry)
    if bracketed:
        inside, prefix, ports = bracketed.groups()
        return (f"{inside}/{prefix}" if prefix else inside), _ports(ports, entry, field)
    if entry.count(":") > 1:
        return entry, ALL_PORTS  # an IPv6 address or network, or nothing
    host, colon, ports = entry.partition(":")
    return host, _ports(ports if colon else None, entry, field)


def _ports(text: str | None, entry: str, field: str) -> Ports:
    if text is None:
        return ALL_PORTS
    found = _PORTS.match(text)
    low = int(found[1]) if found else 0
    high = int(found[2]) if found and found[2] else low
    if not 1 <= low <= high <= ALL_PORTS[1]:
        raise _fail(entry, field, "ports are 1 to 65535, one or a range such as 8000-8100")
    return low, high


def _network(host: str, entry: str, field: str) -> Network | None:
    """Return the address or network that `host` is; None where it has the form of a name."""
    address, slash, prefix = host.partition("/")
    labels = address.split(".")
    is_address = ":" in address or all(_NUMERIC_LABEL.match(label.lower()) for label in labels)
    if not is_address and not slash:
        return None
    if slash and not (prefix.isascii() and prefix.isdigit() and len(prefix) <= 3 and str(int(prefix)) == prefix):
        raise _fail(entry, field, "a network is an address and a length, such as 203.0.113.0/24")
    try:
        # Strict: four decimal parts without leading zeros (ipaddress refuses all else), and no bits of a host.
        return ipaddress.ip_network(host)
    except ValueError as error:
        raise _fail(entry, field, f"it is not an address or a network ({error})") from None


def _name(name: str, entry: str, field: str) -> str:
    lower = name.lower()
    if lower.endswith("."):
        raise _fail(entry, field, "a name must be written without its trailing dot")
    labels = lower.split(".")
    if len(lower) > 253 or not all(_LABEL.match(label) for label in labels):
        raise _fail(entry, field, "a name has labels of 1 to 63 letters, digits and inner dashes, 253 in all")
    if _NUMERIC_LABEL.match(labels[-1]):
        raise _fail(entry, field, "a name does not end in a number; an address has four decimal parts")
    return lower
