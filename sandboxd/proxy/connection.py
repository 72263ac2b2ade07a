"""A client's connection: heads read one after the other, each routed by its own Host, each answered."""

from __future__ import annotations

import hmac
import math
from typing import TYPE_CHECKING, Final

import h11
import trio

from ..errors import (
    AccessDenied,
    HeaderTooLarge,
    InvalidRequest,
    PreviewGone,
    PreviewNotFound,
    RequestTimeout,
    SandboxdError,
    ServerBusy,
)
from ..runtime.preview_urls import LINK_PATH
from ..wire import http_heads
from ..wire.http_heads import MAX_HEAD_BYTES
from . import heads, origins, pages, plain
from .exchange import Exchange
from .wires import Wire, WireBroken

if TYPE_CHECKING:
    from ..runtime.ports import Port
    from ..runtime.preview_urls import Target
    from .heads import Asked, Front
    from .plain import Head
    from .server import Proxy

#: A head must have come whole after this; a slow one holds nothing but its own connection until then.
HEAD_S: Final = 20.0
#: A connection without a request.
KEEP_ALIVE_S: Final = 75.0
#: A request, response or tunnel of which nothing moves.
STALL_S: Final = 3600.0
#: How long a client may take to read last words while it still sends.
LINGER_S: Final = 2.0
#: Requests and tunnels at once on all ports of one sandbox.
MAX_ACTIVE: Final = 512


