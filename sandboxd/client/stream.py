"""Streams of the synchronous SDK: a command's output, a file's bytes, and changes of files."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from sandboxd.errors import LocalProtocolError, ProcessNotRunning

from . import calls, process_calls
from .failures import mapped
from .file_calls import ChangeReader
from .models import ExitStatus, OutputChunk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    import httpx

    from .client import Client
    from .exec_calls import ExecRequest
    from .file_calls import FileChange

T = TypeVar("T")
Item = TypeVar("Item")


def closed_stream() -> LocalProtocolError:
    """Return the error of reading a stream that ended without a result."""
    return LocalProtocolError("cannot read the stream: it was closed before the command's end")


def follow(client: Client, request: calls.Streamed[Item, T]) -> T:
    """Send a request, read its answer as it comes, and return what it came to."""
    response = client.open(request.call)
    try:
        request.begin(response)
        pieces = response.iter_raw()
        while True:
            with mapped(client.address):
                piece = next(pieces, None)
            if piece is None:
                return request.close()
            for item in request.feed(piece):
                if call_back := request.callback(item):
                    call_back()
    finally:
        response.close()


class Closing:
    """A context manager whose block ends with `close`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back what it holds."""
        raise NotImplementedError


class Reading(Closing):
    """An answer that is read as it comes."""

    def __init__(self, client: Client, call: calls.StreamCall) -> None:
        self._client = client
        self._response = client.open(call)

    def close(self) -> None:
        """Drop the connection, also before the end."""
        self._response.close()


class ItemStream(Reading, Generic[Item, T]):
    """The items of an answer, and what they come to: `result`."""

    def __init__(self, client: Client, request: calls.Streamed[Item, T]) -> None:
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
        """Drop the connection; what still runs is ended (a command killed, code interrupted), unless it is detached."""
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


class ExecStream(ItemStream[OutputChunk, ExitStatus]):
    """A running command: iterate over it for its output, or `wait` for its end.

    It is a context manager. Leaving before the command has ended kills the command (unless it is detached), so
    nothing runs on unseen. Reading is what makes a command go on: one whose output nobody reads waits.

    Attributes:
        process_id: the process' id in the sandbox.
        result: how the command ended, once it has.
    """

    def __init__(self, client: Client, request: ExecRequest) -> None:
        super().__init__(client, request)
        self._sandbox_id = request.sandbox
        self.process_id = request.process_id

    def __repr__(self) -> str:
        state = self.result.describe() if self.result else "closed" if self._closed else "running"
        return f"<ExecStream {self.process_id} {state}>"

    def wait(self) -> ExitStatus:
        """Read to the end (the callbacks see all of it) and return how the command ended.

        Raises:
            DaemonUnavailable: the connection broke.
            LocalProtocolError: the stream was closed before.
        """
        return self._finish()

    def write_stdin(self, data: bytes | str) -> None:
        """Write to the command's standard input, which `stdin=True` left open; returns when it is taken.

        Raises:
            ProcessNotRunning: the command has ended, or closed its standard input.
        """
        data = data.encode() if isinstance(data, str) else data
        for call in calls.write_stdin(self._sandbox_id, self.process_id, data):
            self._client.send(call)

    def send_signal(self, number: str | int) -> None:
        """Send a signal, a name or a number, to the command's process group; KILL goes to all that it started.

        Raises:
            ProcessNotRunning: the command has ended.
        """
        self._client.send(process_calls.kill_process(self._sandbox_id, self.process_id, number))

    def close_stdin(self) -> None:
        """Close the command's standard input: it reads an end of file. One that has ended is no error."""
        with contextlib.suppress(ProcessNotRunning):
            self._client.send(calls.close_stdin(self._sandbox_id, self.process_id))


class FileStream(Reading):
    """A file's bytes as they arrive: a context manager to iterate over. `size` is in bytes, None if unknown."""

    def __init__(self, client: Client, call: calls.StreamCall) -> None:
        super().__init__(client, call)
        self.size = size_of(self._response)

    def __iter__(self) -> Iterator[bytes]:
        with mapped(self._client.address):
            yield from self._response.iter_raw()


class WatchStream(Reading):
    """Changes as they happen: a context manager to iterate over. The iteration ends when what is watched is gone."""

    def __init__(self, client: Client, call: calls.StreamCall) -> None:
        super().__init__(client, call)
        self._reader = ChangeReader()

    def __iter__(self) -> Iterator[FileChange]:
        with contextlib.closing(self._response), mapped(self._client.address):
            for piece in self._response.iter_raw():
                yield from self._reader.feed(piece)
                if self._reader.over:
                    return


def size_of(response: httpx.Response) -> int | None:
    """Return the answer's length where it states one."""
    length = response.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else None
