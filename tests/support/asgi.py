"""The API over the stock ASGI server: hypercorn as it is meant to be used, by nothing but its interface.

The daemon's server is built on hypercorn's insides (api/http/hypercorn_parts.py). Should an upgrade take one of them
away for good, this is what is left: the same application behind ASGI. The API's tests run over both, so it is known to
work. It lacks what is promised to strangers (bounds of heads and connections, turns, lingering) and WebSockets.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import hypercorn.trio
import trio
from hypercorn.config import Config, Sockets
from werkzeug.datastructures import Headers

from sandboxd.api.access import Caller
from sandboxd.api.call import Call
from sandboxd.api.http import target
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

    async def _answer(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        path, query = scope["raw_path"], scope["query_string"]
        routed, query = target.split(path + b"?" + query if query else path)
        headers = Headers((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
        parts: Any = (scope["method"], "http", target.plain(routed), query, headers, "", scope["http_version"], scope)
        request: Any = self._api.request_class(*parts, send_push_promise=functools.partial(_no_push))
        call = Call(request, self._api.manager, self._api.facts, self._api.metrics, routed)
        admission = self._api.admit(request, routed, self._local if scope["client"] is None else Caller())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_feed, call, receive, nursery.cancel_scope)
            async with call.stack:
                response = await self._api.answer(call, admission)
                await _send(call, response, send)
            nursery.cancel_scope.cancel()


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
