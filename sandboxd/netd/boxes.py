"""Allow lists as elements of interval sets, purely: such a set refuses elements that overlap."""

from __future__ import annotations

from collections.abc import Iterable

from .state import Ports, parse, show

#: A network and ports: every pair of an address in the one and a port in the other.
Box = tuple[str, Ports]


def disjoint(entries: Iterable[tuple[str, int, int]]) -> list[list[Box]]:
    """Return sets of boxes that hold what these (network, first port, last port) hold, all of one IP version.

    Boxes of one set do not overlap. There is more than one set only where a wider network's ports would cut a narrower
    one's into more pieces than it has, so there are never more boxes than entries: a few hundred entries could else be
    written so that they are tens of thousands of boxes.
    """
    listed: dict[tuple[int, int], list[Ports]] = {}
    bits = 0
    for text, low, high in entries:
        bits, first, length = parse(text)
        listed.setdefault((length, first), []).append((low, high))
    sets: list[list[Box]] = []
    taken: dict[tuple[int, int], tuple[list[Ports], int]] = {}  # network -> its ports, merged, and the set it is in
    for length, first in sorted(listed):  # wider networks first
        own = merged(listed[length, first])
        above = [taken[wider] for wider in _around(length, first, bits) if wider in taken]
        rest = without(own, merged(ports for ranges, _ in above for ports in ranges))
        chosen, at = (rest, 0) if len(rest) <= len(own) else (own, 1 + max(number for _, number in above))
        taken[length, first] = own, at
        while len(sets) <= at:
            sets.append([])
        sets[at] += [(show(bits, first, length), ports) for ports in chosen]
    return [boxes for boxes in sets if boxes]


def _around(length: int, first: int, bits: int) -> Iterable[tuple[int, int]]:
    """Yield the networks that one is in, but for itself."""
    for shorter in range(length):
        yield shorter, first >> (bits - shorter) << (bits - shorter)


def merged(ranges: Iterable[Ports]) -> list[Ports]:
    """Return ranges that hold the same ports and neither overlap nor touch."""
    found: list[Ports] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return found


def without(ranges: Iterable[Ports], others: Iterable[Ports]) -> list[Ports]:
    """Return what of `ranges` is in none of `others`; both are merged."""
    found: list[Ports] = []
    cut = list(others)
    for low, high in ranges:
        at = low
        for first, last in cut:
            if last < at or first > high:
                continue
            if first > at:
                found.append((at, first - 1))
            at = last + 1
        if at <= high:
            found.append((at, high))
    return found


def element(box: Box) -> str:
    """Return a box as an element of a set of addresses and ports."""
    network, (low, high) = box
    ports = f"{low}-{high}" if high > low else f"{low}"
    address, _, length = network.partition("/")
    if length == "0":  # no prefix to nft where it is one of several fields
        return f"{address}-{'ffff:' * 7 + 'ffff' if ':' in address else '255.255.255.255'} . {ports}"
    return f"{address if int(length) == parse(network)[0] else network} . {ports}"
