"""HTTP/1.1 as hypercorn speaks it, but polite to rude clients: every error that can be told is a problem.

What differs from hypercorn's own protocol:

- A head's lines are counted before h11 parses them, and between two events the other tasks get their turn.
- Who is not let in is answered once its head has come, and its connection closed: no byte of a body is parsed.
- A request that h11 refuses is answered with a problem, and what the client still sends is read for a moment:
  closing at once would reset the connection, and the client would never see why.
- HTTP/2 is off, by prior knowledge and by upgrade: nothing here bounds its streams.
- A request line with a whole URI is understood (RFC 9112, 3.2.2 demands it).
- A request for a WebSocket ends the protocol (`Upgrade`): who serves the connection takes it over.
- While a request is under way and the client has sent another one behind it, reading goes on up to a bound, so that
  a client that leaves is noticed although its command says nothing.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any, Final

import h11
import trio
from werkzeug.datastructures import Headers

from ...errors import HeaderTooLarge, InvalidRequest, RequestTimeout, SandboxdError
from ...runtime.strangers import Lane, Turn
from ...wire import h11_parts, http_heads
from ...wire.http_heads import MAX_HEAD_BYTES
from .. import problems
from . import websocket
from .body import LINGER_BYTES, LINGER_S
from .hypercorn_parts import Body, Closed, EndBody, H11Protocol, Updated

if TYPE_CHECKING:
    from collections.abc import Callable

    from .body import BoundedBody
    from .exchange import Exchange

#: What is read of the requests behind the one under way; the kernel's socket buffer holds the rest.
MAX_READ_AHEAD: Final = 64 * 1024
_RECEIVE_BYTES: Final = 64 * 1024
_STREAM: Final = 1
_ORIGIN = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/?]*")


class ClientGone(Exception):
    """The client has left, or nothing more that it says can be understood."""


class Upgrade(Exception):
    """A request for a WebSocket has come: its target and headers, and what the client sent behind it."""

    def __init__(self, target: bytes, headers: Headers, early: bytes) -> None:
        super().__init__(target)
        self.target = target
        self.headers = headers
        self.early = early


class Http1(H11Protocol):
    """One connection's protocol; see the module."""

    def __init__(
        self,
        stream: trio.SocketStream,
        begin: Callable[[Http1, h11.Request, Headers], Exchange],
        lane: Lane | None,
        **means: Any,  # noqa: ANN401 - hypercorn's own arguments
    ) -> None:
        super().__init__(**means)
        self._stream = stream
        self._begin = begin
        self.turn = Turn(lane)
        self.can_read: Any = _Pause(self, stream)

    async def _handle_events(self) -> None:
        """Do what has come to be read: hypercorn's loop, with turns."""
        self.turn.begin()
        event: Any = None
        while True:
            # Not behind a request's head: its end, which h11 says apart, must be seen before its answer can be.
            if event is not None and not isinstance(event, h11.Request):
                await self.turn.rest()
            connection: Any = self.connection
            if connection.they_are_waiting_for_100_continue:
                await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))
            try:
                if connection.their_state is h11.IDLE:
                    http_heads.check(connection.trailing_data[0])
                event = connection.next_event()
            except (h11.RemoteProtocolError, SandboxdError) as error:
                if connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                    await self._refuse_head(error)
                await self.send(Closed())
                return
            if isinstance(event, h11.Request):
                http_heads.bound_trailer(connection)
                await self.send(Updated(idle=False))
                await self._check_protocol(event)
                await self._create_stream(event)
            elif event is h11.PAUSED:
                await self.can_read.clear()
                await self.can_read.wait()
                self.turn.begin()
            elif self.stream is None or event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed):
                return
            elif isinstance(event, h11.Data):
                await self.stream.handle(Body(_STREAM, event.data))
            elif isinstance(event, h11.EndOfMessage):
                await self.stream.handle(EndBody(_STREAM))

    def direct_bytes(self, body: BoundedBody) -> int:
        """Return how many bytes of the body under way may go straight into it: all that come, but for the last.

        None where h11 must see them (chunks, a request's head) or still holds some, and none while some are on their
        way to the body through hypercorn's queue: what comes later must not overtake them.
        """
        connection: Any = self.connection
        unseen = h11_parts.unseen_body(connection)
        if (
            unseen is None
            or connection.their_state is not h11.SEND_BODY
            or connection.trailing_data[0]
            or body.expected is None
            or body.received != body.expected - unseen
        ):
            return 0
        return unseen - 1

    def skip(self, count: int) -> None:
        """Tell h11 that bytes of the body have come which it will not see."""
        connection: Any = self.connection
        h11_parts.skip_body(connection, count)

    @property
    def is_half_asked(self) -> bool:
        """Whether a part of a request has come."""
        connection = self.connection
        return connection.their_state is h11.IDLE and bool(connection.trailing_data[0])

    async def time_out(self) -> None:
        """Answer a request of which only a part has come."""
        with trio.move_on_after(LINGER_S):
            await self.refuse(RequestTimeout("cannot answer: the request was not complete in time"))

    async def _refuse_head(self, error: h11.RemoteProtocolError | SandboxdError) -> None:
        """Answer what is no request."""
        if isinstance(error, SandboxdError):
            await self.refuse(error)
        elif error.error_status_hint == 431:
            limit = MAX_HEAD_BYTES
            await self.refuse(HeaderTooLarge(f"cannot accept a header of over {limit} bytes", limit_bytes=limit))
        else:
            await self.refuse(InvalidRequest("cannot understand the request: it is not HTTP/1.1"))

    async def refuse(self, error: SandboxdError) -> None:
        """Answer with a problem that no handler can send, and end the connection."""
        await self.answer(error.status, problems.to_json(error), problems.headers(error))

    async def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Answer in the place of a handler, and end the connection."""
        raw = {name.lower().encode(): value.encode() for name, value in headers.items()}
        raw |= {b"content-length": b"%d" % len(body), b"connection": b"close"}
        await self._send_h11_event(h11.Response(status_code=status, headers=list(raw.items())))
        if body:
            await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())
        await self._linger()

    async def _linger(self) -> None:
        """Read on for a moment, so that the client comes to read the answer."""
        left = LINGER_BYTES
        with trio.move_on_after(LINGER_S), contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            with contextlib.suppress(trio.BusyResourceError):
                await self._stream.send_eof()
            while left > 0 and (data := await self._stream.receive_some(_RECEIVE_BYTES)):
                left -= len(data)

    async def _check_protocol(self, event: h11.Request) -> None:
        """Refuse other versions, where hypercorn would switch to HTTP/2."""
        if event.http_version not in (b"1.0", b"1.1"):
            await self.refuse(InvalidRequest("cannot understand the request: it is not HTTP/1.1"))
            raise ClientGone

    async def _create_stream(self, request: h11.Request) -> None:
        origin = _ORIGIN.match(request.target)
        if origin:
            target = request.target[origin.end() :]
            request = h11.Request(
                method=request.method,
                target=target if target.startswith(b"/") else b"/" + target,
                headers=list(request.headers),
                http_version=request.http_version,
            )
        headers = Headers((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers)
        if websocket.wants(headers, request.method.decode("latin-1")):
            raise Upgrade(request.target, headers, bytes(self.connection.trailing_data[0]))
        exchange = self._begin(self, request, headers)
        if exchange.admission.refusal is not None:
            await exchange.refuse()
            raise ClientGone
        self.stream: Any = exchange
        self.task_group.spawn(exchange.run)
        self.keep_alive_requests += 1


class _Pause:
    """What hypercorn waits on between a request and the next one that has come already; it has an event's methods."""

    def __init__(self, protocol: Http1, stream: trio.SocketStream) -> None:
        self._protocol = protocol
        self._stream = stream
        self._over = trio.Event()

    async def clear(self) -> None:
        """Begin a pause."""
        self._over = trio.Event()

    async def set(self) -> None:
        """The request under way has been answered."""
        self._over.set()

    async def wait(self) -> None:
        """Wait for the end of the pause, reading ahead.

        Raises:
            ClientGone: it left meanwhile.
        """
        gone = False

        async def read_ahead() -> None:
            nonlocal gone
            if await self._read_ahead():
                gone = True
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_ahead)
            await self._over.wait()
            nursery.cancel_scope.cancel()
        if gone:
            raise ClientGone

    async def _read_ahead(self) -> bool:
        """Read up to the bound; return whether the client has left."""
        connection = self._protocol.connection
        left = MAX_READ_AHEAD - len(connection.trailing_data[0])
        while left > 0:
            try:
                data = await self._stream.receive_some(min(left, _RECEIVE_BYTES))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return True
            if not data:
                return True
            connection.receive_data(bytes(data))
            left -= len(data)
        return False
