"""The requests of …/files: what to send, and how to read the answer (see `calls`).

A name that is no UTF-8 is text with surrogates here (as `os.fsdecode` makes it), and base64 on its way.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import json
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from sandboxd.errors import InvalidRequest, RemoteProtocolError
from sandboxd.spec import check_file_path, name_bytes, name_text
from sandboxd.wire.sse import SseDecoder

from .calls import RAW_TYPE, Call, StreamCall, nothing, sandbox_path
from .failures import from_problem
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
        path: absolute. name: its last part.
        type: file, directory, symlink, fifo, socket, character-device or block-device.
        size: in bytes.
        mode: permission bits, such as 0o644.
        uid, gid: the owner's ids in the sandbox.
        modified_at: when its content changed.
        target: where a link leads, else None.
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
        """Whether it is a folder."""
        return self.type == "directory"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Something that a search found: a name with its `type`, or a line (from 1), the column in it, and its text."""

    path: str
    type: str | None = None
    line: int | None = None
    column: int | None = None
    text: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What a search found; `truncated` is "limit" or "timeout" where it is not all; `files` were looked at."""

    items: list[Match]
    truncated: str | None
    files: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceResult:
    """What was replaced: each file's count, and all together; `truncated` as of a search."""

    items: dict[str, int]
    count: int
    truncated: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """A folder's version, and whether it changed since an earlier one; None where there was none to compare with."""

    version: str
    changed: bool | None
    entries: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """An archive in a sandbox that a folder was put into, or taken from: its path, size in bytes, and entries."""

    archive: str
    size: int
    entries: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """Something changed.

    Attributes:
        type: create, write, chmod, remove, rename, or overflow: changes were lost, look anew at what you need.
        path: what changed, by its new name.
        is_folder: whether it is a folder.
        old_path: of a rename, the name before.
    """

    type: str
    path: str
    is_folder: bool
    old_path: str | None = None


# --- names ---


def spell(path: SandboxPath, field: str = "path") -> dict[str, str]:
    """Return the field, or its `_b64` twin, that carries a path.

    Raises:
        InvalidRequest: no sandbox has such a path.
    """
    try:
        raw = path if isinstance(path, bytes) else name_bytes(path)
    except UnicodeEncodeError:
        why = "it has a lone surrogate, which is no UTF-8"
        raise InvalidRequest(f"cannot accept {field}: {why}", field=field) from None
    check_file_path(raw, field)
    return _spell(raw, field)


def _spell(raw: bytes, field: str) -> dict[str, str]:
    try:
        return {field: raw.decode()}
    except UnicodeDecodeError:
        return {f"{field}_b64": base64.b64encode(raw).decode()}


def _name(value: Json, field: str = "path") -> str:
    b64 = value.get(f"{field}_b64")
    text = value[field]
    if not isinstance(text, str):
        raise TypeError(f"{field} is no text")
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


def _parse_inner(value: Json) -> FileInfo:
    return parse_file(value["file"])


def _flags(**flags: bool) -> dict[str, str]:
    return {name: "true" for name, value in flags.items() if value}


# --- requests ---


def _get(key: str, path: SandboxPath, what: str, **flags: bool) -> dict[str, Any]:
    return {"params": {**spell(path), **_flags(**flags)}, "path": sandbox_path(key, f"/files{what}")}


def read_file(key: str, path: SandboxPath, offset: int = 0, length: int | None = None) -> StreamCall:
    """GET …/files: the answer is the file's bytes, or `length` of them from `offset`."""
    extra = None
    if offset or length is not None:
        if offset < 0 or (length is not None and length < 1):
            raise InvalidRequest("cannot read: offset is at least 0, and length at least 1", field="offset")
        extra = {"Range": f"bytes={offset}-{'' if length is None else offset + length - 1}"}
    return StreamCall("GET", **_get(key, path, ""), accept=f"{RAW_TYPE}, */*;q=0.1", extra=extra)


def write_file(
    key: str, path: SandboxPath, content: Content, mode: int | None = None, size: int | None = None
) -> Call[int]:
    """PUT …/files: returns the file's new size in bytes. `size` is that of a content that comes in pieces."""
    given = _get(key, path, "")
    if isinstance(path, str) and path.endswith("/"):
        raise InvalidRequest(f"cannot write {path}: a file's path does not end with a slash", field="path")
    if mode is not None:
        given["params"]["mode"] = _octal(mode)
    extra = None if size is None else {"Content-Length": str(size)}
    return Call("PUT", **given, content=content, extra=extra, what="answer", parse=lambda value: int(value["size"]))


