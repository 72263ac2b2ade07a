"""`sandboxd expose`, `unexpose` and `ports`: previews of what listens in a sandbox."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import click

from sandboxd.cli.output import say
from sandboxd.cli.params import client_of
from sandboxd.cli.table import print_table

if TYPE_CHECKING:
    from sandboxd.client import Sandbox


def _connect(ctx: click.Context, sandbox: str) -> Sandbox:
    from sandboxd.client import Sandbox  # noqa: PLC0415 - a verb's help needs no httpx

    return Sandbox.connect(sandbox, client=client_of(ctx))


@click.command()
@click.option("--name", metavar="NAME", help="Name for the port, unique in the sandbox.")
@click.option(
    "--token", metavar="TOKEN", help="Token of 1 to 16 characters of a-z, 0-9 and _.  [default: a random one]"
)
@click.option("--public", is_flag=True, help="Require no token: anyone who can reach the preview listener has access.")
@click.option("--link", is_flag=True, help="Print a link that works once and sets a cookie, instead of the URL.")
@click.argument("sandbox")
@click.argument("port", type=click.INT)
@click.pass_context
def expose(
    ctx: click.Context, *, name: str | None, token: str | None, public: bool, link: bool, sandbox: str, port: int
) -> None:
    """Expose PORT of SANDBOX (an id or a name) and print its URL, which you can open in a browser.

    With --link, a port that is already exposed gets a new link.
    """
    found = _connect(ctx, sandbox)
    if link and any(one.port == port for one in found.get_exposed_ports()):
        say(found.create_preview_link(port))
        return
    exposed = found.expose_port(port, name=name, token=token, public=public)
    say(found.create_preview_link(port) if link else exposed.url)


@click.command()
@click.argument("sandbox")
@click.argument("port", type=click.INT)
@click.pass_context
def unexpose(ctx: click.Context, *, sandbox: str, port: int) -> None:
    """Stop exposing PORT of SANDBOX (an id or a name), and close its open connections."""
    _connect(ctx, sandbox).unexpose_port(port)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the full objects as a JSON list.")
@click.argument("sandbox")
@click.pass_context
def ports(ctx: click.Context, *, as_json: bool, sandbox: str) -> None:
    """List the exposed ports of SANDBOX (an id or a name)."""
    found = _connect(ctx, sandbox).get_exposed_ports()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
        return
    rows = [(str(one.port), one.name or "-", "public" if one.public else "token", one.url) for one in found]
    print_table(("PORT", "NAME", "ACCESS", "URL"), rows)
