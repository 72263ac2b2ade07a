"""`sandboxd cp`: files and directories into or out of a sandbox."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NamedTuple

import click

from sandboxd.cli.failure import Failure, Interrupts
from sandboxd.cli.output import say, shown, write_all
from sandboxd.cli.params import Size, client_of
from sandboxd.errors import FileNotFound, NotAFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sandboxd.client import Sandbox

_CHUNK_BYTES: Final = 256 * 1024
_TYPES_IN_ARCHIVES: Final = frozenset({"file", "directory", "symlink"})


class Remote(NamedTuple):
    """`SANDBOX:/path`."""

    sandbox: str
    path: str


@click.command()
@click.option(
    "--max",
    "max_bytes",
    type=Size(),
    default="64G",
    metavar="SIZE",
    help="Stop copying out beyond this size.  [default: 64G]",
)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.pass_context
def cp(ctx: click.Context, *, max_bytes: int, source: str, target: str) -> None:
    """Copy a file, or a directory with everything in it, from SRC to DST.

    One of them is SANDBOX:/path; the other is a local path, or - for standard input or output (a directory is written
    as a tar archive). If DST is a directory, the copy goes into it under SRC's name. A file appears under its name only
    when it is complete. Links are copied as links. When copying out, links that point outside the directory are
    skipped. Skipped files (also unreadable files, sockets, FIFOs and devices) are reported, and the exit status is 1.
    Sparse files stay sparse when copied out.
    """
    here, there = parse(source), parse(target)
    if isinstance(here, Remote) == isinstance(there, Remote):
        raise click.UsageError("One of SRC and DST must be SANDBOX:/path, the other a local path.")
    from sandboxd.client import Sandbox  # noqa: PLC0415 - `cp --help` needs no httpx

    with Interrupts():
        if isinstance(here, Remote):
            sandbox = Sandbox.connect(here.sandbox, client=client_of(ctx))
            try:
                download(sandbox, here.path, str(there), max_bytes)
            except NotAFile as error:
                if error.facts.get("file_type") != "directory":
                    raise
                ctx.exit(1 if download_directory(sandbox, here.path, str(there), max_bytes) else 0)
        elif isinstance(there, Remote):
            if here != "-" and Path(here).is_dir():
                sandbox = Sandbox.connect(there.sandbox, client=client_of(ctx))
                ctx.exit(1 if upload_directory(sandbox, Path(here), there.path) else 0)
            with _source(here) as (file, size):
                sandbox = Sandbox.connect(there.sandbox, client=client_of(ctx))
                upload(sandbox, file, size, remote_target(sandbox, there.path, here))


def remote_target(sandbox: Sandbox, path: str, source: str) -> str:
    """Return the path that a copy of `source` gets: in a directory that is there it has the source's name."""
    in_directory = path.endswith("/") or (source != "-" and _is_remote_directory(sandbox, path))
    return f"{path.rstrip('/')}/{_name(source)}" if in_directory else path


def _is_remote_directory(sandbox: Sandbox, path: str) -> bool:
    try:
        return sandbox.stat_file(path, follow=True).is_dir
    except (FileNotFound, NotAFile):
        return False


def upload_directory(sandbox: Sandbox, directory: Path, path: str) -> int:
    """Copy a directory of this machine into the sandbox; tell what was left out, and return how much that is."""
    from sandboxd.client import directories  # noqa: PLC0415 - beside httpx, loaded by now

    target = remote_target(sandbox, path, str(directory.resolve()))
    left_out: list[tuple[str, str]] = []
    try:
        with _bar(target, directories.size(directory)) as advance:
            sandbox.copy_in(
                directory, target, on_bytes=advance, on_left_out=lambda name, why: left_out.append((name, why))
            )
    except OSError as error:
        raise Failure(f"cannot read {error.filename or directory}: {error.strerror or error}") from error
    for name, why in left_out:
        say(f"sandboxd: left out {shown(os.path.join(directory, name))}: {why}", err=True)
    return len(left_out)


def download_directory(sandbox: Sandbox, path: str, target: str, max_bytes: int) -> int:
    """Copy a directory of the sandbox to this machine, or as a tar to standard output for `-`.

    What was left out is told; returns how many sockets, FIFOs and devices that is, for which no archive has a place.
    """
    if target == "-":
        with sandbox.read_archive(path) as stream, _progress(path, None) as seen:
            _to_stdout(seen(stream))
        return _tell_special(sandbox, path)
    place = Path(target)
    if place.is_dir() and path.strip("/"):
        place = place / path.rstrip("/").rsplit("/", 1)[-1]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _bar(path, None) as advance:
            left_out = sandbox.copy_out(path, place, on_bytes=advance, max_bytes=max_bytes)
    except OSError as error:
        raise Failure(f"cannot write {error.filename or place}: {error.strerror or error}") from error
    for name in left_out:
        say(f"sandboxd: left out {path}/{shown(name)}: it points outside it, or is not a regular file", err=True)
    return _tell_special(sandbox, path)


