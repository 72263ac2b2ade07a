"""`sandboxd code` and `sandboxd contexts`: code in interpreters that keep their state."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sandboxd.cli.failure import RUN_FAILED, TIMED_OUT, Interrupts, status
from sandboxd.cli.ls import age
from sandboxd.cli.output import say, write_all
from sandboxd.cli.params import client_of, env_option
from sandboxd.cli.passing import Passing
from sandboxd.cli.table import print_table

if TYPE_CHECKING:
    from sandboxd.client import CodeContext, CodeError, CodeResult, Result, Sandbox

#: What a file's end tells of its language.
_LANGUAGES: Final = {".py": "python", ".js": "javascript", ".mjs": "javascript", ".ts": "typescript"}
_FILES: Final = ("png", "jpeg", "pdf", "svg", "html")


def _sandbox(ctx: click.Context, name: str) -> Sandbox:
    from sandboxd.client import Sandbox  # noqa: PLC0415 - `--help` needs no httpx

    return Sandbox.connect(name, client=client_of(ctx))


@click.command()
@click.option(
    "-l",
    "--language",
    metavar="NAME",
    help="python, javascript or typescript.  [default: from the file's suffix, else python]",
)
@click.option("-x", "--context", metavar="ID", help="Context to run in.  [default: the language's default context]")
@click.option("-t", "--timeout", type=float, metavar="SECONDS", help="Interrupt the code after SECONDS.")
@env_option
@click.option("-c", "--code", metavar="CODE", help="Code to run, instead of a file.")
@click.option(
    "--save", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Write figures to this directory."
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as one JSON object.")
@click.argument("sandbox")
@click.argument("file", type=click.File("r", encoding="utf-8"), required=False)
@click.pass_context
def code(  # noqa: PLR0913 - an option each
    ctx: click.Context,
    *,
    language: str | None,
    context: str | None,
    timeout: float | None,
    env: dict[str, str],
    code: str | None,
    save: Path | None,
    as_json: bool,
    sandbox: str,
    file: Any,  # noqa: ANN401 - an open file
) -> None:
    """Run code from FILE (- is standard input) in SANDBOX, in an interpreter that keeps its state between runs.

    Output appears as it is printed, and each result as text. The exit status is 0 if the code finished, 1 if it raised
    an exception, 124 if --timeout interrupted it, and 125 if sandboxd or the interpreter failed. Ctrl-C, TERM, HUP and
    QUIT interrupt the code, and the status is 128+N. The client stops waiting on a second signal, or 10 seconds after
    the first.
    """
    if (code is None) == (file is None):
        raise click.UsageError("Give the code either as FILE (- is standard input) or with --code.")
    if language is None and file is not None and context is None:
        language = _LANGUAGES.get(Path(file.name).suffix)
    text = code if code is not None else file.read()
    with status(RUN_FAILED), Interrupts():
        found = _sandbox(ctx, sandbox)
        options: dict[str, Any] = {"context": context, "language": language, "env": env, "timeout": timeout}
        if not as_json:
            options |= {"on_stdout": _out(1), "on_stderr": _out(2), "on_result": _Shown(save), "on_error": _show_error}
        with (
            found.run_code_stream(text, **options) as stream,
            Passing(lambda _: found.interrupt_code_context(stream.context_id)) as passing,
        ):
            result = stream.wait()
    if as_json:
        click.echo(json.dumps(_to_json(result), indent=2))
    if passing.first is not None and result.status != "ok":
        ctx.exit(128 + passing.first)
    if not as_json and (result.restarted or result.status not in ("ok", "error")):
        say(f"sandboxd: {result.status}{', the context was restarted' * result.restarted}", err=True)
    ctx.exit({"ok": 0, "error": 1, "timeout": TIMED_OUT}.get(result.status, RUN_FAILED))


def _out(fd: int) -> Any:  # noqa: ANN401 - a callback
    return lambda text: write_all(fd, text.encode())


class _Shown:
    """Prints results; writes their pictures where asked to."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._count = 0

    def __call__(self, result: Result) -> None:
        self._count += 1
        if result.text is not None:
            write_all(1, result.text.encode() + b"\n")
        if self._directory is None:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            data = getattr(result, name)
            if data is not None:
                path = self._directory / f"{self._count}.{name}"
                path.write_bytes(data if isinstance(data, bytes) else data.encode())
                say(f"sandboxd: wrote {path}", err=True)


def _show_error(error: CodeError) -> None:
    lines = error.traceback_ansi if sys.stderr.isatty() else error.traceback
    print("\n".join(lines) or str(error), file=sys.stderr)


def _to_json(result: CodeResult) -> dict[str, Any]:
    import base64  # noqa: PLC0415 - one of the two ways needs it
    import dataclasses  # noqa: PLC0415

    found = dataclasses.asdict(result)
    for shown in found["results"]:
        for name, value in list(shown.items()):
            if isinstance(value, bytes):
                shown[name] = base64.b64encode(value).decode()
            elif value is None:
                del shown[name]
    return found


@click.group()
def contexts() -> None:
    """Create, list, interrupt, restart and delete code contexts."""


@contexts.command("create")
@click.option("-w", "--workdir", metavar="DIR", help="Working directory.  [default: the sandbox's own]")
@env_option
@click.argument("sandbox")
@click.argument("language", default="python")
@click.pass_context
def create(ctx: click.Context, *, workdir: str | None, env: dict[str, str], sandbox: str, language: str) -> None:
    """Start an interpreter for LANGUAGE (python, javascript, typescript) and print the context's id."""
    say(_sandbox(ctx, sandbox).create_code_context(language, cwd=workdir, env=env).id)


@contexts.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print only the ids.")
@click.argument("sandbox")
@click.pass_context
def list_(ctx: click.Context, *, quiet: bool, sandbox: str) -> None:
    """List the code contexts of SANDBOX."""
    found = _sandbox(ctx, sandbox).list_code_contexts()
    if quiet:
        for context in found:
            say(context.id)
    else:
        print_table(("ID", "LANGUAGE", "STATE", "RUNS", "AGE", "INTERPRETER"), [_row(context) for context in found])


def _row(context: CodeContext) -> tuple[str, ...]:
    language = context.language + (" (default)" if context.is_default else "")
    runs = str(context.execution_count)
    return context.id, language, context.state, runs, age(context.created_at), context.version or "-"


@contexts.command("interrupt")
@click.argument("sandbox")
@click.argument("context")
@click.pass_context
def interrupt(ctx: click.Context, *, sandbox: str, context: str) -> None:
    """Interrupt the code running in CONTEXT and wait until it stops."""
    if not _sandbox(ctx, sandbox).interrupt_code_context(context):
        say("sandboxd: nothing is running in that context", err=True)


@contexts.command("restart")
@click.argument("sandbox")
@click.argument("context")
@click.pass_context
def restart(ctx: click.Context, *, sandbox: str, context: str) -> None:
    """Restart CONTEXT with a new interpreter, discarding its state."""
    _sandbox(ctx, sandbox).restart_code_context(context)


@contexts.command("rm")
@click.argument("sandbox")
@click.argument("context", nargs=-1, required=True)
@click.pass_context
def remove(ctx: click.Context, *, sandbox: str, context: tuple[str, ...]) -> None:
    """Delete contexts, and kill everything they started."""
    found = _sandbox(ctx, sandbox)
    for one in context:
        found.delete_code_context(one)
