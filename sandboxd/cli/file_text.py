"""Files of a sandbox as text and as JSON."""

from __future__ import annotations

import base64
import datetime as dt
import stat
from typing import TYPE_CHECKING, Any, Final

from sandboxd.cli.output import shown
from sandboxd.spec import name_bytes

if TYPE_CHECKING:
    from sandboxd.client.file_calls import FileChange, FileInfo, Match

_KINDS: Final = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "character-device": stat.S_IFCHR,
    "block-device": stat.S_IFBLK,
}


def utc(when: dt.datetime) -> str:
    """Return a moment to the second, as 2026-01-02T03:04:05Z."""
    return when.astimezone(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def mode_text(info: FileInfo) -> str:
    """Return type and mode as ls(1) does: drwxr-xr-x."""
    return stat.filemode(_KINDS.get(info.type, 0) | info.mode)


def name_json(field: str, name: str) -> dict[str, str]:
    """Return a name as the API writes it: text, and its bytes in base64 beside it where they are no UTF-8."""
    raw = name_bytes(name)
    try:
        return {field: raw.decode()}
    except UnicodeDecodeError:
        return {field: raw.decode("utf-8", "replace"), f"{field}_b64": base64.b64encode(raw).decode()}


def file_json(info: FileInfo) -> dict[str, Any]:
    """Return a file as the API's object."""
    found: dict[str, Any] = {
        **name_json("path", info.path),
        "type": info.type,
        "size": info.size,
        "mode": f"{info.mode:04o}",
        "uid": info.uid,
        "gid": info.gid,
        "modified_at": info.modified_at.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    return found if info.target is None else found | name_json("target", info.target)


def match_json(match: Match) -> dict[str, Any]:
    """Return a match as the API's object: a name with its type, or a line."""
    facts = {"type": match.type, "line": match.line, "column": match.column, "text": match.text}
    return name_json("path", match.path) | {name: value for name, value in facts.items() if value is not None}


def change_json(change: FileChange) -> dict[str, Any]:
    """Return a change as an object: type, path, is_folder, and of a rename from."""
    found = {"type": change.type, **name_json("path", change.path), "is_folder": change.is_folder}
    return found if change.old_path is None else found | name_json("from", change.old_path)


def change_line(change: FileChange) -> str:
    """Return a change as one line; a directory's path ends with a slash, and of a rename the old one stands first."""
    end = "/" if change.is_folder else ""
    old = "" if change.old_path is None else f"{shown(change.old_path)}{end} -> "
    return f"{change.type:<8} {old}{shown(change.path)}{end}"
