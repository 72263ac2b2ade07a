"""The API over the stock ASGI server: hypercorn as it is meant to be used, by nothing but its interface.

The daemon's server is built on hypercorn's insides (api/http/hypercorn_parts.py). Should an upgrade take one of them
away for good, this is what is left: the same application behind ASGI. The API's tests run over both, so it is known to
work. It lacks what is promised to strangers: bounds of heads and connections, turns, lingering, a bounded message.

A WebSocket's messages pass through a socket pair: ours speaks frames on one end, `_Bridge` is the client on the other.
"""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import hypercorn.trio
import trio
from hypercorn.config import Config, Sockets
from werkzeug.datastructures import Headers
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Message, TextMessage
from wsproto.utilities import LocalProtocolError

from sandboxd.api import socket_call
from sandboxd.api.access import Caller
from sandboxd.api.call import Call
from sandboxd.api.http import target
from sandboxd.api.http.http1 import Upgrade
from sandboxd.errors import SandboxdError

if TYPE_CHECKING:
    from sandboxd.api.app import Api

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class _Config(Config):
    """hypercorn's, for sockets that listen already."""

    sockets: list[socket.socket]

    def create_sockets(self) -> Sockets:
        return Sockets([], self.sockets, [])


class StockServer:
    """Serves an application on listening sockets, as `api.http.server.Server` does.

    `local` is who is taken to call over the unix socket: ASGI does not tell.
    """

    def __init__(self, api: Api, sockets: list[socket.socket], local: Caller) -> None:
        self._api = api
        self._local = local
        self._sockets = sockets
        self._config = _Config()
        self._config.sockets = sockets
        self._config.include_server_header = False
        self._config.include_date_header = False
        self._config.graceful_timeout = 1
        self._config.loglevel = "ERROR"
        self._stop = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `stop`."""
        app: Any = self._serve
        try:
            await hypercorn.trio.serve(app, self._config, shutdown_trigger=self._stop.wait, task_status=task_status)
        finally:
            for sock in self._sockets:
                sock.close()

    def stop(self) -> None:
        """End it."""
        self._stop.set()

    async def _serve(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for phase in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{phase}.complete"})
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._answer_websocket(scope, receive, send)

    async def _answer_websocket(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        bridge: Any = _Bridge(receive, send)
        upgrade = Upgrade(_target(scope), _headers(scope), b"")
        caller = self._local if scope["client"] is None else Caller()
        async with bridge.client_end, trio.open_nursery() as nursery:
            nursery.start_soon(bridge.pass_frames)
            async with bridge.server_end:
                await socket_call.serve(self._api, bridge, upgrade, caller, bridge.server_end, lambda: None)

    async def _answer(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        routed, query = target.split(_target(scope))
        headers = _headers(scope)
        make: Any = self._api.request_class
        request = make(
            *(scope["method"], "http", target.plain(routed), query, headers, "", scope["http_version"], scope),
            send_push_promise=functools.partial(_no_push),
        )
        call = Call(request, self._api.manager, self._api.facts, self._api.metrics, routed)
        admission = self._api.admit(request, routed, self._local if scope["client"] is None else Caller())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_feed, call, receive, nursery.cancel_scope)
            async with call.stack:
                response = await self._api.answer(call, admission)
                await _send(call, response, send)
            nursery.cancel_scope.cancel()


class _Bridge:
    """The client of our WebSocket, on whose other side is ASGI's; it takes the place of `Http1` for a refusal too."""

    def __init__(self, receive: Receive, send: Send) -> None:
        ours, theirs = trio.socket.socketpair()
        self.server_end = trio.SocketStream(theirs)
        self.client_end = trio.SocketStream(ours)
        self._wire = Connection(ConnectionType.CLIENT)
        self._receive = receive
        self._send = send
        self._is_refused = False

    async def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Refuse the handshake."""
        self._is_refused = True
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        raw.append((b"content-length", b"%d" % len(body)))
        await self._send({"type": "websocket.http.response.start", "status": status, "headers": raw})
        await self._send({"type": "websocket.http.response.body", "body": body, "more_body": False})

    async def pass_frames(self) -> None:
        """Pass messages both ways, until the server's end is closed."""
        head = b""
        while b"\r\n\r\n" not in head:
            data = await self.client_end.receive_some()
            if not data:
                assert self._is_refused, head
                return
            head += data
        assert head.startswith(b"HTTP/1.1 101 "), head
        await self._send({"type": "websocket.accept"})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_to_server)
            await self._pass_to_client(head.partition(b"\r\n\r\n")[2])
            nursery.cancel_scope.cancel()

    async def _pass_to_client(self, data: bytes) -> None:
        parts: list[Any] = []
        while True:
            if data:
                self._wire.receive_data(data)
            for event in self._wire.events():
                if isinstance(event, Message):
                    parts.append(event.data)
                    if event.message_finished:
                        whole = "".join(parts) if isinstance(event, TextMessage) else b"".join(parts)
                        parts.clear()
                        await self._send(
                            {"type": "websocket.send", "text" if isinstance(whole, str) else "bytes": whole}
                        )
                elif isinstance(event, CloseConnection):
                    with contextlib.suppress(LocalProtocolError):
                        await self.client_end.send_all(self._wire.send(event.response()))
                    await self._send({"type": "websocket.close", "code": event.code, "reason": event.reason or ""})
            data = bytes(await self.client_end.receive_some())
            if not data:
                return

    async def _pass_to_server(self) -> None:
        while True:
            message = await self._receive()
            event: BytesMessage | TextMessage | CloseConnection
            if message["type"] == "websocket.disconnect":
                event = CloseConnection(code=message["code"] or 1005)
            elif message.get("bytes") is not None:
                event = BytesMessage(data=message["bytes"])
            else:
                event = TextMessage(data=message["text"])
            with contextlib.suppress(LocalProtocolError, trio.BrokenResourceError):
                await self.client_end.send_all(self._wire.send(event))
            if isinstance(event, CloseConnection):
                return


def _target(scope: dict[str, Any]) -> bytes:
    path, query = bytes(scope["raw_path"]), bytes(scope["query_string"])
    return path + b"?" + query if query else path


def _headers(scope: dict[str, Any]) -> Headers:
    return Headers((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])


async def _feed(call: Call, receive: Receive, scope: trio.CancelScope) -> None:
    """Give the request's body to its reader; a client that leaves cancels the call."""
    while (message := await receive())["type"] == "http.request":
        await call.body.put(message.get("body", b""))
        if not message.get("more_body", False):
            call.body.set_complete()
    scope.cancel()


async def _send(call: Call, response: Any, send: Send) -> None:
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in response.headers.items()]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    if call.request.method != "HEAD" and response.status_code not in (204, 304):
        try:
            async with response.response as pieces:
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": bytes(piece), "more_body": True})
        except SandboxdError:
            return  # the head is gone: only a cut connection can say so
    await call.body.linger()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _no_push(path: str, headers: Headers) -> None:
    """Nothing: HTTP/1.1 has no pushes."""
