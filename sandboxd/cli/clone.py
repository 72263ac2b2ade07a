"""`sandboxd clone`: a git repository into a sandbox."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from sandboxd.cli.failure import Interrupts
from sandboxd.cli.output import say, shown
from sandboxd.cli.params import client_of

if TYPE_CHECKING:
    from rich.progress import Progress

    from sandboxd.client import GitCheckout, GitProgress

_PHASES: Final = {
    "connecting": "Connecting",
    "counting": "The server counts objects",
    "compressing": "The server compresses objects",
    "receiving": "Receiving objects",
    "resolving": "Resolving deltas",
    "checking-out": "Checking out files",
}


@click.command()
@click.option("-b", "--branch", metavar="NAME", help="Branch, tag or commit.  [default: the default branch]")
@click.option("--depth", type=click.IntRange(min=1), metavar="N", help="Fetch only the last N commits.")
@click.option(
    "--single-branch/--all-branches",
    default=None,
    help="Fetch one branch or all.  [default: one with --depth, else all]",
)
@click.option("--submodules", is_flag=True, help="Clone submodules as well.")
@click.option("--sparse", multiple=True, metavar="DIR", help="Check out only this directory. Repeatable.")
@click.option("-u", "--username", metavar="NAME", help="User name for https and http.")
@click.option(
    "--password-file",
    type=click.File("r"),
    metavar="FILE",
    help="File whose first line is the password or token; - is stdin.",
)
@click.option("-t", "--timeout", type=float, metavar="SECONDS", help="Give up after SECONDS.  [default: 600]")
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as one JSON object.")
@click.argument("sandbox")
@click.argument("url")
@click.argument("directory", required=False)
@click.pass_context
def clone(  # noqa: PLR0913 - an option each
    ctx: click.Context,
    *,
    branch: str | None,
    depth: int | None,
    single_branch: bool | None,
    submodules: bool,
    sparse: tuple[str, ...],
    username: str | None,
    password_file: Any,  # noqa: ANN401 - an open file
    timeout: float | None,
    as_json: bool,
    sandbox: str,
    url: str,
    directory: str | None,
) -> None:
    """Clone the git repository at URL into SANDBOX. git need not be installed there.

    URL is an https, http or git:// address, or an absolute path in the sandbox. DIRECTORY must be new or empty; a
    relative one is resolved against the sandbox's working directory. It defaults to the repository's name. Do not pass
    a password on the command line, where other users can read it; use --password-file.
    """
    from sandboxd.client import Sandbox  # noqa: PLC0415 - `--help` needs no httpx

    password = password_file.readline().rstrip("\r\n") if password_file is not None else None
    with Interrupts():
        found = Sandbox.connect(sandbox, client=client_of(ctx))
        with _Shown(sys.stderr.isatty() and not as_json) as shown:
            result = found.git_checkout(
                url,
                branch=branch,
                target_dir=directory,
                depth=depth,
                single_branch=single_branch,
                submodules=submodules,
                sparse=sparse,
                username=username,
                password=password,
                timeout=timeout,
                on_progress=shown.take,
            )
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(result), indent=2))
    else:
        say(_line(result))


def _line(result: GitCheckout) -> str:
    if result.commit is None:
        return f"{result.target_dir}: an empty repository"
    what = f"{result.branch} at {result.commit[:12]}" if result.branch else result.commit[:12]
    return f"{result.target_dir}: {what}, {result.files} files"


class _Shown:
    """A bar for each phase, on a terminal."""

    def __init__(self, wanted: bool) -> None:
        self._bars: Progress | None = None
        self._tasks: dict[tuple[str | None, str], Any] = {}
        if wanted:
            from rich.console import Console  # noqa: PLC0415 - who pipes its output needs none
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn  # noqa: PLC0415
            from rich.progress import Progress as Bars  # noqa: PLC0415

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[size]}"),
            )
            self._bars = Bars(*columns, console=Console(stderr=True))

    def __enter__(self) -> _Shown:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def take(self, told: GitProgress) -> None:
        """Move the bar that this is about."""
        if self._bars is None:
            return
        key = (told.submodule, told.phase)
        if key not in self._tasks:
            about = f"{shown(told.submodule)}: " if told.submodule else ""
            self._tasks[key] = self._bars.add_task(about + _PHASES.get(told.phase, told.phase), total=None, size="")
        size = f"{told.received_bytes / 1e6:.1f} MB" if told.phase == "receiving" else ""
        self._bars.update(self._tasks[key], completed=told.done, total=told.total or None, size=size)
