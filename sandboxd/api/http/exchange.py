"""One request and its answer on a connection.

It stands where hypercorn has its stream of ASGI messages: what its protocol reads goes straight into the body, and an
answer straight to the protocol. ASGI's way (a channel of messages, a task that empties it, a scope, a context) takes
as long as all the rest of a small request.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any, Final

import trio

from ...errors import SandboxdError
from ..call import Call, Last
from . import target
from .hypercorn_parts import Body, EndBody, Response, StreamClosed

if TYPE_CHECKING:
    import h11
    from quart_trio.wrappers import TrioResponse
    from werkzeug.datastructures import Headers

    from ..access import Caller
    from ..app import Api
    from .http1 import Http1
    from .hypercorn_parts import StreamEvent
    from .server import Wire

_log = logging.getLogger(__name__)

#: How long the head of a streamed answer waits for the first piece.
HEAD_WAITS_S: Final = 0.005
_STREAM: Final = 1
_NO_BODY: Final = frozenset({204, 304})


class Exchange:
    """Made when a request's head has come; `run` is its task. A client that leaves cancels it."""

    def __init__(
        self, api: Api, wire: Wire, protocol: Http1, caller: Caller, request: h11.Request, headers: Headers
    ) -> None:
        self._api = api
        self._wire = wire
        self._protocol = protocol
        self._scope = trio.CancelScope()
        self._began = False
        self._answered = False
        self._closed = False
        routed, query = target.split(request.target)
        method = request.method.decode("ascii").upper()
        scope: Any = {"type": "http"}
        made: Any = api.request_class(
            *(method, "http", target.plain(routed), query, headers, "", request.http_version.decode(), scope),
            send_push_promise=functools.partial(_no_push),
        )
        self.call = Call(made, api.manager, api.facts, api.metrics, routed)
        self.admission = api.admit(made, routed, caller)
        if not made.content_length and "Transfer-Encoding" not in headers:
            self.call.body.set_complete()  # it has none: do not wait for the event that says so

    def __repr__(self) -> str:
        return f"<Exchange {self.call!r}>"

    async def handle(self, event: StreamEvent) -> None:
        """Take what hypercorn's protocol says of this request; a body that is not read makes its sender wait."""
        if self._closed:
            return
        if isinstance(event, Body):
            await self.call.body.put(event.data)
        elif isinstance(event, EndBody):
            self.call.body.set_complete()
        elif isinstance(event, StreamClosed):
            self._closed = True
            if not self._answered:
                self._scope.cancel()

    async def refuse(self) -> None:
        """Answer who is not let in, and end the connection; not a byte of the body has been looked at."""
        response = await self._api.answer(self.call, self.admission)
        content = b"" if self.call.request.method == "HEAD" else await response.get_data(as_text=False)
        await self._protocol.answer(response.status_code, content, dict(response.headers))

    async def run(self) -> None:
        """Serve it to its end."""
        try:
            with self._scope:
                async with self.call.stack:
                    await self._answer(await self._api.answer(self.call, self.admission))
        except Exception:
            _log.exception("A request failed")
        finally:
            self.call.body.discard()  # whoever reads the connection must not wait for room
            await self._finish()

    async def _answer(self, response: TrioResponse) -> None:
        """Send the answer in as few writes as can be: each wakes the client.

        The head of a streamed one waits a moment for the first piece, and the end goes out with a piece that is the
        last.
        """
        body: Any = response.response
        has_body = self.call.request.method != "HEAD" and response.status_code not in _NO_BODY
        self._wire.hold()
        if self.call.body.is_complete and hasattr(body, "data"):
            await self._begin(response)
            if has_body and body.data:
                await self._protocol.stream_send(Body(_STREAM, body.data))
            await self._end()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wire.release_after, HEAD_WAITS_S)
            await self._begin(response)
            try:
                if has_body:
                    await self._send(body)
            except SandboxdError as error:
                # The head is gone; hypercorn cuts a connection whose answer has no end.
                request = self.call.request
                _log.warning("Cut the answer to %s %s: %s", request.method, request.path[:200], error)
            else:
                if not self.call.body.is_complete:
                    await self.call.body.linger()
                await self._end()
            nursery.cancel_scope.cancel()

    async def _send(self, body: Any) -> None:  # noqa: ANN401 - any of Quart's bodies
        async with body as pieces:
            async for piece in pieces:
                is_last = self.call.body.is_complete and isinstance(piece, Last)
                if is_last:
                    self._wire.hold()
                if piece:
                    await self._protocol.stream_send(Body(_STREAM, piece))
                if not is_last:
                    await self._wire.release()

    async def _begin(self, response: TrioResponse) -> None:
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in response.headers.items()]
        self._began = True
        await self._protocol.stream_send(Response(_STREAM, headers, response.status_code))

    async def _end(self) -> None:
        self._answered = True
        await self._protocol.stream_send(EndBody(_STREAM))
        await self._protocol.stream_send(StreamClosed(_STREAM))

    async def _finish(self) -> None:
        """End what has no end: the connection too."""
        if self._closed:
            return
        if not self._began:
            self._began = True
            headers = [(b"content-length", b"0"), (b"connection", b"close")]
            await self._protocol.stream_send(Response(_STREAM, headers, 500))
            await self._protocol.stream_send(EndBody(_STREAM))
        await self._protocol.stream_send(StreamClosed(_STREAM))


async def _no_push(path: str, headers: Headers) -> None:
    """Nothing: HTTP/1.1 has no pushes."""
