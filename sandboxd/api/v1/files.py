"""GET and PUT …/files?path=: a file's bytes, streamed both ways."""

from __future__ import annotations

import email.utils
import re
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from ...errors import InvalidRequest, RangeNotSatisfiable
from ...runtime.open_files import PIECE_BYTES
from ...wire.times import calendar
from .. import mime
from ..call import answer, streamed
from ..http.body import UPLOAD_IDLE_S
from .file_models import FileOut, PathIn, path_of, shown, spelled
from .rows import NEW, file_route

if TYPE_CHECKING:
    from quart_trio.wrappers import TrioResponse

    from ...runtime.sandbox import Sandbox
    from ..call import Call

_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z", re.ASCII)


class WriteQuery(PathIn, frozen=True):
    """Which file to write, and with which mode."""

    mode: Annotated[
        str | None, Meta(description="the file's mode in octal; default: the existing file's, else 0644")
    ] = None


async def read(call: Call, sandbox: Sandbox, query: PathIn) -> TrioResponse:
    """Send a file's bytes, or the part that Range requests."""
    path = path_of(query)
    reader = await call.stack.enter_async_context(await sandbox.files.open_read(path))
    head = await reader.read(0, mime.HEAD_BYTES)
    kind = mime.kind_of(path, head, is_whole=len(head) == reader.size)
    headers = {
        # Of a name that says nothing this says nothing either: it is no guess at what a program wrote.
        "Content-Type": mime.BINARY if mime.type_of(path) is None else kind.type,
        "Accept-Ranges": "bytes",
        "Last-Modified": email.utils.format_datetime(calendar(max(0.0, reader.mtime)), usegmt=True),
        # A file is whatever a program in a sandbox wrote: no browser may guess it to be a page of ours.
        "X-Content-Type-Options": "nosniff",
    }
    span = _range(call.request.headers.get("Range"), reader.size)
    start, end = span or (0, reader.size)
    headers["Content-Length"] = str(end - start)
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{reader.size}"
    return streamed(reader.pieces(start, end), 200 if span is None else 206, headers)


def _range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the (start, end) of a single byte range; None if there is none, or for forms that may be ignored."""
    match = _RANGE.match(header.replace(" ", "")) if header else None
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        start, end = max(0, size - int(match[2])), size
    else:
        start, end = int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
        if match[2] and int(match[2]) < start:
            return None
    if start >= end:
        raise RangeNotSatisfiable(f"cannot send that range: the file has only {size} bytes", size=size)
    return start, end


async def write(call: Call, sandbox: Sandbox, query: WriteQuery) -> TrioResponse:
    """Replace a file with the body, completely or not at all."""
    path = path_of(query)
    if (query.path or "").endswith("/"):
        raise InvalidRequest(f"cannot write {shown(path)}: a file's path does not end with a slash", field="path")
    size, created = await write_body(call, sandbox, path, query.mode)
    return answer(FileOut(**spelled(path, "path"), size=size), 201 if created else 200)


async def write_body(call: Call, sandbox: Sandbox, path: str, mode: str | None = None) -> tuple[int, bool]:
    """Replace a file with the body, and return its size and whether the file is new."""
    async with await sandbox.files.open_write(path, mode) as writer:
        while piece := await call.body.next_piece(idle_s=UPLOAD_IDLE_S, at_least=PIECE_BYTES):
            await writer.write(piece)
        size = writer.size
        return size, await writer.commit()


ROUTES: Final = (
    file_route("files.read", "GET", "", read, query=PathIn, result=bytes, kinds=("range-not-satisfiable",)),
    file_route("files.write", "PUT", "", write, query=WriteQuery, body=bytes, result=FileOut, kinds=NEW),
)
