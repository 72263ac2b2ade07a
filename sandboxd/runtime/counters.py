"""The daemon's counters of its own work, as plain numbers, independent of who reads them.

Counters only grow while the daemon lives, and start at 0 with it. `sandboxd/metrics/` turns them into text.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .ports import Port

#: Upper bounds in seconds: from an exec's start (ms) to a creation that waits for others and a full disk.
DURATION_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Durations:
    """A histogram of seconds: how many were at most each bound, and their sum."""

    def __init__(self, bounds: Sequence[float] = DURATION_BOUNDS) -> None:
        self.bounds = tuple(bounds)
        self.sum = 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    def __repr__(self) -> str:
        return f"<Durations {self.count} of {self.sum:.3f} s>"

    @property
    def count(self) -> int:
        """How many were added."""
        return sum(self._counts)

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect.bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[float, int]]:
        """Return each upper bound, the last one infinite, with the count of what was not above it."""
        found, total = [], 0
        for bound, count in zip((*self.bounds, float("inf")), self._counts, strict=True):
            total += count
            found.append((bound, total))
        return found


@dataclasses.dataclass(slots=True)
class Traffic:
    """What went through exposed ports that are not there any more."""

    requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    dialled: int = 0

    def add(self, port: Port) -> None:
        """Keep what a port had, which is being taken back."""
        self.requests += port.requests
        self.bytes_in += port.bytes_in
        self.bytes_out += port.bytes_out
        self.dialled += port.dialled


@dataclasses.dataclass(slots=True)
class Counters:
    """Made by the manager, and shared with what counts.

    Attributes:
        creates: creations that ended well, by seconds from the request to a configured init (waiting for a turn
        included).
        create_failures: those that did not, by the error's kind.
        steps: seconds that the steps of creations took in the launcher, by step.
        destroys: destructions, by seconds; `destroy_failures` by the error's kind.
        losses: sandboxes that failed by themselves: their init ended or broke a rule.
        exec_starts: commands of exec that started, by seconds from the request to the start.
        exec_ends: those whose end was seen, by how: exit, signal, timeout, oom, killed …
        exec_failures: commands that could not be started, by the error's kind.
        answers: answers of the API, by route's name and status.
        refusals: previews' requests that the proxy answered itself, by the error's kind.
        network_denied: names and destinations that sandboxes were refused, each told once in ten seconds.
        closed_ports: what went through exposed ports that are gone.
        loop_lag: seconds that the event loop was late for a timer of once a second.
    """

    creates: Durations = dataclasses.field(default_factory=Durations)
    create_failures: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    steps: dict[str, float] = dataclasses.field(default_factory=dict)
    destroys: Durations = dataclasses.field(default_factory=Durations)
    destroy_failures: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    losses: int = 0
    exec_starts: Durations = dataclasses.field(default_factory=Durations)
    exec_ends: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    exec_failures: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    answers: collections.Counter[tuple[str, int]] = dataclasses.field(default_factory=collections.Counter)
    refusals: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    network_denied: int = 0
    closed_ports: Traffic = dataclasses.field(default_factory=Traffic)
    loop_lag: Durations = dataclasses.field(default_factory=Durations)

    def created(self, seconds: float, steps: dict[str, float]) -> None:
        """Count a creation; `steps` are the seconds of each."""
        self.creates.add(seconds)
        for name, value in steps.items():
            self.steps[name] = self.steps.get(name, 0.0) + value
