"""What names were answered with, and until when: which addresses an allow list's rules let be reached.

The kernel could let elements of a set lapse by themselves, but before Linux 6.12 not be given more time; so they have
no time there, and are taken out here.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from . import rules
from .boxes import merged

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .state import Host, Ports, State

#: Addresses of one sandbox at once; what is above is not let through. The oldest go first.
MAX_ADDRESSES: Final = 4096


class Answers:
    """Those of one sandbox."""

    def __init__(self, host: Host, state: State) -> None:
        self._host = host
        self._state = state
        self._until: dict[str, dict[Ports, float]] = {}

    def permit(self, address: str, ranges: Iterable[Ports], until: float) -> str:
        """Let an address be reached at these ports until then, at least; return nft's commands."""
        present = self._until.get(address, {})
        before = merged(present)
        chosen = dict(present)
        for ports in ranges:
            chosen[ports] = max(until, chosen.get(ports, 0.0))
        self._until.pop(address, None)  # to the end: the latest
        self._until[address] = chosen
        commands = self._replace(address, before, merged(chosen))
        while len(self._until) > MAX_ADDRESSES:
            commands += self._drop(next(iter(self._until)))
        return commands

    def lapse(self, now: float) -> str:
        """Take back what has had its time; return nft's commands."""
        commands = ""
        for address, present in list(self._until.items()):
            live = {ports: until for ports, until in present.items() if until > now}
            if len(live) == len(present):
                continue
            if live:
                self._until[address] = live
                commands += self._replace(address, merged(present), merged(live))
            else:
                commands += self._drop(address)
        return commands

    def renew(self) -> str:
        """Return nft's commands that make the sets what they should be, whatever is in them."""
        present: dict[int, list[str]] = {4: [], 6: []}
        for address, chosen in self._until.items():
            present[ipaddress.ip_address(address).version] += rules.elements(address, merged(chosen))
        return rules.renew(self._host, self._state, present)

    @property
    def has_any(self) -> bool:
        """Whether there is anything that will lapse."""
        return bool(self._until)

    def _drop(self, address: str) -> str:
        return self._replace(address, merged(self._until.pop(address)), [])

    def _replace(self, address: str, before: list[Ports], after: list[Ports]) -> str:
        if before == after:
            return ""
        version = ipaddress.ip_address(address).version
        old, new = rules.elements(address, before), rules.elements(address, after)
        return rules.permit(self._host, self._state, old, new, version)
