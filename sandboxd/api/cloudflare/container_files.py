"""/api/read, /write, /delete, /rename, /move, /mkdir, /list-files, /exists: files by name, small ones whole."""

from __future__ import annotations

import base64
import codecs
import stat
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ...errors import InvalidRequest
from ...runtime.open_files import PIECE_BYTES
from ...runtime.strangers import Turn
from ...wire import utf8
from ...wire.times import rfc3339
from .. import mime
from ..call import answer
from ..http.body import UPLOAD_IDLE_S
from ..pieces import Text, answer_in_pieces
from ..v1.file_models import shown
from . import container, problems
from . import container_sessions as sessions
from .container import Body, Events, about, event
from .container_write import ContentSplitter, Upload
from .problems import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from quart_trio.wrappers import TrioResponse

    from ...runtime.filefacts import FileFacts
    from ...runtime.open_files import FileReader
    from ...runtime.sandbox import Sandbox
    from ..call import Call

#: Theirs for what is read in one piece; what is written may be larger (`container_write`).
MAX_FILE_BYTES: Final = 32 * 1024 * 1024
#: One piece of a stream: a multiple of three, so that pieces in base64 can be put together as text.
_STREAM_BYTES: Final = 48 * 1024
#: Entries of one list: about 60 MB of JSON.
MAX_LISTED: Final = 200_000
#: What an entry holds beside its JSON.
_ROW_BYTES: Final = 64
_TYPES: Final = frozenset({"file", "directory", "symlink"})


class PathIn(Body, frozen=True):
    """A file."""

    path: str
    session_id: str | None = None
    encoding: str | None = None
    recursive: bool | None = None


class WriteIn(Body, frozen=True):
    """A file and what is to be in it."""

    path: str
    content: str
    session_id: str | None = None
    encoding: str | None = None


class RenameIn(Body, frozen=True):
    """A file's names, old and new."""

    old_path: str
    new_path: str
    session_id: str | None = None


class MoveIn(Body, frozen=True):
    """Where a file is, and where it is to be."""

    source_path: str
    destination_path: str
    session_id: str | None = None


class ListOptions(Body, frozen=True):
    """What to list of a directory."""

    recursive: bool | None = None
    include_hidden: bool | None = None


class ListIn(Body, frozen=True):
    """A directory to list."""

    path: str
    options: ListOptions | None = None
    session_id: str | None = None


async def _resolve(sandbox: Sandbox, path: str, session: str | None, field: str = "path") -> str:
    """Return a path as absolute: a relative one counts from where its session is."""
    return container.resolve(path, await sessions.base_of(sandbox, path, session), field)


# --- reading ---


def _encoding(value: str | None) -> str | None:
    if value in (None, "base64"):
        return value
    if value in ("utf-8", "utf8"):
        return "utf-8"
    raise Refusal("VALIDATION_FAILED", "cannot accept encoding: it must be utf-8 or base64", field="encoding")


async def read(call: Call, name: str) -> TrioResponse:
    """Give a file's content, as text or, where it is none, in base64."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, PathIn)
    wanted = _encoding(model.encoding)
    path = await _resolve(sandbox, model.path, model.session_id)
    with about(path=model.path):
        async with await sandbox.files.open_read(path) as reader:
            if reader.size > MAX_FILE_BYTES:
                why = (
                    f"cannot read {model.path} in one piece: it has {reader.size} bytes, the limit is {MAX_FILE_BYTES}"
                )
                raise Refusal("FILE_TOO_LARGE", why, actualSize=reader.size, maxSize=MAX_FILE_BYTES)
            call.hold(sandbox).take(reader.size, f"read {model.path} in one piece")
            parts, is_binary = await _whole(reader)
    kind = mime.kind_by(path, is_binary=is_binary)
    encoding = wanted or ("base64" if kind.is_binary else "utf-8")
    content = Text(parts, encoding)
    return answer_in_pieces(
        {
            "success": True,
            "path": model.path,
            "content": content,
            "timestamp": problems.timestamp(),
            "encoding": encoding,
            "isBinary": encoding == "base64",  # as theirs: what is in `content`
            "mimeType": kind.type,
            "size": content.size,
        }
    )


async def _whole(reader: FileReader) -> tuple[list[bytes], bool]:
    """Return a file's bytes, and whether they are no text."""
    parts: list[bytes] = []
    size, is_binary = 0, False
    decoder = codecs.getincrementaldecoder("utf-8")()
    while size < reader.size and (piece := await reader.read(size, min(PIECE_BYTES, reader.size - size))):
        parts.append(piece)
        size += len(piece)
        is_binary = is_binary or b"\0" in piece or not _is_utf8(decoder, piece, is_whole=size >= reader.size)
    return parts, is_binary


