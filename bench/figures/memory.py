"""What an idle sandbox costs: PSS of all that the contender runs, and what the host has less of."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from bench.figures.exec import give_back
from bench.figures.table import Budget, Table, fill
from bench.machine import available_bytes, tree_pss

if TYPE_CHECKING:
    from bench.contender import Contender

#: Until what a start left behind (freed pages, processes that end) has settled.
_SETTLE_S: Final = 0.5
_MEBI: Final = 1024 * 1024


def measure(contenders: Mapping[str, Contender], quick: bool) -> list[Table]:
    """Return both tables, in MiB a sandbox."""
    count = 5 if quick else 20
    pss = Table("memory_pss", f"Memory of an idle one (PSS, mean of {count})", "MiB")
    available = Table("memory_available", f"Memory of an idle one (MemAvailable, mean of {count})", "MiB")
    pause = threading.Event()

    def idle(name: str) -> tuple[list[float], list[float]]:
        contender = contenders[name]
        with contextlib.ExitStack() as stack:
            stack.callback(give_back, contender.hold())  # what the first one costs is not every one's
            gc.collect()
            pause.wait(_SETTLE_S)
            before, free = tree_pss(contender.pid), available_bytes()
            for _ in range(count):
                stack.callback(give_back, contender.hold())
            pause.wait(_SETTLE_S)
            used, taken = tree_pss(contender.pid) - before, free - available_bytes()
        return [used / count / _MEBI], [taken / count / _MEBI]

    fill([pss, available], list(contenders), Budget(4, 1, 1) if quick else Budget(40, 1, 3), idle)
    return [pss, available]
