"""`sandboxd process`: start, list, follow, signal and wait for commands that run in the background."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from sandboxd.cli.failure import TIMED_OUT, Failure, Interrupts, one_sentence
from sandboxd.cli.ls import age
from sandboxd.cli.output import say, write_all
from sandboxd.cli.params import command_of, command_options, line_of, sandbox_of, session_option, target_of
from sandboxd.cli.table import print_table

if TYPE_CHECKING:
    from sandboxd.client import ProcessInfo, WaitResult

#: Of a command in a table.
_COMMAND_CHARS: Final = 60


@click.group()
def process() -> None:
    """Manage background processes.

    A process runs until it exits or its sandbox is destroyed. Use its id to read its log, get its exit status or send
    it signals, even after the client that started it has gone. `sandboxd exec --detach` starts one too.
    """


@process.command(context_settings={"allow_interspersed_args": False})
@command_options
@session_option
@click.option("--id", "process_id", metavar="ID", help="Id for the process, unique in the sandbox.")
@click.option("--restart", is_flag=True, help="Restart on failure with exponential backoff, at most 10 times in a row.")
@click.argument("sandbox")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND...")
@click.pass_context
def start(
    ctx: click.Context,
    *,
    options: dict[str, Any],
    session: str | None,
    process_id: str | None,
    restart: bool,
    sandbox: str,
    command: tuple[str, ...],
) -> None:
    """Start COMMAND in SANDBOX and print the process id.

    SANDBOX is an id or a name. `sandboxd process logs` shows the output. In a session, a COMMAND that is a single
    argument is run as shell code.
    """
    line = line_of(command_of(command), session)
    found = target_of(ctx, sandbox, session, options)
    say(found.start_process(line, id=process_id, restart="on-failure" if restart else None, **options).id)


@process.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Include processes that have exited.")
@click.option("--json", "as_json", is_flag=True, help="Print the full objects as a JSON list.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the ids.")
@click.argument("sandbox")
@click.pass_context
def ls(ctx: click.Context, *, everything: bool, as_json: bool, quiet: bool, sandbox: str) -> None:
    """List the processes of SANDBOX (an id or a name)."""
    found = [info for info in sandbox_of(ctx, sandbox).list_processes() if everything or info.is_running]
    if as_json:
        click.echo(json.dumps([info.raw for info in found], indent=2))
    elif quiet:
        for info in found:
            say(info.id)
    else:
        print_table(("ID", "PID", "STATUS", "AGE", "COMMAND"), [_row(info) for info in found])


def _row(info: ProcessInfo) -> tuple[str, ...]:
    command = info.command if isinstance(info.command, str) else " ".join(info.command)
    shown = " ".join(command.split())
    status = info.status if info.is_running else f"{info.signal or info.exit_code}"
    return (
        info.id,
        "-" if info.pid is None else str(info.pid),
        status if not info.restarts else f"{status}, restarted {info.restarts}x",
        age(info.started_at),
        shown if len(shown) <= _COMMAND_CHARS else shown[: _COMMAND_CHARS - 1] + "…",
    )


@process.command()
@click.option("-f", "--follow", is_flag=True, help="Follow the log until the process exits.")
@click.option("-n", "--tail", type=click.IntRange(0), metavar="LINES", help="Start with the last LINES lines.")
@click.argument("sandbox")
@click.argument("process")
@click.pass_context
def logs(ctx: click.Context, *, follow: bool, tail: int | None, sandbox: str, process: str) -> None:
    """Print the log of PROCESS in SANDBOX.

    What the process wrote to its standard output goes to standard output, the rest to standard error. If the beginning
    of the output is no longer in the log, a note on stderr says how much is missing.
    """
    found = sandbox_of(ctx, sandbox)
    with Interrupts():
        if follow:
            with found.stream_process_logs(process, tail=tail) as stream:
                for chunk in stream:
                    write_all(1 if chunk.stream == "stdout" else 2, chunk.data)
                dropped = stream.dropped_bytes
        else:
            log = found.get_process_logs(process, tail=tail)
            write_all(1, log.stdout_bytes)
            write_all(2, log.stderr_bytes)
            dropped = log.dropped_bytes
    if dropped:
        say(f"sandboxd: {dropped} bytes of output are no longer in the log", err=True)


@process.command()
@click.option(
    "-s", "--signal", default="TERM", metavar="SIGNAL", help="Signal to send, a name or a number.  [default: TERM]"
)
@click.option("--all", "everything", is_flag=True, help="Kill every process in the sandbox and remove all logs.")
@click.option(
    "--rm", "remove", is_flag=True, help="Kill the processes and everything they started, and remove their logs."
)
@click.argument("sandbox")
@click.argument("processes", nargs=-1, metavar="PROCESS...")
@click.pass_context
def kill(
    ctx: click.Context, *, signal: str, everything: bool, remove: bool, sandbox: str, processes: tuple[str, ...]
) -> None:
    """Send a signal to each PROCESS in SANDBOX.

    The signal goes to the process and its process group; TERM and KILL reach everything it started. After TERM,
    whatever is still running 5 s after the process itself has exited is killed. A PROCESS that does not exist or has
    exited is reported; the others still get the signal.
    """
    if bool(processes) == everything:
        raise click.UsageError("Give either one PROCESS or more, or --all.")
    from sandboxd.errors import Conflict, NotFound  # noqa: PLC0415

    found = sandbox_of(ctx, sandbox)
    if everything:
        found.kill_all_processes()
        return
    failed = 0
    for process in processes:
        try:
            if remove:
                found.remove_process(process)
            else:
                found.kill_process(process, signal)
        except (NotFound, Conflict) as error:
            failed += 1
            Failure(one_sentence(error)).show()
    ctx.exit(1 if failed else 0)


@process.command()
@click.option("--port", type=click.IntRange(1, 65535), metavar="PORT", help="Wait until PORT accepts connections.")
@click.option("--path", metavar="PATH", help="With --port: wait until GET PATH succeeds.")
@click.option("--log", "pattern", metavar="REGEX", help="Wait until a line of output matches REGEX, and print it.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Give up after SECONDS; exit with status 124.")
@click.argument("sandbox")
@click.argument("process", required=False)
@click.pass_context
def wait(
    ctx: click.Context,
    *,
    port: int | None,
    path: str | None,
    pattern: str | None,
    timeout: float | None,
    sandbox: str,
    process: str | None,
) -> None:
    """Wait until PROCESS in SANDBOX exits.

    The exit status is that of PROCESS. With --port or --log, wait for the port or the line of output instead: the exit
    status is 0 once it appears, and 1 if PROCESS exits first. --port works without PROCESS.
    """
    if (port is not None and pattern is not None) or (path is not None and port is None):
        raise click.UsageError("Wait for one condition only: the exit, --port (with --path) or --log.")
    if process is None and port is None:
        raise click.UsageError("Missing argument 'PROCESS'.")
    found = sandbox_of(ctx, sandbox)
    with Interrupts():
        if port is not None:
            result = found.watch_port(port, process=process, path=path, timeout=timeout)
        elif pattern is not None:
            result = found.wait_for_log(process or "", pattern, timeout=timeout)
        else:
            result = found.wait_for_exit(process or "", timeout=timeout)
    if result.line is not None:
        say(result.line)
    ctx.exit(_status(result, "exit" if port is None and pattern is None else "other"))


def _status(result: WaitResult, what: Literal["exit", "other"]) -> int:
    if result.reason == "timeout":
        return TIMED_OUT
    if what == "other":
        if not result.met:
            how = result.signal or f"exit code {result.exit_code}"
            say(f"sandboxd: the process exited first: {how}", err=True)
        return 0 if result.met else 1
    from sandboxd.cli.attach import signal_status  # noqa: PLC0415

    return signal_status(result.signal) if result.signal is not None else result.exit_code or 0
