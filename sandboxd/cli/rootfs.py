"""`sandboxd rootfs`: build, import, list and remove the trees that sandboxes share."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from sandboxd import images
from sandboxd.cli.failure import Failure, Interrupted, Interrupts, one_sentence
from sandboxd.cli.output import say, shown_line
from sandboxd.cli.params import Size, client_of
from sandboxd.errors import DaemonUnavailable, InvalidRequest, RootfsError, RootfsNotFound
from sandboxd.images.importer import MAX_BYTES, UnpackRequest, import_image

__all__ = ["rootfs"]

# Off a terminal a build's programs are quoted this often: enough to see that it lives, too little to fill a log.
_PLAIN_EVERY_S = 2.0


@click.group()
def rootfs() -> None:
    """Build, import, list and remove root filesystems, the read-only trees that sandboxes share."""


def _place(state_dir: Path, rootfs_dir: Path | None) -> Path:
    return rootfs_dir if rootfs_dir is not None else state_dir / "rootfs"


_state_dir = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/var/lib/sandboxd"),
    show_default=True,
    help="The daemon's state directory.",
)
_rootfs_dir = click.option(
    "--rootfs-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Directory of the rootfs.  [default: `rootfs` in the state directory]",
)


@rootfs.command()
@click.argument("name", default="default")
@click.option("--force", is_flag=True, help="Build even if the rootfs is up to date.")
@_state_dir
@_rootfs_dir
@click.pass_context
def build(ctx: click.Context, name: str, force: bool, state_dir: Path, rootfs_dir: Path | None) -> None:
    """Build the rootfs NAME from its recipe, unless it is up to date."""
    begun = time.monotonic()
    with _failures(), _watcher() as watch:
        built = images.build(name, _place(state_dir, rootfs_dir), progress=watch, force=force, in_use=_asker(ctx))
    verb = f"built in {time.monotonic() - begun:.1f} s" if watch.called else "up to date"
    say(f"rootfs {built.name}: {verb}, {_megabytes(built.size_bytes)}, recipe {built.recipe_hash[:12]}")


@rootfs.command("import")
@click.argument("name")
@click.argument("source", metavar="SOURCE")
@click.option("--image", metavar="REF", help="Name or digest of the image, if the archive holds several.")
@click.option("--platform", metavar="OS/ARCH", help="Platform to import, even if it is not this host's.")
@click.option("--max-size", type=Size(), default=MAX_BYTES, help="Limit on the unpacked size.  [default: 20 GiB]")
@click.option("--force", is_flag=True, help="Replace an existing rootfs of that name.")
@_state_dir
@_rootfs_dir
def import_(
    name: str,
    source: str,
    image: str | None,
    platform: str | None,
    max_size: int,
    force: bool,
    state_dir: Path,
    rootfs_dir: Path | None,
) -> None:
    """Import an image as the rootfs NAME.

    SOURCE is an archive made by `docker export` or `docker save`, or an OCI image layout (`skopeo copy`) as an archive
    or a directory; - reads an archive from stdin.
    """
    wanted = UnpackRequest(image, platform, max_size)
    with _failures(), _watcher() as watch:
        done = import_image(
            name,
            source,
            _place(state_dir, rootfs_dir),
            wanted=wanted,
            progress=watch,
            force=force,
            in_use=_asker(click.get_current_context()),
        )
    for note in done.notes:
        say(f"note: {note}", err=True)
    say(f"rootfs {name}: imported, {_megabytes(done.rootfs.size_bytes)}, image {done.rootfs.recipe_hash[:12]}")


@rootfs.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the version of every package.")
@_state_dir
@_rootfs_dir
def ls(as_json: bool, state_dir: Path, rootfs_dir: Path | None) -> None:
    """List the built rootfs."""
    with _failures():
        found = images.list_rootfs(_place(state_dir, rootfs_dir))
    if as_json:
        click.echo(json.dumps([json.loads(item.to_json()) for item in found], indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("NAME", "SIZE", "BUILT", "RECIPE", "PACKAGES"):
        table.add_column(heading, no_wrap=True)
    for item in found:
        count = sum(len(versions) for versions in item.packages.values())
        table.add_row(item.name, _megabytes(item.size_bytes), item.built_at, item.recipe_hash[:12], str(count))
    Console(highlight=False).print(table)


@rootfs.command()
@click.argument("name")
@_state_dir
@_rootfs_dir
@click.pass_context
def rm(ctx: click.Context, name: str, state_dir: Path, rootfs_dir: Path | None) -> None:
    """Remove the rootfs NAME, unless sandboxes use it."""
    with _failures():
        images.remove(name, _place(state_dir, rootfs_dir), in_use=_asker(ctx))


def _asker(ctx: click.Context) -> Callable[[str], list[str]]:
    """Make the function that asks the daemon, if one answers, which sandboxes use a rootfs."""

    def in_use(name: str) -> list[str]:
        from sandboxd import Sandbox  # noqa: PLC0415 - the SDK is slow to import, and most calls need no answer

        try:
            return [sandbox.id for sandbox in Sandbox.list(client=client_of(ctx)) if sandbox.info.rootfs == name]
        except DaemonUnavailable:
            return []

    return in_use


class _Watch:
    """Shows a build's progress: a line that changes on a terminal, plain lines elsewhere."""

    def __init__(self, bar: Bar | None) -> None:
        self.called = False
        self._bar = bar
        self._begun = self._echoed = time.monotonic()
        self._step_begun = self._begun
        self._task = bar.add_task("", line="") if bar else None

    def __call__(self, progress: images.Progress) -> None:
        """Take one event of the build."""
        self.called = True
        title = f"[{progress.number}/{progress.total}] {progress.step}" if progress.total else progress.step
        if self._bar is not None and self._task is not None:
            if progress.line is None:
                self.end_step()
                self._step_begun = time.monotonic()
            self._bar.update(self._task, description=shown_line(title), line=shown_line(progress.line or "")[:60])
        elif progress.line is None:
            say(f"{time.monotonic() - self._begun:6.1f} s  {title}", err=True)
            self._echoed = time.monotonic()
        elif time.monotonic() - self._echoed >= _PLAIN_EVERY_S:
            say(f"          {progress.line}", err=True)
            self._echoed = time.monotonic()

    def end_step(self) -> None:
        """Leave a line on the terminal for the step that ended."""
        if self._bar is not None and self._task is not None and self._bar.tasks[0].description:
            title = self._bar.tasks[0].description
            self._bar.console.print(
                f"{title}: {time.monotonic() - self._step_begun:.1f} s", highlight=False, markup=False
            )


@contextlib.contextmanager
def _watcher() -> Iterator[_Watch]:
    if not sys.stderr.isatty():
        yield _Watch(None)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[line]}", markup=False, style="dim"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        watch = _Watch(bar)
        yield watch
        watch.end_step()


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Quote a failed program's last lines before its error; a signal ends the block as an exception."""
    try:
        with Interrupts():
            yield
    except Interrupted as interrupted:
        interrupted.add_note("interrupted; no files were left behind")
        raise
    except RootfsNotFound:
        raise
    except InvalidRequest as error:
        raise Failure(one_sentence(error), 2) from error
    except RootfsError as error:
        for line in str(error.facts.get("output", "")).splitlines():
            say(f"  {line}", err=True)
        raise


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
