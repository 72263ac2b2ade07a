"""`sandboxd info`: what the daemon, or one sandbox, says of itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from sandboxd.cli.output import say
from sandboxd.cli.params import client_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the full object as JSON.")
@click.argument("sandbox", required=False)
@click.pass_context
def info(ctx: click.Context, *, as_json: bool, sandbox: str | None) -> None:
    """Show details of the daemon, or of SANDBOX (an id or a name)."""
    client = client_of(ctx)
    if sandbox is None:
        found = client.info()
    else:
        from sandboxd.client import Sandbox  # noqa: PLC0415 - `info --help` needs no httpx

        found = Sandbox.connect(sandbox, client=client).info.raw
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    lines = list(flat(found))
    width = max((len(key) for key, _ in lines), default=0)
    for key, value in lines:
        say(f"{key.ljust(width)}  {value}")


def flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield an object's fields with dotted names, objects in it opened and lists on one line."""
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from flat(item, f"{prefix}{key}.")
        elif isinstance(item, list | dict):
            yield prefix + key, ", ".join(map(str, item)) or "-"
        else:
            yield prefix + key, "-" if item is None else str(item)
