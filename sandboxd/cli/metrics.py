"""`sandboxd metrics`: the daemon's figures, for Prometheus or a person."""

from __future__ import annotations

import click

from sandboxd.cli.output import say
from sandboxd.cli.params import client_of


@click.command()
@click.option(
    "--sandboxes/--no-sandboxes", default=True, help="Include or leave out the series of each sandbox and port."
)
@click.pass_context
def metrics(ctx: click.Context, *, sandboxes: bool) -> None:
    """Print the daemon's metrics in the Prometheus text format."""
    for line in client_of(ctx).metrics(sandboxes=sandboxes).splitlines():
        say(line)