def _tell_special(sandbox: Sandbox, path: str) -> int:
    """Tell what the daemon put into no archive, and return how much that is."""
    special = [
        info for info in sandbox.iter_files(path, recursive=True, hidden=True) if info.type not in _TYPES_IN_ARCHIVES
    ]
    for info in special:
        say(f"sandboxd: left out {shown(info.path)}: it is a {info.type}", err=True)
    return len(special)


def parse(text: str) -> Remote | str:
    """Return what an argument names; `./a:b` and `/a:b` are files here, because a sandbox has no such name."""
    name, colon, path = text.partition(":")
    if colon and name and "/" not in name and name != ".":
        if not path.startswith("/"):
            raise click.UsageError(f"{text!r} must have an absolute path after the colon, as in SANDBOX:/path.")
        return Remote(name, path)
    return text


def upload(sandbox: Sandbox, file: IO[bytes], size: int | None, path: str) -> None:
    """Write the open file into the sandbox."""
    pieces = iter(lambda: file.read(_CHUNK_BYTES), b"")
    with _progress(path, size) as seen:
        sandbox.write_file(path, seen(pieces))


def download(sandbox: Sandbox, path: str, target: str, max_bytes: int) -> None:
    """Write the sandbox's file to a path here, or to standard output for `-`."""
    if target != "-" and (target.endswith("/") or Path(target).is_dir()):
        target = str(Path(target) / path.rsplit("/", 1)[-1])
    with sandbox.read_file_stream(path) as stream, _progress(path, stream.size) as seen:
        if target == "-":
            _to_stdout(seen(stream))
        else:
            save(Path(target), seen(stream), stream.size, max_bytes)


def save(target: Path, pieces: Iterable[bytes], size: int | None = None, max_bytes: int | None = None) -> None:
    """Write a file so that it is there whole or not at all; a device or a pipe is written as it is.

    Raises:
        Failure: this machine refuses it.
        ArchiveRefused: it is over `max_bytes`.
    """
    from sandboxd.client import directories  # noqa: PLC0415 - beside httpx, loaded by now

    try:
        if target.exists() and not target.is_file():
            with target.open("wb") as file:
                file.writelines(pieces)
            return
        budget = directories.Budget(target.absolute().parent, max_bytes)
        budget.member(size or 0)
        target = target.resolve()  # a symlink is followed, not replaced
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_umask()
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name[:200]}.", delete=False) as file:
            try:
                directories.write_sparse(file, pieces, budget)
                os.fchmod(file.fileno(), mode)
                file.flush()
                Path(file.name).replace(target)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise Failure(f"cannot write {target}: {error.strerror or error}") from error


def _umask() -> int:
    # The only way to read it without changing it for other threads.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


def _to_stdout(pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        write_all(1, piece)


@contextlib.contextmanager
def _source(path: str) -> Iterator[tuple[IO[bytes], int | None]]:
    """Open a file of this machine, or standard input for `-`, and tell its size where it has one."""
    if path == "-":
        yield sys.stdin.buffer, None
        return
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed below; only opening is this machine's refusal
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror}") from error
    with file:
        found = os.fstat(file.fileno())
        yield file, found.st_size if stat.S_ISREG(found.st_mode) else None


def _name(path: str) -> str:
    if path == "-":
        raise click.UsageError("Standard input has no name; give DST one.")
    return Path(path).name


@contextlib.contextmanager
def _progress(label: str, size: int | None) -> Iterator[Callable[[Iterable[bytes]], Iterable[bytes]]]:
    """Give a function through which the pieces go; on a terminal it shows how far they are."""
    with _bar(label, size) as advance:

        def seen(pieces: Iterable[bytes]) -> Iterator[bytes]:
            for piece in pieces:
                yield piece
                advance(len(piece))

        yield seen


@contextlib.contextmanager
def _bar(label: str, size: int | None) -> Iterator[Callable[[int], None]]:
    """Give a function that is told how many bytes went through; on a terminal it shows them."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console  # noqa: PLC0415 - only terminals pay for it
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(shown(label), total=size)
        yield lambda count: bar.advance(task, count)
