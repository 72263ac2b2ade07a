"""What a run found, as a table for people, as Markdown for bench/README.md, and as JSON with every sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.table import Table as RichTable

from bench.figures.table import BASE, Table
from bench.stats import show, show_spread

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass(slots=True)
class Findings:
    """Everything that one run found.

    Attributes:
        absent: contenders that did not run, each with its reason.
        notes: what must be known of how a contender ran.
        phases: where the SDK's cold runs spent their time, samples in seconds.
    """

    machine: dict[str, Any]
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    absent: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: dict[str, str] = dataclasses.field(default_factory=dict)
    tables: list[Table] = dataclasses.field(default_factory=list)
    phases: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return all of it."""
        return {
            "machine": self.machine,
            "versions": self.versions,
            "absent": self.absent,
            "notes": self.notes,
            "phases": self.phases,
            "figures": [table.to_json() for table in self.tables],
        }


def rows(table: Table) -> Iterable[tuple[str, str, str]]:
    """Yield a line for each contender: its name, its spread, and its ratio to sandboxd."""
    for name in table.samples:
        if table.spread(name) is None:
            continue
        ratio = "1" if name == BASE else show_spread(table.ratio(name))
        yield name, show_spread(table.spread(name)), ratio


def how_to_read(findings: Findings) -> list[str]:
    """Return the sentences that belong to the figures."""
    machine = findings.machine
    found = [
        f"{machine['cpus']} x {machine['cpu']}, {machine['memory_gib']} GiB, Linux {machine['kernel']}, "
        f"{machine['os']}; load {machine['load']:.1f} before the run.",
        "p50 [p10-p90]; x is the contender's value over sandboxd's of the same round.",
    ]
    found += [f"{name}: {note}." for name, note in findings.notes.items()]
    found += [f"{name} did not run: {reason}" for name, reason in findings.absent.items()]
    lost: dict[str, list[str]] = {}
    for table in findings.tables:
        for name, reason in table.lost.items():
            lost.setdefault(f"{name} dropped out: {reason}", []).append(table.name)
    return found + [f"{text} ({', '.join(names)})" for text, names in lost.items()]


def print_tables(findings: Findings, console: Console) -> None:
    """Print one table a figure."""
    for table in findings.tables:
        better = "higher is better" if table.higher_is_better else "lower is better"
        shown = RichTable(title=f"{table.title} ({table.unit}, {better})", title_justify="left")
        shown.add_column("contender")
        shown.add_column("p50 [p10-p90]", justify="right")
        shown.add_column("x sandboxd", justify="right")
        for row in rows(table):
            shown.add_row(*row, style="bold" if row[0] == BASE else None)
        console.print(shown)
    for line in how_to_read(findings):
        console.print(line, style="dim", markup=False, highlight=False)


def markdown(findings: Findings) -> str:
    """Return one table with a column a figure: p50, and the ratio to sandboxd in parentheses."""
    tables = findings.tables
    names = list(dict.fromkeys(name for table in tables for name in table.samples))
    lines = ["| | " + " | ".join(f"{table.title}, {table.unit}" for table in tables) + " |"]
    lines.append("|---|" + "---:|" * len(tables))
    for name in names:
        label = f"**{name}**" if name == BASE else name
        lines.append(f"| {label} | " + " | ".join(_cell(table, name) for table in tables) + " |")
    return "\n".join(lines)


def _cell(table: Table, name: str) -> str:
    found = table.spread(name)
    if found is None:
        return ""
    ratio = None if name == BASE else table.ratio(name)
    return show(found.p50) + (f" ({show(ratio.p50)}x)" if ratio else "")
