"""How fast a command's output arrives."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from bench.figures.exec import hold_each
from bench.figures.table import Budget, Table, fill

if TYPE_CHECKING:
    from bench.contender import Contender

_MEBI: Final = 1024 * 1024


def measure(contenders: Mapping[str, Contender], quick: bool) -> list[Table]:
    """Return the table of rates; the bytes come from `head -c … /dev/zero` in the sandbox."""
    size = 256 * _MEBI if quick else 1024 * _MEBI
    table = Table("stdout", f"stdout, {size // _MEBI} MiB", "MB/s", higher_is_better=True)
    with contextlib.ExitStack() as stack:
        held = hold_each(contenders, stack, [table])

        def rate(name: str) -> list[list[float]]:
            return [[size / held[name].stdout(size) / 1e6]]

        fill([table], list(held), Budget(6, 2, 4) if quick else Budget(50, 3, 6), rate)
    return [table]
