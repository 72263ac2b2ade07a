"""What …/files does with many files at once: search, replace, archives, watches."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec
import trio
from quart.wrappers.response import ResponseBody

from ...errors import InvalidRequest, SandboxdError
from ...runtime.file_queries import Picked, Replacement, Search
from ...runtime.filefacts import LineMatch
from ...runtime.jobs import FEED_BYTES
from ...wire import sse
from .. import problems
from ..call import answer, streamed
from ..http.body import UPLOAD_IDLE_S
from ..pieces import KEEP_ALIVE_S, answer_in_pieces
from . import file_models as models
from .filetree import query_path

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from types import TracebackType

    from quart_trio.wrappers import TrioResponse

    from ...runtime.file_streams import Archive, Found, SearchResults
    from ...runtime.filefacts import Change, Match, Unpacked
    from ...runtime.sandbox import Sandbox
    from ..call import Call

_T = TypeVar("_T")
#: What a match holds beside its texts.
_ROW_BYTES: Final = 512
MEDIA_TYPES: Final = {"tar": "application/x-tar", "tar.gz": "application/gzip", "zip": "application/zip"}


# --- search and replace ---


def _query(model: models.SearchIn | models.ReplaceIn) -> dict[str, Any]:
    """Return the fields that a search and a replacement share."""
    names = ("name", "ignore_case", "gitignore", "hidden", "limit", "timeout_s")
    return {"path": models.path_of(model), **{name: getattr(model, name) for name in names}}


async def search(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Find files by name, or lines by what is in them."""
    model = await call.read(models.SearchIn)
    found = sandbox.files.search(Search(content=model.content, **_query(model)))
    if call.accepts() == "sse":
        return _sse(_MatchBody(await call.stack.enter_async_context(found)))
    items: list[models.Match] = []
    hold = call.hold(sandbox)
    async with found:
        while matches := await found.next():
            hold.take(sum(_held_bytes(one) for one in matches), "search")
            items += map(models.match_of, matches)
        return answer_in_pieces(models.Found(items, found.end.truncated, found.end.files))


def _held_bytes(match: Match) -> int:
    return _ROW_BYTES + len(match.path) + (4 * len(match.text) if isinstance(match, LineMatch) else 0)


async def replace(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Replace a text or a pattern in files, each whole or not at all."""
    model = await call.read(models.ReplaceIn)
    pattern, replacement = model.pattern, model.replacement
    query = Replacement(pattern=pattern, replacement=replacement, regex=model.regex, **_query(model))
    done = await sandbox.files.replace(query)
    items = [models.ReplacedFile(**models.spelled(path, "path"), count=count) for path, count in done.files]
    return answer_in_pieces(models.Replaced(items, done.count, done.truncated))


# --- watches ---


async def watch(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Tell what changes below a path, as server-sent events, until it is gone or the caller leaves."""
    picked = Picked(include=_patterns(call, "include"), exclude=_patterns(call, "exclude"))
    found = sandbox.files.watch(query_path(call), picked, recursive=call.query_flag("recursive"))
    body = _WatchBody(await call.stack.enter_async_context(found))
    await body.prefetch()  # a path that cannot be watched is a problem, no stream
    return _sse(body)


def _patterns(call: Call, name: str) -> tuple[str, ...]:
    """Return the patterns of a parameter, which commas part."""
    return tuple(part for part in (call.query(name) or "").split(",") if part)


def _sse(body: _EventBody[Any]) -> TrioResponse:
    headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}
    return streamed(body, 200, headers)


class _EventBody(ResponseBody, Generic[_T]):
    """What a file job finds as events; the call's stack owns the file job."""

    def __init__(self, found: Found[_T]) -> None:
        self._found = found
        self._offset = 0
        self._over = False
        self._first: list[_T] | None = None

    async def __aenter__(self) -> _EventBody[_T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing: see the class."""

    def __aiter__(self) -> _EventBody[_T]:
        return self

    async def prefetch(self) -> None:
        """Wait for what is found first; raises why there is nothing."""
        self._first = await self._found.next()

    async def __anext__(self) -> bytes:
        if self._over:
            raise StopAsyncIteration
        rows: list[_T] | None = None
        try:
            with trio.move_on_after(KEEP_ALIVE_S):
                rows, self._first = self._first, None
                if rows is None:
                    rows = await self._found.next()
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

    def _row(self, row: _T) -> tuple[str, dict[str, Any]]:
        raise NotImplementedError

    def _end(self) -> dict[str, Any]:
        raise NotImplementedError


class _MatchBody(_EventBody["Match"]):
    """What a search finds, as it finds it."""

    _found: SearchResults

    def _row(self, row: Match) -> tuple[str, dict[str, Any]]:
        found: dict[str, Any] = msgspec.to_builtins(models.match_of(row))
        return "match", found

    def _end(self) -> dict[str, Any]:
        return {"truncated": self._found.end.truncated, "files": self._found.end.files}


class _WatchBody(_EventBody["Change"]):
    """What changes, as it changes."""

    def _row(self, row: Change) -> tuple[str, dict[str, Any]]:
        fields = {**models.spelled(row.path, "path"), "is_folder": row.is_folder}
        if row.old_path is not None:
            fields |= models.spelled(row.old_path, "from")
        return row.type, fields

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
    archive = await call.stack.enter_async_context(sandbox.files.pack(query_path(call), name))
    body = PackBody(archive, await archive.next_piece())
    return streamed(body, 200, {"Content-Type": MEDIA_TYPES[name], "X-Content-Type-Options": "nosniff"})


class PackBody(ResponseBody):
    """An archive as it is packed; one that cannot be finished cuts the connection."""

    def __init__(self, archive: Archive, first: bytes) -> None:
        self._archive = archive
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
        piece = piece or await self._archive.next_piece()
        if not piece:
            raise StopAsyncIteration
        return piece


async def unpack(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Unpack the body into a directory, in the sandbox's own limits."""
    unpacked = await unpack_body(call, sandbox, query_path(call), _format(call, None))
    return answer(models.Unpacked(unpacked.entries, unpacked.bytes))


async def unpack_body(call: Call, sandbox: Sandbox, path: str, form: str | None) -> Unpacked:
    """Unpack the body into a directory."""
    async with contextlib.aclosing(_pieces(call)) as pieces:
        return await sandbox.files.unpack(path, pieces, form)


async def _pieces(call: Call) -> AsyncGenerator[bytearray]:
    while piece := await call.body.next_piece(idle_s=UPLOAD_IDLE_S, at_least=FEED_BYTES):
        yield piece
