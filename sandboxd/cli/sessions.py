"""`sandboxd session create`, `ls` and `rm`: commands that hand on a shell's state."""

from __future__ import annotations

import json
from typing import Any

import click

from sandboxd.cli.ls import age
from sandboxd.cli.output import say
from sandboxd.cli.params import sandbox_of, start_options
from sandboxd.cli.table import print_table


@click.group()
def session() -> None:
    """Manage sessions. The commands of a session share the state of a shell.

    `sandboxd exec --session ID` runs a command in a session, with the working directory, variables, functions, aliases
    and options left by the previous command. Commands of a session run one at a time.
    """


@session.command()
@click.option("--id", "session_id", metavar="ID", help="Id for the session, unique in the sandbox.")
@start_options
@click.option(
    "--shell",
    type=click.Choice(["bash", "sh"]),
    help="Shell of the session.  [default: bash if the sandbox has it, else sh]",
)
@click.argument("sandbox")
@click.pass_context
def create(
    ctx: click.Context,
    *,
    session_id: str | None,
    options: dict[str, Any],
    shell: str | None,
    sandbox: str,
) -> None:
    """Create a session in SANDBOX (an id or a name) and print its id."""
    found = sandbox_of(ctx, sandbox)
    say(found.create_session(id=session_id, shell=shell, **options).id)


@session.command()
@click.option("--json", "as_json", is_flag=True, help="Print the full objects as a JSON list.")
@click.argument("sandbox")
@click.pass_context
def ls(ctx: click.Context, *, as_json: bool, sandbox: str) -> None:
    """List the sessions of SANDBOX (an id or a name)."""
    found = [one.info for one in sandbox_of(ctx, sandbox).list_sessions()]
    if as_json:
        click.echo(json.dumps([info.raw for info in found], indent=2))
        return
    rows = [
        (
            info.id,
            info.shell,
            info.user,
            age(info.created_at),
            str(info.commands),
            "busy" if info.running else "idle",
            info.cwd or "?",
        )
        for info in found
    ]
    print_table(("ID", "SHELL", "USER", "AGE", "COMMANDS", "STATUS", "CWD"), rows)


@session.command()
@click.argument("sandbox")
@click.argument("sessions", nargs=-1, required=True, metavar="ID...")
@click.pass_context
def rm(ctx: click.Context, *, sandbox: str, sessions: tuple[str, ...]) -> None:
    """Delete sessions of SANDBOX (an id or a name), and kill any processes that their commands left running."""
    found = sandbox_of(ctx, sandbox)
    for one in sessions:
        found.delete_session(one)
