"""Versions of directories, and directories kept as archives in the sandbox itself.

A backup is an archive like any other (`guest/archives.py`), whose bytes the daemon carries from the file job that packs
to the file that it becomes: whole or not at all. Restoring unpacks beside the directory first, so that a damaged
archive costs nothing, and then puts what came out in the place of what is there. The directory itself stays what it is:
whoever works in it is in it still.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import InvalidRequest, SandboxdError
from ..spec import name_bytes
from . import checks, filefacts
from .jobs import FEED_BYTES

if TYPE_CHECKING:
    from .sandbox import Sandbox

#: Patterns of one request, and the length of one; `guest/globs.py` takes none that is longer.
MAX_PATTERNS: Final = 256
MAX_PATTERN_CHARS: Final = 1000
#: When nothing limits a sandbox's disk.
NO_LIMIT: Final = 1 << 50
_PAGE: Final = 1000
_RULES_DIGITS: Final = 8
_VERSION_DIGITS: Final = 32
#: What is being unpacked has such a name: lists, watches and archives leave it out.
_TEMPORARY: Final = ".sandboxd-tmp-restore-"
_TIDY_S: Final = 30.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Picked:
    """Which files below a directory are meant.

    Attributes:
        include: patterns as in gitignore(5); none means all.
        exclude: patterns of what is left out, with all below it.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the patterns."""
        for field, patterns in (("include", self.include), ("exclude", self.exclude)):
            if len(patterns) > MAX_PATTERNS:
                raise InvalidRequest(f"cannot accept {field}: there are over {MAX_PATTERNS} patterns", field=field)
            if not all(0 < len(text) <= MAX_PATTERN_CHARS and "\0" not in text for text in patterns):
                raise InvalidRequest(
                    f"cannot accept {field}: a pattern has 1 to {MAX_PATTERN_CHARS} characters", field=field
                )

    def params(self) -> dict[str, Any]:
        """Return the file jobs' parameters."""
        return {"include": list(self.include), "exclude": list(self.exclude)}


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


async def version(sandbox: Sandbox, path: str, picked: Picked, *, recursive: bool = True) -> Version:
    """Return the version of a directory or a file.

    Raises:
        FileNotFound, NotAFile, FilePermissionDenied: as their names say.
    """
    params = {"path": name_bytes(path), "recursive": recursive, **picked.params()}
    result = await sandbox.run_job("changes", params)
    digest = checks.text(result, "version", limit=_VERSION_DIGITS)
    return Version(f"{_rules(path, picked, recursive)}-{digest}", checks.integer(result, "entries"))


def is_version(text: str, path: str, picked: Picked, *, recursive: bool = True) -> bool:
    """Tell whether a text is a version of this directory by these rules, so that it can be compared."""
    rules, _, digest = text.partition("-")
    return rules == _rules(path, picked, recursive) and len(digest) == _VERSION_DIGITS


def _rules(path: str, picked: Picked, recursive: bool) -> str:
    said = repr((path.rstrip("/"), picked.include, picked.exclude, recursive)).encode()
    return hashlib.blake2b(said, digest_size=_RULES_DIGITS // 2).hexdigest()


async def save(
    sandbox: Sandbox, path: str, archive: str, picked: Picked, *, form: str = "tar.gz", gitignore: bool = False
) -> Backup:
    """Pack a directory into a file of the sandbox; the file is replaced when the archive is whole.

    Raises:
        FileNotFound, NotAFile, FilePermissionDenied, QuotaExceeded: as their names say.
    """
    params = {"path": name_bytes(path), "format": form, "gitignore": gitignore, **picked.params()}
    async with sandbox.job("pack", params) as job:
        first = await job.next_piece()  # a directory that is none leaves no file
        async with await sandbox.open_write(archive) as writer:
            await writer.write(first)
            while piece := await job.next_piece():
                await writer.write(piece)
            size = writer.size
            await writer.commit()
        return Backup(size, checks.integer(job.result or {}, "entries"))


async def restore(sandbox: Sandbox, path: str, archive: str) -> Backup:
    """Put what an archive in the sandbox has in the place of what is in a directory, which is made where it must be.

    Raises:
        FileNotFound, NotAFile, ArchiveRefused, QuotaExceeded: as their names say; the directory is as it was.
    """
    beside = f"{path.rpartition('/')[0]}/{_TEMPORARY}{secrets.token_hex(8)}"
    try:
        found = await _unpack(sandbox, beside, archive)
        await sandbox.run_job("mkdir", {"path": name_bytes(path), "parents": True, "mode": None})
        old, new = await _types(sandbox, path), await _types(sandbox, beside)
        for name, kind in old.items():
            # A file takes a file's place in one step: nobody finds it missing, and a watch tells a write.
            if "directory" in (kind, new.get(name, "directory")):
                await sandbox.run_job("delete", {"path": name_bytes(f"{path}/{name}"), "recursive": True})
        for name in new:
            params = {"path": name_bytes(f"{beside}/{name}"), "new_path": name_bytes(f"{path}/{name}")}
            await sandbox.run_job("rename", {**params, "overwrite": True})
    finally:
        with trio.move_on_after(_TIDY_S, shield=True):
            await _drop(sandbox, beside)
    return found


async def _drop(sandbox: Sandbox, path: str) -> None:
    try:
        await sandbox.run_job("delete", {"path": name_bytes(path), "recursive": True})
    except SandboxdError:
        return  # it was never made, or the sandbox is gone


async def _unpack(sandbox: Sandbox, path: str, archive: str) -> Backup:
    params = {"path": name_bytes(path), "format": None, "max_bytes": sandbox.limits.disk_bytes or NO_LIMIT}
    async with await sandbox.open_read(archive) as reader, sandbox.job("unpack", params, feed=True) as job:
        at = 0
        while piece := await reader.read(at, FEED_BYTES):
            at += len(piece)
            if not await job.feed(piece):
                break
        else:
            await job.end_feed()
        result = await job.finish()
    return Backup(at, checks.integer(result, "entries"))


async def _types(sandbox: Sandbox, directory: str) -> dict[str, str]:
    """Return the names in a directory, each with its type."""
    found: dict[str, str] = {}
    after: bytes | None = None
    while True:
        params = {"path": name_bytes(directory), "recursive": False, "hidden": True, "limit": _PAGE, "after": after}
        async with sandbox.job("list", params) as job:
            while rows := await job.next_rows():
                found |= {one.path.rpartition("/")[2]: one.type for one in map(filefacts.parse, rows)}
            following = (job.result or {}).get("next")
        if following is None:
            return found
        after = name_bytes(filefacts.name({"next": following}, "next"))
