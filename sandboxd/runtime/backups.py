"""Versions of directories, and directories kept as archives in the sandbox itself.

A backup is an archive like any other (`guest/archives.py`), whose bytes the daemon carries from the file job that packs
to the file that it becomes: whole or not at all. Restoring first unpacks beside the directory, so that a damaged
archive does no harm, and then replaces the directory's contents. The directory itself stays the same, so processes that
work in it keep it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import secrets
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import SandboxdError
from . import checks

if TYPE_CHECKING:
    from .file_queries import Picked
    from .files import Files

_RULES_DIGITS: Final = 8
_VERSION_DIGITS: Final = 32
#: What is being unpacked has such a name: lists, watches and archives leave it out.
_TEMPORARY: Final = ".sandboxd-tmp-restore-"
_TIDY_S: Final = 30.0


@dataclasses.dataclass(frozen=True, slots=True)
class Version:
    """What a directory was: two versions of it are the same text exactly if nothing in it changed between."""

    text: str
    entries: int


@dataclasses.dataclass(frozen=True, slots=True)
class Backup:
    """An archive that was made: its size in bytes and how many entries it has."""

    size: int
    entries: int


def parse_version(result: dict[str, Any], path: str, picked: Picked, *, recursive: bool) -> Version:
    """Return the version of a directory or a file that init found by these rules.

    Raises:
        RemoteProtocolError: init tells nonsense.
    """
    digest = checks.text(result, "version", limit=_VERSION_DIGITS)
    return Version(f"{_rules(path, picked, recursive)}-{digest}", checks.integer(result, "entries"))


def is_version(text: str, path: str, picked: Picked, *, recursive: bool = True) -> bool:
    """Tell whether a text is a version of this directory by these rules, so that it can be compared."""
    rules, _, digest = text.partition("-")
    return rules == _rules(path, picked, recursive) and len(digest) == _VERSION_DIGITS


def _rules(path: str, picked: Picked, recursive: bool) -> str:
    said = repr((path.rstrip("/"), picked.include, picked.exclude, recursive)).encode()
    return hashlib.blake2b(said, digest_size=_RULES_DIGITS // 2).hexdigest()


async def save(files: Files, path: str, archive: str, picked: Picked, *, form: str, gitignore: bool) -> Backup:
    """Pack a directory into a file of the sandbox (`Files.backup`)."""
    packing = files.pack(path, form, exclude=picked.exclude, gitignore=gitignore)
    async with packing as packed, await files.open_write(archive) as writer:
        async for piece in packed.pieces():
            await writer.write(piece)
        await writer.commit()
        return Backup(writer.size, packed.entries)


async def restore(files: Files, path: str, archive: str) -> Backup:
    """Put what an archive has in the place of what is in a directory (`Files.restore`)."""
    beside = f"{path.rpartition('/')[0]}/{_TEMPORARY}{secrets.token_hex(8)}"
    try:
        found = await _unpack(files, beside, archive)
        await files.mkdir(path, parents=True)
        old, new = await _types(files, path), await _types(files, beside)
        for name, kind in old.items():
            # A file takes a file's place in one step: nobody finds it missing, and a watch tells a write.
            if "directory" in (kind, new.get(name, "directory")):
                await files.delete(f"{path}/{name}", recursive=True)
        for name in new:
            await files.rename(f"{beside}/{name}", f"{path}/{name}")
    finally:
        with trio.move_on_after(_TIDY_S, shield=True):
            await _drop(files, beside)
    return found


async def _drop(files: Files, path: str) -> None:
    try:
        await files.delete(path, recursive=True)
    except SandboxdError:
        return  # it was never made, or the sandbox is gone


async def _unpack(files: Files, path: str, archive: str) -> Backup:
    async with await files.open_read(archive) as reader, contextlib.aclosing(reader.pieces()) as pieces:
        unpacked = await files.unpack(path, pieces)
        return Backup(reader.size, unpacked.entries)


async def _types(files: Files, directory: str) -> dict[str, str]:
    """Return the names in a directory, each with its type."""
    found: dict[str, str] = {}
    page = await files.list(directory, hidden=True)
    while True:
        found |= {one.path.rpartition("/")[2]: one.type for one in page.files}
        if page.after is None:
            return found
        page = await files.list(directory, hidden=True, after=page.after)
