"""`sandboxd stats`: what sandboxes use."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from sandboxd.cli.params import client_of
from sandboxd.cli.table import print_table
from sandboxd.errors import SandboxFailed, SandboxNotFound

if TYPE_CHECKING:
    from sandboxd.client import Sandbox, SandboxStats

_HEADS = ("ID", "NAME", "STATE", "CPU", "MEMORY", "PEAK", "PIDS", "DISK", "OOM")
_UNITS = (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the full objects as a JSON list.")
@click.argument("sandboxes", nargs=-1, metavar="[SANDBOX...]")
@click.pass_context
def stats(ctx: click.Context, *, as_json: bool, sandboxes: tuple[str, ...]) -> None:
    """Show the resource usage of each SANDBOX (an id or a name), or of all sandboxes.

    CPU is the CPU time used since the sandbox was created. A dash means that this host does not measure the value.
    """
    from sandboxd.client import Sandbox  # noqa: PLC0415 - `stats --help` needs no httpx

    client = client_of(ctx)
    if sandboxes:
        found = [(one, one.stats()) for one in (Sandbox.connect(key, client=client) for key in sandboxes)]
    else:
        found = []
        for one in Sandbox.list(client=client):
            try:
                found.append((one, one.stats()))
            except (SandboxFailed, SandboxNotFound):
                continue  # it failed, or went between the list and the question
    if as_json:
        click.echo(json.dumps([use.raw for _, use in found], indent=2))
    else:
        print_table(_HEADS, [_row(one, use) for one, use in found])


def _row(sandbox: Sandbox, use: SandboxStats) -> tuple[str, ...]:
    return (
        sandbox.id,
        sandbox.name or "-",
        use.state,
        "-" if use.cpu_s is None else f"{use.cpu_s:.2f}s",
        _of(use.memory_bytes, use.limits.memory_bytes),
        size(use.memory_peak_bytes),
        "-" if use.pids is None else f"{use.pids}/{use.limits.pids}",
        _of(use.disk_bytes, use.limits.disk_bytes),
        "-" if use.oom_kills is None else str(use.oom_kills),
    )


def _of(used: int | None, limit: int | None) -> str:
    return "-" if used is None else f"{size(used)}/{size(limit)}"


def size(value: int | None) -> str:
    """Return bytes in the largest unit that gives at least 1, as the options take them."""
    if value is None:
        return "-"
    for unit, factor in _UNITS:
        if value >= factor:
            return f"{value / factor:.1f}{unit}"
    return str(value)
