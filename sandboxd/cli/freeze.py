"""`sandboxd freeze` and `sandboxd thaw`: stop sandboxes where they are, and let them go on."""

from __future__ import annotations

import click

from sandboxd.cli.failure import Failure, one_sentence
from sandboxd.cli.params import client_of
from sandboxd.errors import DaemonUnavailable, SandboxdError


@click.command()
@click.argument("sandboxes", nargs=-1, required=True, metavar="SANDBOX...")
@click.pass_context
def freeze(ctx: click.Context, *, sandboxes: tuple[str, ...]) -> None:
    """Suspend every process of each SANDBOX (an id or a name). Memory and files are kept.

    Clocks keep running: time spent frozen counts towards a command's --timeout.
    """
    ctx.exit(_each(ctx, sandboxes, "freeze"))


@click.command()
@click.argument("sandboxes", nargs=-1, required=True, metavar="SANDBOX...")
@click.pass_context
def thaw(ctx: click.Context, *, sandboxes: tuple[str, ...]) -> None:
    """Resume each frozen SANDBOX (an id or a name)."""
    ctx.exit(_each(ctx, sandboxes, "thaw"))


def _each(ctx: click.Context, sandboxes: tuple[str, ...], verb: str) -> int:
    from sandboxd.client import Sandbox  # noqa: PLC0415 - help needs no httpx

    client = client_of(ctx)
    failed = 0
    for key in sandboxes:
        try:
            getattr(Sandbox.connect(key, client=client), verb)()
        except DaemonUnavailable:
            raise
        except SandboxdError as error:
            failed = 1
            Failure(one_sentence(error)).show()
    return failed
