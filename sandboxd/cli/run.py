"""`sandboxd run`: one command in a sandbox of its own."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from sandboxd.cli.failure import RUN_FAILED, Interrupts, status
from sandboxd.cli.output import say
from sandboxd.cli.params import client_of, command_of, command_options, limits, network_of, sandbox_options

if TYPE_CHECKING:
    from sandboxd.client import Sandbox, Session


@click.command(context_settings={"allow_interspersed_args": False})
@sandbox_options
@command_options
@click.option("--keep", is_flag=True, help="Keep the sandbox afterwards, and print its id on stderr.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND...")
@click.pass_context
def run(  # noqa: PLR0913 - an option each
    ctx: click.Context,
    *,
    rootfs: str | None,
    memory: int | None,
    cpus: float | None,
    pids: int | None,
    disk: int | None,
    io: tuple[tuple[str, str], ...],
    seccomp: str | None,
    network: str | None,
    allow: tuple[str, ...],
    options: dict[str, Any],
    keep: bool,
    command: tuple[str, ...],
) -> None:
    """Create a sandbox, run COMMAND in it, and destroy the sandbox.

    Standard input, output and error and the exit status are those of COMMAND: 128+N if signal N killed it, 127 if it
    was not found, 124 if --timeout expired, 125 if sandboxd itself failed. Ctrl-C, TERM, HUP and QUIT are passed on to
    COMMAND. It is killed on a second signal, or if it has not exited 10 seconds after the first.
    """
    words = command_of(command)
    with status(RUN_FAILED):
        from sandboxd.client import Sandbox  # noqa: PLC0415 - `run --help` needs no httpx

        client = client_of(ctx)
        with Interrupts() as interrupts:
            with interrupts.held():
                sandbox = Sandbox.create(
                    rootfs=rootfs,
                    limits=limits(memory, cpus, pids, disk, io) or None,
                    seccomp=seccomp,
                    network=network_of(network, allow),
                    client=client,
                )
            try:
                interrupts.raise_waiting()
                code = run_attached(sandbox, words, options)
            finally:
                with interrupts.held():
                    _leave(sandbox, keep=keep)
    ctx.exit(code)


def run_attached(sandbox: Sandbox | Session, words: str | list[str], options: dict[str, Any]) -> int:
    """Run the command with our standard streams and return the status to end with."""
    from sandboxd.cli.attach import attach, exit_code, explain, has_stdin  # noqa: PLC0415

    feed = has_stdin()
    with sandbox.exec_stream(words, stdin=feed or None, **options) as stream:
        result = attach(stream, feed=feed)
    explain(result)
    return exit_code(result)


def _leave(sandbox: Sandbox, *, keep: bool) -> None:
    if not keep:
        failure = sys.exception()
        sandbox.__exit__(type(failure) if failure else None, failure, None)
        return
    say(f"sandboxd: kept the sandbox {sandbox.id}", err=True)
