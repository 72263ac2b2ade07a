"""`sandboxd doctor`: what this host can do for sandboxes, what it cannot, and what to do about it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sandboxd import config as configuration
from sandboxd.cli.failure import Interrupts
from sandboxd.linux import procfs
from sandboxd.linux.kernel import Kernel
from sandboxd.linux.probes import (
    cgroups,
    filters,
    namespaces,
    network,
    overlay,
    rootfs,
    service,
    storage,
    sysctls,
    users,
)
from sandboxd.linux.probes.feature import AS_ROOT, Feature, Report, Status
from sandboxd.linux.probes.files import existing_ancestor, filesystem_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIR: Final = click.Path(path_type=Path)
_STYLES: Final = {Status.OK: "green", Status.DEGRADED: "yellow", Status.MISSING: "bold red", Status.UNKNOWN: "cyan"}
#: Where ranges of ids are claimed, host-wide (`launcher/idranges.py`; a test holds the two together).
ID_CLAIMS_DIR: Final = "/run/sandboxd-ids"


@click.command()
@click.option("--config", type=_DIR, metavar="FILE", help="TOML configuration file; flags override it.")
@click.option(
    "--state-dir",
    type=_DIR,
    metavar="DIR",
    help="Directory for state that survives a reboot.  [default: /var/lib/sandboxd]",
)
@click.option("--runtime-dir", type=_DIR, metavar="DIR", help="Directory for sockets.  [default: /run/sandboxd]")
@click.option("--rootfs-dir", type=_DIR, metavar="DIR", help="Directory of the rootfs.  [default: STATE_DIR/rootfs]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.pass_context
def doctor(ctx: click.Context, /, *, config: Path | None, as_json: bool, **flags: Any) -> None:  # noqa: ANN401
    """Check what works on this host, without a daemon and without changing anything.

    The exit status is 0 if sandboxes can be created, and 1 if something essential is missing or cannot be determined.
    """
    settings = configuration.load(config, flags)
    with Interrupts():
        report = examine(settings)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        show(report)
    ctx.exit(0 if report.ok else 1)


def examine(config: configuration.Config) -> Report:
    """Look at everything, for a daemon with this configuration."""
    kernel, root = Kernel(), os.geteuid() == 0
    images = rootfs.gather(kernel, str(config.rootfs_path))
    directory = _upper_directory(str(config.state_dir))
    directories = {
        "state-dir": str(config.state_dir),
        "runtime-dir": str(config.runtime_dir),
        "id-claims": ID_CLAIMS_DIR,
    }
    package = str(Path(configuration.__file__).parent)
    filesystem = filesystem_of(directory, procfs.mounts())
    lower = next(iter(rootfs.trees(images)), None)
    features = [
        *users.evaluate(users.gather(kernel, configuration.USER, configuration.GROUP, package)),
        *service.evaluate(service.gather()),
        *sysctls.evaluate(sysctls.gather()),
        *namespaces.evaluate(namespaces.gather(kernel, root=root)),
        *overlay.evaluate(overlay.gather(kernel, directory, filesystem, lower, root=root)),
        *cgroups.evaluate(cgroups.gather(kernel, root=root)),
        *filters.evaluate(filters.gather(kernel, str(configuration.data_dir("seccomp")))),
        *rootfs.evaluate(images),
        *storage.evaluate(storage.gather(directories, root=root)),
        *network.evaluate(network.gather(kernel, root=root)),
    ]
    return Report(tuple(features), allow_unenforced=config.allow_unenforced)


def _upper_directory(state_dir: str) -> str:
    """Return a directory on the filesystem that holds the sandboxes' own files: a pool may be a mount of its own."""
    state, pool = existing_ancestor(state_dir), f"{state_dir}/pool"
    try:
        return pool if os.stat(pool).st_dev != os.stat(state).st_dev else state
    except OSError:
        return state


def show(report: Report) -> None:
    """Print a report for people: fitted and coloured on a terminal, one line a fact elsewhere."""
    if not sys.stdout.isatty():
        for line in plain(report):
            click.echo(line)
        return
    from rich.console import Console  # noqa: PLC0415 - 75 ms that pipes need not pay
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table.grid(padding=(0, 2))
    for item in report.features:
        details = Text("\n".join(_details(item)))
        details.stylize("dim" if item.status is Status.OK else "default")
        table.add_row(Text(str(item.status), _STYLES[item.status]), Text(item.name), details)
    console = Console()
    console.print(table)
    console.print(Text(report.summary, "bold green" if report.ok else "bold red"))


def plain(report: Report) -> Iterator[str]:
    """Yield a report's lines: a feature each, what it means and the remedy below those that are not ok, a summary."""
    width = max((len(item.name) for item in report.features), default=0)
    for item in report.features:
        first, *rest = _details(item)
        yield f"{item.status!s:<8}  {item.name.ljust(width)}  {first}"
        for line in rest:
            yield f"{'':<8}  {'':{width}}  {line}"
    yield report.summary


def _details(item: Feature) -> list[str]:
    # That it takes root is said once, by the feature `root`.
    if item.status is Status.OK or (item.remedy == AS_ROOT and item.name != "root"):
        return [item.found]
    return [item.found, f"means: {item.means}", *([f"remedy: {item.remedy}"] if item.remedy else [])]
