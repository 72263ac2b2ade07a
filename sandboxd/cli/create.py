"""`sandboxd create`: a sandbox that stays."""

from __future__ import annotations

import json

import click

from sandboxd.cli.params import KeyValue, client_of, limits, network_of, sandbox_options


@click.command()
@click.option("--name", metavar="NAME", help="Name, unique among the sandboxes: a-z, 0-9 and inner dashes.")
@sandbox_options
@click.option(
    "-e",
    "--env",
    type=KeyValue(inherit=True),
    multiple=True,
    metavar="KEY=VALUE",
    help="Set an environment variable for every command. KEY alone copies the value from your environment.",
)
@click.option("-w", "--workdir", metavar="DIR", help="Working directory of commands, an absolute path.")
@click.option("-u", "--user", metavar="USER", help="User that commands run as, a name or a uid.")
@click.option("--label", "labels", type=KeyValue(), multiple=True, metavar="KEY=VALUE", help="Attach a label.")
@click.option("--json", "as_json", is_flag=True, help="Print the full object as JSON.")
@click.pass_context
def create(  # noqa: PLR0913 - an option each
    ctx: click.Context,
    *,
    name: str | None,
    rootfs: str | None,
    memory: int | None,
    cpus: float | None,
    pids: int | None,
    disk: int | None,
    io: tuple[tuple[str, str], ...],
    seccomp: str | None,
    network: str | None,
    allow: tuple[str, ...],
    env: tuple[tuple[str, str], ...],
    workdir: str | None,
    user: str | None,
    labels: tuple[tuple[str, str], ...],
    as_json: bool,
) -> None:
    """Create a sandbox and print its id."""
    from sandboxd.client import Sandbox  # noqa: PLC0415 - `create --help` needs no httpx

    sandbox = Sandbox.create(
        name=name,
        rootfs=rootfs,
        env=dict(env) or None,
        cwd=workdir,
        user=user,
        limits=limits(memory, cpus, pids, disk, io) or None,
        labels=dict(labels) or None,
        seccomp=seccomp,
        network=network_of(network, allow),
        client=client_of(ctx),
    )
    click.echo(json.dumps(sandbox.info.raw, indent=2) if as_json else sandbox.id)
