"""Create → first output → destroy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bench.figures.table import Budget, Table, fill

if TYPE_CHECKING:
    from bench.contender import Contender


def measure(contenders: Mapping[str, Contender], quick: bool) -> tuple[list[Table], dict[str, list[float]]]:
    """Return the tables, and where the SDK's time went: seconds of each phase."""
    whole = Table("create", "Create → output → destroy", "ms", 1000)
    first = Table("create_first_output", "Create → first output", "ms", 1000)
    phases: dict[str, list[float]] = {}

    def cold(name: str) -> tuple[list[float], list[float]]:
        life = contenders[name].cold()
        for phase, seconds in life.phases.items():
            phases.setdefault(phase, []).append(seconds)
        return [life.total_s], [life.first_s]

    budget = Budget(10, 5, 15) if quick else Budget(75, 10, 60)
    fill([whole, first], list(contenders), budget, cold)
    return [whole, first], phases
