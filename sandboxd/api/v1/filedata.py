"""What …/files does with many files at once: search, replace, archives, watches."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio
from quart.wrappers.response import ResponseBody

from ...errors import InvalidRequest, RemoteProtocolError, SandboxdError
from ...runtime import checks, filefacts
from ...runtime.backups import NO_LIMIT, Picked
from ...runtime.jobs import FEED_BYTES
from ...spec import check_text, name_bytes
from ...wire import sse
from .. import problems
from ..call import answer, streamed
from ..http.body import UPLOAD_IDLE_S
from ..pieces import KEEP_ALIVE_S, answer_in_pieces
from . import file_models as models
from .filetree import query_path

if TYPE_CHECKING:
    from types import TracebackType

    from quart_trio.wrappers import TrioResponse

    from ...runtime.jobs import FileJob
    from ...runtime.sandbox import Sandbox
    from ..call import Call

MAX_FOUND: Final = 10_000
MAX_TIMEOUT_S: Final = 300.0
#: A pattern is compiled in the sandbox, in its own time; longer ones are no patterns.
MAX_PATTERN_BYTES: Final = 10_000
MAX_REPLACEMENT_BYTES: Final = 1024 * 1024
#: What init lets a match's text be, each character up to four bytes.
_MAX_TEXT: Final = 4096
#: What a match holds beside its texts.
_ROW_BYTES: Final = 512
MEDIA_TYPES: Final = {"tar": "application/x-tar", "tar.gz": "application/gzip", "zip": "application/zip"}
_EVENTS: Final = frozenset({"ready", "create", "write", "chmod", "remove", "rename", "overflow"})


# --- search and replace ---


def _rules(model: models.SearchIn | models.ReplaceIn) -> dict[str, Any]:
    if not 1 <= model.limit <= MAX_FOUND:
        raise InvalidRequest(f"cannot accept limit: it must be 1 to {MAX_FOUND}", field="limit")
    if not 0 < model.timeout_s <= MAX_TIMEOUT_S:
        raise InvalidRequest(
            f"cannot accept timeout_s: it must be above 0 and at most {MAX_TIMEOUT_S:g}", field="timeout_s"
        )
    return {
        "path": name_bytes(models.path_of(model)),
        "name": None if model.name is None else check_text(model.name, "name", limit=1000),
        "ignore_case": model.ignore_case,
        "gitignore": model.gitignore,
        "hidden": model.hidden,
        "limit": model.limit,
        "timeout_s": model.timeout_s,
    }


async def search(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Find files by name, or lines by what is in them."""
    model = await call.read(models.SearchIn)
    if model.content is not None:
        check_text(model.content, "content", limit=MAX_PATTERN_BYTES)
    elif model.name is None:
        raise InvalidRequest("cannot search: give name, content or both", field="content")
    params = {**_rules(model), "content": model.content}
    # The file job's own alarm comes first; the deadline is for one that does not hear it.
    job = sandbox.job("search", params, timeout_s=model.timeout_s + 5)
    if call.accepts() == "sse":
        await call.stack.enter_async_context(job)
        return _sse(_MatchBody(job))
    items: list[models.Match] = []
    hold = call.hold(sandbox)
    async with job:
        while rows := await job.next_rows():
            found = [_match(row) for row in rows]
            hold.take(sum(_ROW_BYTES + len(one.path) + 4 * len(one.text or "") for one in found), "search")
            items += found
            if len(items) > model.limit:
                raise RemoteProtocolError("cannot take more matches than were asked for")
        return answer_in_pieces(models.Found(items, *_search_end(job)))


def _search_end(job: FileJob) -> tuple[str | None, int]:
    result = job.result or {}
    return _truncated(result), checks.integer(result, "files")


def _truncated(result: dict[str, Any]) -> str | None:
    value = result.get("truncated")
    if value not in (None, "limit", "timeout"):
        raise RemoteProtocolError("cannot take that reason for being truncated")
    return value


def _match(row: dict[str, Any]) -> models.Match:
    where = models.spelled(filefacts.name(row, "path"), "path")
    if "line" not in row:
        kind = checks.text(row, "type", limit=32)
        return models.Match(**where, type=kind)
    text = row.get("text")
    if not isinstance(text, str) or len(text) > _MAX_TEXT:
        raise RemoteProtocolError("cannot take a match's text")
    line, column = checks.integer(row, "line"), checks.integer(row, "column")
    return models.Match(**where, line=line, column=column, text=text)


async def replace(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Replace a text or a pattern in files, each whole or not at all."""
    model = await call.read(models.ReplaceIn)
    if not model.pattern:
        raise InvalidRequest("cannot accept pattern: it is empty", field="pattern")
    params = {
        **_rules(model),
        "pattern": check_text(model.pattern, "pattern", limit=MAX_PATTERN_BYTES),
        "replacement": check_text(model.replacement, "replacement", limit=MAX_REPLACEMENT_BYTES),
        "regex": model.regex,
    }
    items: list[models.ReplacedFile] = []
    async with sandbox.job("replace", params, timeout_s=model.timeout_s + 5) as job:
        while rows := await job.next_rows():
            for row in rows:
                where = models.spelled(filefacts.name(row, "path"), "path")
                items.append(models.ReplacedFile(**where, count=checks.integer(row, "count")))
            if len(items) > model.limit:
                raise RemoteProtocolError("cannot take more files than were asked for")
        result = job.result or {}
        return answer_in_pieces(models.Replaced(items, checks.integer(result, "count"), _truncated(result)))


# --- watches ---


async def watch(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Tell what changes below a path, as server-sent events, until it is gone or the caller leaves."""
    picked = Picked(include=_patterns(call, "include"), exclude=_patterns(call, "exclude"))
    recursive = call.query_flag("recursive")
    params = {"path": name_bytes(query_path(call)), "recursive": recursive, **picked.params()}
    job = await call.stack.enter_async_context(sandbox.job("watch", params))
    body = _WatchBody(job)
    await body.prefetch()  # a path that cannot be watched is a problem, no stream
    return _sse(body)


def _patterns(call: Call, name: str) -> tuple[str, ...]:
    """Return the patterns of a parameter, which commas part."""
    return tuple(part for part in (call.query(name) or "").split(",") if part)


def _sse(body: _EventBody) -> TrioResponse:
    headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}
    return streamed(body, 200, headers)


