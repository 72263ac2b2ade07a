"""JavaScript and TypeScript contexts: start to the first result, where others of the sandbox have started before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol

from bench.figures.table import Budget, Table, fill

if TYPE_CHECKING:
    from bench.contender import Contender

_PROGRAMS: Final = {
    "javascript": ("javascript", "1+1"),
    "typescript": ("typescript", "let n: number = 2; n"),
}


class Scripts(Protocol):
    """A sandbox that programs for Node are run in."""

    def start(self, language: str, code: str) -> float:
        """Start an interpreter, have its first result, which is 2, and return the seconds."""

    def end(self) -> None:
        """Give all back."""


def measure(contenders: Mapping[str, Contender], quick: bool) -> list[Table]:
    """Return a table a language."""
    tables = []
    for name, (language, code) in _PROGRAMS.items():
        table = Table(f"{name}_start", f"{name} context: start to the first result", "ms", 1000)
        held = {contender: contenders[contender].scripts() for contender in contenders}
        try:
            budget = Budget(8, 3, 6) if quick else Budget(40, 8, 30)
            fill([table], list(held), budget, lambda who: [[held[who].start(language, code)]])  # noqa: B023
        finally:
            for one in held.values():
                one.end()
        tables.append(table)
    return tables
