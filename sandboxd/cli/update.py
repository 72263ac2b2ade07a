"""`sandboxd update`: change a sandbox that is there."""

from __future__ import annotations

import json
from typing import Any

import click

from sandboxd.cli.params import KeyValue, allow_option, client_of, io_of, limit_options, network_of


@click.command()
@click.option("--name", metavar="NAME", help="New name; an empty string removes the name.")
@limit_options
@click.option(
    "-e",
    "--env",
    type=KeyValue(inherit=True),
    multiple=True,
    metavar="KEY=VALUE",
    help="Set an environment variable for later commands. KEY alone copies the value from your environment.",
)
@click.option("--unset", multiple=True, metavar="KEY", help="Remove an environment variable from later commands.")
@click.option("-w", "--workdir", metavar="DIR", help="Working directory of later commands, an absolute path.")
@click.option("--label", "labels", type=KeyValue(), multiple=True, metavar="KEY=VALUE", help="Set a label.")
@click.option("--unlabel", multiple=True, metavar="KEY", help="Remove a label.")
@click.option(
    "--network", type=click.Choice(["internet", "allowlist"]), help="Network access, for a sandbox that has a network."
)
@allow_option
@click.option("--json", "as_json", is_flag=True, help="Print the full object as JSON.")
@click.argument("sandbox")
@click.pass_context
def update(  # noqa: PLR0913 - an option each
    ctx: click.Context,
    *,
    name: str | None,
    memory: int | None,
    cpus: float | None,
    pids: int | None,
    disk: int | None,
    io: tuple[tuple[str, str], ...],
    env: tuple[tuple[str, str], ...],
    unset: tuple[str, ...],
    workdir: str | None,
    labels: tuple[tuple[str, str], ...],
    unlabel: tuple[str, ...],
    network: str | None,
    allow: tuple[str, ...],
    as_json: bool,
    sandbox: str,
) -> None:
    """Change settings of SANDBOX (an id or a name). Settings for which you give no option stay as they are.

    Limits and network rules apply at once, also to running processes; --allow replaces the whole list. If the new
    memory limit is below the memory in use, the kernel reclaims memory, then kills processes.
    """
    limits: dict[str, Any] = {"memory_bytes": memory, "cpus": cpus, "pids": pids, "disk_bytes": disk, "io": io_of(io)}
    changes: dict[str, Any] = {
        "name": None if name is None else name or None,
        "env": {**dict(env), **dict.fromkeys(unset)},
        "cwd": workdir,
        "labels": {**dict(labels), **dict.fromkeys(unlabel)},
        "limits": {key: value for key, value in limits.items() if value is not None and value != {}},
    }
    chosen = network_of(network, allow)
    if chosen is not None:
        changes["network"] = {"allow": None, **chosen}
    given = {key: value for key, value in changes.items() if value}
    if name == "":
        given["name"] = None
    if not given:
        raise click.UsageError("Give at least one option: nothing to change.")
    from sandboxd.client import Sandbox  # noqa: PLC0415 - `update --help` needs no httpx

    info = Sandbox.connect(sandbox, client=client_of(ctx)).update(**given)
    if as_json:
        click.echo(json.dumps(info.raw, indent=2))
