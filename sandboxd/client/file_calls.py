"""The requests of …/files: what to send, and how to read the answer (see `calls`).

A name that is not valid UTF-8 is text with surrogates here (as `os.fsdecode` makes it) and travels as base64.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import functools
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from sandboxd.errors import InvalidRequest
from sandboxd.spec import check_file_path, name_bytes, name_text
from sandboxd.wire.sse import SseDecoder

from .calls import RAW_TYPE, Call, StreamCall, given, paged, read_events, sandbox_path
from .models import Json, parse_time, read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .calls import Content

__all__ = ["Backup", "Changes", "FileChange", "FileInfo", "Match", "ReplaceResult", "SearchResult"]

#: A path of a sandbox: absolute, text or the kernel's bytes.
SandboxPath: TypeAlias = str | bytes
ArchiveFormat: TypeAlias = Literal["tar", "tar.gz", "zip"]
#: A watch says something every 15 s, if only a comment: longer silence is a daemon that is gone.
WATCH_TIMEOUT_S: Final = 60.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """A file of a sandbox.

    Attributes:
        path: the absolute path. name: its last component.
        type: file, directory, symlink, fifo, socket, character-device or block-device.
        size: in bytes.
        mode: permission bits, such as 0o644.
        uid, gid: the owner's ids in the sandbox.
        modified_at: when its content changed.
        target: the target of a symbolic link, else None.
    """

    path: str
    name: str
    type: str
    size: int
    mode: int
    uid: int
    gid: int
    modified_at: dt.datetime
    target: str | None

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return self.type == "directory"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One match of a search: a name with its `type`, or a line (counted from 1) with the column and the text."""

    path: str
    type: str | None = None
    line: int | None = None
    column: int | None = None
    text: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The result of a search. `truncated` is "limit" or "timeout" if it is incomplete; `files` were searched."""

    items: list[Match]
    truncated: str | None
    files: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceResult:
    """The number of replacements in each file and in total; `truncated` as in `SearchResult`."""

    items: dict[str, int]
    count: int
    truncated: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """A directory's version, and whether it changed since an earlier one; None if no earlier version was given."""

    version: str
    changed: bool | None
    entries: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """An archive in a sandbox, made from a directory or restored to one: its path, size in bytes, and entries."""

    archive: str
    size: int
    entries: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """A change to a file or directory.

    Attributes:
        type: create, write, chmod, remove, rename, or overflow (changes were lost; list the directory again).
        path: the path that changed; for a rename, the new path.
        is_folder: whether it is a directory.
        old_path: for a rename, the old path.
    """

    type: str
    path: str
    is_folder: bool
    old_path: str | None = None


# --- names ---


def spell(path: SandboxPath, field: str = "path") -> dict[str, str]:
    """Return the field, or its `_b64` twin, that carries a path.

    Raises:
        InvalidRequest: the path cannot be a path in a sandbox.
    """
    try:
        raw = path if isinstance(path, bytes) else name_bytes(path)
    except UnicodeEncodeError:
        why = "it has a lone surrogate, which is not valid UTF-8"
        raise InvalidRequest(f"cannot accept {field}: {why}", field=field) from None
    check_file_path(raw, field)
    return spell_raw(raw, field)


def spell_raw(raw: bytes, field: str) -> dict[str, str]:
    """Return the field, or its `_b64` twin, that carries the bytes of a name."""
    try:
        return {field: raw.decode()}
    except UnicodeDecodeError:
        return {f"{field}_b64": base64.b64encode(raw).decode()}


def _name(value: Json, field: str = "path") -> str:
    b64 = value.get(f"{field}_b64")
    text = value[field]
    if not isinstance(text, str):
        raise TypeError(f"{field} is not text")
    return text if b64 is None else name_text(base64.b64decode(b64))


def parse_file(value: Json) -> FileInfo:
    """Read a file object."""
    path = _name(value)
    return FileInfo(
        path=path,
        name=path.rpartition("/")[2],
        type=str(value["type"]),
        size=int(value["size"]),
        mode=int(value["mode"], 8),
        uid=int(value["uid"]),
        gid=int(value["gid"]),
        modified_at=parse_time(value["modified_at"]),
        target=_name(value, "target") if "target" in value else None,
    )


def _flags(**flags: bool) -> dict[str, str]:
    return {name: "true" for name, value in flags.items() if value}


# --- requests ---


def get(key: str, path: SandboxPath, what: str, **flags: bool) -> dict[str, Any]:
    """Return what a request names by its query: the path, and the flags that are true."""
    return {"params": {**spell(path), **_flags(**flags)}, "path": sandbox_path(key, f"/files{what}")}


