"""A command in a session: a shell that takes on the state of the last one, and hands its own on."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

from bench.figures.exec import hold_each
from bench.figures.table import Budget, Table, fill

if TYPE_CHECKING:
    from bench.contender import Contender, Keeping

#: Commands of one turn; the first warms up and is not counted.
_BURST: Final = 4


def measure(contenders: Mapping[str, Contender], quick: bool) -> list[Table]:
    """Return the table."""
    table = Table("session", "exec : in a session, back to back", "ms", 1000)
    with contextlib.ExitStack() as stack:
        held = hold_each(contenders, stack, [table])

        def burst(name: str) -> list[list[float]]:
            one = cast("Keeping", held[name])
            return [[one.session_exec() for _ in range(_BURST)][1:]]

        fill([table], list(held), Budget(6, 3, 20) if quick else Budget(45, 8, 60), burst)
    return [table]
