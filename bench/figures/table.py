"""Samples of one figure, and the order in which contenders are asked for them."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from bench import stats
from bench.contender import Unavailable

#: What ratios are to.
BASE: Final = "sandboxd"


@dataclasses.dataclass(slots=True)
class Table:
    """One figure: a column of samples for each contender, one value a round.

    Attributes:
        scale: what samples are multiplied with for showing; times are kept in seconds.
        higher_is_better: true of rates.
        lost: why a contender has no more samples.
    """

    name: str
    title: str
    unit: str
    scale: float = 1.0
    higher_is_better: bool = False
    samples: dict[str, list[float | None]] = dataclasses.field(default_factory=dict)
    lost: dict[str, str] = dataclasses.field(default_factory=dict)

    def spread(self, contender: str) -> stats.Spread | None:
        """Return a contender's spread in the shown unit."""
        found = stats.spread(self.samples.get(contender, []))
        return found.scaled(self.scale) if found else None

    def ratio(self, contender: str) -> stats.Spread | None:
        """Return the spread of a contender's ratios to sandboxd, formed round by round."""
        return stats.spread(stats.ratios(self.samples.get(contender, []), self.samples.get(BASE, [])))

    def to_json(self) -> dict[str, Any]:
        """Return everything, every sample included."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """How long a figure may go on: at least `least` rounds, then until `seconds` are over or `most` are done."""

    seconds: float
    least: int
    most: int


def rounds(names: Sequence[str], budget: Budget, seed: int = 1) -> Iterator[list[str]]:
    """Yield the contenders' names in a new order each round, so that none always follows the same other."""
    order = random.Random(seed)  # noqa: S311 - a shuffle, not a secret
    began = time.monotonic()
    for number in range(budget.most):
        if number >= budget.least and time.monotonic() - began > budget.seconds:
            return
        yield order.sample(list(names), len(names))


def fill(
    tables: Sequence[Table],
    names: Sequence[str],
    budget: Budget,
    measure: Callable[[str], Sequence[Sequence[float]]],
) -> None:
    """Fill tables round by round. `measure` gives, for a contender, the new samples of each table.

    A contender that fails has its reason noted and is asked no more; its columns are padded so that rounds match.
    """
    for table in tables:
        table.samples.update({name: [] for name in names})
    lost: set[str] = set()
    for order in rounds(names, budget):
        found: dict[str, Sequence[Sequence[float]]] = {}
        for name in order:
            if name in lost:
                continue
            try:
                found[name] = measure(name)
            except Unavailable as error:
                lost.add(name)
                for table in tables:
                    table.lost[name] = str(error)
        _append(tables, names, found)


def _append(tables: Sequence[Table], names: Sequence[str], found: dict[str, Sequence[Sequence[float]]]) -> None:
    for index, table in enumerate(tables):
        length = max((len(values[index]) for values in found.values()), default=0)
        for name in names:
            values = list(found[name][index]) if name in found else []
            table.samples[name] += values + [None] * (length - len(values))
