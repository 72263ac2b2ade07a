"""`sandboxd ls`: the sandboxes of a daemon."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING

import click

from sandboxd.cli.output import say
from sandboxd.cli.params import client_of
from sandboxd.cli.table import print_table

if TYPE_CHECKING:
    from sandboxd.client import SandboxInfo


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the full objects as a JSON list.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the ids.")
@click.pass_context
def ls(ctx: click.Context, *, as_json: bool, quiet: bool) -> None:
    """List sandboxes."""
    from sandboxd.client import Sandbox  # noqa: PLC0415 - `ls --help` needs no httpx

    infos = [sandbox.info for sandbox in Sandbox.list(client=client_of(ctx))]
    if as_json:
        click.echo(json.dumps([info.raw for info in infos], indent=2))
    elif quiet:
        for info in infos:
            say(info.id)
    else:
        print_table(("ID", "NAME", "STATE", "ROOTFS", "AGE", "LABELS"), [_row(info) for info in infos])


def _row(info: SandboxInfo) -> tuple[str, ...]:
    labels = ",".join(f"{key}={value}" for key, value in sorted(info.labels.items()))
    return info.id, info.name or "-", info.state, info.rootfs, age(info.created_at), labels or "-"


def age(since: dt.datetime, now: dt.datetime | None = None) -> str:
    """Return how long ago that was, in the largest unit that gives at least 1: "5s", "3m", "2h", "9d"."""
    seconds = max(0, int(((now or dt.datetime.now(dt.UTC)) - since).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