def _is_utf8(decoder: codecs.IncrementalDecoder, piece: bytes, *, is_whole: bool) -> bool:
    try:
        decoder.decode(piece, final=is_whole)
    except UnicodeDecodeError:
        return False
    return True


async def read_stream(call: Call, name: str) -> TrioResponse:
    """Give a file's content piece by piece."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, PathIn)
    path = await _resolve(sandbox, model.path, model.session_id)
    with about(path=model.path):
        reader = await call.stack.enter_async_context(await sandbox.files.open_read(path))
        head = await reader.read(0, mime.HEAD_BYTES)
    return container.stream(_Content(reader, mime.kind_of(path, head, is_whole=len(head) == reader.size)))


class _Content(Events):
    """A file as their events; text goes out at character ends, other data in base64."""

    def __init__(self, reader: FileReader, kind: mime.Kind) -> None:
        self._reader = reader
        self._is_binary = kind.is_binary
        self._at = 0
        facts = {"mimeType": kind.type, "isBinary": kind.is_binary, "encoding": "base64" if kind.is_binary else "utf-8"}
        self.first = event("metadata", size=reader.size, **facts)

    async def _next_pieces(self) -> tuple[Iterable[bytes], bool]:
        limit = min(_STREAM_BYTES, self._reader.size - self._at)
        data = await self._reader.read(self._at, limit) if limit > 0 else b""
        if not data:
            return (event("complete", bytesRead=self._at),), True
        if self._is_binary:
            self._at += len(data)
            return (event("chunk", data=base64.b64encode(data).decode()),), False
        cut = (len(utf8.whole(data)) or len(data)) if self._at + len(data) < self._reader.size else len(data)
        self._at += cut
        return (event("chunk", data=data[:cut].decode("utf-8", "replace")),), False


# --- writing ---


async def write(call: Call, name: str) -> TrioResponse:
    """Put a text, or what base64 stands for, in a file's place; directories above it are made."""
    sandbox = await container.reach(call, name)
    async with Upload(sandbox, call.hold(sandbox)) as upload:
        model = container.parse(await _receive(call, upload), WriteIn)
        encoding = _encoding(model.encoding) or "utf-8"
        path = await _resolve(sandbox, model.path, model.session_id)
        with about(path=model.path):
            if model.path.endswith("/"):
                raise Refusal("IS_DIRECTORY", f"cannot write {model.path}: a file's path does not end with a slash")
            await upload.commit(path, encoding)
    return _done(path=model.path)


async def _receive(call: Call, upload: Upload) -> bytes:
    """Give the content of a body to `upload` as it comes, and return what is beside it."""
    splitter, turn = ContentSplitter(), Turn()
    try:
        while piece := await call.body.next_piece(idle_s=UPLOAD_IDLE_S, at_least=PIECE_BYTES):
            turn.begin()
            for start in range(0, len(piece), PIECE_BYTES):
                for text in splitter.feed(piece[start : start + PIECE_BYTES]):
                    if text:
                        await upload.take(text, splitter)
                    await turn.rest()
    except InvalidRequest as error:
        raise container.invalid(error) from None
    return splitter.finish()


def _done(**facts: Any) -> TrioResponse:  # noqa: ANN401 - any JSON value
    return answer({"success": True, **facts, "timestamp": problems.timestamp()})