class _EventBody(ResponseBody):
    """A file job's rows as events; the call's stack owns the file job."""

    def __init__(self, job: FileJob) -> None:
        self._job = job
        self._offset = 0
        self._over = False
        self._first: list[dict[str, Any]] | None = None

    async def __aenter__(self) -> _EventBody:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing: see the class."""

    def __aiter__(self) -> _EventBody:
        return self

    async def prefetch(self) -> None:
        """Wait for the first rows; raises why there are none."""
        self._first = await self._job.next_rows()

    async def __anext__(self) -> bytes:
        if self._over:
            raise StopAsyncIteration
        rows: list[dict[str, Any]] | None = None
        try:
            with trio.move_on_after(KEEP_ALIVE_S):
                rows, self._first = self._first, None
                if rows is None:
                    rows = await self._job.next_rows()
            if rows is None:
                return sse.KEEP_ALIVE
            if rows:
                return b"".join(self._event(*self._row(row)) for row in rows)
            self._over = True
            return self._event("end", self._end())
        except SandboxdError as error:
            self._over = True
            return sse.encode(problems.to_json(error), event="problem")

    def _event(self, name: str, fields: dict[str, Any]) -> bytes:
        data = msgspec.json.encode({"offset": self._offset, "time": time.time(), **fields})
        event = sse.encode(data, event=name, id=self._offset)
        self._offset += 1
        return event

    def _row(self, row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        raise NotImplementedError

    def _end(self) -> dict[str, Any]:
        raise NotImplementedError


class _MatchBody(_EventBody):
    """What a search finds, as it finds it."""

    def _row(self, row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        found: dict[str, Any] = msgspec.to_builtins(_match(row))
        return "match", found

    def _end(self) -> dict[str, Any]:
        truncated, files = _search_end(self._job)
        return {"truncated": truncated, "files": files}


class _WatchBody(_EventBody):
    """What changes, as it changes."""

    def _row(self, row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        kind = checks.text(row, "type", limit=16)
        if kind not in _EVENTS:
            raise RemoteProtocolError(f"cannot take a change of type {kind!r}")
        fields = models.spelled(filefacts.name(row, "path"), "path")
        fields["is_folder"] = checks.flag(row, "is_folder")
        if row.get("from") is not None:
            fields.update(models.spelled(filefacts.name(row, "from"), "from"))
        return kind, fields

    def _end(self) -> dict[str, Any]:
        return {"reason": "removed"}


# --- archives ---


def _format(call: Call, default: str | None) -> str | None:
    name = call.query("format") or default
    if name is not None and name not in MEDIA_TYPES:
        raise InvalidRequest("cannot accept format: the formats are tar, tar.gz and zip", field="format")
    return name


async def pack(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Send what is in a directory, or one file, as an archive."""
    name = _format(call, "tar")
    assert name is not None  # noqa: S101 - it has a default
    params = {"path": name_bytes(query_path(call)), "format": name}
    job = await call.stack.enter_async_context(sandbox.job("pack", params))
    body = PackBody(job, await job.next_piece())
    return streamed(body, 200, {"Content-Type": MEDIA_TYPES[name], "X-Content-Type-Options": "nosniff"})


class PackBody(ResponseBody):
    """An archive as it is packed; one that cannot be finished cuts the connection."""

    def __init__(self, job: FileJob, first: bytes) -> None:
        self._job = job
        self._first = first

    async def __aenter__(self) -> PackBody:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing: the call's stack owns the file job."""

    def __aiter__(self) -> PackBody:
        return self

    async def __anext__(self) -> bytes:
        piece, self._first = self._first, b""
        piece = piece or await self._job.next_piece()
        if not piece:
            raise StopAsyncIteration
        return piece


async def unpack(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Unpack the body into a directory, in the sandbox's own limits."""
    entries, size = await unpack_body(call, sandbox, query_path(call), _format(call, None))
    return answer(models.Unpacked(entries, size))


async def unpack_body(call: Call, sandbox: Sandbox, path: str, form: str | None) -> tuple[int, int]:
    """Unpack the body into a directory and return how many entries and bytes that were."""
    params = {"path": name_bytes(path), "format": form, "max_bytes": sandbox.limits.disk_bytes or NO_LIMIT}
    async with sandbox.job("unpack", params, feed=True) as job:
        while piece := await call.body.next_piece(idle_s=UPLOAD_IDLE_S, at_least=FEED_BYTES):
            if not await job.feed(piece):
                break
        else:
            await job.end_feed()
        result = await job.finish()
    return checks.integer(result, "entries"), checks.integer(result, "bytes")
