"""`sandboxd version`: of this program, and of the daemon where one answers."""

from __future__ import annotations

import click

from sandboxd import __version__
from sandboxd.cli.output import say
from sandboxd.cli.params import client_of
from sandboxd.errors import SandboxdError


@click.command()
@click.pass_context
def version(ctx: click.Context) -> None:
    """Print the versions of this program and of the daemon."""
    say(f"client {__version__}")
    try:
        daemon = str(client_of(ctx).info().get("version", "unknown"))
    except SandboxdError:
        daemon = "not reachable"
    say(f"daemon {daemon}")
