"""exec of /bin/true in a sandbox that is there: back to back, and after an idle gap."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Mapping
from typing import Final

from bench.contender import Contender, Held, Unavailable
from bench.figures.table import Budget, Table, fill

#: Execs of one turn; the first warms up and is not counted.
_BURST: Final = 4
#: The machine idles this long before an exec: kernels make a first cgroup write wait after ~50 ms without any.
_GAP_S: Final = (0.06, 0.1)


def measure(contenders: Mapping[str, Contender], quick: bool) -> list[Table]:
    """Return the tables of both ways."""
    close = Table("exec", "exec /bin/true, back to back", "ms", 1000)
    apart = Table("exec_after_gap", "exec /bin/true, after 60-100 ms idle", "ms", 1000)
    gaps = random.Random(2)  # noqa: S311 - a jitter, not a secret
    pause = threading.Event()
    with contextlib.ExitStack() as stack:
        held = hold_each(contenders, stack, [close, apart])

        def burst(name: str) -> list[list[float]]:
            return [[held[name].exec() for _ in range(_BURST)][1:]]

        def after_gap(name: str) -> list[list[float]]:
            pause.wait(gaps.uniform(*_GAP_S))
            return [[held[name].exec()]]

        fill([close], list(held), Budget(6, 3, 20) if quick else Budget(45, 8, 60), burst)
        fill([apart], list(held), Budget(6, 5, 20) if quick else Budget(45, 15, 80), after_gap)
    return [close, apart]


def hold_each(contenders: Mapping[str, Contender], stack: contextlib.ExitStack, tables: list[Table]) -> dict[str, Held]:
    """Return one idle sandbox of each contender, given back with the stack; note those that have none."""
    held: dict[str, Held] = {}
    for name, contender in contenders.items():
        try:
            held[name] = contender.hold()
        except Unavailable as error:
            for table in tables:
                table.lost[name] = str(error)
            continue
        stack.callback(give_back, held[name])
    return held


def give_back(held: Held) -> None:
    """End what was held, as well as it goes."""
    with contextlib.suppress(Unavailable):  # what is left ends with the workspace
        held.end()
