"""Streams of the synchronous SDK: their common base, a file's bytes, and file changes."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from sandboxd.errors import LocalProtocolError, SandboxdError

from .failures import mapped
from .file_calls import ChangeReader, FileChange

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    import httpx

    from . import calls
    from .client import Client

T = TypeVar("T")
Item = TypeVar("Item")
Q = TypeVar("Q", bound="calls.Streamed[Any, Any]")
Endless = TypeVar("Endless", bound="calls.Reader[Any]")


def closed_stream() -> LocalProtocolError:
    """Return the error for reading a stream that ended without a result."""
    return LocalProtocolError("cannot read the stream: it was closed before the command's end")


class Closing:
    """A context manager whose block ends with `close`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release its resources."""
        raise NotImplementedError


class Ending:
    """A context manager that ends its operation at the block's end; an exception in the block takes precedence."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._end()
        except SandboxdError as failure:
            if error is None:
                raise
            error.add_note(f"and {self!r} could not be destroyed: {failure}")

    def _end(self) -> None:
        raise NotImplementedError


class Reading(Closing):
    """An answer that is read as it comes."""

    def __init__(self, client: Client, call: calls.StreamCall) -> None:
        self._client = client
        self._response = client.open(call)

    def close(self) -> None:
        """Drop the connection, also before the end."""
        self._response.close()


class ItemStream(Reading, Generic[Q, Item, T]):
    """The items of an answer, and the final `result`."""

    def __init__(self, client: Client, request: Q) -> None:
        super().__init__(client, request.call)
        self._request = request
        self._pending: deque[Item] = deque()
        try:
            request.begin(self._response)
        except BaseException:
            self._response.close()
            raise
        self._pieces = self._response.iter_raw()
        self._closed = False
        self.result: T | None = None

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        while not self._pending:
            if self.result is not None:
                raise StopIteration
            self._advance()
        item = self._pending.popleft()
        if call_back := self._request.callback(item):
            call_back()
        return item

    def close(self) -> None:
        """Drop the connection. Unless detached, a running command is killed and running code is interrupted."""
        self._closed = True
        super().close()

    def _finish(self) -> T:
        for _ in self:
            pass
        if self.result is None:
            raise closed_stream()
        return self.result

    def _advance(self) -> None:
        if self._closed:
            raise closed_stream()
        try:
            with mapped(self._client.address):
                piece = next(self._pieces, None)
            if piece is None:
                self.result = self._request.close()
                self.close()
            else:
                self._pending.extend(self._request.feed(piece))
        except BaseException:
            self.close()
            raise


def follow(client: Client, request: calls.Streamed[Item, T]) -> T:
    """Send a request, read its answer as it comes, and return the result."""
    stream: ItemStream[calls.Streamed[Item, T], Item, T] = ItemStream(client, request)
    with stream:
        return stream._finish()


class FileStream(Reading):
    """A file's bytes as they arrive: a context manager to iterate over. `size` is in bytes; None if unknown."""

    def __init__(self, client: Client, call: calls.StreamCall) -> None:
        super().__init__(client, call)
        self.size = size_of(self._response)

    def __iter__(self) -> Iterator[bytes]:
        with mapped(self._client.address):
            yield from self._response.iter_raw()


class ReaderStream(Reading, Generic[Endless, Item]):
    """The items of an endless answer."""

    def __init__(self, client: Client, reader: Endless) -> None:
        super().__init__(client, reader.call)
        self._reader = reader

    def __iter__(self) -> Iterator[Item]:
        with contextlib.closing(self._response), mapped(self._client.address):
            for piece in self._response.iter_raw():
                yield from self._reader.feed(piece)
                if self._reader.over:
                    return


class WatchStream(ReaderStream[ChangeReader, FileChange]):
    """File changes as they happen: a context manager to iterate over. Iteration ends when the watched path is gone."""


def size_of(response: httpx.Response) -> int | None:
    """Return the answer's stated length, or None."""
    length = response.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else None
