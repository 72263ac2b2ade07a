"""`sandboxd exec`: a command in a sandbox that exists."""

from __future__ import annotations

from typing import Any

import click

from sandboxd.cli.failure import RUN_FAILED, Interrupts, status
from sandboxd.cli.output import say
from sandboxd.cli.params import client_of, command_of, command_options


@click.command("exec", context_settings={"allow_interspersed_args": False})
@command_options
@click.option(
    "-s", "--session", metavar="ID", help="Run in a session, with the shell state that its last command left."
)
@click.option("-d", "--detach", is_flag=True, help="Do not wait for the command; print its process id.")
@click.argument("sandbox")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND...")
@click.pass_context
def exec_(  # noqa: PLR0913 - an option each
    ctx: click.Context,
    *,
    env: tuple[tuple[str, str], ...],
    workdir: str | None,
    user: str | None,
    timeout: float | None,
    session: str | None,
    detach: bool,
    sandbox: str,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND in SANDBOX (an id or a name).

    Standard input, output, error and the exit status are the command's, as with `sandboxd run`. With --session, a
    COMMAND of one word is a line for the session's shell: sandboxd exec -s work NAME 'cd /tmp && export A=1'

    Ctrl-C, TERM, HUP and QUIT are passed on to the command, which is killed by a second one, or if it has not ended
    after 10 seconds.
    """
    words = command_of(command)
    options: dict[str, Any] = {"cwd": workdir, "env": dict(env), "user": user, "timeout": timeout}
    with status(RUN_FAILED):
        from sandboxd.cli.run import run_attached  # noqa: PLC0415 - `exec --help` needs no httpx
        from sandboxd.client import Sandbox  # noqa: PLC0415

        found: Any = Sandbox.connect(sandbox, client=client_of(ctx))
        if session is not None:
            if options.pop("user") is not None:
                raise click.UsageError("--user goes with `sandboxd session create`, not with --session.")
            found = found.get_session(session)
        if detach:
            with found.exec_stream(_line(words, session), detach=True, **options) as stream:
                say(stream.process_id)
            return
        with Interrupts():
            code = run_attached(found, _line(words, session), options)
    ctx.exit(code)


def _line(words: list[str], session: str | None) -> str | list[str]:
    return words[0] if session is not None and len(words) == 1 else words
