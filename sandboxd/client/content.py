"""What `write_file` takes, as what httpx can send: bytes, or an iterator of pieces."""

from __future__ import annotations

import inspect
import io
import math
import os
import stat
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import IO, Any, TypeAlias

import anyio.to_thread

from sandboxd.errors import InvalidRequest

from .calls import UPLOAD_CHUNK_BYTES

FileContent: TypeAlias = bytes | bytearray | memoryview | str | IO[bytes] | Iterable[bytes]
AsyncFileContent: TypeAlias = FileContent | AsyncIterable[bytes]

_WHOLE = (bytes, bytearray, memoryview, str)


def sync_content(data: FileContent) -> bytes | Iterator[bytes]:
    """Return what `httpx.Client` sends."""
    return _whole(data) if isinstance(data, _WHOLE) else _pieces(data)


def async_content(data: AsyncFileContent) -> bytes | AsyncIterator[bytes]:
    """Return what `httpx.AsyncClient` sends; a plain file is read in a thread."""
    return _whole(data) if isinstance(data, _WHOLE) else _async_pieces(data)


def size_of_file(data: object) -> int | None:
    """Return how many bytes a plain file has left; None for what is no regular file.

    An upload whose size is known beforehand is cheaper for the daemon than one in chunks.
    """
    if not isinstance(data, io.RawIOBase | io.BufferedIOBase):
        return None
    try:
        facts = os.fstat(data.fileno())
        left = facts.st_size - data.tell()
    except (OSError, ValueError):  # it has no descriptor, or is closed
        return None
    return left if stat.S_ISREG(facts.st_mode) and left > 0 else None


def _whole(data: object) -> bytes:
    if isinstance(data, str):
        try:
            return data.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest("cannot write the file: its text has a lone surrogate", field="data") from error
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    raise InvalidRequest(f"cannot write the file: {type(data).__name__} must be bytes or text", field="data")


def _pieces(data: IO[bytes] | Iterable[bytes]) -> Iterator[bytes]:
    read = getattr(data, "read", None)
    if read is None:
        for piece in data:
            yield _whole(piece)
        return
    left = size_of_file(data) or math.inf  # one that grows meanwhile is sent as long as was said
    while left > 0 and (piece := read(int(min(UPLOAD_CHUNK_BYTES, left)))):
        left -= len(piece)
        yield _whole(piece)


async def _async_pieces(data: IO[bytes] | Iterable[bytes] | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    read = getattr(data, "read", None)
    if read is not None:
        left = size_of_file(data) or math.inf
        while left > 0 and (piece := await _read_async(read, int(min(UPLOAD_CHUNK_BYTES, left)))):
            left -= len(piece)
            yield _whole(piece)
    elif isinstance(data, AsyncIterable):
        async for item in data:
            yield _whole(item)
    else:
        for item in data:
            yield _whole(item)


async def _read_async(read: Callable[[int], Any], size: int) -> Any:  # noqa: ANN401 - a file says; `_whole` checks
    """Read from trio's or anyio's file in place, from a plain one in a thread."""
    if inspect.iscoroutinefunction(read):
        return await read(size)
    answer = await anyio.to_thread.run_sync(read, size)
    return await answer if inspect.isawaitable(answer) else answer
