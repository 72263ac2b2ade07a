"""`sandboxd shim`: what a foreign client needs to run outside the place that it was made for."""

from __future__ import annotations

import importlib.resources
from typing import Final

import click

#: Client -> its file beside this module.
SHIMS: Final = {"cloudflare": "cloudflare_shim.mjs"}


@click.command()
@click.argument("client", type=click.Choice(sorted(SHIMS)))
def shim(client: str) -> None:
    """Print the loader shim of CLIENT.

    `cloudflare` lets the npm package @cloudflare/sandbox, which is written for Workers, load in plain Node:

    \b
        sandboxd shim cloudflare > shim.mjs
        node --import ./shim.mjs program.mjs
    """  # noqa: D301 - click reads \b as a backspace, not as two characters
    click.echo(importlib.resources.files("sandboxd.cli").joinpath(SHIMS[client]).read_text(), nl=False)