def _octal(mode: int) -> str:
    if not 0 <= mode <= 0o7777:
        raise InvalidRequest("cannot accept mode: it is 0 to 0o7777", field="mode")
    return f"{mode:04o}"


def page(
    key: str, path: SandboxPath, cursor: str | None, *, recursive: bool, hidden: bool
) -> Call[tuple[list[FileInfo], str | None]]:
    """GET …/files/list: one page, and the cursor of the next where there is one."""
    given = _get(key, path, "/list", recursive=recursive, hidden=hidden)
    if cursor is not None:
        given["params"]["cursor"] = cursor

    def parse(value: Json) -> tuple[list[FileInfo], str | None]:
        following = value["next"]
        return [parse_file(item) for item in value["items"]], None if following is None else str(following)

    return Call("GET", **given, what="list of files", parse=parse)


def stat(key: str, path: SandboxPath, *, follow: bool) -> Call[FileInfo]:
    """GET …/files/stat."""
    return Call("GET", **_get(key, path, "/stat", follow=follow), what="file", parse=parse_file)


def exists(key: str, path: SandboxPath) -> Call[bool]:
    """GET …/files/exists."""
    return Call("GET", **_get(key, path, "/exists"), what="answer", parse=lambda value: bool(value["exists"]))


def delete(key: str, path: SandboxPath, *, recursive: bool) -> Call[None]:
    """DELETE …/files."""
    return Call("DELETE", **_get(key, path, "", recursive=recursive), timeout_s=None, what="answer", parse=nothing)


def _post(key: str, verb: str, body: dict[str, Any]) -> dict[str, Any]:
    # No time bound: a tree may be large, and a client that leaves ends what it asked for.
    return {"method": "POST", "path": sandbox_path(key, f"/files/{verb}"), "body": body, "timeout_s": None}


def mkdir(key: str, path: SandboxPath, *, parents: bool, mode: int | None) -> Call[FileInfo]:
    """POST …/files/mkdir."""
    body: dict[str, Any] = {**spell(path), "parents": parents}
    if mode is not None:
        body["mode"] = _octal(mode)
    return Call(**_post(key, "mkdir", body), what="file", parse=parse_file)


def rename(key: str, path: SandboxPath, new_path: SandboxPath, *, overwrite: bool) -> Call[FileInfo]:
    """POST …/files/rename."""
    body = {**spell(path), **spell(new_path, "new_path"), "overwrite": overwrite}
    return Call(**_post(key, "rename", body), what="file", parse=parse_file)


def copy(key: str, path: SandboxPath, new_path: SandboxPath, *, overwrite: bool) -> Call[FileInfo]:
    """POST …/files/copy."""
    body = {**spell(path), **spell(new_path, "new_path"), "overwrite": overwrite}
    return Call(**_post(key, "copy", body), what="answer", parse=_parse_inner)


def symlink(key: str, path: SandboxPath, target: SandboxPath) -> Call[FileInfo]:
    """POST …/files/symlink; the target need not be absolute, nor there."""
    raw = target if isinstance(target, bytes) else name_bytes(target)
    return Call(**_post(key, "symlink", {**spell(path), **_spell(raw, "target")}), what="file", parse=parse_file)


def chmod(key: str, path: SandboxPath, mode: int, *, recursive: bool) -> Call[FileInfo]:
    """POST …/files/chmod."""
    body = {**spell(path), "mode": _octal(mode), "recursive": recursive}
    return Call(**_post(key, "chmod", body), what="answer", parse=_parse_inner)


def chown(
    key: str, path: SandboxPath, user: str | int | None, group: str | int | None, *, recursive: bool
) -> Call[FileInfo]:
    """POST …/files/chown."""
    body = {**spell(path), "user": user, "group": group, "recursive": recursive}
    return Call(**_post(key, "chown", body), what="answer", parse=_parse_inner)


def search(key: str, path: SandboxPath, **fields: object) -> Call[SearchResult]:
    """POST …/files/search; the fields are the API's, None is left out."""

    def parse(value: Json) -> SearchResult:
        keys = ("type", "line", "column", "text")
        items = [Match(path=_name(item), **{key: item.get(key) for key in keys}) for item in value["items"]]
        return SearchResult(items=items, truncated=value["truncated"], files=int(value["files"]))

    given = {name: value for name, value in fields.items() if value is not None}
    return Call(**_post(key, "search", {**spell(path), **given}), what="search", parse=parse)


