"""`AsyncPty`: a terminal in a sandbox, for code on trio or asyncio."""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING, Self

import anyio

from sandboxd.errors import DaemonUnavailable, LocalProtocolError, SandboxdError

from .async_stream import AsyncClosing
from .calls import Call
from .failures import CONNECT_TIMEOUT_S, unreachable
from .pty import RECEIVE_BYTES, endpoint
from .pty_wire import PtyState, PtyWire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyio.abc import ByteStream

    from .address import Address
    from .async_client import AsyncClient
    from .models import ExitStatus
    from .process_calls import TerminalRequest


class AsyncPty(PtyState, AsyncClosing):
    """A terminal: `async with` opens it, `async for` yields its output, `write` sends input; see `Pty`.

    One task may read while another writes.
    """

    def __init__(self, client: AsyncClient, request: TerminalRequest) -> None:
        super().__init__(PtyWire(client.address, "-", {}), client.address, request.on_gap)  # until there is a terminal
        self._client = client
        self._request = request
        self._stream: ByteStream | None = None
        self._sending = anyio.Lock()

    async def __aenter__(self) -> Self:
        if self._stream is not None:
            raise LocalProtocolError("cannot enter the terminal: it was entered already")
        process = self._request.process
        if isinstance(process, Call):
            process = await self._client.send(process)
        self._wire = PtyWire(self._address, self._request.sandbox, self._request.query(process))
        self._stream = await _connect(self._address)
        try:
            await self._send(self._wire.hello())
            while not self._wire.process_id:
                await self._receive()
        except BaseException:
            await anyio.aclose_forcefully(self._stream)
            raise
        return self

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self.read():
            yield data

    async def read(self) -> bytes:
        """Wait for the terminal's next output and return it; empty bytes mean that it has ended.

        Raises:
            DaemonUnavailable: the connection broke first.
        """
        while not self._pending:
            if self._wire.is_over:
                return b""
            await self._receive()
        return self._take_output()

    async def wait(self) -> ExitStatus:
        """Read to the end, and return how the program ended.

        Raises:
            DaemonUnavailable: the connection broke or was closed first.
        """
        while await self.read():
            pass
        return self._ended()

    async def write(self, data: bytes | str) -> None:
        """Send input to the terminal. Control characters act as usual: byte 3 is Ctrl-C, 4 is end of file.

        Raises:
            LocalProtocolError: the terminal has ended or was closed.
        """
        await self._send(self._wire.send(data.encode() if isinstance(data, str) else data))

    async def resize(self, cols: int, rows: int) -> None:
        """Resize the terminal; each side is 1 to 2000."""
        await self._send(self._wire.resize(cols, rows))

    async def close(self) -> None:
        """Disconnect, even in a cancelled task; the terminal keeps running for its `linger` time."""
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

    async def _receive(self) -> None:
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
        self._hold(shown)


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
