"""The router's nftables table, as text for `nft -f -`: purely, and made of numbers and addresses alone.

Nothing passes that no rule names: every chain of it drops what comes to its end. What a sandbox sends passes, in this
order:

    prerouting, raw   its own device, Ethernet and IP address, or dropped
    input             refused: the router itself is nobody's to reach
    forward           other sandboxes refused, listed or not; connections above the limit refused; then by its source:
                      internet        established; not to the host, its neighbours or forbidden networks; else passed
                      allow_<index>   established since the last change of the list; listed single addresses; not to the
                                      host; listed networks that are special as a whole; not to neighbours or forbidden
                                      networks; other listed networks; what names were answered with; else refused

and towards a sandbox only answers pass. Fragments are put together before (connection tracking does that), so no rule
sees half a head. A link that is in none of the sets, since it was made just now or its rules were taken back, is dead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from . import boxes
from .state import UPLINK, Host, Ports, State, parse, version_of

if TYPE_CHECKING:
    from .watch import HostNetwork

#: How long an attempt that was denied is not told again.
TOLD_S: Final = 10
# Protocols are numbers (TCP 6, UDP 17, ICMP 1, ICMPv6 58): nft runs where there is no /etc/protocols.
#: Attempts and connections that are remembered; above, they are refused all the same.
_MANY: Final = 65_536
REFUSE: Final = "reject with icmpx type admin-prohibited"
_WORDS: Final = {4: "ip", 6: "ip6"}

_TABLE: Final = """
add table inet {table}
delete table inet {table}
table inet {table} {{
    set carried {{ type inet_proto; elements = {{ 6, 17 }}; }}
    set sources_4 {{ type ifname . ether_addr . ipv4_addr; }}
    set sources_6 {{ type ifname . ether_addr . ipv6_addr; }}
    set forbidden_4 {{ type ipv4_addr; flags interval; auto-merge; {forbidden_4} }}
    set forbidden_6 {{ type ipv6_addr; flags interval; auto-merge; {forbidden_6} }}
    set near_4 {{ type ipv4_addr; flags interval; auto-merge; {near_4} }}
    set near_6 {{ type ipv6_addr; flags interval; auto-merge; {near_6} }}
    set own_4 {{ type ipv4_addr; flags interval; auto-merge; {own_4} }}
    set own_6 {{ type ipv6_addr; flags interval; auto-merge; {own_6} }}
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
    chain own {{
        ip daddr @own_4 goto deny
        ip6 daddr @own_6 goto deny
    }}
    chain special {{
        jump own
        ip daddr @forbidden_4 goto deny
        ip6 daddr @forbidden_6 goto deny
        ip daddr @near_4 goto deny
        ip6 daddr @near_6 goto deny
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
    chain prerouting {{
        type filter hook prerouting priority raw; policy drop;
        iifname {uplink} accept
        iifname . ether saddr . ip saddr @sources_4 accept
        iifname . ether saddr . ip6 saddr @sources_6 accept
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        iifname {uplink} oifname != {uplink} ct state established,related accept
        iifname {uplink} drop
        oifname != {uplink} goto deny
        goto out
    }}
    chain input {{
        type filter hook input priority filter; policy drop;
        iifname != {uplink} goto deny
    }}
    chain output {{
        type filter hook output priority filter; policy drop;
        meta l4proto {{ 1, 58 }} accept
    }}
}}
"""


def table(host: Host, facts: HostNetwork) -> str:
    """Return the commands that make the table anew: no sandbox is in it."""
    forbidden = {4: set(host.forbidden_4), 6: set(host.forbidden_6)}
    for version, pool in host.pools:
        forbidden[version].add(pool)
    return _TABLE.format(
        table=host.table,
        forbidden_4=_elements(forbidden[4]),
        forbidden_6=_elements(forbidden[6]),
        near_4=_elements(facts.near(4)),
        near_6=_elements(facts.near(6)),
        own_4=_elements(facts.own(4)),
        own_6=_elements(facts.own(6)),
        many=_MANY,
        told_s=TOLD_S,
        group=host.group,
        refuse=REFUSE,
        uplink=f'"{UPLINK}"',
    )


def renew_facts(host: Host, facts: HostNetwork) -> str:
    """Return the commands that say what the host's own addresses are now, and what is on its interfaces."""
    lines = ""
    for version in (4, 6):
        lines += renew_set(host, f"own_{version}", facts.own(version))
        lines += renew_set(host, f"near_{version}", facts.near(version))
    return lines


def renew_set(host: Host, name: str, networks: Iterable[str]) -> str:
    """Return the commands that make a set of the table what it should be."""
    listed = ", ".join(sorted(networks))
    add = f"add element inet {host.table} {name} {{ {listed} }}\n" if listed else ""
    return f"flush set inet {host.table} {name}\n{add}"


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
    return "".join(f"{line}\n" for line in lines)


def expel(host: Host, state: State) -> str:
    """Return the commands that take back what `admit` did; from then on its link is dead."""
    where, lines = f"inet {host.table}", []
    for version, address in state.addresses:
        lines.append(f"delete element {where} sources_{version} {{ {state.name} . {state.mac} . {address} }}")
        if state.connections is not None:
            lines.append(f"delete element {where} connections_{version} {{ {address} }}")
        lines.append(f"delete element {where} modes_{version} {{ {address} }}")
    if state.mode == "allowlist":
        lines.append(f"delete chain {where} allow_{state.index}")
        lines += [f"delete set {where} {name}" for name, _, _ in _listed(host, state)]
        lines += [f"delete set {where} {name}" for name in _answered(state.index)]
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
    return "".join(renew_set(host, f"answered_{version}_{state.index}", present.get(version, [])) for version in (4, 6))


def elements(address: str, ranges: Iterable[Ports]) -> list[str]:
    """Return the elements of a set of destinations: address, ports."""
    return [f"{address} . {low}-{high}" if high > low else f"{address} . {low}" for low, high in ranges]


def singles(state: State) -> set[str]:
    """Return the single addresses that a sandbox's list names: those of the host among them may be reached."""
    return {network.partition("/")[0] for network, _, _ in state.networks if is_single(network)}


def is_single(network: str) -> bool:
    """Return whether a network is one address."""
    bits, _, length = parse(network)
    return length == bits


def _answered(index: int) -> list[str]:
    return [f"answered_{version}_{index}" for version in (4, 6)]


def _listed(host: Host, state: State) -> list[tuple[str, int, list[boxes.Box]]]:
    """Return the sets of a list, in the order that they are asked in: name, IP version, what is in it."""
    kinds: dict[tuple[str, int], list[tuple[str, int, int]]] = {}
    for entry in state.networks:
        kind = "single" if is_single(entry[0]) else "special" if _is_special(host, entry[0]) else "other"
        kinds.setdefault((kind, version_of(entry[0])), []).append(entry)
    return [
        (f"{kind}_{version}_{state.index}_{number}", version, chosen)
        for (kind, version), entries in kinds.items()
        for number, chosen in enumerate(boxes.disjoint(entries))
    ]


def _allow_list(host: Host, state: State) -> list[str]:
    where, index, mark = f"inet {host.table}", state.index, f"ct mark set {state.generation}"
    chain = f"add rule {where} allow_{index}"
    lines, rules = [], {"single": [""], "special": [""], "other": [""]}
    for name, version, chosen in _listed(host, state):
        listed = ", ".join(map(boxes.element, chosen))
        kind = f"type ipv{version}_addr . inet_service; flags interval;"
        lines.append(f"add set {where} {name} {{ {kind} elements = {{ {listed} }}; }}")
        rules[name.partition("_")[0]].append(f"{chain} {_WORDS[version]} daddr . th dport @{name} {mark} accept")
    for name in _answered(index):
        lines.append(f"add set {where} {name} {{ type ipv{name[9]}_addr . inet_service; flags interval; }}")
    return lines + [
        f"add chain {where} allow_{index}",
        # A connection that began under an earlier list is judged by its address again.
        f"{chain} ct state established,related ct mark {state.generation} accept",
        f"{chain} meta l4proto != @carried goto deny",
        *rules["single"][1:],
        f"{chain} jump own",
        *rules["special"][1:],
        f"{chain} jump special",
        *rules["other"][1:],
        f"{chain} ip daddr . th dport @answered_4_{index} {mark} accept",
        f"{chain} ip6 daddr . th dport @answered_6_{index} {mark} accept",
        f"{chain} goto deny",
    ]


def _is_special(host: Host, text: str) -> bool:
    """Return whether who lists this network means it although it is special: it is so as a whole.

    A wider one would open what its author never thought of: 0.0.0.0/0 the host's network and its metadata service.
    """
    bits, first, length = parse(text)
    forbidden = map(parse, host.forbidden_4 if bits == 32 else host.forbidden_6)
    return any(length >= size and (first ^ above) >> (bits - size) == 0 for _, above, size in forbidden)


def _limit(host: Host, connections: int) -> list[str]:
    where, chain = f"inet {host.table}", f"connections_{connections}"
    lines = [f"add chain {where} {chain}"]
    for version, word in _WORDS.items():
        lines.append(
            f"add rule {where} {chain} add @counted_{version} {{ {word} saddr ct count over {connections} }} {REFUSE}"
        )
    return lines


def _elements(networks: Iterable[str]) -> str:
    listed = ", ".join(sorted(networks))
    return f"elements = {{ {listed} }};" if listed else ""
