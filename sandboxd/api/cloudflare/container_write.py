"""The body of /api/write while it comes: a file's content inside a JSON object, of a size that no memory need hold.

Theory of operation. The npm client sends `{path, content, sessionId, encoding}` in that order. `ContentSplitter` parts
the text of `content` from the rest of the object, which is small and is parsed as any other body at the end. Content
is held up to `HOLD_BYTES`; beyond that it goes to the disk as it comes. That its `encoding` is told behind it makes
this a wager: the text is written as it stands, and beside it what it stands for in base64 for as long as it may be
base64, each as a new version of the file. The end says which of them is put in place; the other is dropped.

Only an absolute path can be written to before the session is known; content for another is held, within `MAX_HELD`.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any, Final

from ...errors import BodyTooLarge, InvalidRequest, SandboxdError
from ...spec import MAX_JSON_BODY_BYTES
from ...wire import utf8
from .. import jsontext
from . import container
from .problems import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...runtime.budget import Hold
    from ...runtime.open_files import FileWriter
    from ...runtime.sandbox import Sandbox

#: Content of one file: what a string of JavaScript's can be in V8.
MAX_WRITE_BYTES: Final = 512 * 1024 * 1024
#: What is held of a content before any of it is written.
HOLD_BYTES: Final = 4 * 1024 * 1024
#: The same where it is not known yet whither it goes.
MAX_HELD: Final = 64 * 1024 * 1024
_STRUCTURE: Final = re.compile(rb'["{}\[\],]')
_STRING: Final = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"', re.DOTALL)
#: Characters and escapes that are whole; the two escapes of a surrogate pair are one.
_WHOLE: Final = re.compile(
    rb'(?:[^"\\]++|\\u[dD][89aAbB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|'
    rb"\\u(?![dD][89aAbB])[0-9a-fA-F]{4}|\\[^u])*+",
    re.DOTALL,
)
_LONGEST: Final = len(rb"\ud83d\ude00")
#: Strings and structural characters that are passed before the reader may rest: about half a millisecond.
_STEPS: Final = 512


class ContentSplitter:
    """Takes an object's JSON in pieces and gives the text of its field `content` apart from the rest."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._rest = bytearray()
        self._depth = 0
        self._wants_key = False
        self._key: bytes | None = None
        self._is_inside = False
        self._seen = False

    @property
    def rest(self) -> bytes:
        """The object so far: as JSON, with an empty content; what is cut off in it is closed."""
        return bytes(self._rest) + (b'"' if self._is_inside else b"") + b"}" * self._depth

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[str]:
        """Take the next bytes, and give the text that has come; an empty one where its reader may rest.

        Raises:
            InvalidRequest: the content is no text of JSON's, or is there twice.
            BodyTooLarge: what is beside it is too large.
        """
        self._buffer += data
        steps = 0
        while self._buffer:
            steps += 1
            if steps % _STEPS == 0:
                yield ""
            if self._is_inside:
                text = self._text()
                if text:
                    yield text
                if self._is_inside:
                    break
            elif not self._step():
                break
        if len(self._rest) + (0 if self._is_inside else len(self._buffer)) > MAX_JSON_BODY_BYTES:
            raise BodyTooLarge(
                f"cannot accept a JSON body of over {MAX_JSON_BODY_BYTES} bytes in addition to its content",
                limit_bytes=MAX_JSON_BODY_BYTES,
            )

    def finish(self) -> bytes:
        """Return all of the body but the content's text."""
        return bytes(self._rest + self._buffer) if not self._is_inside else bytes(self._rest)

    def _step(self) -> bool:
        """Pass one string or structural character outside of the content; False where more must come first."""
        found = _STRUCTURE.search(self._buffer)
        if found is None:
            self._pass(len(self._buffer))
            return False
        sign = found[0]  # a match reads the buffer, which the next line changes
        if sign != b'"':
            self._pass(found.end())
            self._depth += (sign in b"{[") - (sign in b"}]")
            self._wants_key = self._depth == 1 and sign in b"{,"
            return True
        if self._depth == 1 and not self._wants_key and self._key == b"content":
            if self._seen:
                raise InvalidRequest("cannot read the body as JSON: its content is given twice", field="content")
            self._pass(found.end())
            self._is_inside = self._seen = True
            return True
        whole = _STRING.match(self._buffer, found.start())
        if whole is None:
            return False
        if self._wants_key:
            self._key, self._wants_key = bytes(whole[1]), False
        self._pass(whole.end())
        return True

    def _pass(self, count: int) -> None:
        self._rest += self._buffer[:count]
        del self._buffer[:count]

    def _text(self) -> str:
        """Take what is whole of the content; its end ends being inside."""
        found = _WHOLE.match(self._buffer)
        end = 0 if found is None else found.end()
        is_over = self._buffer[end : end + 1] == b'"'
        if end == len(self._buffer):
            end -= utf8.unfinished(self._buffer)
        elif not is_over and len(self._buffer) - end >= _LONGEST:
            raise InvalidRequest("cannot read the body as JSON: its content has a bad escape", field="content")
        text: str = jsontext.parse(b'"' + bytes(self._buffer[:end]) + b'"') if end else ""
        del self._buffer[:end]
        if is_over:
            self._is_inside = False
            self._pass(1)
        return text


