"""WebSockets over a connection that an HTTP request has opened, taken over from hypercorn at the handshake.

hypercorn's own WebSockets are not used: they pass messages to the application through a queue that nobody empties once
the application has ended, buffer a message over the bound without end, and inflate what a client compressed. Here one
task reads for as long as the handler runs (`serve`), so that pings and the client's goodbye are answered whatever the
handler does: it may be writing to a program that does not read. What the handler has not taken is kept up to a bound;
beyond it, and for what a client does not read, the other side waits. Compression is not offered.

A write that is cancelled leaves the rest of its frame in `_unsent`, which the next write sends first: a frame is never
cut by another, and the answer to a goodbye is not lost with the task that was about to send it.
"""

from __future__ import annotations

import codecs
import collections
import contextlib
from typing import TYPE_CHECKING, Any, Final

import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Message, Ping, TextMessage
from wsproto.handshake import WEBSOCKET_VERSION
from wsproto.utilities import LocalProtocolError, generate_accept_token

from ...errors import InvalidRequest
from ...runtime.strangers import Turn
from .. import jsontext, problems

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable

    from werkzeug.datastructures import Headers

    from ...errors import SandboxdError

#: One message of a client's: a large paste.
MAX_MESSAGE_BYTES: Final = 1024 * 1024
#: Messages that came and that the handler has not taken: read on up to this much, so that what is behind is seen.
MAX_UNTAKEN_BYTES: Final = 4 * 1024 * 1024
#: What a message counts for at least, so that empty ones are bounded too.
_MESSAGE_COST: Final = 256
#: One message of ours; a larger one would be all or nothing for a slow client.
SEND_BYTES: Final = 64 * 1024
#: A client that takes nothing for this long is dropped.
SEND_TIMEOUT_S: Final = 30.0
#: How long the end waits for the client to say goodbye too, or for the handler to come back after the client's.
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
        raise InvalidRequest("cannot open a WebSocket: Sec-WebSocket-Key is not valid")
    if headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers:
        raise InvalidRequest("cannot open a WebSocket: the request has a body")
    return generate_accept_token(key.encode()).decode()


