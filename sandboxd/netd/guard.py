"""What the host's own network namespace has for the router: the uplink, routes back, and a table.

The table translates sandboxes' addresses to the host's, and guards once more what the router guards already: the uplink
reaches the host's own addresses where a list names them one by one, and nothing that only the host's rules lead to.
Whoever flushes the host's rules takes it away: until `restore` has made it anew (some milliseconds) answers do not come
back, since nothing is translated; the router's rules, which are the ones that count, stand meanwhile.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from . import nft, rules, veth
from .state import Host, State, version_of

if TYPE_CHECKING:
    from .veth import Places
    from .watch import HostNetwork

_TABLE: Final = """
add table inet {table}
delete table inet {table}
table inet {table} {{
    set listed_4 {{ type ipv4_addr; {listed_4} }}
    set listed_6 {{ type ipv6_addr; {listed_6} }}
    set special_4 {{ type ipv4_addr; flags interval; auto-merge; {special_4} }}
    set special_6 {{ type ipv6_addr; flags interval; auto-merge; {special_6} }}

    chain sources {{
{sources}
        drop
    }}
    chain prerouting {{
        type filter hook prerouting priority raw; policy accept;
        iifname {uplink} jump sources
        iifname "{prefix}*" iifname != {uplink} drop
    }}
    chain input {{
        type filter hook input priority filter - 5; policy accept;
        iifname != {uplink} accept
        ip daddr @listed_4 accept
        ip6 daddr @listed_6 accept
        {refuse}
    }}
    chain forward {{
        type filter hook forward priority filter - 5; policy accept;
        iifname {uplink} oifname {uplink} drop
        iifname {uplink} ct status dnat ip daddr @special_4 {refuse}
        iifname {uplink} ct status dnat ip6 daddr @special_6 {refuse}
        oifname {uplink} ct state established,related accept
        oifname {uplink} drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
{masquerade}
    }}
}}
"""
_WORDS: Final = {4: "ip", 6: "ip6"}


class Guard:
    """The host's part, of one router."""

    def __init__(self, host: Host, places: Places) -> None:
        self._host = host
        self._places = places
        self._listed: collections.Counter[str] = collections.Counter()  # address -> sandboxes whose list names it
        self._present: set[str] = set()  # those that the table has
        self._pids: set[int] = set()
        self.uplink = 0

    def restore(self, facts: HostNetwork, states: Iterable[State]) -> str:
        """Make all of it what it should be; return why it was refused, or nothing.

        Raises:
            OSError: the kernel refused the uplink or a route.
        """
        states = list(states)
        self.uplink = veth.make_uplink(self._places, self._host)
        veth.lead_back(self._places, self.uplink, states)
        self._listed = collections.Counter(address for state in states for address in rules.singles(state))
        self._present = set(self._listed)
        return self._run_nft(table(self._host, facts, self._present))

    def renew_facts(self, facts: HostNetwork) -> str:
        """Follow the host's network; return why that was refused, or nothing."""
        return self._run_nft(
            "".join(
                rules.renew_set(self._host, f"special_{version}", _special(self._host, facts, version))
                for version in (4, 6)
            )
        )

    def list(self, state: State) -> None:
        """Note the single addresses of a list, which may be reached though they are the host's, after `open`."""
        self._listed.update(rules.singles(state))

    def unlist(self, state: State) -> None:
        """Take that back, after `close`."""
        self._listed.subtract(rules.singles(state))

    def open(self) -> str:
        """Let through what was noted since, before the router does; return why that was refused, or nothing."""
        new = {address for address, count in self._listed.items() if count > 0} - self._present
        self._present |= new
        return self._run_nft(self._elements("add", new))

    def close(self) -> str:
        """Keep back what no list names any more."""
        old = {address for address in self._present if self._listed[address] <= 0}
        self._present -= old
        self._listed = +self._listed
        return self._run_nft(self._elements("delete", old))

    @property
    def ports(self) -> set[int]:
        """Of whom changes what is ours: netlink's notifications name them."""
        return {self._places.host.port, *self._pids}

    def forget_ports(self) -> None:
        """Forget those that have ended, once what they did was read: their pids may be others' then."""
        self._pids.clear()

    def forget(self) -> str:
        """Take all of it away."""
        self._places.host.remove(self._host.uplink)
        return self._run_nft(f"add table inet {self._host.table}\ndelete table inet {self._host.table}\n")

    def _elements(self, verb: str, addresses: set[str]) -> str:
        lines = ""
        for version in (4, 6):
            chosen = sorted(address for address in addresses if version_of(address) == version)
            if chosen:
                lines += f"{verb} element inet {self._host.table} listed_{version} {{ {', '.join(chosen)} }}\n"
        return lines

    def _run_nft(self, commands: str) -> str:
        refused, pid = nft.run(commands)
        self._pids.add(pid)
        return refused


def table(host: Host, facts: HostNetwork, listed: Iterable[str]) -> str:
    """Return the commands that make the host's table anew."""
    elements = {
        f"{name}_{version}": _show(address for address in addresses if version_of(address) == version)
        for version in (4, 6)
        for name, addresses in (("listed", list(listed)), ("special", _special(host, facts, version)))
    }
    sources = [f"        {_WORDS[version]} saddr {pool} return" for version, pool in host.pools]
    masquerade = [
        f'        {_WORDS[version]} saddr {pool} oifname != "{host.uplink}" masquerade fully-random'
        for version, pool in host.pools
    ]
    return _TABLE.format(
        table=host.table,
        prefix=host.prefix,
        uplink=f'"{host.uplink}"',
        refuse=rules.REFUSE,
        sources="\n".join(sources),
        masquerade="\n".join(masquerade),
        **elements,
    )


def _special(host: Host, facts: HostNetwork, version: int) -> set[str]:
    forbidden = host.forbidden_4 if version == 4 else host.forbidden_6
    return {*forbidden, *facts.own(version), *facts.near(version)}


def _show(addresses: Iterable[str]) -> str:
    listed = ", ".join(sorted(addresses))
    return f"elements = {{ {listed} }};" if listed else ""