def read_file_stream(key: str, path: SandboxPath, *, offset: int = 0, length: int | None = None) -> StreamCall:
    """Open a file and return its bytes as a stream with a `size`. Use it as a context manager, and iterate over it.

    With `offset` and `length`, the stream returns only that part. In asynchronous code, `async with` opens it.
    """
    extra = None
    if offset or length is not None:
        if offset < 0 or (length is not None and length < 1):
            raise InvalidRequest("cannot read: offset must be at least 0, and length at least 1", field="offset")
        extra = {"Range": f"bytes={offset}-{'' if length is None else offset + length - 1}"}
    return StreamCall("GET", **get(key, path, ""), accept=f"{RAW_TYPE}, */*;q=0.1", extra=extra)


def write_file(
    key: str, path: SandboxPath, content: Content, mode: int | None = None, size: int | None = None
) -> Call[int]:
    """PUT …/files: returns the file's new size in bytes. `size` is the total size of content sent in pieces."""
    request = get(key, path, "")
    if isinstance(path, str) and path.endswith("/"):
        raise InvalidRequest(f"cannot write {path}: a file's path does not end with a slash", field="path")
    if mode is not None:
        request["params"]["mode"] = octal(mode)
    extra = None if size is None else {"Content-Length": str(size)}
    return Call("PUT", **request, content=content, extra=extra, what="answer", parse=lambda value: int(value["size"]))


def octal(mode: int) -> str:
    """Return a mode as the API has it.

    Raises:
        InvalidRequest: it is none.
    """
    if not 0 <= mode <= 0o7777:
        raise InvalidRequest("cannot accept mode: it must be 0 to 0o7777", field="mode")
    return f"{mode:04o}"


def page(
    key: str, path: SandboxPath, cursor: str | None, *, recursive: bool, hidden: bool
) -> Call[tuple[list[FileInfo], str | None]]:
    """GET …/files/list: one page, and the cursor of the next page if there is one."""
    request = get(key, path, "/list", recursive=recursive, hidden=hidden)
    if cursor is not None:
        request["params"]["cursor"] = cursor
    return Call("GET", **request, what="list of files", parse=paged(parse_file))


def post(key: str, verb: str, path: SandboxPath, /, **fields: object) -> dict[str, Any]:
    """Return a POST about a path. The fields are the API's; those that are None are left out."""
    body = {**spell(path), **given(**fields)}
    # No time bound: a tree may be large, and a client that leaves ends what it asked for.
    return {"method": "POST", "path": sandbox_path(key, f"/files/{verb}"), "body": body, "timeout_s": None}


def search_files(  # noqa: PLR0913 - the fields of a search, all by keyword
    key: str,
    path: SandboxPath,
    *,
    name: str | None = None,
    content: str | None = None,
    ignore_case: bool = False,
    gitignore: bool = False,
    hidden: bool = False,
    limit: int | None = None,
    timeout: float | None = None,
) -> Call[SearchResult]:
    """Find files below `path` by name, or lines in them.

    Args:
        path: a directory, or one file.
        name: a gitignore(5) pattern, such as "*.py" or "src/**/test_*".
        content: a Python regular expression, matched against each line.
        ignore_case: whether to match `content` without regard to case.
        gitignore: whether to skip files that git ignores.
        hidden: whether to include names that begin with a dot.
        limit: the maximum number of matches; default: 1000.
        timeout: seconds after which to return what was found so far; default: 30.
    """
    how = {"ignore_case": ignore_case, "gitignore": gitignore, "hidden": hidden, "limit": limit, "timeout_s": timeout}
    request = post(key, "search", path, name=name, content=content, **how)
    return Call(**request, what="search", parse=_parse_search)


def _parse_search(value: Json) -> SearchResult:
    keys = ("type", "line", "column", "text")
    items = [Match(path=_name(item), **{key: item.get(key) for key in keys}) for item in value["items"]]
    return SearchResult(items=items, truncated=value["truncated"], files=int(value["files"]))


def replace_in_files(  # noqa: PLR0913 - the fields of a replacement, all by keyword
    key: str,
    path: SandboxPath,
    pattern: str,
    replacement: str,
    *,
    regex: bool = False,
    name: str | None = None,
    ignore_case: bool = False,
    gitignore: bool = False,
    hidden: bool = False,
    limit: int | None = None,
    timeout: float | None = None,
) -> Call[ReplaceResult]:
    r"""Replace a text in the files below `path`, or with `regex` a pattern (`\1` is its first group)."""
    how = {"ignore_case": ignore_case, "gitignore": gitignore, "hidden": hidden, "limit": limit, "timeout_s": timeout}
    what = {"pattern": pattern, "replacement": replacement, "regex": regex, "name": name}
    request = post(key, "replace", path, **what, **how)
    return Call(**request, what="answer", parse=_parse_replaced)