def replace(key: str, path: SandboxPath, **fields: object) -> Call[ReplaceResult]:
    """POST …/files/replace; the fields are the API's, None is left out."""

    def parse(value: Json) -> ReplaceResult:
        items = {_name(item): int(item["count"]) for item in value["items"]}
        return ReplaceResult(items=items, count=int(value["count"]), truncated=value["truncated"])

    given = {name: value for name, value in fields.items() if value is not None}
    return Call(**_post(key, "replace", {**spell(path), **given}), what="answer", parse=parse)


def read_archive(key: str, path: SandboxPath, format: ArchiveFormat) -> StreamCall:  # noqa: A002 - the field's name
    """GET …/files/archive: the answer is the archive's bytes."""
    given = _get(key, path, "/archive")
    given["params"]["format"] = format
    return StreamCall("GET", **given, accept="*/*")


def write_archive(key: str, path: SandboxPath, content: Content, format: ArchiveFormat | None) -> Call[int]:  # noqa: A002
    """PUT …/files/archive: returns how many entries were unpacked."""
    given = _get(key, path, "/archive")
    if format is not None:
        given["params"]["format"] = format
    return Call(
        "PUT", **given, content=content, timeout_s=None, what="answer", parse=lambda value: int(value["entries"])
    )


def check_changes(key: str, path: SandboxPath, **fields: object) -> Call[Changes]:
    """POST …/files/changes; the fields are the API's, None is left out."""

    def parse(value: Json) -> Changes:
        changed = value["changed"]
        return Changes(
            version=str(value["version"]),
            changed=None if changed is None else bool(changed),
            entries=int(value["entries"]),
        )

    given = {name: value for name, value in fields.items() if value is not None}
    return Call(**_post(key, "changes", {**spell(path), **given}), what="version", parse=parse)


def _parse_backup(value: Json) -> Backup:
    return Backup(archive=str(value["archive"]), size=int(value["size_bytes"]), entries=int(value["entries"]))


def backup(key: str, path: SandboxPath, **fields: object) -> Call[Backup]:
    """POST …/files/backup; the fields are the API's, None is left out."""
    given = {name: value for name, value in fields.items() if value is not None}
    return Call(**_post(key, "backup", {**spell(path), **given}), what="backup", parse=_parse_backup)


def restore(key: str, path: SandboxPath, archive: str) -> Call[Backup]:
    """POST …/files/restore."""
    body = {**spell(path), "archive": archive}
    return Call(**_post(key, "restore", body), what="backup", parse=_parse_backup)


def watch(
    key: str, path: SandboxPath, *, recursive: bool, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> StreamCall:
    """GET …/files/watch, answered by server-sent events."""
    given = _get(key, path, "/watch", recursive=recursive)
    for name, patterns in (("include", include), ("exclude", exclude)):
        if any("," in pattern for pattern in patterns):
            raise InvalidRequest(f"cannot accept {name}: a pattern has a comma", field=name)
        if patterns:
            given["params"][name] = ",".join(patterns)
    return StreamCall("GET", **given, accept="text/event-stream", timeout_s=WATCH_TIMEOUT_S)


class ChangeReader:
    """Reads the events of a watch. `over` says that what is watched is gone."""

    def __init__(self) -> None:
        self._decoder = SseDecoder()
        self.over = False

    def feed(self, data: bytes) -> Iterator[FileChange]:
        """Take bytes of the answer and give the changes that they complete.

        Raises:
            SandboxdError: what the daemon says broke the watch, as its kind.
        """
        for event in self._decoder.feed(data):
            try:
                value = json.loads(event.data)
            except ValueError as error:
                raise RemoteProtocolError("cannot read the watch: an event is no JSON") from error
            if event.event == "problem":
                raise from_problem(value)
            if event.event == "end":
                self.over = True
            elif event.event != "ready":
                yield read("change", lambda item, kind=event.event: _parse_change(kind, item), value)  # type: ignore[misc]


def _parse_change(kind: str, value: Json) -> FileChange:
    old = _name(value, "from") if "from" in value else None
    return FileChange(type=kind, path=_name(value), is_folder=bool(value["is_folder"]), old_path=old)
