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
@click.option("--name", metavar="NAME", help="Your own name for it.")
@click.option("--token", metavar="TOKEN", help="1 to 16 of a-z, 0-9 and _, instead of one that nobody guesses.")
@click.option("--public", is_flag=True, help="Let everybody in who reaches the daemon's preview listener.")
@click.option("--link", is_flag=True, help="Print a link that works once, and leaves a cookie, instead of the URL.")
@click.argument("sandbox")
@click.argument("port", type=click.INT)
@click.pass_context
def expose(
    ctx: click.Context, *, name: str | None, token: str | None, public: bool, link: bool, sandbox: str, port: int
) -> None:
    """Make what listens at PORT of SANDBOX (an id or a name) open in a browser, and print its URL.

    With --link a port that is exposed already gets another link.
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
    """Take PORT of SANDBOX (an id or a name) back; open connections are cut."""
    _connect(ctx, sandbox).unexpose_port(port)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the whole objects, as a list.")
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
