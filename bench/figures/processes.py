"""Processes: starting one, following the log of one, and the echo of a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

from bench.figures.exec import hold_each
from bench.figures.table import Budget, Table, fill

if TYPE_CHECKING:
    from bench.contender import Contender, Echoing, Following, Starting

_MEBI: Final = 1024 * 1024
#: Starts and keystrokes of one turn; the first warms up and is not counted.
_BURST: Final = 4
_KEYS: Final = 20


def measure_start(contenders: Mapping[str, Contender], quick: bool) -> list[Table]:
    """Return the table of starts: until the contender says that /bin/true runs, or has run, in the background."""
    table = Table("start", "start /bin/true in the background", "ms", 1000)
    with contextlib.ExitStack() as stack:
        held = hold_each(contenders, stack, [table])

        def burst(name: str) -> list[list[float]]:
            one = cast("Starting", held[name])
            return [[one.start() for _ in range(_BURST)][1:]]

        fill([table], list(held), Budget(6, 3, 20) if quick else Budget(45, 8, 60), burst)
    return [table]


def measure_follow(contenders: Mapping[str, Contender], quick: bool) -> list[Table]:
    """Return the table of rates at which a follower gets what a background process prints."""
    size = 256 * _MEBI if quick else 1024 * _MEBI
    table = Table("follow", f"follow a log, {size // _MEBI} MiB", "MB/s", higher_is_better=True)
    with contextlib.ExitStack() as stack:
        held = hold_each(contenders, stack, [table])

        def rate(name: str) -> list[list[float]]:
            count, seconds = cast("Following", held[name]).follow(size)
            return [[count / seconds / 1e6]]

        fill([table], list(held), Budget(6, 2, 4) if quick else Budget(50, 3, 6), rate)
    return [table]


def measure_echo(contenders: Mapping[str, Contender], quick: bool) -> list[Table]:
    """Return the table of echoes: a key is typed into a terminal with cat in it, and shown."""
    table = Table("echo", "echo of a key on a terminal", "ms", 1000)
    with contextlib.ExitStack() as stack:
        held = hold_each(contenders, stack, [table])

        def keys(name: str) -> list[list[float]]:
            return [cast("Echoing", held[name]).echo(_KEYS)[1:]]

        fill([table], list(held), Budget(4, 3, 10) if quick else Budget(20, 8, 40), keys)
    return [table]