class WebSocket:
    """One client. `receive` is for one task, `send_…` for any; all raise `Gone`. They need `serve` around them."""

    def __init__(self, stream: trio.SocketStream, early: bytes, accept_token: str) -> None:
        self._stream = stream
        self._wire = Connection(ConnectionType.SERVER)
        self._early = early
        self._token = accept_token
        self._writing = trio.Lock()
        self._unsent = bytearray()
        self._part = bytearray()
        self._turn = Turn()
        self._untaken: collections.deque[bytes | str] = collections.deque()
        self._untaken_bytes = 0
        self._news = trio.Event()
        self._room = trio.Event()
        self._accepted = trio.Event()
        self._over = trio.Event()  # nothing more comes from the client
        self._closing = False  # nothing more is wanted of it
        self._goodbye: CloseConnection | None = None
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
        async with self._writing:
            self._unsent += answer.encode()
            await self._flush()
        self._accepted.set()

    async def serve(self, handler: Callable[[], Awaitable[None]]) -> None:
        """Run a handler and read for it; what it raises is raised here. Returns when the connection can be closed.

        A handler that does not come back after the client's goodbye is cancelled.
        """
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_on)
            with trio.CancelScope() as scope:
                nursery.start_soon(self._end_handler, scope)
                try:
                    await handler()
                except Exception as error:
                    failure = error
            if self._closing:
                with trio.move_on_after(CLOSE_TIMEOUT_S):
                    await self._over.wait()
            nursery.cancel_scope.cancel()
        with contextlib.suppress(Gone):
            await self._answer_goodbye()
        if failure is not None:
            raise failure

    async def _end_handler(self, scope: trio.CancelScope) -> None:
        await self._over.wait()
        left = -1
        while len(self._untaken) != left:  # it still takes what the client sent before
            left = len(self._untaken)
            await trio.sleep(CLOSE_TIMEOUT_S)
        scope.cancel()

    async def receive(self) -> bytes | str:
        """Return the next message: bytes of a binary one, the text of another."""
        while not self._untaken:
            if self._over.is_set() or self._closing:
                raise Gone
            self._news = trio.Event()
            await self._news.wait()
        message = self._untaken.popleft()
        self._untaken_bytes -= len(message) + _MESSAGE_COST
        self._room.set()
        return message

    async def _read_on(self) -> None:
        """Take what the client sends, to its end: messages are kept for `receive`, the rest is answered."""
        await self._accepted.wait()
        try:
            while await self._take_events():
                data = self._early or await self._read()
                self._early = b""
                self._wire.receive_data(data or None)
        except Gone:
            pass
        finally:
            self._over.set()
            self._news.set()

    async def _take_events(self) -> bool:
        """Do what has come to be read; False when no more comes."""
        self._turn.begin()
        for event in self._wire.events():
            if isinstance(event, Message):
                await self._keep(event)
            elif isinstance(event, Ping):
                await self._send(event.response())
            elif isinstance(event, CloseConnection):
                if self._wire.state is ConnectionState.REMOTE_CLOSING:
                    self._goodbye = event
                    await self._answer_goodbye()
                elif self._wire.state is ConnectionState.OPEN:  # frames that are none, which are named
                    await self._send(CloseConnection(code=event.code))
                return False
            await self._turn.rest()
        return True

    async def _read(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(_RECEIVE_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Gone from None

    async def _keep(self, event: Message[Any]) -> None:
        """Join a message of its pieces and keep it, once there is room."""
        if self._closing:
            return
        self._part += event.data.encode() if isinstance(event, TextMessage) else event.data
        if len(self._part) > self.max_message_bytes:
            self._part.clear()
            await self.close(1009, "the message is too large")
            return
        if not event.message_finished:
            return
        while self._untaken_bytes >= MAX_UNTAKEN_BYTES and not self._closing:
            self._room = trio.Event()
            await self._room.wait()
        whole, self._part = bytes(self._part), bytearray()
        message = whole.decode() if isinstance(event, TextMessage) else whole
        self._untaken.append(message)
        self._untaken_bytes += len(message) + _MESSAGE_COST
        self._news.set()

    async def send_bytes(self, data: bytes) -> None:
        """Send bytes as one or more binary messages."""
        for start in range(0, len(data), SEND_BYTES):
            await self._send(BytesMessage(data=data[start : start + SEND_BYTES]))

    async def send_json(self, value: dict[str, Any]) -> None:
        """Send an object as a text message."""
        await self._send(TextMessage(data=jsontext.encode(value).decode()))

    async def send_text(self, parts: AsyncIterable[bytes]) -> None:
        """Send a text message that is made while it goes out; no other comes between its parts.

        Whoever cancels it ends the connection: what came next would be taken for the rest of the message.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        async with self._writing:
            try:
                async for part in parts:
                    await self._write(TextMessage(data=decoder.decode(part), message_finished=False))
                await self._write(TextMessage(data=decoder.decode(b"", final=True)))
            except BaseException:
                self._unsent.clear()
                await trio.aclose_forcefully(self._stream)
                raise

    async def send_problem(self, error: SandboxdError) -> None:
        """Tell the client of an error that does not end the connection."""
        await self.send_json({"type": "error", "problem": problems.to_dict(error)})

    async def close(self, code: int, reason: str = "") -> None:
        """Say goodbye; never raises. `serve` gives the client a moment to answer once the handler has returned."""
        self._closing = True  # what still comes before its answer is dropped
        self._untaken.clear()
        self._untaken_bytes = 0
        self._room.set()
        self._news.set()
        with contextlib.suppress(Gone):
            await self._send(CloseConnection(code=code, reason=reason[:100]))

    async def _answer_goodbye(self) -> None:
        """Answer the client's goodbye (RFC 6455, 5.5.1) if it waits for that, and write what a cancelled task left."""
        async with self._writing:
            if self._goodbye is not None and self._wire.state is ConnectionState.REMOTE_CLOSING:
                self._unsent += self._wire.send(self._goodbye.response())
            await self._flush()

    async def _send(self, event: Any) -> None:  # noqa: ANN401 - wsproto's events
        async with self._writing:
            await self._write(event)

    async def _write(self, event: Any) -> None:  # noqa: ANN401 - wsproto's events
        """Write an event. For who holds `_writing`."""
        try:
            self._unsent += self._wire.send(event)
        except LocalProtocolError:
            raise Gone from None  # it is closed already
        await self._flush()

    async def _flush(self) -> None:
        """Write what is unsent; the rest of it stays where that is cancelled. For who holds `_writing`."""
        with trio.move_on_after(SEND_TIMEOUT_S) as scope:
            try:
                while self._unsent:
                    with memoryview(self._unsent) as whole:
                        sent = await self._stream.socket.send(whole)
                    del self._unsent[:sent]
            except (OSError, trio.ClosedResourceError):
                self._unsent.clear()
                raise Gone from None
        if scope.cancelled_caught:
            # A part of a frame may have gone out: nothing can follow it.
            self._unsent.clear()
            await trio.aclose_forcefully(self._stream)
            raise Gone


def parse_json(text: str) -> dict[str, Any]:
    """Return the object that a text message holds.

    Raises:
        InvalidRequest: it holds none.
    """
    value = jsontext.parse(text, what="the message")
    if not isinstance(value, dict):
        raise InvalidRequest("cannot understand the message: a text message must be a JSON object")
    return value