def _parse_replaced(value: Json) -> ReplaceResult:
    items = {_name(item): int(item["count"]) for item in value["items"]}
    return ReplaceResult(items=items, count=int(value["count"]), truncated=value["truncated"])


def read_archive(key: str, path: SandboxPath, *, format: ArchiveFormat = "tar") -> StreamCall:  # noqa: A002
    """Return a directory's contents as the bytes of an archive. Use it as a context manager, and iterate over it.

    In asynchronous code `async with` opens it.
    """
    request = get(key, path, "/archive")
    request["params"]["format"] = format
    return StreamCall("GET", **request, accept="*/*")


def write_archive(key: str, path: SandboxPath, content: Content, format: ArchiveFormat | None) -> Call[int]:  # noqa: A002
    """PUT …/files/archive: returns how many entries were unpacked."""
    request = get(key, path, "/archive")
    if format is not None:
        request["params"]["format"] = format
    return Call(
        "PUT", **request, content=content, timeout_s=None, what="answer", parse=lambda value: int(value["entries"])
    )


def check_changes(
    key: str,
    path: SandboxPath,
    *,
    since: str | None = None,
    recursive: bool = True,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Call[Changes]:
    """Return a directory's version, and whether anything in it changed since the version `since`.

    with which it was made.

    Raises:
        InvalidRequest: `since` is not a version of this directory made with the same patterns.
    """
    rules = {"include": list(include), "exclude": list(exclude), "recursive": recursive}
    return Call(**post(key, "changes", path, since=since, **rules), what="version", parse=_parse_version)


def _parse_version(value: Json) -> Changes:
    changed = value["changed"]
    return Changes(
        version=str(value["version"]),
        changed=None if changed is None else bool(changed),
        entries=int(value["entries"]),
    )


def _parse_backup(value: Json) -> Backup:
    return Backup(archive=str(value["archive"]), size=int(value["size_bytes"]), entries=int(value["entries"]))


def create_backup(
    key: str,
    path: SandboxPath,
    archive: str,
    *,
    format: ArchiveFormat = "tar.gz",  # noqa: A002
    exclude: Sequence[str] = (),
    gitignore: bool = False,
) -> Call[Backup]:
    """Save a directory's contents as an archive in the sandbox. The file `archive` is replaced once it is complete.

    `exclude` are gitignore(5) patterns. With `gitignore`, files that git ignores are left out too.
    """
    fields = {"archive": archive, "format": format, "exclude": list(exclude), "gitignore": gitignore}
    return Call(**post(key, "backup", path, **fields), what="backup", parse=_parse_backup)


def restore_backup(key: str, path: SandboxPath, archive: str) -> Call[Backup]:
    """Replace a directory's contents with those of an archive in the sandbox.

    Raises:
        ArchiveRefused: the archive is damaged, or a member would leave the directory; the directory is unchanged.
    """
    return Call(**post(key, "restore", path, archive=archive), what="backup", parse=_parse_backup)


def watch(
    key: str,
    path: SandboxPath,
    *,
    recursive: bool = True,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> ChangeReader:
    """Watch a directory or a file. Use it as a context manager, and iterate over it for the changes.

    are gitignore(5) patterns; excluded directories are not watched.
    """
    request = get(key, path, "/watch", recursive=recursive)
    for name, patterns in (("include", include), ("exclude", exclude)):
        if any("," in pattern for pattern in patterns):
            raise InvalidRequest(f"cannot accept {name}: a pattern contains a comma", field=name)
        if patterns:
            request["params"][name] = ",".join(patterns)
    return ChangeReader(StreamCall("GET", **request, accept="text/event-stream", timeout_s=WATCH_TIMEOUT_S))


class ChangeReader:
    """Reads the events of a watch. `over` says that what is watched is gone."""

    def __init__(self, call: StreamCall) -> None:
        self.call = call
        self.over = False
        self._decoder = SseDecoder()

    def feed(self, data: bytes) -> Iterator[FileChange]:
        """Take bytes of the answer and give the changes that they complete.

        Raises:
            SandboxdError: what the daemon says broke the watch, as its kind.
        """
        complaint = "cannot read the watch: an event is not JSON"
        for kind, value in read_events(self._decoder, data, complaint):
            if kind == "end":
                self.over = True
            elif kind != "ready":
                yield read("change", functools.partial(_parse_change, kind), value)


def _parse_change(kind: str, value: Json) -> FileChange:
    old = _name(value, "from") if "from" in value else None
    return FileChange(type=kind, path=_name(value), is_folder=bool(value["is_folder"]), old_path=old)
