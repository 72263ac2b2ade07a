"""Large JSON answers, made and sent piece by piece: no step of the loop encodes more than a little of one.

One `msgspec.json.encode` of 16 MiB holds the interpreter for half a second, in whatever thread it runs. So what may be
large (output, results, lists) goes through `encode`, which yields what one encoding would give in parts, and makes the
next part only when the last one is on its way: neither the text nor its JSON is ever there as a whole.
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
from quart.wrappers.response import ResponseBody
from quart_trio.wrappers import TrioResponse

from .call import JSON_TYPE, streamed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

#: Bytes or characters that one step encodes: six times as many of JSON at most, in about 2 ms. A multiple of three,
#: so that pieces in base64 are one text.
STEP: Final = 48 * 1024
#: What goes out at once, about.
CHUNK_BYTES: Final = 128 * 1024
#: Characters that are escaped at once where each may take a call of its own.
_ESCAPE_STEP: Final = 16 * 1024
_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]+")
_NO_LINE_ENDS: Final = bytes.maketrans(b"\r\n", b"  ")


class Text:
    """Bytes that a JSON answer shows as one text: UTF-8 (what is none becomes U+FFFD) or base64.

    Where `parts` has more than one, a character that ends in the next one is whole.
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
    """Return a text as JSON, without its quotes."""
    return msgspec.json.encode(text)[1:-1]


def encode(value: Any) -> Iterator[bytes]:  # noqa: ANN401 - anything that JSON holds
    """Yield the JSON of `value` in parts, on one line.

    Beside what msgspec takes: `Text`, and for a list any iterable, whose items are asked for one by one.
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
    """Return whether one step may encode an item of a list: it is a row, and none of its fields is long."""
    if isinstance(item, msgspec.Struct | Mapping):
        return all(_is_short(field) for _, field in fields_of(item))
    return _is_short(item)


def _is_short(field: Any) -> bool:  # noqa: ANN401 - anything that JSON holds
    if isinstance(field, str | bytes | msgspec.Raw):
        return len(memoryview(field) if isinstance(field, msgspec.Raw) else field) <= STEP
    return field is None or isinstance(field, int | float)


def ascii_only(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield JSON in ASCII alone, for readers that decode each piece of the network's for itself."""
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
    """Yield the names and values of an object, as its JSON has them."""
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


class Joiner:
    """Joins parts to what goes out at once. `put` gives it the next parts, when `is_empty`."""

    def __init__(self) -> None:
        self._parts: Iterator[bytes] = iter(())
        self.is_empty = True

    def put(self, parts: Iterable[bytes]) -> None:
        """Take what is to be joined; it is asked for when it is wanted."""
        self._parts = iter(parts)
        self.is_empty = False

    def take(self) -> bytes:
        """Return about `CHUNK_BYTES` of it, less at its end, and nothing when it is empty."""
        found: list[bytes] = []
        size = 0
        for part in self._parts:
            found.append(part)
            size += len(part)
            if size >= CHUNK_BYTES:
                return b"".join(found)
        self.is_empty = True
        return b"".join(found)


class JsonBody(ResponseBody):
    """An answer in parts.

    Attributes:
        is_over: whether nothing comes after the piece that was given last.
    """

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._joiner = Joiner()
        self._joiner.put(parts)
        self.is_over = False

    async def __aenter__(self) -> JsonBody:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing: the call's stack owns what is shown."""

    def __aiter__(self) -> JsonBody:
        return self

    async def __anext__(self) -> bytes:
        if self._joiner.is_empty:
            raise StopAsyncIteration
        data = self._joiner.take()  # each one is sent, which lets the other tasks run
        self.is_over = self._joiner.is_empty
        return data


def answer_in_pieces(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> TrioResponse:  # noqa: ANN401
    """Return a JSON answer that may be large; a small one goes out as any other."""
    joiner = Joiner()
    parts = encode(value)
    joiner.put(parts)
    first = joiner.take()
    if joiner.is_empty:
        return TrioResponse(first, status, headers, content_type=JSON_TYPE)
    body = JsonBody(itertools.chain((first,), parts))
    return streamed(body, status, {"Content-Type": JSON_TYPE, **(headers or {})})
