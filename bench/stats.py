"""Spread and ratios: pure arithmetic over samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

#: A sample of each round; None where that contender failed in that round.
Samples = Sequence[float | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """The middle of samples and what eight in ten of them lie within."""

    p10: float
    p50: float
    p90: float
    count: int

    def scaled(self, factor: float) -> Spread:
        """Return the same in another unit."""
        return Spread(self.p10 * factor, self.p50 * factor, self.p90 * factor, self.count)


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """Return the value below which `fraction` of sorted values lie, interpolated between neighbours.

    Raises:
        ValueError: there are no values, or the fraction is outside 0 to 1.
    """
    if not ordered or not 0 <= fraction <= 1:
        raise ValueError("a percentile needs values, and a fraction from 0 to 1")
    place = fraction * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(samples: Samples) -> Spread | None:
    """Return the spread of what is there, None of nothing."""
    ordered = sorted(value for value in samples if value is not None)
    if not ordered:
        return None
    p10, p50, p90 = (percentile(ordered, fraction) for fraction in (0.1, 0.5, 0.9))
    return Spread(p10, p50, p90, len(ordered))


def ratios(samples: Samples, base: Samples) -> list[float]:
    """Return each sample over the base's of the same round.

    Rounds that lack either, or whose base is not positive (memory can seem to be freed), give none.
    """
    pairs = zip(samples, base, strict=False)
    return [value / beside for value, beside in pairs if value is not None and beside is not None and beside > 0]


def show(value: float) -> str:
    """Return a number with as many digits as it is worth: 0.52, 7.3, 153."""
    return f"{value:.2f}" if abs(value) < 1 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def show_spread(found: Spread | None) -> str:
    """Return `p50 [p10-p90]`, or a dash; one sample has no spread."""
    if found is None:
        return "-"
    if found.count == 1:
        return show(found.p50)
    return f"{show(found.p50)} [{show(found.p10)}-{show(found.p90)}]"
