"""Clones of a git repository from a server in the same sandbox: all of it, and the last commit alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bench.figures.table import Budget, Table, fill

if TYPE_CHECKING:
    from bench.contender import Contender


def measure(contenders: Mapping[str, Contender], quick: bool) -> list[Table]:
    """Return the tables of both ways."""
    whole = Table("clone", "git clone over http, 38,000 objects", "s")
    last = Table("clone_depth_1", "git clone --depth 1, 2,500 objects", "s")
    budget = Budget(10, 2, 4) if quick else Budget(60, 5, 12)
    for table, depth in ((whole, None), (last, 1)):

        def once(name: str, depth: int | None = depth) -> list[list[float]]:
            return [[contenders[name].clone(depth)]]

        for name in contenders:
            contenders[name].clone(1)  # a template is loaded at the first
        fill([table], list(contenders), budget, once)
    return [whole, last]
