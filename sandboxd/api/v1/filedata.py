"""The operations of …/files on many files at once: search, replace, archives, watches."""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from ...errors import InvalidRequest
from ...runtime.file_queries import Picked, Replacement, Search
from ...runtime.filefacts import LineMatch
from ...runtime.jobs import FEED_BYTES
from ...wire import sse
from .. import problems
from ..call import answer, streamed
from ..http.body import UPLOAD_IDLE_S
from ..pieces import answer_in_pieces, follow
from . import file_models as models
from .rows import file_route

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from quart_trio.wrappers import TrioResponse

    from ...runtime.file_streams import Found
    from ...runtime.filefacts import Change, Match, Unpacked
    from ...runtime.sandbox import Sandbox
    from ..call import Call

_T = TypeVar("_T")
#: What a match holds beside its texts.
_ROW_BYTES: Final = 512
MEDIA_TYPES: Final = {"tar": "application/x-tar", "tar.gz": "application/gzip", "zip": "application/zip"}


class SearchIn(models.PathIn, frozen=True):
    """What to search for below a path: `name` is a gitignore(5) pattern, `content` a Python regular expression."""

    name: str | None = None
    content: str | None = None
    ignore_case: bool = False
    gitignore: bool = False
    hidden: bool = False
    limit: int = 1000
    timeout_s: float = 30.0


class ReplaceIn(models.PathIn, frozen=True, kw_only=True):
    """What to replace below a path: `pattern` is literal text, or with `regex` a Python regular expression."""

    pattern: str
    replacement: str
    regex: bool = False
    name: str | None = None
    ignore_case: bool = False
    gitignore: bool = False
    hidden: bool = False
    limit: int = 1000
    timeout_s: float = 30.0


class WatchQuery(models.PathIn, frozen=True):
    """What to watch."""

    recursive: Annotated[bool, Meta(description="true: include everything in it")] = False
    include: Annotated[str | None, Meta(description="patterns to include, separated by commas")] = None
    exclude: Annotated[str | None, Meta(description="patterns to exclude, separated by commas")] = None


class ArchiveQuery(models.PathIn, frozen=True):
    """What to pack, or where to unpack."""

    format: Annotated[str | None, Meta(description="tar, tar.gz or zip")] = None


# --- search and replace ---


def _query(model: SearchIn | ReplaceIn) -> dict[str, Any]:
    """Return the fields that a search and a replacement share."""
    names = ("name", "ignore_case", "gitignore", "hidden", "limit", "timeout_s")
    return {"path": models.path_of(model), **{name: getattr(model, name) for name in names}}


