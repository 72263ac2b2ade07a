"""`sandboxd rm`: destroy sandboxes."""

from __future__ import annotations

import click

from sandboxd.cli.failure import Failure, one_sentence
from sandboxd.cli.params import client_of
from sandboxd.errors import DaemonUnavailable, SandboxdError


@click.command()
@click.option("--all", "everything", is_flag=True, help="Destroy every sandbox of the daemon.")
@click.argument("sandboxes", nargs=-1, metavar="SANDBOX...")
@click.pass_context
def rm(ctx: click.Context, *, everything: bool, sandboxes: tuple[str, ...]) -> None:
    """Destroy each SANDBOX (an id or a name), with everything in it.

    A sandbox that does not exist is reported, and the others are still destroyed.
    """
    if bool(sandboxes) == everything:
        raise click.UsageError("Give either sandboxes or --all.")
    from sandboxd.client import Sandbox  # noqa: PLC0415 - `rm --help` needs no httpx

    client = client_of(ctx)
    failed = 0
    keys = [sandbox.id for sandbox in Sandbox.list(client=client)] if everything else sandboxes
    for key in keys:
        try:
            # Connecting first tells a name that nobody has; destroying alone takes "gone" for done.
            Sandbox.connect(key, client=client).destroy()
        except DaemonUnavailable:
            raise
        except SandboxdError as error:
            failed += 1
            Failure(one_sentence(error)).show()
    ctx.exit(1 if failed else 0)
