"""Answers in pieces: large JSON, and streams that follow a source. Each step encodes only a little.

One `msgspec.json.encode` of 16 MiB holds the interpreter for half a second, in whatever thread it runs. So whatever may
be large (output, results, lists) goes through `encode`. It yields the JSON in parts, and makes each part only when the
previous one is on its way, so neither the text nor its JSON is ever in memory as a whole.
"""

from __future__ import annotations

import base64
import codecs
import functools
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio
from quart_trio.wrappers import TrioResponse

from ..errors import SandboxdError
from ..wire import sse
from .call import JSON_TYPE, Last, streamed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

#: Bytes or characters that one step encodes: six times as many of JSON at most, in about 2 ms. A multiple of three,
#: so that pieces in base64 are one text.
STEP: Final = 48 * 1024
#: What goes out at once, about.
CHUNK_BYTES: Final = 128 * 1024
#: Proxies close streams that say nothing for 30 to 60 seconds.
KEEP_ALIVE_S: Final = 15.0
#: Characters that are escaped at once where each may take a call of its own.
_ESCAPE_STEP: Final = 16 * 1024
_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]+")
_NO_LINE_ENDS: Final = bytes.maketrans(b"\r\n", b"  ")


class Text:
    """Bytes that a JSON answer contains as one text: UTF-8 (invalid bytes become U+FFFD) or base64.

    A character may be split between two of the `parts`.
    """

    def __init__(self, parts: Sequence[bytes | bytearray], encoding: str = "utf-8") -> None:
        self._parts = parts
        self._encoding = encoding
        self.size = sum(map(len, parts))

    def __repr__(self) -> str:
        return f"<Text {self.size} bytes>"

    def __str__(self) -> str:
        data = b"".join(self._parts)
        return base64.b64encode(data).decode() if self._encoding == "base64" else data.decode("utf-8", "replace")

    def encode(self) -> Iterator[bytes]:
        """Yield it as a JSON string."""
        yield b'"'
        yield from self._base64() if self._encoding == "base64" else self._utf8()
        yield b'"'

    def _base64(self) -> Iterator[bytes]:
        carried = b""
        for piece in self._steps():
            whole = carried + piece
            cut = len(whole) - len(whole) % 3
            carried = whole[cut:]
            yield base64.b64encode(whole[:cut])
        yield base64.b64encode(carried)

    def _utf8(self) -> Iterator[bytes]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for piece in self._steps():
            yield _quoted(decoder.decode(piece))
        yield _quoted(decoder.decode(b"", final=True))

    def _steps(self) -> Iterator[bytes]:
        for part in self._parts:
            with memoryview(part) as view:
                for start in range(0, len(view), STEP):
                    yield bytes(view[start : start + STEP])


def _quoted(text: str) -> bytes:
    """Return a text as a JSON string, without the quotes."""
    return msgspec.json.encode(text)[1:-1]


def encode(value: Any) -> Iterator[bytes]:  # noqa: ANN401 - anything that JSON holds
    """Yield the JSON of `value` in parts, on one line.

    Besides msgspec's types, `value` may contain `Text`, and any iterable as a list, whose items are taken one by one.
    """
    if isinstance(value, Text):
        yield from value.encode()
    elif isinstance(value, str | bytes):
        yield from _encode_long(value)
    elif isinstance(value, msgspec.Raw):
        view = memoryview(value)
        for start in range(0, len(view), CHUNK_BYTES):
            yield bytes(view[start : start + CHUNK_BYTES]).translate(_NO_LINE_ENDS)
    elif isinstance(value, msgspec.Struct | Mapping):
        yield from encode_object(fields_of(value))
    elif isinstance(value, Iterable):
        yield from _encode_items(value)
    else:
        yield msgspec.json.encode(value)


def _encode_long(value: str | bytes) -> Iterator[bytes]:
    if len(value) <= STEP:
        yield msgspec.json.encode(value)
        return
    yield b'"'
    for start in range(0, len(value), STEP):
        piece = value[start : start + STEP]
        yield _quoted(piece) if isinstance(piece, str) else base64.b64encode(piece)
    yield b'"'


