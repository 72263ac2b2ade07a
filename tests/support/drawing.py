"""Draws a transition table (`{state: {event: next state}}`) as the list of moves that its module's docstring has."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import ModuleType

Table = Mapping[str, Mapping[str, str]]


def draw(table: Table) -> str:
    """Return one line for each event and what it leads to, with the states in which it may come."""
    sources: dict[tuple[str, str], list[str]] = {}
    for state, moves in table.items():
        for event, target in moves.items():
            sources.setdefault((event, target), []).append(state)
    return "\n".join(f"{', '.join(states)} --{event}--> {target}" for (event, target), states in sources.items())


def drawn(module: ModuleType) -> str:
    """Return the moves that a module's docstring lists."""
    lines = (inspect.getdoc(module) or "").splitlines()
    return "\n".join(line.strip() for line in lines if line.startswith("    ") and "-->" in line)


def to_paste(table: Table) -> str:
    """Return what belongs into the docstring."""
    return "\n".join(f"    {line}" for line in draw(table).splitlines())


def reachable(table: Table, start: str) -> set[str]:
    """Return the states that a thing which begins in `start` can come to."""
    found, new = {start}, [start]
    while new:
        for target in table[new.pop()].values():
            if target not in found:
                found.add(target)
                new.append(target)
    return found