class Connection:
    """One client. `deadline` is when the sweeper ends it; `buffer` what has come and was not used yet."""

    def __init__(self, proxy: Proxy, wire: Wire, front: Front) -> None:
        self.wire = wire
        self.front = front
        self.scope = trio.CancelScope()
        self.deadline = math.inf
        self.waits_for_service = False
        self.buffer = b""
        self.reader = h11.Connection(h11.SERVER)
        self._proxy = proxy
        self._timed_out = False
        self._half_asked = False

    def __repr__(self) -> str:
        return f"<Connection of {self.front.address.decode()}>"

    @property
    def is_ending(self) -> bool:
        """Whether no further request is wanted."""
        return self._proxy.is_stopping

    def touch(self) -> None:
        """Something moved."""
        self.deadline = trio.current_time() + STALL_S

    def begin_tunnel(self) -> None:
        """From now on a client that has ended its side may still listen."""
        self.waits_for_service = False
        self.touch()

    @property
    def still_since(self) -> float:
        """When something moved last, while a request is under way."""
        return self.deadline - STALL_S

    def time_out(self) -> None:
        """End it: the sweeper calls this at the deadline."""
        self._timed_out = True
        self.scope.cancel()

    async def receive(self) -> bytes:
        """Return what the client sends, empty at its end."""
        return await self.wire.receive()

    def take(self, count: int) -> bytes:
        """Take up to `count` bytes of the buffer."""
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    async def run(self) -> None:
        """Serve the client to its end."""
        try:
            with self.scope:
                while await self._serve_one():
                    await self.wire.turn.rest()
            if self._timed_out and self._half_asked:
                error = RequestTimeout("cannot wait any longer for the rest of the request")
                self.wire.send_now(pages.answer(error, None, page=False, close=True))
        except WireBroken:
            pass
        finally:
            self._proxy.unlist(self)
            self.wire.close()

    async def _serve_one(self) -> bool:
        """Read a request and answer it; return whether another may follow."""
        try:
            asked = await self._read_head()
        except SandboxdError as error:
            return await self._refuse(error, None, None)
        if asked is None:
            return False
        self.touch()
        target: Target | None = None
        exchange: Exchange | None = None
        try:
            try:
                target = self._proxy.urls.parse(asked.host)
            except ValueError as error:
                raise InvalidRequest(f"cannot accept the request: its Host {error}") from None
            port = self._admit(asked, target)
            if port is None:
                return await self._redeem(asked, target)
            self._proxy.waits_no_more(self)
            self.wire.turn.lane = port.lane
            if self._proxy.active[port.sandbox_id] >= MAX_ACTIVE:
                raise ServerBusy(f"cannot accept the request: {MAX_ACTIVE} are under way in that sandbox")
            exchange = Exchange(self, asked, port, self._proxy.previews)
            return await self._exchange(exchange, port)
        except SandboxdError as error:
            if exchange is not None and exchange.started:
                return False
            return await self._refuse(error, asked, target)

    async def _exchange(self, exchange: Exchange, port: Port) -> bool:
        active = self._proxy.active
        active[port.sandbox_id] += 1
        port.users.add(self.scope)
        port.requests += 1
        try:
            return await exchange.run()
        finally:
            port.users.discard(self.scope)
            active[port.sandbox_id] -= 1
            if not active[port.sandbox_id]:
                del active[port.sandbox_id]

    # --- the head ---------------------------------------------------------------------------------------

    async def _read_head(self) -> Asked | None:
        """Return the next request's head, or None at the client's end.

        Raises:
            InvalidRequest, HeaderTooLarge: it cannot be answered but by saying so.
        """
        self._half_asked = bool(self.buffer)
        self.deadline = trio.current_time() + (HEAD_S if self.buffer else KEEP_ALIVE_S)
        self._proxy.waits(self)
        self.wire.turn.lane = self._proxy.lane
        if not self.buffer:
            self.buffer = await self.wire.receive(soon=False)
            if not self.buffer:
                return None
            self._half_asked = True
            self.deadline = trio.current_time() + HEAD_S
        http_heads.check(self.buffer)
        head = plain.request(self.buffer)
        if head is not None:
            self.buffer = self.buffer[head.size :]
        else:
            head = await self._read_with_h11()
        self._half_asked = False
        return None if head is None else heads.read(head)

    async def _read_with_h11(self) -> Head | None:
        self.reader = reader = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        reader.receive_data(self.buffer)
        try:
            while (event := reader.next_event()) is h11.NEED_DATA:
                data = await self.receive()
                if not data:
                    return None
                reader.receive_data(data)
                http_heads.check(reader.trailing_data[0])
            http_heads.bound_trailer(reader)
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                raise HeaderTooLarge(f"cannot accept the request: its head is over {MAX_HEAD_BYTES} bytes") from None
            raise InvalidRequest(f"cannot accept the request: {str(error)[:200]}") from None
        if not isinstance(event, h11.Request):
            return None
        # A body in chunks stays with the reader; what else has come is a body of known length, or another request.
        is_chunked = any(name == b"transfer-encoding" for name, _ in event.headers)
        self.buffer = b"" if is_chunked else reader.trailing_data[0]
        return heads.of_request(event)

    # --- routing ----------------------------------------------------------------------------------------

    def _admit(self, asked: Asked, target: Target | None) -> Port | None:
        """Return the port that the request may use; None where it is a one-time link.

        Raises:
            PreviewNotFound: there is none, or not for this one: the answer and its time are the same.
            AccessDenied: a page of another origin made a browser ask that.
            PreviewGone: there was one.
        """
        found = None if target is None else self._proxy.previews.find(target.sandbox_id, target.port)
        if found is None or target is None:
            hmac.compare_digest(b"0123456789abcdef", (asked.token or "").encode("utf-8", "replace"))
            raise _not_found()
        spec, port = found
        given = target.token if target.token is not None else asked.token
        if port is not None and given is None and asked.target.startswith(LINK_PATH.encode()):
            return None
        admitted = spec.public if given is None else spec.admits_token(given)
        if not admitted and given is None and port is not None:
            admitted = any([port.admits_cookie(value) for value in heads.our_cookies(asked)])
            # A browser sends the cookie along whatever page has it ask; a token only its holder knows.
            if admitted and origins.is_foreign(asked, self.front, self._proxy.urls):
                raise AccessDenied("cannot accept the request: a page of another origin sent it, with only the cookie")
        if not admitted:
            raise _not_found()
        if port is None:
            raise PreviewGone(f"cannot reach sandbox {target.sandbox_id}: it was destroyed")
        return port

    async def _redeem(self, asked: Asked, target: Target | None) -> bool:
        """Answer a one-time link."""
        found = None if target is None else self._proxy.previews.find(target.sandbox_id, target.port)
        port = None if found is None else found[1]
        # Only by GET: link checkers and mail scanners ask by HEAD.
        is_get = asked.method == b"GET" and asked.length == 0
        code = asked.target.decode("ascii", "replace").removeprefix(LINK_PATH)
        cookie = port.redeem(code) if port is not None and is_get else None
        if cookie is None:
            raise _not_found()
        again = asked.keep_alive
        await self.wire.send(pages.redirect(cookie, secure=self._proxy.urls.scheme == "https", close=not again))
        return again

    # --- refusals ---------------------------------------------------------------------------------------

    async def _refuse(self, error: SandboxdError, asked: Asked | None, target: Target | None) -> bool:
        self._proxy.previews.counters.refusals[error.kind] += 1
        self._proxy.waits(self)
        # After a request that was none, what follows is not to be read as one.
        again = asked is not None and asked.keep_alive and asked.length == 0 and not isinstance(error, InvalidRequest)
        page = asked is not None and asked.wants_page
        head_only = asked is not None and asked.method == b"HEAD"
        await self.wire.send(pages.answer(error, target, page=page, close=not again, head_only=head_only))
        if not again:
            await self._linger()
        return again

    async def _linger(self) -> None:
        """Let the client read last words: closing while it still sends would reset the connection under them."""
        await self.wire.end()
        if self.wire.is_plain:
            with trio.move_on_after(LINGER_S):
                while await self.wire.receive():
                    pass


def _not_found() -> PreviewNotFound:
    return PreviewNotFound("cannot find that preview: it does not exist, or the token is wrong")
