"""The nftables table, as text for `nft -f -`: purely, and made of numbers and addresses alone.

What a sandbox sends passes, in this order:

    prerouting, raw   its own Ethernet and IP address, or dropped
    input             as forward: the host's own addresses are reached where they are listed, else refused
    forward           other sandboxes refused, listed or not; connections above the limit refused; then by its source:
                      internet        established; not to the host, its neighbours or forbidden networks; else passed
                      allow_<index>   established since the last change of the list; listed single addresses; not to the
                                      host; listed networks that are special as a whole; not to neighbours or forbidden
                                      networks; other listed networks; what names were answered with; else refused
    postrouting       masquerade

and towards a sandbox only answers pass. Fragments are put together before (connection tracking does that), so no rule
sees half a head.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

from .state import Host, Ports, State, version_of

#: How long an attempt that was denied is not told again.
TOLD_S: Final = 10
#: Attempts and connections that are remembered; above, they are refused all the same.
_MANY: Final = 65_536
_PROTOCOLS: Final = ("tcp", "udp")
_REFUSE: Final = "reject with icmpx type admin-prohibited"

_TABLE: Final = """
add table inet {table}
delete table inet {table}
table inet {table} {{
    set links {{ type ifname; }}
    set sources_4 {{ type ifname . ether_addr . ipv4_addr; }}
    set sources_6 {{ type ifname . ether_addr . ipv6_addr; }}
    set forbidden_4 {{ type ipv4_addr; flags interval; auto-merge; {forbidden_4} }}
    set forbidden_6 {{ type ipv6_addr; flags interval; auto-merge; {forbidden_6} }}
    set counted_4 {{ type ipv4_addr; size {many}; flags dynamic; }}
    set counted_6 {{ type ipv6_addr; size {many}; flags dynamic; }}
    set told_4 {{
        type ipv4_addr . ipv4_addr . inet_proto . inet_service
        size {many}; flags dynamic,timeout; timeout {told_s}s
    }}
    set told_6 {{
        type ipv6_addr . ipv6_addr . inet_proto . inet_service
        size {many}; flags dynamic,timeout; timeout {told_s}s
    }}
    map modes_4 {{ type ipv4_addr : verdict; }}
    map modes_6 {{ type ipv6_addr : verdict; }}
    map connections_4 {{ type ipv4_addr : verdict; }}
    map connections_6 {{ type ipv6_addr : verdict; }}

    chain deny {{
        ip saddr . ip daddr . meta l4proto . th dport @told_4 {refuse}
        ip6 saddr . ip6 daddr . meta l4proto . th dport @told_6 {refuse}
        add @told_4 {{ ip saddr . ip daddr . meta l4proto . th dport }} log group {group} snaplen 64 {refuse}
        add @told_6 {{ ip6 saddr . ip6 daddr . meta l4proto . th dport }} log group {group} snaplen 64 {refuse}
        {refuse}
    }}
    chain special {{
        fib daddr type {{ local, broadcast, anycast, multicast }} goto deny
        ip daddr @forbidden_4 goto deny
        ip6 daddr @forbidden_6 goto deny
    }}
    chain internet {{
        ct state established,related accept
        jump special
        accept
    }}
    chain by_source {{
        ip saddr vmap @modes_4
        ip6 saddr vmap @modes_6
        drop
    }}
    chain out {{
        ct state new ip saddr vmap @connections_4
        ct state new ip6 saddr vmap @connections_6
        goto by_source
    }}
    chain spoofed {{
        iifname . ether saddr . ip saddr @sources_4 return
        iifname . ether saddr . ip6 saddr @sources_6 return
        drop
    }}
    chain prerouting {{
        type filter hook prerouting priority raw;
        iifname @links jump spoofed
    }}
    chain forward {{
        type filter hook forward priority filter - 5;
        iifname @links oifname @links goto deny
        iifname @links jump out
        oifname @links ct state established,related accept
        oifname @links drop
    }}
    chain input {{
        type filter hook input priority filter - 5;
        iifname @links jump out
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat;
{masquerade}
    }}
}}
"""


def table(host: Host, neighbours: Iterable[str]) -> str:
    """Return the commands that make the table anew, empty; `neighbours` are the networks on the host's own links."""
    pools = {4: host.pool_4, 6: host.pool_6}
    words = {4: "ip", 6: "ip6"}
    near = {4: set(host.forbidden_4) | {host.pool_4}, 6: set(host.forbidden_6)}
    if host.pool_6:
        near[6].add(host.pool_6)
    for network in neighbours:
        near[version_of(network)].add(network)
    masquerade = [
        f"        {words[version]} saddr {pool} oifname != @links masquerade fully-random"
        for version, pool in pools.items()
        if pool
    ]
    return _TABLE.format(
        table=host.table,
        forbidden_4=_elements(near[4]),
        forbidden_6=_elements(near[6]),
        many=_MANY,
        told_s=TOLD_S,
        group=host.group,
        refuse=_REFUSE,
        masquerade="\n".join(masquerade),
    )


def forget_table(host: Host) -> str:
    """Return the commands that take the table away."""
    return f"add table inet {host.table}\ndelete table inet {host.table}\n"


def renew_neighbours(host: Host, neighbours: Iterable[str]) -> str:
    """Return the commands that add networks which the host's links have got since."""
    found = ""
    for version in (4, 6):
        networks = [network for network in neighbours if version_of(network) == version]
        if networks:
            found += f"add element inet {host.table} forbidden_{version} {{ {', '.join(sorted(networks))} }}\n"
    return found


