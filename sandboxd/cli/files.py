"""`sandboxd files`: look at and change the files of a sandbox where they are (`sandboxd cp` carries them over)."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from sandboxd.cli.cp import remote_target
from sandboxd.cli.failure import Failure, Interrupts, one_sentence
from sandboxd.cli.file_searches import backup, changes, find, replace, restore, search, watch
from sandboxd.cli.file_text import file_json, mode_text, utc
from sandboxd.cli.output import say, shown, write_all
from sandboxd.cli.params import Size, sandbox_of
from sandboxd.cli.table import print_table
from sandboxd.errors import AccessDenied, Conflict, FileNotFound, NotAFile
from sandboxd.spec import check_file_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sandboxd.client.file_calls import FileInfo

_READ_BYTES: Final = 256 * 1024
paths_argument = click.argument("paths", nargs=-1, required=True, metavar="PATH...")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the full objects as a JSON list.")
recursive_option = click.option("-R", "--recursive", is_flag=True, help="Apply to everything in directories as well.")


class _Octal(click.ParamType[int]):
    """A mode: 644, 0755."""

    name = "mode"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        """Return the mode's bits."""
        if isinstance(value, int):
            return value
        try:
            mode = int(value, 8)
        except ValueError:
            mode = -1
        if not 0 <= mode <= 0o7777:
            self.fail(f"{value!r} is not a mode; give an octal number such as 644 or 0755", param, ctx)
        return mode


@click.group()
def files() -> None:
    r"""Inspect and change the files of a sandbox in place; `sandboxd cp` copies files in and out.

    Every PATH is absolute. In names, bytes that are not UTF-8 or would garble a terminal are shown as \xff. With
    --json, names are as in the API, with their raw bytes in path_b64.
    """


@files.command("ls", short_help="List a directory.")
@click.option("-a", "--all", "hidden", is_flag=True, help="Include names that begin with a dot.")
@click.option("-R", "--recursive", is_flag=True, help="List subdirectories too, with paths relative to PATH.")
@click.option("-l", "--long", is_flag=True, help="Show type and mode, owner, size in bytes, and modification time.")
@json_option
@click.argument("sandbox")
@click.argument("path", required=False)
@click.pass_context
def list_(
    ctx: click.Context, *, hidden: bool, recursive: bool, long: bool, as_json: bool, sandbox: str, path: str | None
) -> None:
    """List the directory PATH, or show the file PATH. PATH defaults to the sandbox's working directory."""
    found = sandbox_of(ctx, sandbox)
    path = path or found.info.cwd
    base = f"{check_file_path(path).rstrip('/')}/"
    try:
        infos: Iterable[FileInfo] = found.iter_files(path, recursive=recursive, hidden=hidden)
        if long or as_json:
            infos = list(infos)
            _print_list(infos, base, as_json=as_json)
        else:
            for info in infos:
                say(_label(info, base))
    except NotAFile:
        # It comes with the first page, when nothing is printed yet.
        info = found.stat_file(path)
        if long or as_json:
            _print_list([info], "", as_json=as_json)
        else:
            say(shown(info.path))


def _print_list(infos: Iterable[FileInfo], base: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([file_json(info) for info in infos], indent=2))
    else:
        print_table(("MODE", "OWNER", "SIZE", "MODIFIED", "NAME"), [_row(info, base) for info in infos])


def _label(info: FileInfo, base: str) -> str:
    return shown(info.path.removeprefix(base))


def _row(info: FileInfo, base: str) -> tuple[str, ...]:
    name = _label(info, base) + ("" if info.target is None else f" -> {shown(info.target)}")
    return mode_text(info), f"{info.uid}:{info.gid}", str(info.size), utc(info.modified_at), name


