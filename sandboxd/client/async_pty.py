"""`AsyncPty`: a terminal in a sandbox, for code on trio or asyncio."""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING, Self

import anyio

from sandboxd.errors import DaemonUnavailable, LocalProtocolError, SandboxdError

from .failures import CONNECT_TIMEOUT_S, unreachable
from .pty import RECEIVE_BYTES, endpoint, only_bytes
from .pty_wire import PtyWire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType

    from anyio.abc import ByteStream

    from .address import Address
    from .models import ExitStatus


class AsyncPty:
    """A terminal: `async with` opens it, `async for` gives what it shows, `write` types; see `Pty`.

    One task may read while another writes.
    """

    def __init__(
        self,
        address: Address,
        wire: Callable[[], Awaitable[PtyWire]],
        on_gap: Callable[[int], object] | None = None,
    ) -> None:
        self._make_wire = wire
        self._wire = PtyWire(address, "-", {})  # until there is a terminal
        self._address = address
        self.on_gap = on_gap
        self._stream: ByteStream | None = None
        self._sending = anyio.Lock()
        self._pending: list[bytes] = []

    def __repr__(self) -> str:
        state = self.result.describe() if self.result else "open" if self._wire.is_open else "closed"
        return f"<AsyncPty {self.process_id} {state}>"

    async def __aenter__(self) -> Self:
        if self._stream is not None:
            raise LocalProtocolError("cannot enter the terminal: it was entered before")
        self._wire = await self._make_wire()
        self._stream = await _connect(self._address)
        try:
            await self._send(self._wire.hello())
            while not self._wire.process_id:
                self._pending += await self._receive()
        except BaseException:
            await anyio.aclose_forcefully(self._stream)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def process_id(self) -> str:
        """The id of the terminal's process; empty before the block is entered."""
        return self._wire.process_id

    @property
    def pid(self) -> int | None:
        """The process id of its first program, in the sandbox."""
        return self._wire.pid

    @property
    def result(self) -> ExitStatus | None:
        """How its program ended, once it has."""
        return self._wire.result

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self.read():
            yield data

    async def read(self) -> bytes:
        """Return what the terminal shows next, waiting for it; no bytes are its end.

        Raises:
            DaemonUnavailable: the connection broke before.
        """
        while not self._pending:
            if self._wire.is_over:
                return b""
            self._pending += await self._receive()
        data, self._pending = b"".join(self._pending), []
        return data

    async def wait(self) -> ExitStatus:
        """Read to the end, and return how the program ended.

        Raises:
            DaemonUnavailable: the connection broke before, or was closed.
        """
        while await self.read():
            pass
        if self.result is None:
            raise DaemonUnavailable("cannot say how the terminal's program ended: the connection was closed before")
        return self.result

    async def write(self, data: bytes | str) -> None:
        """Type into the terminal; control characters are signals there: 3 is Ctrl-C, 4 an end of file.

        Raises:
            LocalProtocolError: it has ended, or was closed.
        """
        await self._send(self._wire.send(data.encode() if isinstance(data, str) else data))

    async def resize(self, cols: int, rows: int) -> None:
        """Give the terminal another size, 1 to 2000 each."""
        await self._send(self._wire.resize(cols, rows))

    async def close(self) -> None:
        """Leave the terminal, also in a task that is cancelled; it goes on for its linger time."""
        if self._stream is None:
            return
        with anyio.move_on_after(1, shield=True), contextlib.suppress(SandboxdError):
            await self._send(self._wire.goodbye())
        with anyio.CancelScope(shield=True):
            await anyio.aclose_forcefully(self._stream)

    async def _send(self, data: bytes) -> None:
        if self._stream is None:
            raise LocalProtocolError("cannot write to the terminal: enter it first, with 'async with'")
        try:
            async with self._sending:
                await self._stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise unreachable(self._address, error) from error

    async def _receive(self) -> list[bytes]:
        if self._stream is None:
            raise LocalProtocolError("cannot read the terminal: enter it first, with 'async with'")
        try:
            data = await self._stream.receive(RECEIVE_BYTES)
        except anyio.EndOfStream:
            data = b""
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise unreachable(self._address, error) from error
        shown = self._wire.feed(data)
        if answers := self._wire.take_answers():
            with contextlib.suppress(DaemonUnavailable):
                await self._send(answers)
        return list(only_bytes(shown, self.on_gap))


async def _connect(address: Address) -> ByteStream:
    try:
        with anyio.fail_after(CONNECT_TIMEOUT_S):
            if address.socket_path is not None:
                return await anyio.connect_unix(address.socket_path)
            host, port = endpoint(address)
            if address.base_url.startswith("https://"):
                context = ssl.create_default_context()
                return await anyio.connect_tcp(host, port, tls=True, ssl_context=context, tls_standard_compatible=False)
            return await anyio.connect_tcp(host, port)
    except (OSError, TimeoutError) as error:
        raise unreachable(address, error) from error