class _Text:
    """Content as it stands."""

    def decode(self, text: str) -> bytes:
        """Return the next bytes."""
        return text.encode()

    def finish(self) -> bytes:
        """Return the last bytes."""
        return b""


class _Base64:
    """What a content stands for in base64, white space left out."""

    def __init__(self) -> None:
        self._left = ""
        self._is_over = False

    def decode(self, text: str) -> bytes:
        """Return the next bytes.

        Raises:
            Refusal: it is no base64.
        """
        text = self._left + "".join(text.split())
        if not text:
            return b""
        if self._is_over:
            raise _no_base64()
        end = len(text) // 4 * 4
        self._left = text[end:]
        self._is_over = "=" in text[:end]  # padding: nothing may follow
        if self._is_over and self._left:
            raise _no_base64()
        try:
            return base64.b64decode(text[:end], validate=True)
        except ValueError:
            raise _no_base64() from None

    def finish(self) -> bytes:
        """Return the last bytes; as `decode`."""
        if self._left:
            raise _no_base64()
        return b""


def _no_base64() -> Refusal:
    return Refusal("VALIDATION_FAILED", "cannot write the file: the content is not valid base64", field="content")


class _Version:
    """One of the two versions of the file that content under way may be."""

    def __init__(self, decoder: _Text | _Base64) -> None:
        self._decoder = decoder
        self._writer: FileWriter | None = None
        self._problem: Exception | None = None

    async def take(self, sandbox: Sandbox, path: str, text: str) -> None:
        """Write what has come; why that cannot be done is told if this version is wanted."""
        if self._problem is not None:
            return
        try:
            data = self._decoder.decode(text)
            if self._writer is None:
                self._writer = await sandbox.files.open_write(path)
            await self._writer.write(data)
        except (Refusal, SandboxdError) as error:
            self._problem = error
            await self.drop()

    async def commit(self) -> None:
        """Put it in the file's place.

        Raises:
            Refusal, SandboxdError: why that cannot be done.
        """
        if self._problem is not None:
            raise self._problem
        assert self._writer is not None  # noqa: S101 - `take` comes before
        await self._writer.write(self._decoder.finish())
        await self._writer.commit()

    async def drop(self) -> None:
        """Leave nothing of it, unless it is in place; twice is fine."""
        if self._writer is not None:
            await self._writer.__aexit__(None, None, None)


class Upload:
    """Content on its way to a file. An async context manager, whose end drops what was not put in place."""

    def __init__(self, sandbox: Sandbox, hold: Hold) -> None:
        self._sandbox = sandbox
        self._hold = hold
        self._held: list[str] = []
        self._held_bytes = 0
        self._size = 0
        self._versions: dict[str, _Version] = {}
        self._path: str | None = None

    async def __aenter__(self) -> Upload:
        return self

    async def __aexit__(self, *_: object) -> None:
        for version in self._versions.values():
            await version.drop()

    async def take(self, text: str, splitter: ContentSplitter) -> None:
        """Take the next text that a splitter has given.

        Raises:
            Refusal: it is too large.
            ServerBusy: there is no room to hold it.
        """
        size = len(text) if text.isascii() else len(text.encode())
        self._size += size
        if self._size > MAX_WRITE_BYTES:
            raise _too_large(self._size, MAX_WRITE_BYTES)
        if self._path is not None:
            await self._give(text)
            return
        self._hold.take(size, "buffer a file for writing")
        self._held.append(text)
        self._held_bytes += size
        if self._held_bytes <= HOLD_BYTES or await self._begin(jsontext.parse(splitter.rest)):
            return
        if self._held_bytes > MAX_HELD:
            raise _too_large(self._held_bytes, MAX_HELD)

    async def _begin(self, known: dict[str, Any]) -> bool:
        """Begin to write, if it is known whither."""
        path, encoding = known.get("path"), known.get("encoding")
        if not isinstance(path, str) or not path.startswith("/") or path.endswith("/"):
            return False
        try:
            self._path = container.resolve(path)
        except Refusal:
            return False  # it is told at the end
        decoders: dict[str, _Text | _Base64] = {"utf-8": _Text(), "base64": _Base64()}
        wanted = ("utf-8" if encoding == "utf8" else str(encoding),) if encoding is not None else tuple(decoders)
        self._versions = {name: _Version(decoders[name]) for name in wanted if name in decoders}
        for text in self._held:
            await self._give(text)
        self._held.clear()
        return True

    async def _give(self, text: str) -> None:
        assert self._path is not None  # noqa: S101 - callers look
        for version in self._versions.values():
            await version.take(self._sandbox, self._path, text)

    async def commit(self, path: str, encoding: str) -> None:
        """Put the content in the file's place; `path` is resolved, `encoding` one of utf-8 and base64.

        Raises:
            Refusal, SandboxdError: why that cannot be done.
        """
        if self._path is None:
            self._path = path
            self._versions = {encoding: _Version(_Base64() if encoding == "base64" else _Text())}
            for text in self._held or [""]:
                await self._give(text)
        if self._path != path or encoding not in self._versions:
            raise Refusal("VALIDATION_FAILED", "cannot read the body: a field is given twice", field="path")
        await self._versions[encoding].commit()


def _too_large(size: int, limit: int) -> Refusal:
    why = f"cannot write the file in one piece: the limit is {limit} bytes"
    return Refusal("FILE_TOO_LARGE", why, maxSize=limit, actualSize=size)
