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

_name_option = click.option("--name", metavar="GLOB", help="Only files with such a name, as in gitignore(5): '*.py'.")
_case_option = click.option("-i", "--ignore-case", is_flag=True, help="Do not tell A from a.")
#: What `search`, `find` and `replace` share.
_walk_options = stack(
    click.option("-a", "--all", "hidden", is_flag=True, help="Look at names that begin with a dot too."),
    click.option("--gitignore", is_flag=True, help="Leave out what git ignores there."),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="Stop after so many; 1000 if not given."),
    click.option("--timeout", type=float, metavar="SECONDS", help="Stop after that long; 30 if not given."),
    click.option("--json", "as_json", is_flag=True, help="Print the whole answer as one JSON object."),
)


@click.command(short_help="Find lines in files by a regular expression.")
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
    """Find lines that match PATTERN, a regular expression of Python's, in the files below PATH.

    Each is printed as PATH:LINE:TEXT; that none is found is no failure. Without PATH it begins where the sandbox's
    commands start. Where --limit or --timeout ended it, stderr says so.
    """
    found = sandbox_of(ctx, sandbox)
    with Interrupts():
        result = found.search_files(path or found.info.cwd, content=pattern, **options)
    _show(result, as_json=as_json)


@click.command(short_help="Find files and folders by name.")
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
    """Find files and folders below PATH by name: GLOB is a pattern as in gitignore(5), such as '*.py'.

    Without PATH it begins where the sandbox's commands start. Where --limit or --timeout ended it, stderr says so.
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
        say(f"sandboxd: this is not all: the {truncated} was reached", err=True)


@click.command(short_help="Replace a text in files.")
@click.option("-e", "--regex", is_flag=True, help=r"PATTERN is a regular expression, and \1 its first group.")
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
    """Replace the text PATTERN by REPLACEMENT in PATH, a file, or in every file below it.

    Prints PATH:COUNT for each file that was changed. Each file is rewritten whole; --limit counts the changed files.
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
    click.option("--no-recursive", "recursive", flag_value=False, default=True, help="Not what is in folders below."),
    click.option("--include", multiple=True, metavar="GLOB", help="Only what has such a name; may be given again."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Not what has such a name, nor what is below it."),
)


@click.command(short_help="Print what changes, as it happens.")
@_rules_options
@click.option("--json", "as_json", is_flag=True, help="Print each as one JSON object on a line.")
@click.argument("sandbox")
@click.argument("path", required=False)
@click.pass_context
def watch(ctx: click.Context, /, *, as_json: bool, sandbox: str, path: str | None, **rules: Any) -> None:  # noqa: ANN401
    """Print what changes below PATH, a line for each change, until Ctrl-C or until PATH is gone.

    A line is create, write, chmod, remove, rename (OLD -> NEW) or overflow (changes were lost), and the path; a
    folder's ends with a slash. It has begun when stderr says so. Without PATH it is the folder where the sandbox's
    commands start.
    """
    found = sandbox_of(ctx, sandbox)
    path = path or found.info.cwd
    with Interrupts(), found.watch(path, **rules) as changes:
        say(f"sandboxd: watching {shown(path)}", err=True)
        for change in changes:
            line = json.dumps(change_json(change)) if as_json else change_line(change)
            write_all(1, line.encode() + b"\n")
    say(f"sandboxd: {shown(path)} is gone", err=True)


@click.command(short_help="Print a folder's version, or whether it changed since one.")
@_rules_options
@click.option("--since", metavar="VERSION", help="A version that was printed before, by the same rules.")
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
    """Print the version of what is below PATH: the same text as long as nothing in it changes.

    With --since it exits with 1 where something changed, and with 0 where nothing did. Without PATH it is the folder
    where the sandbox's commands start.
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


@click.command(short_help="Keep a folder as an archive in the sandbox.")
@click.option("--format", type=click.Choice(["tar", "tar.gz", "zip"]), default="tar.gz", show_default=True)
@click.option("--exclude", multiple=True, metavar="GLOB", help="Not what has such a name, nor what is below it.")
@click.option("--gitignore", is_flag=True, help="Leave out what git ignores there.")
@click.argument("sandbox")
@click.argument("path")
@click.argument("archive")
@click.pass_context
def backup(ctx: click.Context, /, *, sandbox: str, path: str, archive: str, **options: Any) -> None:  # noqa: ANN401
    """Keep what is in the folder PATH as the file ARCHIVE of the sandbox, and print how large that is.

    The file is whole or not there; `sandboxd cp` carries it to this machine.
    """
    found = sandbox_of(ctx, sandbox)
    with Interrupts():
        made = found.create_backup(path, archive, **options)
    say(f"{shown(made.archive)}: {made.entries} entries, {made.size} bytes")


@click.command(short_help="Put an archive's content in a folder's place.")
@click.argument("sandbox")
@click.argument("archive")
@click.argument("path")
@click.pass_context
def restore(ctx: click.Context, *, sandbox: str, archive: str, path: str) -> None:
    """Put what the file ARCHIVE of the sandbox has in the place of what is in the folder PATH.

    A damaged archive changes nothing.
    """
    found = sandbox_of(ctx, sandbox)
    with Interrupts():
        done = found.restore_backup(path, archive)
    say(f"{shown(path)}: {done.entries} entries")