@files.command("stat", short_help="Describe files.")
@click.option("-L", "--follow", is_flag=True, help="Describe the target of a link, not the link itself.")
@json_option
@click.argument("sandbox")
@paths_argument
@click.pass_context
def stat_(ctx: click.Context, *, follow: bool, as_json: bool, sandbox: str, paths: tuple[str, ...]) -> None:
    """Describe each PATH. The exit status is 1 if one does not exist."""
    found = sandbox_of(ctx, sandbox)
    infos: list[FileInfo] = []
    failed = _each(paths, lambda path: infos.append(found.stat_file(path, follow=follow)))
    if as_json:
        click.echo(json.dumps([file_json(info) for info in infos], indent=2))
    else:
        for info in infos:
            _print_facts(info)
    ctx.exit(1 if failed else 0)


def _print_facts(info: FileInfo) -> None:
    facts = {"path": shown(info.path), "type": info.type, "size": str(info.size), "mode": f"{info.mode:04o}"}
    facts |= {"owner": f"{info.uid}:{info.gid}", "modified": utc(info.modified_at)}
    if info.target is not None:
        facts["target"] = shown(info.target)
    for name, value in facts.items():
        say(f"{name:<10} {value}")


def _each(paths: tuple[str, ...], act: Callable[[str], object]) -> int:
    """Call `act` for each path, report those that the sandbox refuses, and return how many they are."""
    failed = 0
    for path in paths:
        try:
            act(path)
        except (FileNotFound, Conflict, AccessDenied) as error:
            failed += 1
            Failure(one_sentence(error)).show()
    return failed


@files.command("cat", short_help="Print files.")
@click.argument("sandbox")
@paths_argument
@click.pass_context
def cat(ctx: click.Context, *, sandbox: str, paths: tuple[str, ...]) -> None:
    """Write the bytes of each file PATH to standard output, one after another."""
    found = sandbox_of(ctx, sandbox)

    def show(path: str) -> None:
        with found.read_file_stream(path) as stream:
            for piece in stream:
                write_all(1, piece)

    with Interrupts():
        failed = _each(paths, show)
    ctx.exit(1 if failed else 0)


@files.command("write", short_help="Write a file from standard input.")
@click.option("-m", "--mode", type=_Octal(), metavar="MODE", help="Mode in octal.  [default: the old file's, else 644]")
@click.argument("sandbox")
@click.argument("path")
@click.pass_context
def write(ctx: click.Context, *, mode: int | None, sandbox: str, path: str) -> None:
    """Create or replace the file PATH with standard input.

    Parent directories are created. The file appears only when it is complete; until then the old one stays in place.
    """
    found = sandbox_of(ctx, sandbox)
    with Interrupts():
        found.write_file(path, iter(lambda: sys.stdin.buffer.read(_READ_BYTES), b""), mode=mode)


@files.command("rm", short_help="Delete files, links and directories.")
@click.option("-r", "--recursive", is_flag=True, help="Delete directories with everything in them.")
@click.option("-f", "--force", is_flag=True, help="Ignore paths that do not exist.")
@click.argument("sandbox")
@paths_argument
@click.pass_context
def remove(ctx: click.Context, *, recursive: bool, force: bool, sandbox: str, paths: tuple[str, ...]) -> None:
    """Delete each PATH: a file, a link, or an empty directory.

    A path that cannot be deleted is reported, and the others are still deleted.
    """
    found = sandbox_of(ctx, sandbox)

    def delete(path: str) -> None:
        try:
            found.delete_file(path, recursive=recursive)
        except FileNotFound:
            if not force:
                raise

    ctx.exit(1 if _each(paths, delete) else 0)


@files.command("mkdir", short_help="Create directories.")
@click.option(
    "-p", "--parents", is_flag=True, help="Create parent directories as needed; do not fail if the directory exists."
)
@click.option("-m", "--mode", type=_Octal(), metavar="MODE", help="Mode in octal, e.g. 755.")
@click.argument("sandbox")
@paths_argument
@click.pass_context
def mkdir(ctx: click.Context, *, parents: bool, mode: int | None, sandbox: str, paths: tuple[str, ...]) -> None:
    """Create each directory PATH."""
    found = sandbox_of(ctx, sandbox)
    ctx.exit(1 if _each(paths, lambda path: found.mkdir(path, parents=parents, mode=mode)) else 0)


