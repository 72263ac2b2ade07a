"""`sandboxd serve`: the daemon in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sandboxd import config as configuration

_FILE = click.Path(path_type=Path)


@click.command()
@click.option("--config", type=_FILE, metavar="FILE", help="TOML configuration file; flags override it.")
@click.option(
    "--state-dir",
    type=_FILE,
    metavar="DIR",
    help="Directory for state that survives a reboot.  [default: /var/lib/sandboxd]",
)
@click.option("--runtime-dir", type=_FILE, metavar="DIR", help="Directory for sockets.  [default: /run/sandboxd]")
@click.option(
    "--socket", type=_FILE, metavar="PATH", help="Unix socket of the API.  [default: RUNTIME_DIR/sandboxd.sock]"
)
@click.option("--listen", metavar="HOST:PORT", help="Serve the API over TCP as well; needs --token-file.")
@click.option(
    "--preview-listen", metavar="HOST:PORT", help="Address of the preview listener.  [default: 127.0.0.1:8080]"
)
@click.option("--token-file", type=_FILE, metavar="FILE", help="File that holds the bearer token required over TCP.")
@click.option("--rootfs-dir", type=_FILE, metavar="DIR", help="Directory of the rootfs.  [default: STATE_DIR/rootfs]")
@click.option(
    "--seccomp-dir",
    type=_FILE,
    metavar="DIR",
    help="Directory of custom seccomp profiles; it must be writable by root only.",
)
@click.option(
    "--allow-unenforced",
    is_flag=True,
    default=None,
    help="Create sandboxes even if this host cannot enforce every limit; each sandbox lists its unenforced limits.",
)
@click.option(
    "--cgroup", metavar="PATH", help="Parent of the sandboxes' cgroups, relative to the root of cgroup2.  [default: /]"
)
@click.option("--log-level", type=click.Choice(configuration.LOG_LEVELS), help="Log level.  [default: info]")
@click.pass_context
def serve(ctx: click.Context, /, config: Path | None, **flags: Any) -> None:  # noqa: ANN401
    """Run the daemon until a signal stops it. Sandboxes keep running without it."""
    settings = configuration.load(config, flags)
    from sandboxd import daemon  # noqa: PLC0415 - half a second of imports that only this verb needs

    ctx.exit(daemon.run(settings))
