"""Code contexts beside kernels: start, imports, a round trip, memory, output, a large picture."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol

from bench.contender import Unavailable
from bench.figures.table import Budget, Table, fill

if TYPE_CHECKING:
    from bench.contender import Contender

_MEBI: Final = 1024 * 1024
#: Below the bound of one run's output.
STDOUT_BYTES: Final = 12 * _MEBI
PNG_BYTES: Final = 5 * _MEBI
_BURST: Final = 10


class Interpreters(Protocol):
    """A sandbox with interpreters in it; all answers are in seconds but `memory`'s."""

    def start(self) -> float:
        """Start one, to its first result."""

    def imports(self) -> float:
        """Start one, to its first result with numpy, pandas and matplotlib imported."""

    def round_trip(self) -> float:
        """Run 1+1 in one that is there."""

    def stdout(self, count: int) -> float:
        """Print that many bytes."""

    def prepare_png(self, count: int) -> None:
        """Have a picture of that many bytes ready."""

    def png(self, count: int) -> float:
        """Show it."""

    def memory(self) -> float:
        """Return the PSS of each of five, imported, in bytes."""

    def crowd(self) -> float:
        """Return that of each of fifty."""

    def end(self) -> None:
        """Give all back."""


def measure(contenders: Mapping[str, Contender], quick: bool) -> list[Table]:
    """Return all the tables."""
    start = Table("context_start", "code context: start to the first result, bare", "ms", 1000)
    imports = Table("context_imports", "the same, with numpy, pandas and matplotlib", "ms", 1000)
    trip = Table("context_round_trip", "1+1, round trip", "ms", 1000)
    stdout = Table("context_stdout", f"print, {STDOUT_BYTES // _MEBI} MiB", "MB/s", higher_is_better=True)
    png = Table("context_png", f"a picture of {PNG_BYTES // _MEBI} MiB", "ms", 1000)
    memory = Table("context_memory", "PSS of each of five, imported", "MiB", 1 / _MEBI)
    crowd = Table("context_crowd", "PSS of each of fifty, imported", "MiB", 1 / _MEBI)
    tables = [start, imports, trip, stdout, png, memory, crowd]
    with contextlib.ExitStack() as stack:
        held: dict[str, Interpreters] = {}
        for name, contender in contenders.items():
            try:
                held[name] = contender.interpreters()
            except Unavailable as error:
                for table in tables:
                    table.lost[name] = str(error)
                continue
            stack.callback(_give_back, held[name])
            held[name].prepare_png(PNG_BYTES)
        names = list(held)
        few = Budget(5, 3, 6) if quick else Budget(40, 8, 30)
        fill([start], names, few, lambda name: [[held[name].start()]])
        fill([imports], names, few, lambda name: [[held[name].imports()]])
        fill([trip], names, few, lambda name: [[held[name].round_trip() for _ in range(_BURST)][2:]])
        fill([stdout], names, few, lambda name: [[STDOUT_BYTES / held[name].stdout(STDOUT_BYTES) / 1e6]])
        fill([png], names, few, lambda name: [[held[name].png(PNG_BYTES)]])
        fill([memory], names, Budget(1, 1, 1) if quick else Budget(20, 2, 3), lambda name: [[held[name].memory()]])
        fill([crowd], names, Budget(1, 1, 1), lambda name: [[held[name].crowd()]])
    return tables


def _give_back(held: Interpreters) -> None:
    with contextlib.suppress(Unavailable):  # what is left ends with the workspace
        held.end()