def encode_object(fields: Iterable[tuple[str, Any]]) -> Iterator[bytes]:
    """Yield the JSON of an object that has these fields."""
    sign = b"{"
    for name, item in fields:
        yield sign + msgspec.json.encode(name) + b":"
        yield from encode(item)
        sign = b","
    yield b"}" if sign == b"," else b"{}"


def _encode_items(items: Iterable[Any]) -> Iterator[bytes]:
    sign = b"["
    for item in items:
        yield sign
        if _is_small(item):
            yield msgspec.json.encode(item)
        else:
            yield from encode(item)
        sign = b","
    yield b"]" if sign == b"," else b"[]"


def _is_small(item: Any) -> bool:  # noqa: ANN401 - anything that JSON holds
    """Return whether a list's item may be encoded in one step: it is a flat row without long fields."""
    if isinstance(item, msgspec.Struct | Mapping):
        return all(_is_short(field) for _, field in fields_of(item))
    return _is_short(item)


def _is_short(field: Any) -> bool:  # noqa: ANN401 - anything that JSON holds
    if isinstance(field, str | bytes | msgspec.Raw):
        return len(memoryview(field) if isinstance(field, msgspec.Raw) else field) <= STEP
    return field is None or isinstance(field, int | float)


def ascii_only(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield JSON in ASCII only, for clients that decode each network read by itself."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for part in parts:
        if part.isascii():
            yield part
            continue
        text = decoder.decode(part)
        for start in range(0, len(text), _ESCAPE_STEP):
            piece = text[start : start + _ESCAPE_STEP]
            yield _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], piece).encode()


def fields_of(value: msgspec.Struct | Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of an object, as they appear in its JSON."""
    if isinstance(value, Mapping):
        yield from value.items()
        return
    for name, shown in _names(type(value)):
        field = getattr(value, name)
        if field is not msgspec.UNSET:
            yield shown, field


@functools.cache
def _names(cls: type[msgspec.Struct]) -> tuple[tuple[str, str], ...]:
    return tuple((field.name, field.encode_name) for field in msgspec.structs.fields(cls))


def joined(parts: Iterable[bytes], *, is_last: bool = False) -> Iterator[bytes]:
    """Yield parts joined into pieces of about `CHUNK_BYTES`, fewer at the end; no piece is empty.

    The next part is requested once the piece before it is on its way. With `is_last` the final piece is `Last`.
    """
    found: list[bytes] = []
    size = 0
    for part in parts:
        found.append(part)
        size += len(part)
        if size >= CHUNK_BYTES:
            data, found, size = b"".join(found), [], 0
            yield data
    if size:
        yield Last(b"".join(found)) if is_last else b"".join(found)


async def each(pieces: Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield pieces. Each is on its way before the next is made, which lets other tasks run."""
    for piece in pieces:
        yield piece


async def follow(
    take: Callable[[], Awaitable[tuple[Iterable[bytes], bool]]],
    tell: Callable[[SandboxdError], bytes],
    *,
    first: bytes = b"",
    idle: bytes = sse.KEEP_ALIVE,
) -> AsyncGenerator[bytes, None]:
    """Yield a source's output until it ends or fails.

    Args:
        take: waits for the next output, and returns its parts and whether they are the last. It may be cancelled, and
            is then called again.
        tell: returns the bytes that report a failure, or raises it again, which cuts the connection.
        first: sent before the first wait.
        idle: sent when `take` has not returned for `KEEP_ALIVE_S`; empty: nothing is sent.
    """
    if first:
        yield first
    is_last = False
    while not is_last:
        parts: Iterable[bytes] = (idle,)
        try:
            if idle:
                with trio.move_on_after(KEEP_ALIVE_S):
                    parts, is_last = await take()
            else:
                parts, is_last = await take()
        except SandboxdError as error:
            yield Last(tell(error))
            return
        for piece in joined(parts, is_last=is_last):
            yield piece
        parts, piece = (), b""  # it may be followed for days


def answer_in_pieces(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> TrioResponse:  # noqa: ANN401
    """Return a JSON answer that may be large; a small one is sent like any other."""
    pieces = joined(encode(value), is_last=True)
    first = next(pieces)
    if isinstance(first, Last):
        return TrioResponse(first, status, headers, content_type=JSON_TYPE)
    return streamed(each(itertools.chain((first,), pieces)), status, {"Content-Type": JSON_TYPE, **(headers or {})})
