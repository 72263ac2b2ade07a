"""`sandboxd exec`: a command in a sandbox that exists."""

from __future__ import annotations

from typing import Any

import click

from sandboxd.cli.failure import RUN_FAILED, Interrupts, status
from sandboxd.cli.params import client_of, command_of, command_options


@click.command("exec", context_settings={"allow_interspersed_args": False})
@command_options
@click.option("-d", "--detach", is_flag=True, help="Do not wait for the command; print its process' id.")
@click.argument("sandbox")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND...")
@click.pass_context
def exec_(
    ctx: click.Context,
    *,
    env: tuple[tuple[str, str], ...],
    workdir: str | None,
    user: str | None,
    timeout: float | None,
    detach: bool,
    sandbox: str,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND in SANDBOX (an id or a name).

    Standard input, output and error and the exit status are the command's, as with `sandboxd run`.
    """
    words = command_of(command)
    options: dict[str, Any] = {"cwd": workdir, "env": dict(env), "user": user, "timeout": timeout}
    with status(RUN_FAILED):
        from sandboxd.cli.run import run_attached  # noqa: PLC0415 - `exec --help` needs no httpx
        from sandboxd.client import Sandbox  # noqa: PLC0415

        found = Sandbox.connect(sandbox, client=client_of(ctx))
        if detach:
            with found.exec_stream(words, detach=True, **options) as stream:
                click.echo(stream.process_id)
            return
        with Interrupts():
            code = run_attached(found, words, options)
    ctx.exit(code)
