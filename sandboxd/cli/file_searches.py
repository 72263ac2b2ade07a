"""`sandboxd files search`, `find`, `replace` and `watch`: what looks at many files at once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from sandboxd.cli.failure import Interrupts
from sandboxd.cli.file_text import change_json, change_line, match_json, name_json
from sandboxd.cli.output import say, shown, shown_line, write_all
from sandboxd.cli.params import sandbox_of, stack

if TYPE_CHECKING:
    from sandboxd.client.file_calls import SearchResult

_name_option = click.option(
    "--name", metavar="GLOB", help="Only files whose names match this gitignore(5) pattern, e.g. '*.py'."
)
_case_option = click.option("-i", "--ignore-case", is_flag=True, help="Ignore case.")
#: What `search`, `find` and `replace` share.
_walk_options = stack(
    click.option("-a", "--all", "hidden", is_flag=True, help="Include names that begin with a dot."),
    click.option("--gitignore", is_flag=True, help="Leave out files that git ignores."),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="Stop after N results.  [default: 1000]"),
    click.option("--timeout", type=float, metavar="SECONDS", help="Stop after SECONDS.  [default: 30]"),
    click.option("--json", "as_json", is_flag=True, help="Print the whole answer as one JSON object."),
)


@click.command(short_help="Search files for a regular expression.")
@_name_option
@_case_option
@_walk_options
@click.argument("sandbox")
@click.argument("pattern")
@click.argument("path", required=False)
@click.pass_context
def search(
    ctx: click.Context,
    /,
    *,
    pattern: str,
    path: str | None,
    sandbox: str,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - the API's fields
) -> None:
    """Find lines that match PATTERN, a Python regular expression, in the files below PATH.

    Prints PATH:LINE:TEXT for each line; finding none is not a failure. PATH defaults to the sandbox's working
    directory. A note on stderr says if --limit or --timeout ended the search.
    """
    found = sandbox_of(ctx, sandbox)
    with Interrupts():
        result = found.search_files(path or found.info.cwd, content=pattern, **options)
    _show(result, as_json=as_json)


@click.command(short_help="Find files and directories by name.")
@_walk_options
@click.argument("sandbox")
@click.argument("glob")
@click.argument("path", required=False)
@click.pass_context
def find(
    ctx: click.Context,
    /,
    *,
    glob: str,
    path: str | None,
    sandbox: str,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - the API's fields
) -> None:
    """Find files and directories below PATH by name: GLOB is a pattern as in gitignore(5), e.g. '*.py'.

    PATH defaults to the sandbox's working directory. A note on stderr says if --limit or --timeout ended the search.
    """
    found = sandbox_of(ctx, sandbox)
    with Interrupts():
        result = found.search_files(path or found.info.cwd, name=glob, **options)
    _show(result, as_json=as_json)


def _show(result: SearchResult, *, as_json: bool) -> None:
    if as_json:
        items = [match_json(match) for match in result.items]
        click.echo(json.dumps({"items": items, "truncated": result.truncated, "files": result.files}, indent=2))
        return
    for match in result.items:
        line = "" if match.line is None else f":{match.line}:{shown_line(match.text or '')}"
        say(shown(match.path) + line)
    _tell_truncated(result.truncated)


def _tell_truncated(truncated: str | None) -> None:
    if truncated is not None:
        say(f"sandboxd: the result is incomplete: the {truncated} was reached", err=True)


@click.command(short_help="Replace text in files.")
@click.option("-e", "--regex", is_flag=True, help=r"Treat PATTERN as a regular expression; \1 is its first group.")
@_name_option
@_case_option
@_walk_options
@click.argument("sandbox")
@click.argument("pattern")
@click.argument("replacement")
@click.argument("path")
@click.pass_context
def replace(
    ctx: click.Context,
    /,
    *,
    pattern: str,
    replacement: str,
    path: str,
    sandbox: str,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - the API's fields
) -> None:
    """Replace the text PATTERN with REPLACEMENT in PATH, a file or every file below a directory.

    Prints PATH:COUNT for each file that was changed; --limit counts the changed files. Each file is rewritten as a
    whole.
    """
    found = sandbox_of(ctx, sandbox)
    with Interrupts():
        result = found.replace_in_files(path, pattern, replacement, **options)
    if as_json:
        items = [name_json("path", name) | {"count": count} for name, count in result.items.items()]
        click.echo(json.dumps({"items": items, "count": result.count, "truncated": result.truncated}, indent=2))
        return
    for name, count in result.items.items():
        say(f"{shown(name)}:{count}")
    _tell_truncated(result.truncated)


#: What `watch` and `changes` share.
_rules_options = stack(
    click.option("--no-recursive", "recursive", flag_value=False, default=True, help="Leave out subdirectories."),
    click.option("--include", multiple=True, metavar="GLOB", help="Only names that match. Repeatable."),
    click.option(
        "--exclude",
        multiple=True,
        metavar="GLOB",
        help="Leave out names that match, and everything below them. Repeatable.",
    ),
)


@click.command(short_help="Print file changes as they happen.")
@_rules_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.argument("sandbox")
@click.argument("path", required=False)
@click.pass_context
def watch(ctx: click.Context, /, *, as_json: bool, sandbox: str, path: str | None, **rules: Any) -> None:  # noqa: ANN401
    """Print changes below PATH, one per line, until Ctrl-C or until PATH is deleted.

    A line is create, write, chmod, remove, rename (OLD -> NEW) or overflow (changes were lost), and the path; the path
    of a directory ends with a slash. A note on stderr says when watching has begun. PATH defaults to the sandbox's
    working directory.
    """
    found = sandbox_of(ctx, sandbox)
    path = path or found.info.cwd
    with Interrupts(), found.watch(path, **rules) as changes:
        say(f"sandboxd: watching {shown(path)}", err=True)
        for change in changes:
            line = json.dumps(change_json(change)) if as_json else change_line(change)
            write_all(1, line.encode() + b"\n")
    say(f"sandboxd: {shown(path)} is gone", err=True)


@click.command(short_help="Print a directory's version, or check whether it changed.")
@_rules_options
@click.option("--since", metavar="VERSION", help="Version to compare with, from an earlier run with the same options.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer as one JSON object.")
@click.argument("sandbox")
@click.argument("path", required=False)
@click.pass_context
def changes(
    ctx: click.Context,
    /,
    *,
    since: str | None,
    as_json: bool,
    sandbox: str,
    path: str | None,
    **rules: Any,  # noqa: ANN401 - the API's fields
) -> None:
    """Print the version of the directory PATH, which stays the same as long as nothing in it changes.

    With --since, the exit status is 1 if something changed and 0 if nothing did. PATH defaults to the sandbox's working
    directory.
    """
    found = sandbox_of(ctx, sandbox)
    with Interrupts():
        result = found.check_changes(path or found.info.cwd, since=since, **rules)
    if as_json:
        shown_result = {"version": result.version, "changed": result.changed, "entries": result.entries}
        click.echo(json.dumps(shown_result, indent=2))
    else:
        say(result.version)
    ctx.exit(1 if result.changed else 0)


@click.command(short_help="Save a directory as an archive in the sandbox.")
@click.option("--format", type=click.Choice(["tar", "tar.gz", "zip"]), default="tar.gz", show_default=True)
@click.option(
    "--exclude",
    multiple=True,
    metavar="GLOB",
    help="Leave out names that match, and everything below them. Repeatable.",
)
@click.option("--gitignore", is_flag=True, help="Leave out files that git ignores.")
@click.argument("sandbox")
@click.argument("path")
@click.argument("archive")
@click.pass_context
def backup(ctx: click.Context, /, *, sandbox: str, path: str, archive: str, **options: Any) -> None:  # noqa: ANN401
    """Save the directory PATH as the file ARCHIVE in the sandbox, and print its size.

    The file appears only when it is complete; `sandboxd cp` copies it out.
    """
    found = sandbox_of(ctx, sandbox)
    with Interrupts():
        made = found.create_backup(path, archive, **options)
    say(f"{shown(made.archive)}: {made.entries} entries, {made.size} bytes")


@click.command(short_help="Replace a directory's content with an archive's.")
@click.argument("sandbox")
@click.argument("archive")
@click.argument("path")
@click.pass_context
def restore(ctx: click.Context, *, sandbox: str, archive: str, path: str) -> None:
    """Replace the content of the directory PATH with that of ARCHIVE, a file in the sandbox.

    A damaged archive changes nothing.
    """
    found = sandbox_of(ctx, sandbox)
    with Interrupts():
        done = found.restore_backup(path, archive)
    say(f"{shown(path)}: {done.entries} entries")