@files.command("mv", short_help="Move or rename a file or directory.")
@click.option("-n", "--no-clobber", is_flag=True, help="Fail if the destination already exists.")
@click.argument("sandbox")
@click.argument("source", metavar="OLD")
@click.argument("target", metavar="NEW")
@click.pass_context
def move(ctx: click.Context, *, no_clobber: bool, sandbox: str, source: str, target: str) -> None:
    """Move the file or directory OLD to NEW, or into NEW if that is a directory.

    Parent directories of NEW are created. An existing file of that name is replaced.
    """
    found = sandbox_of(ctx, sandbox)
    found.rename_file(source, remote_target(found, target, source), overwrite=not no_clobber)


@files.command("copy", short_help="Copy a file or directory within the sandbox.")
@click.option("-n", "--no-clobber", is_flag=True, help="Fail if the destination already exists.")
@click.argument("sandbox")
@click.argument("source", metavar="OLD")
@click.argument("target", metavar="NEW")
@click.pass_context
def copy(ctx: click.Context, *, no_clobber: bool, sandbox: str, source: str, target: str) -> None:
    """Copy OLD to NEW within the sandbox, or into NEW if that is a directory.

    A directory is copied with everything in it, to a name that must not exist yet. An existing file is replaced.
    """
    found = sandbox_of(ctx, sandbox)
    found.copy_file(source, remote_target(found, target, source), overwrite=not no_clobber)


@files.command("ln", short_help="Create a symbolic link.")
@click.argument("sandbox")
@click.argument("target")
@click.argument("link")
@click.pass_context
def link(ctx: click.Context, *, sandbox: str, target: str, link: str) -> None:
    """Create LINK, a symbolic link to TARGET.

    TARGET need not exist. A relative TARGET is resolved against LINK's directory.
    """
    sandbox_of(ctx, sandbox).symlink(link, target)


@files.command("chmod", short_help="Change file modes.")
@recursive_option
@click.argument("sandbox")
@click.argument("mode", type=_Octal(), metavar="MODE")
@paths_argument
@click.pass_context
def chmod(ctx: click.Context, *, recursive: bool, sandbox: str, mode: int, paths: tuple[str, ...]) -> None:
    """Set the mode of each PATH to MODE, in octal."""
    found = sandbox_of(ctx, sandbox)
    ctx.exit(1 if _each(paths, lambda path: found.chmod(path, mode, recursive=recursive)) else 0)


@files.command("chown", short_help="Change file owners.")
@recursive_option
@click.argument("sandbox")
@click.argument("owner", metavar="USER[:GROUP]")
@paths_argument
@click.pass_context
def chown(ctx: click.Context, *, recursive: bool, sandbox: str, owner: str, paths: tuple[str, ...]) -> None:
    """Set the owner of each PATH. USER and GROUP are names or ids in the sandbox; :GROUP sets only the group."""
    names = [_owner(name) for name in owner.partition(":")[::2]]
    if names == [None, None]:
        raise click.UsageError("Give USER, :GROUP or USER:GROUP.")
    found = sandbox_of(ctx, sandbox)
    ctx.exit(1 if _each(paths, lambda path: found.chown(path, *names, recursive=recursive)) else 0)


def _owner(name: str) -> str | int | None:
    return int(name) if name.isascii() and name.isdigit() else name or None


@files.command("truncate", short_help="Set a file's size.")
@click.argument("sandbox")
@click.argument("path")
@click.argument("size", type=Size())
@click.pass_context
def truncate(ctx: click.Context, *, sandbox: str, path: str, size: int) -> None:
    """Set the size of the file PATH to SIZE bytes; K, M, G and T are powers of 1024, as in 512M.

    A larger file is cut off. A smaller file is extended with a hole, which reads as zeros and takes no disk space.
    """
    sandbox_of(ctx, sandbox).truncate(path, size)


for _command in (search, find, replace, watch, changes, backup, restore):
    files.add_command(_command)
