"""The plot of a run, drawn by matplotlib in a sandbox: the benchmark needs no numpy of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.contender import Unavailable
from bench.daemon import Daemon
from bench.stats import show
from sandboxd import Sandbox

if TYPE_CHECKING:
    from bench.figures.table import Table
    from bench.workspace import Workspace

_PROGRAM = Path(__file__).with_name("plot_program.py")


def draw(tables: list[Table], target: Path, workspace: Workspace) -> None:
    """Write a PNG.

    Raises:
        Unavailable: the program failed.
    """
    daemon = workspace.share(Daemon)
    figures = [shown for table in tables if is_plain(shown := plotted(table))]
    with Sandbox.create(rootfs=workspace.rootfs, client=daemon.client) as sandbox:
        sandbox.write_file("/workspace/figures.json", json.dumps(figures))
        sandbox.write_file("/workspace/plot.py", _PROGRAM.read_bytes())
        result = sandbox.exec(["python3", "plot.py"], cwd="/workspace", env={"MPLBACKEND": "agg"})
        if result.exit_code != 0:
            raise Unavailable(f"cannot draw the plot: {result.stderr[-500:]}")
        target.write_bytes(sandbox.read_file("/workspace/figures.png"))


def is_plain(shown: dict[str, Any]) -> bool:
    """Return whether there is something to draw, and no memory that seems to have been freed."""
    return bool(shown["bars"]) and all(bar["p10"] > 0 for bar in shown["bars"])


def plotted(table: Table) -> dict[str, Any]:
    """Return what the program needs of a table."""
    bars = []
    for name in table.samples:
        found = table.spread(name)
        if found is not None:
            bars.append({"name": name, "p10": found.p10, "p50": found.p50, "p90": found.p90, "label": show(found.p50)})
    return {"title": table.title, "unit": table.unit, "bars": bars}
