"""WebSockets over a connection that an HTTP request has opened, taken over from hypercorn at the handshake.

hypercorn's own WebSockets are not used: they pass messages to the application through a queue that nobody empties once
the application has ended, buffer a message over the bound without end, and inflate what a client compressed. Here one
task of the handler's reads, others write, and each waits for the client alone: what a client does not read, and what
the handler does not take, stays in the socket. Compression is not offered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Message, Ping, TextMessage
from wsproto.handshake import WEBSOCKET_VERSION
from wsproto.utilities import LocalProtocolError, generate_accept_token

from ..errors import InvalidRequest
from . import jsontext, problems

if TYPE_CHECKING:
    from werkzeug.datastructures import Headers

    from ..errors import SandboxdError

#: One message of a client's: a large paste.
MAX_MESSAGE_BYTES: Final = 1024 * 1024
#: One message of ours; a larger one would be all or nothing for a slow client.
SEND_BYTES: Final = 64 * 1024
#: A client that takes nothing for this long is dropped.
SEND_TIMEOUT_S: Final = 30.0
#: How long the end waits for the client to say goodbye too.
CLOSE_TIMEOUT_S: Final = 2.0
_RECEIVE_BYTES: Final = 64 * 1024
_KEY_BYTES: Final = 24  # 16 in base64


class Gone(Exception):
    """The client has left, does not read, or has broken the protocol."""


def wants(headers: Headers, method: str) -> bool:
    """Return whether a request asks for a WebSocket."""
    tokens = {token.strip().lower() for token in headers.get("Connection", "").split(",")}
    return method == "GET" and "upgrade" in tokens and headers.get("Upgrade", "").strip().lower() == "websocket"


def check_handshake(headers: Headers) -> str:
    """Return the value of Sec-WebSocket-Accept.

    Raises:
        InvalidRequest: the request is no handshake of RFC 6455.
    """
    key = headers.get("Sec-WebSocket-Key", "").strip()
    if headers.get("Sec-WebSocket-Version", "").strip() != WEBSOCKET_VERSION.decode():
        raise InvalidRequest("cannot open a WebSocket: Sec-WebSocket-Version must be 13")
    if len(key) != _KEY_BYTES or not key.isascii():
        raise InvalidRequest("cannot open a WebSocket: Sec-WebSocket-Key is none")
    if headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers:
        raise InvalidRequest("cannot open a WebSocket: the request has a body")
    return generate_accept_token(key.encode()).decode()


class WebSocket:
    """One client. `receive` is for one task, `send_…` for any; all raise `Gone`."""

    def __init__(self, stream: trio.SocketStream, early: bytes, accept_token: str) -> None:
        self._stream = stream
        self._wire = Connection(ConnectionType.SERVER)
        self._early = early
        self._token = accept_token
        self._writing = trio.Lock()
        self._parts: list[bytes] = []
        self._size = 0
        self.is_accepted = False
        #: What one message of the client's may have; a route that takes larger ones says so before it accepts.
        self.max_message_bytes = MAX_MESSAGE_BYTES

    async def accept(self) -> None:
        """Answer the handshake: from now on it is a WebSocket."""
        self.is_accepted = True
        answer = (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {self._token}\r\n\r\n"
        )
        await self._write(answer.encode())

    async def receive(self) -> bytes | str:
        """Return the next message: bytes of a binary one, the text of another."""
        while True:
            for event in self._wire.events():
                if isinstance(event, Message):
                    message = await self._join(event)
                    if message is not None:
                        return message
                elif isinstance(event, Ping):
                    await self._send(event.response())
                elif isinstance(event, CloseConnection):
                    # Its goodbye, which is answered; or frames that are none, which are named.
                    is_goodbye = self._wire.state is ConnectionState.REMOTE_CLOSING
                    await self._send(event.response() if is_goodbye else CloseConnection(code=event.code))
                    raise Gone
            data = self._early or await self._read()
            self._early = b""
            self._wire.receive_data(data or None)
            if not data:
                raise Gone

    async def _read(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(_RECEIVE_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Gone from None

    async def _join(self, event: Message[Any]) -> bytes | str | None:
        piece = event.data.encode() if isinstance(event, TextMessage) else bytes(event.data)
        self._size += len(piece)
        if self._size > self.max_message_bytes:
            await self.close(1009, "the message is too large")
            raise Gone
        self._parts.append(piece)
        if not event.message_finished:
            return None
        whole = b"".join(self._parts)
        self._parts, self._size = [], 0
        return whole.decode() if isinstance(event, TextMessage) else whole

    async def send_bytes(self, data: bytes) -> None:
        """Send bytes as one or more binary messages."""
        for start in range(0, len(data), SEND_BYTES):
            await self._send(BytesMessage(data=data[start : start + SEND_BYTES]))

    async def send_json(self, value: dict[str, Any]) -> None:
        """Send an object as a text message."""
        await self._send(TextMessage(data=jsontext.encode(value).decode()))

    async def send_problem(self, error: SandboxdError) -> None:
        """Tell the client of an error that does not end the connection."""
        await self.send_json({"type": "error", "problem": problems.to_dict(error)})

    async def close(self, code: int, reason: str = "") -> None:
        """Say goodbye and give the client a moment to answer; never raises."""
        with trio.move_on_after(CLOSE_TIMEOUT_S):
            try:
                await self._send(CloseConnection(code=code, reason=reason[:100]))
                while self._wire.state is not ConnectionState.CLOSED and (data := await self._read()):
                    self._wire.receive_data(data)
                    for _ in self._wire.events():
                        pass
            except (Gone, LocalProtocolError, trio.BusyResourceError):
                return  # it has left, or the task that reads meets its answer

    async def _send(self, event: Any) -> None:  # noqa: ANN401 - wsproto's events
        async with self._writing:
            try:
                data = self._wire.send(event)
            except LocalProtocolError:
                raise Gone from None  # it is closed already
            await self._write_now(data)

    async def _write(self, data: bytes) -> None:
        async with self._writing:
            await self._write_now(data)

    async def _write_now(self, data: bytes) -> None:
        with trio.move_on_after(SEND_TIMEOUT_S) as scope:
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise Gone from None
        if scope.cancelled_caught:
            # A part of a frame may have gone out: nothing can follow it.
            await trio.aclose_forcefully(self._stream)
            raise Gone


def parse_json(text: str) -> dict[str, Any]:
    """Return the object that a text message holds.

    Raises:
        InvalidRequest: it holds none.
    """
    value = jsontext.parse(text, what="the message")
    if not isinstance(value, dict):
        raise InvalidRequest("cannot understand the message: a text message is a JSON object")
    return value
