"""`sandboxd serve`: the daemon in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sandboxd import config as configuration

_FILE = click.Path(path_type=Path)


@click.command()
@click.option("--config", type=_FILE, metavar="FILE", help="A TOML file; flags go before what it says.")
@click.option("--state-dir", type=_FILE, metavar="DIR", help="What survives a reboot. [/var/lib/sandboxd]")
@click.option("--runtime-dir", type=_FILE, metavar="DIR", help="Sockets. [/run/sandboxd]")
@click.option("--socket", type=_FILE, metavar="PATH", help="The API's unix socket. [RUNTIME_DIR/sandboxd.sock]")
@click.option("--listen", metavar="HOST:PORT", help="Serve the API over TCP too; needs --token-file.")
@click.option("--preview-listen", metavar="HOST:PORT", help="Where previews are served. [127.0.0.1:8080]")
@click.option("--token-file", type=_FILE, metavar="FILE", help="Holds the token that TCP callers must show.")
@click.option("--rootfs-dir", type=_FILE, metavar="DIR", help="Where rootfs are. [STATE_DIR/rootfs]")
@click.option("--seccomp-dir", type=_FILE, metavar="DIR", help="Your own seccomp profiles, root's alone to write.")
@click.option(
    "--allow-unenforced",
    is_flag=True,
    default=None,
    help="Create sandboxes although this host cannot hold some limit; each says which.",
)
@click.option("--cgroup", metavar="PATH", help="The cgroup to make the sandboxes' in, from cgroup2's root. [/]")
@click.option("--log-level", type=click.Choice(configuration.LOG_LEVELS), help="How much to log. [info]")
@click.pass_context
def serve(ctx: click.Context, /, config: Path | None, **flags: Any) -> None:  # noqa: ANN401
    """Run the daemon until a signal ends it; sandboxes go on without it."""
    settings = configuration.load(config, flags)
    from sandboxd import daemon  # noqa: PLC0415 - half a second of imports that only this verb needs

    ctx.exit(daemon.run(settings))
