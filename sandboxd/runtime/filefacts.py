"""What an init tells of files, checked: rows become values, names stay bytes inside text (surrogates)."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from ..errors import RemoteProtocolError
from ..spec import MAX_PATH_BYTES, name_text
from . import checks

TYPES: Final = frozenset(
    ("file", "directory", "symlink", "fifo", "socket", "character-device", "block-device", "special-file")
)
#: A path below one that fills PATH_MAX may be longer than PATH_MAX.
MAX_NAME_BYTES: Final = 4 * MAX_PATH_BYTES


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


def name(row: dict[str, Any], field: str) -> str:
    """Return the name in a row's field.

    Raises:
        RemoteProtocolError: it is no bytes, too long, or has a NUL.
    """
    value = row.get(field)
    if not isinstance(value, bytes) or len(value) > MAX_NAME_BYTES or b"\0" in value:
        raise RemoteProtocolError(f"cannot take field {field!r}: it is not a name")
    return name_text(value)


def parse(row: dict[str, Any]) -> FileFacts:
    """Return a row as a value.

    Raises:
        RemoteProtocolError: a field is missing or out of its bounds.
    """
    kind = checks.text(row, "type", limit=32)
    if kind not in TYPES:
        raise RemoteProtocolError(f"cannot take the file type {kind!r}")
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
        target=None if row.get("target") is None else name(row, "target"),
    )
