"""What an init tells of files, checked: rows become values, names stay bytes inside text (surrogates)."""

from __future__ import annotations

import dataclasses
from typing import Any, Final, TypeAlias

from ..errors import RemoteProtocolError
from ..spec import MAX_PATH_BYTES, name_text
from . import checks

TYPES: Final = frozenset(
    ("file", "directory", "symlink", "fifo", "socket", "character-device", "block-device", "special-file")
)
#: What a watch tells of.
CHANGES: Final = frozenset(("ready", "create", "write", "chmod", "remove", "rename", "overflow"))
#: A path below one that fills PATH_MAX may be longer than PATH_MAX.
MAX_NAME_BYTES: Final = 4 * MAX_PATH_BYTES
#: What init lets a match's text be, each character up to four bytes.
MAX_TEXT: Final = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class FileFacts:
    """A file of a sandbox; `mtime` is seconds since the epoch, `target` where a link leads."""

    path: str
    type: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime: float
    target: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """A part of a directory's files, sorted; the next part comes `after` that name, relative to the directory."""

    files: list[FileFacts]
    after: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """A directory; `created` is false where it was there."""

    file: FileFacts
    created: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Copied:
    """A copy: how many entries and bytes it has; `skipped` counts sockets and devices, which it lacks."""

    file: FileFacts
    entries: int
    bytes: int
    skipped: int


@dataclasses.dataclass(frozen=True, slots=True)
class Changed:
    """A file that was changed, and how many entries with it."""

    file: FileFacts
    entries: int


@dataclasses.dataclass(frozen=True, slots=True)
class NameMatch:
    """A file that a search found by its name."""

    path: str
    type: str


@dataclasses.dataclass(frozen=True, slots=True)
class LineMatch:
    """A line that a search found; line and column are counted from 1."""

    path: str
    line: int
    column: int
    text: str


Match: TypeAlias = NameMatch | LineMatch


@dataclasses.dataclass(frozen=True, slots=True)
class Searched:
    """How a search ended; `truncated` says why that is not all, "limit" or "timeout"."""

    truncated: str | None
    files: int


@dataclasses.dataclass(frozen=True, slots=True)
class Replaced:
    """What was replaced: each file with its count, and all together; `truncated` as of a search."""

    files: list[tuple[str, int]]
    count: int
    truncated: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """What happened to a file below a watch; `old_path` is the name before a rename."""

    type: str
    path: str
    is_folder: bool
    old_path: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Unpacked:
    """What an archive has put into a directory."""

    entries: int
    bytes: int


def name(row: dict[str, Any], field: str) -> str:
    """Return the name in a row's field.

    Raises:
        RemoteProtocolError: it is no bytes, too long, or has a NUL.
    """
    value = row.get(field)
    if not isinstance(value, bytes) or len(value) > MAX_NAME_BYTES or b"\0" in value:
        raise RemoteProtocolError(f"cannot accept field {field!r}: it is not a name")
    return name_text(value)


def optional_name(row: dict[str, Any], field: str) -> str | None:
    """Return the name in a row's field, or None where there is none; raises as `name`."""
    return None if row.get(field) is None else name(row, field)


def parse(row: dict[str, Any]) -> FileFacts:
    """Return a row as a value.

    Raises:
        RemoteProtocolError: a field is missing or out of its bounds.
    """
    kind = checks.text(row, "type", limit=32)
    if kind not in TYPES:
        raise RemoteProtocolError(f"cannot accept the file type {kind!r}")
    mtime = row.get("mtime")
    if not isinstance(mtime, float):  # any number of seconds may stand in an inode: `wire.times` shows it
        mtime = 0.0
    return FileFacts(
        path=name(row, "path"),
        type=kind,
        size=checks.integer(row, "size"),
        mode=checks.integer(row, "mode", high=0o7777),
        uid=checks.integer(row, "uid", high=1 << 32),
        gid=checks.integer(row, "gid", high=1 << 32),
        mtime=mtime,
        target=optional_name(row, "target"),
    )


def parse_file(result: dict[str, Any]) -> FileFacts:
    """Return the file that a result is about; raises as `parse`."""
    return parse(checks.table(result, "file"))


def parse_match(row: dict[str, Any]) -> Match:
    """Return what a search found; raises as `parse`."""
    path = name(row, "path")
    if "line" not in row:
        return NameMatch(path, checks.text(row, "type", limit=32))
    line, column = checks.integer(row, "line"), checks.integer(row, "column")
    return LineMatch(path, line, column, checks.words(row, "text", limit=MAX_TEXT))


def parse_replaced(row: dict[str, Any]) -> tuple[str, int]:
    """Return a file that was rewritten and how many matches were replaced in it; raises as `parse`."""
    return name(row, "path"), checks.integer(row, "count")


def parse_truncated(result: dict[str, Any]) -> str | None:
    """Return why not all was found, or None; raises as `parse`."""
    value = result.get("truncated")
    if value not in (None, "limit", "timeout"):
        raise RemoteProtocolError("cannot accept that reason for a truncation")
    return value


def parse_change(row: dict[str, Any]) -> Change:
    """Return what a watch saw; raises as `parse`."""
    kind = checks.text(row, "type", limit=16)
    if kind not in CHANGES:
        raise RemoteProtocolError(f"cannot accept a change of type {kind!r}")
    old_path = name(row, "from") if kind == "rename" else None
    return Change(kind, name(row, "path"), checks.flag(row, "is_folder"), old_path)
