"""The JSON of the file routes. A name that is not UTF-8 is sent as base64 of its bytes, in `…_b64`."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from ...errors import InvalidRequest
from ...runtime import filefacts
from ...spec import check_file_path, name_bytes
from ...wire.times import rfc3339
from ..bodies import Input

#: Base64 of PATH_MAX, and then some: a longer text is no path.
_MAX_B64: Final = 16_384


class PathIn(Input, frozen=True):
    """A file: `path`, or `path_b64` for a name that is not UTF-8."""

    path: Annotated[str | None, Meta(description="an absolute path in the sandbox, without '..'")] = None
    path_b64: Annotated[
        str | None, Meta(description="instead of `path`, for a name that is not UTF-8: its bytes in base64")
    ] = None


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """One match: a name with its type, or a line (counted from 1) with the column of its first match."""

    path: str
    path_b64: str | msgspec.UnsetType = msgspec.UNSET
    type: str | msgspec.UnsetType = msgspec.UNSET
    line: int | msgspec.UnsetType = msgspec.UNSET
    column: int | msgspec.UnsetType = msgspec.UNSET
    text: str | msgspec.UnsetType = msgspec.UNSET


class Found(msgspec.Struct, frozen=True):
    """The matches of a search; `truncated` is "limit" or "timeout" if it is incomplete."""

    items: list[Match]
    truncated: str | None
    files: int


class ReplacedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was rewritten, and the number of replacements in it."""

    path: str
    path_b64: str | msgspec.UnsetType = msgspec.UNSET
    count: int


class Replaced(msgspec.Struct, frozen=True):
    """The replacements made; `truncated` is "limit" or "timeout" if they are incomplete."""

    items: list[ReplacedFile]
    count: int
    truncated: str | None


class Unpacked(msgspec.Struct, frozen=True):
    """What was unpacked from an archive."""

    entries: int
    bytes: int


class FileInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A file. `mode` is octal text; a symbolic link is described itself, with its `target`."""

    path: str
    path_b64: str | msgspec.UnsetType = msgspec.UNSET
    name: str
    type: str
    size: int
    mode: str
    uid: int
    gid: int
    modified_at: str
    target: str | msgspec.UnsetType = msgspec.UNSET
    target_b64: str | msgspec.UnsetType = msgspec.UNSET


class ChangesOut(msgspec.Struct, frozen=True):
    """A directory's version; `changed` is null if no earlier version was given."""

    version: str
    changed: bool | None
    entries: int


class BackupOut(msgspec.Struct, frozen=True):
    """An archive that was made or unpacked."""

    archive: str
    size_bytes: int
    entries: int


class FileOut(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was written."""

    path: str
    path_b64: str | msgspec.UnsetType = msgspec.UNSET
    size: int


class FileList(msgspec.Struct, frozen=True):
    """A page of a directory; `next` is the cursor of the next page."""

    items: list[FileInfo]
    next: str | None


class Exists(msgspec.Struct, frozen=True):
    """Whether the path exists, and its type."""

    exists: bool
    type: str | None


class Copied(msgspec.Struct, frozen=True):
    """What was copied: how many entries and bytes; `skipped` counts sockets and devices."""

    file: FileInfo
    entries: int
    bytes: int
    skipped: int


class Changed(msgspec.Struct, frozen=True):
    """What was changed: the file, and how many entries with it."""

    file: FileInfo
    entries: int


def decode(text: str | None, b64: str | None, field: str) -> str | bytes:
    """Return the name that a request gives as text or in base64.

    Raises:
        InvalidRequest: it gives neither or both, or invalid base64.
    """
    if (text is None) == (b64 is None):
        raise InvalidRequest(
            f"cannot tell which file is meant: give exactly one of {field!r} and '{field}_b64'", field=field
        )
    if b64 is None:
        assert text is not None  # noqa: S101 - one of the two
        return text
    return decode_b64(b64, f"{field}_b64")


def decode_b64(text: str, field: str) -> bytes:
    """Return the name that a field holds in base64, in either alphabet.

    Raises:
        InvalidRequest: it is none.
    """
    if len(text) > _MAX_B64:
        raise InvalidRequest(f"cannot accept {field}: it is too long", field=field)
    try:
        raw = text.replace("-", "+").replace("_", "/").encode("ascii")
        return base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise InvalidRequest(f"cannot accept {field}: it is not valid base64", field=field) from None


def path_of(model: PathIn) -> str:
    """Return the checked path of a body."""
    return check_file_path(decode(model.path, model.path_b64, "path"))


def shown(name: str) -> str:
    """Return a name as JSON can hold it."""
    return name_bytes(name).decode("utf-8", "replace")


def spelled(name: str, field: str) -> dict[str, Any]:
    """Return a name as one field of an answer, or as two if it is not UTF-8."""
    raw = name_bytes(name)
    text = raw.decode("utf-8", "replace")
    if text.encode() == raw:
        return {field: text}
    return {field: text, f"{field}_b64": base64.b64encode(raw).decode()}


def match_of(found: filefacts.Match) -> Match:
    """Return a match as callers see it."""
    where = spelled(found.path, "path")
    if isinstance(found, filefacts.NameMatch):
        return Match(**where, type=found.type)
    return Match(**where, line=found.line, column=found.column, text=found.text)


def file_info(facts: filefacts.FileFacts) -> FileInfo:
    """Return a file as callers see it."""
    return FileInfo(
        **spelled(facts.path, "path"),
        name=shown(facts.path.rpartition("/")[2]),
        type=facts.type,
        size=facts.size,
        mode=f"{facts.mode:04o}",
        uid=facts.uid,
        gid=facts.gid,
        modified_at=rfc3339(facts.mtime),
        **({} if facts.target is None else spelled(facts.target, "target")),
    )