def admit(host: Host, state: State, limits: set[int]) -> str:
    """Return the commands that let a sandbox's packets pass; `limits` are the chains for connections that exist."""
    where, lines = f"inet {host.table}", []
    if state.mode == "allowlist":
        lines += _allow_list(host, state)
    verdict = f"goto allow_{state.index}" if state.mode == "allowlist" else "goto internet"
    if state.connections is not None and state.connections not in limits:
        lines += _limit(host, state.connections)
    for version, address in state.addresses:
        lines.append(f"add element {where} modes_{version} {{ {address} : {verdict} }}")
        if state.connections is not None:
            lines.append(
                f"add element {where} connections_{version} {{ {address} : jump connections_{state.connections} }}"
            )
        lines.append(f"add element {where} sources_{version} {{ {state.name} . {state.mac} . {address} }}")
    lines.append(f"add element {where} links {{ {state.name} }}")
    return "".join(f"{line}\n" for line in lines)


def expel(host: Host, state: State) -> str:
    """Return the commands that take back what `admit` did. The link is in no set then: it must be gone before."""
    where = f"inet {host.table}"
    lines = [f"delete element {where} links {{ {state.name} }}"]
    for version, address in state.addresses:
        lines.append(f"delete element {where} sources_{version} {{ {state.name} . {state.mac} . {address} }}")
        if state.connections is not None:
            lines.append(f"delete element {where} connections_{version} {{ {address} }}")
        lines.append(f"delete element {where} modes_{version} {{ {address} }}")
    if state.mode == "allowlist":
        lines.append(f"delete chain {where} allow_{state.index}")
        lines += [f"delete set {where} {name}" for name in _sets(state.index)]
    return "".join(f"{line}\n" for line in lines)


def permit(host: Host, state: State, old: Iterable[str], new: Iterable[str], version: int) -> str:
    """Return the commands that replace destinations that names were answered with (made by `elements`)."""
    lines = ""
    for verb, listed in (("delete", ", ".join(old)), ("add", ", ".join(new))):
        if listed:
            lines += f"{verb} element inet {host.table} answered_{version}_{state.index} {{ {listed} }}\n"
    return lines


def renew(host: Host, state: State, present: dict[int, list[str]]) -> str:
    """Return the commands that make the sets of answered destinations anew, by the version of their addresses."""
    lines = ""
    for version in (4, 6):
        lines += f"flush set inet {host.table} answered_{version}_{state.index}\n"
        lines += permit(host, state, [], present.get(version, []), version)
    return lines


def elements(address: str, ranges: Iterable[Ports]) -> list[str]:
    """Return the elements of a set of destinations for TCP and UDP: address, protocol, ports."""
    shown = [f"{low}-{high}" if high > low else f"{low}" for low, high in ranges]
    return [f"{address} . {protocol} . {ports}" for ports in shown for protocol in _PROTOCOLS]


def _sets(index: int) -> list[str]:
    return [f"answered_{version}_{index}" for version in (4, 6)]


def _allow_list(host: Host, state: State) -> list[str]:
    where, index, mark = f"inet {host.table}", state.index, f"ct mark set {state.generation}"
    chain = f"add rule {where} allow_{index}"
    lines = [
        f"add set {where} {name} {{ type ipv{name[9]}_addr . inet_proto . inet_service; flags interval; }}"
        for name in _sets(index)
    ]
    lines += [
        f"add chain {where} allow_{index}",
        # A connection that began under an earlier list is judged by its address again.
        f"{chain} ct state established,related ct mark {state.generation} accept",
    ]
    # Rules, and no set: what is listed may overlap as it likes.
    single: list[str] = []
    special: list[str] = []
    other: list[str] = []
    for network, low, high in state.networks:
        word = "ip" if version_of(network) == 4 else "ip6"
        rule = f"{chain} {word} daddr {network} meta l4proto {{ tcp, udp }} th dport {low}-{high} {mark} accept"
        chosen = single if _is_single(network) else special if _is_special(host, network) else other
        chosen.append(rule)
    lines += [
        *single,
        f"{chain} fib daddr type local goto deny",
        *special,
        f"{chain} jump special",
        *other,
        f"{chain} ip daddr . meta l4proto . th dport @answered_4_{index} {mark} accept",
        f"{chain} ip6 daddr . meta l4proto . th dport @answered_6_{index} {mark} accept",
        f"{chain} goto deny",
    ]
    return lines


def _is_single(network: str) -> bool:
    found = ipaddress.ip_network(network)
    return found.prefixlen == found.max_prefixlen


def _is_special(host: Host, text: str) -> bool:
    """Return whether who lists this network means it although it is special: it is so as a whole.

    A wider one would open what its author never thought of: 0.0.0.0/0 the host's network and its metadata service.
    """
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv4Network):
        return any(network.subnet_of(special) for special in map(ipaddress.IPv4Network, host.forbidden_4))
    return any(network.subnet_of(special) for special in map(ipaddress.IPv6Network, host.forbidden_6))


def _limit(host: Host, connections: int) -> list[str]:
    where, chain = f"inet {host.table}", f"connections_{connections}"
    lines = [f"add chain {where} {chain}"]
    for version, word in ((4, "ip"), (6, "ip6")):
        lines.append(
            f"add rule {where} {chain} add @counted_{version} {{ {word} saddr ct count over {connections} }} {_REFUSE}"
        )
    return lines


def _elements(networks: set[str]) -> str:
    return f"elements = {{ {', '.join(sorted(networks))} }}" if networks else ""