async def search(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Find files by name, or lines by content."""
    model = await call.read(SearchIn)
    found = sandbox.files.search(Search(content=model.content, **_query(model)))
    if call.accepts() == "sse":
        await call.stack.enter_async_context(found)
        return _events(found, _match, lambda: {"truncated": found.end.truncated, "files": found.end.files})
    items: list[models.Match] = []
    hold = call.hold(sandbox)
    async with found:
        while matches := await found.next():
            hold.take(sum(_held_bytes(one) for one in matches), "search")
            items += map(models.match_of, matches)
        return answer_in_pieces(models.Found(items, found.end.truncated, found.end.files))


def _match(match: Match) -> tuple[str, dict[str, Any]]:
    return "match", msgspec.to_builtins(models.match_of(match))


def _held_bytes(match: Match) -> int:
    return _ROW_BYTES + len(match.path) + (4 * len(match.text) if isinstance(match, LineMatch) else 0)


async def replace(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Replace a text or a pattern in files; each file is rewritten completely or not at all."""
    model = await call.read(ReplaceIn)
    pattern, replacement = model.pattern, model.replacement
    query = Replacement(pattern=pattern, replacement=replacement, regex=model.regex, **_query(model))
    done = await sandbox.files.replace(query)
    items = [models.ReplacedFile(**models.spelled(path, "path"), count=count) for path, count in done.files]
    return answer_in_pieces(models.Replaced(items, done.count, done.truncated))


# --- watches ---


async def watch(call: Call, sandbox: Sandbox, query: WatchQuery) -> TrioResponse:
    """Report changes below a path as server-sent events, until it is gone or the caller leaves."""
    picked = Picked(include=_patterns(query.include), exclude=_patterns(query.exclude))
    found = sandbox.files.watch(models.path_of(query), picked, recursive=query.recursive)
    await call.stack.enter_async_context(found)
    return _events(found, _change, lambda: {"reason": "removed"})


def _patterns(text: str | None) -> tuple[str, ...]:
    """Return the patterns of a parameter, separated by commas."""
    return tuple(part for part in (text or "").split(",") if part)


def _change(change: Change) -> tuple[str, dict[str, Any]]:
    fields = {**models.spelled(change.path, "path"), "is_folder": change.is_folder}
    if change.old_path is not None:
        fields |= models.spelled(change.old_path, "from")
    return change.type, fields


# --- both of them as events ---


def _events(
    found: Found[_T], show: Callable[[_T], tuple[str, dict[str, Any]]], end: Callable[[], dict[str, Any]]
) -> TrioResponse:
    """Return matches as server-sent events, as they are found; the call's stack owns the job."""
    offsets = itertools.count()

    def event(name: str, fields: dict[str, Any]) -> bytes:
        offset = next(offsets)
        data = msgspec.json.encode({"offset": offset, "time": time.time(), **fields})
        return sse.encode(data, event=name, id=offset)

    async def take() -> tuple[list[bytes], bool]:
        if rows := await found.next():
            return [event(*show(row)) for row in rows], False
        return [event("end", end())], True

    headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}
    return streamed(follow(take, problems.to_event), 200, headers)


# --- archives ---


def _format(query: ArchiveQuery, default: str | None) -> str | None:
    name = query.format or default
    if name is not None and name not in MEDIA_TYPES:
        raise InvalidRequest("cannot accept format: it must be tar, tar.gz or zip", field="format")
    return name


async def pack(call: Call, sandbox: Sandbox, query: ArchiveQuery) -> TrioResponse:
    """Send a directory's contents, or one file, as an archive."""
    name = _format(query, "tar")
    assert name is not None  # noqa: S101 - it has a default
    archive = await call.stack.enter_async_context(sandbox.files.pack(models.path_of(query), name))
    return streamed(archive.pieces(), 200, {"Content-Type": MEDIA_TYPES[name], "X-Content-Type-Options": "nosniff"})


async def unpack(call: Call, sandbox: Sandbox, query: ArchiveQuery) -> TrioResponse:
    """Unpack the body into a directory, within the sandbox's limits."""
    unpacked = await unpack_body(call, sandbox, models.path_of(query), _format(query, None))
    return answer(models.Unpacked(unpacked.entries, unpacked.bytes))


async def unpack_body(call: Call, sandbox: Sandbox, path: str, form: str | None) -> Unpacked:
    """Unpack the body into a directory."""
    async with contextlib.aclosing(_pieces(call)) as pieces:
        return await sandbox.files.unpack(path, pieces, form)


async def _pieces(call: Call) -> AsyncGenerator[bytearray]:
    while piece := await call.body.next_piece(idle_s=UPLOAD_IDLE_S, at_least=FEED_BYTES):
        yield piece


ROUTES: Final = (
    file_route("files.search", "POST", "/search", search, body=SearchIn, result=models.Found),
    file_route(
        "files.replace", "POST", "/replace", replace, body=ReplaceIn, result=models.Replaced, kinds=("quota-exceeded",)
    ),
    file_route("files.watch", "GET", "/watch", watch, query=WatchQuery, result=bytes),
    file_route("files.archive", "GET", "/archive", pack, query=ArchiveQuery, result=bytes),
    file_route(
        "files.unpack",
        "PUT",
        "/archive",
        unpack,
        query=ArchiveQuery,
        body=bytes,
        result=models.Unpacked,
        kinds=("archive-refused", "quota-exceeded"),
    ),
)
