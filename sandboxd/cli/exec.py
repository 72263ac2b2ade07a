"""`sandboxd exec`: a command in a sandbox that exists."""

from __future__ import annotations

from typing import Any

import click

from sandboxd.cli.failure import RUN_FAILED, Interrupts, status
from sandboxd.cli.output import say
from sandboxd.cli.params import command_of, command_options, line_of, session_option, target_of


@click.command("exec", context_settings={"allow_interspersed_args": False})
@command_options
@session_option
@click.option("-d", "--detach", is_flag=True, help="Run in the background and print the process id.")
@click.argument("sandbox")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND...")
@click.pass_context
def exec_(
    ctx: click.Context,
    *,
    options: dict[str, Any],
    session: str | None,
    detach: bool,
    sandbox: str,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND in SANDBOX (an id or a name).

    Standard input, output and error and the exit status are those of COMMAND, as with `sandboxd run`. In a session, a
    COMMAND that is a single argument is run as shell code: sandboxd exec -s work NAME 'cd /tmp && export A=1'

    Ctrl-C, TERM, HUP and QUIT are passed on to COMMAND. It is killed on a second signal, or if it has not exited 10
    seconds after the first. With --detach, COMMAND runs in the background: use `sandboxd process` to follow it, signal
    it or wait for it.
    """
    words = command_of(command)
    with status(RUN_FAILED):
        from sandboxd.cli.run import run_attached  # noqa: PLC0415 - `exec --help` needs no httpx

        found = target_of(ctx, sandbox, session, options)
        if detach:
            with found.exec_stream(line_of(words, session), detach=True, **options) as stream:
                say(stream.process_id)
            return
        with Interrupts():
            code = run_attached(found, line_of(words, session), options)
    ctx.exit(code)