async def delete(call: Call, name: str) -> TrioResponse:
    """Delete a file or a link; a directory is refused."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, PathIn)
    path = await _resolve(sandbox, model.path, model.session_id)
    with about(path=model.path):
        if (await sandbox.files.stat(path)).type == "directory":
            raise Refusal("IS_DIRECTORY", f"cannot delete {model.path}: it is a directory")
        await sandbox.files.delete(path)
    return _done(path=model.path)


async def rename(call: Call, name: str) -> TrioResponse:
    """Give a file another name."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, RenameIn)
    return await _move(sandbox, model.old_path, model.new_path, model.session_id)


async def move(call: Call, name: str) -> TrioResponse:
    """Put a file elsewhere."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, MoveIn)
    return await _move(sandbox, model.source_path, model.destination_path, model.session_id)


async def _move(sandbox: Sandbox, old: str, new: str, session: str | None) -> TrioResponse:
    """Do what `mv` does: what is there is replaced, and a directory that is there is moved into."""
    source, target = await _resolve(sandbox, old, session), await _resolve(sandbox, new, session, "newPath")
    with about(path=old, newPath=new):
        moved = await sandbox.files.stat(source)
        there = await sandbox.files.find(target, follow=True)
        if there is not None and there.type == "directory" and target != source:
            target = f"{target.rstrip('/')}/{source.rpartition('/')[2]}"
        elif there is not None and moved.type == "directory":
            raise Refusal("NOT_DIRECTORY", f"cannot move {old} to {new}: that is not a directory")
        await sandbox.files.rename(source, target)
    return _done(path=old, newPath=new)


async def mkdir(call: Call, name: str) -> TrioResponse:
    """Make a directory; with `recursive` those above it too, and it may be there."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, PathIn)
    recursive = bool(model.recursive)
    path = await _resolve(sandbox, model.path, model.session_id)
    with about(path=model.path):
        made = await sandbox.files.mkdir(path, parents=recursive)
        if not recursive and not made.created:
            raise Refusal("FILE_EXISTS", f"cannot create {model.path}: it exists already")
    return _done(path=model.path, recursive=recursive)


async def exists(call: Call, name: str) -> TrioResponse:
    """Tell whether something has that name."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, PathIn)
    path = await _resolve(sandbox, model.path, model.session_id)
    with about(path=model.path):
        found = await sandbox.files.find(path, follow=True)
    return _done(path=model.path, exists=found is not None)


# --- lists ---


async def list_files(call: Call, name: str) -> TrioResponse:
    """List a directory, sorted."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, ListIn)
    options = model.options or ListOptions()
    recursive, hidden = bool(options.recursive), bool(options.include_hidden)
    root = await _resolve(sandbox, model.path, model.session_id)
    files: list[msgspec.Raw] = []  # as JSON at once: two hundred thousand objects would take five times as much
    hold = call.hold(sandbox)
    after: str | None = None
    with about(path=model.path):
        while True:
            page = await sandbox.files.list(root, recursive=recursive, hidden=hidden, after=after)
            rows = [msgspec.Raw(msgspec.json.encode(_file_json(root, one))) for one in page.files]
            hold.take(sum(_ROW_BYTES + len(memoryview(row)) for row in rows), f"list {model.path}")
            files += rows
            after = page.after
            if after is None:
                break
            if len(files) > MAX_LISTED:
                raise Refusal("TOO_MANY_FILES", f"cannot list {model.path}: it has over {MAX_LISTED} entries")
    found = {"success": True, "path": model.path, "files": files, "count": len(files)}
    return answer_in_pieces({**found, "timestamp": problems.timestamp()})


def _file_json(root: str, one: FileFacts) -> dict[str, Any]:
    path = shown(one.path)
    mode = stat.filemode(one.mode)[1:]
    return {
        "name": path.rpartition("/")[2],
        "absolutePath": path,
        "relativePath": path.removeprefix(root.rstrip("/") + "/"),
        "type": one.type if one.type in _TYPES else "other",
        "size": one.size,
        "modifiedAt": rfc3339(one.mtime),
        "mode": mode,
        "permissions": {"readable": mode[0] == "r", "writable": mode[1] == "w", "executable": mode[2] in "xs"},
    }
