"""WS …/ws: many requests of the container's API over one WebSocket: the npm client's transport "websocket".

Text messages are JSON. From the client `{type: "request", id, method, path, body?, headers?}` and
`{type: "cancel", id}`; to it `{type: "response", id, status, body?, done}`, `{type: "stream", id, data}` for each
server-sent event, and `{type: "error", id?, code, message, status}`. A request takes the same way as over HTTP, from
the routing on; a client that leaves ends what it asked for, as one that closes a connection does.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio
from werkzeug.datastructures import Headers

from ...errors import InvalidRequest
from ...wire.sse import SseDecoder
from .. import jsontext
from .. import problems as native
from ..call import JSON_TYPE, Call
from ..http import target
from ..http.websocket import Gone, parse_json
from ..pieces import STEP, each, encode, joined
from . import names, problems, tokens
from .container_write import MAX_HELD
from .problems import Refusal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable

    from ..app import Api
    from ..socket_call import SocketCall

#: Requests that one connection may have under way.
MAX_REQUESTS: Final = 64
#: One message, which is held as a whole: a file of 40 MiB in base64, and a request around it.
MAX_MESSAGE_BYTES: Final = MAX_HELD + 64 * 1024
#: One event of a stream: a result's formats (10 MiB), each character of which JSON may write as six.
MAX_EVENT_BYTES: Final = 64 * 1024 * 1024
#: What their bodies may have together; the next request waits for room, and what comes behind it does too.
MAX_BODIES_BYTES: Final = 2 * MAX_HELD
_METHODS: Final = frozenset(("GET", "POST", "DELETE", "PUT", "PATCH"))
_OK: Final = 200


async def serve(call: SocketCall, name: str, query: tokens.SocketQuery) -> None:
    """Serve requests until the client leaves."""
    del query  # its token was looked at
    names.check_container_id(name)
    call.socket.max_message_bytes = MAX_MESSAGE_BYTES
    await call.socket.accept()
    async with trio.open_nursery() as nursery:
        client = _Client(call, name, nursery)
        try:
            while True:
                await client.take(await call.socket.receive())
        except Gone:
            nursery.cancel_scope.cancel()


class _Client:
    """One connection, and its requests under way by their ids."""

    def __init__(self, call: SocketCall, name: str, nursery: trio.Nursery) -> None:
        self._call = call
        self._prefix = f"/cloudflare/sandboxes/{name}"
        self._nursery = nursery
        self._running: dict[str, trio.CancelScope] = {}
        self._body_bytes = 0
        self._room = trio.Event()

    async def take(self, message: bytes | str) -> None:
        """Take the next message."""
        given: dict[str, Any] = {}
        try:
            if isinstance(message, bytes):
                raise Refusal("VALIDATION_FAILED", "cannot understand the message: it is not text")
            given = parse_json(message)
            await self._on_request(given)
        except (Refusal, InvalidRequest) as error:
            shown = {"type": "error", "code": "INVALID_REQUEST", "message": error.message, "status": 400}
            named = {"id": given["id"]} if isinstance(given.get("id"), str) else {}
            await self._call.socket.send_json({**shown, **named})

    async def _on_request(self, given: dict[str, Any]) -> None:
        kind, name = given.get("type"), given.get("id")
        if not isinstance(name, str) or not 0 < len(name) <= 128:
            raise Refusal("VALIDATION_FAILED", "cannot understand the message: it has no id")
        if kind == "cancel":
            if name in self._running:
                self._running[name].cancel()
            return
        method, path = given.get("method"), given.get("path")
        if kind != "request" or method not in _METHODS or not isinstance(path, str) or not path.startswith("/"):
            raise Refusal("VALIDATION_FAILED", "cannot understand the message: it is not a request")
        if name in self._running or len(self._running) >= MAX_REQUESTS:
            raise Refusal(
                "VALIDATION_FAILED", "cannot accept the request: its id is in use, or too many requests are under way"
            )
        body = b"" if given.get("body") is None else _body(given["body"])
        while self._body_bytes and self._body_bytes + len(body) > MAX_BODIES_BYTES:
            self._room = trio.Event()
            await self._room.wait()
        self._body_bytes += len(body)
        self._running[name] = trio.CancelScope()
        self._nursery.start_soon(self._serve, name, method, path, body)

    async def _serve(self, name: str, method: str, path: str, body: bytes) -> None:
        try:
            with self._running[name]:
                await self._answer(name, method, path, body)
        except Gone:
            self._nursery.cancel_scope.cancel()
        except Exception as error:  # after the answer began: over HTTP the connection would be cut
            shown = problems.container(native.known(error))[1]
            told = {"type": "error", "id": name, "code": shown["code"], "message": shown["message"]}
            with contextlib.suppress(Gone):
                await self._call.socket.send_json({**told, "status": shown["httpStatus"]})
        finally:
            del self._running[name]
            self._body_bytes -= len(body)
            self._room.set()

    async def _answer(self, name: str, method: str, path: str, body: bytes) -> None:
        api: Any = self._call.api
        request = self._request(api, method, path, body)
        inner = Call(request, api.manager, api.facts, api.metrics, self._split(path)[0])
        inner.body.load(body)
        async with inner.stack:
            response = await api.answer(inner, api.admit(inner.request, inner.routed, self._call.caller))
            if hasattr(response.response, "data"):
                shown = {"type": "response", "id": name, "status": response.status_code, "done": True}
                await self._call.socket.send_json({**shown, "body": _value(response.response.data)})
                return
            decoder = SseDecoder(MAX_EVENT_BYTES)
            async with response.response as pieces:
                if response.mimetype == JSON_TYPE:
                    await self._send_whole(name, _large(name, response.status_code, pieces))
                    return
                async for piece in pieces:
                    for event in decoder.feed(piece):
                        await self._tell(name, event.data)
            await self._call.socket.send_json({"type": "response", "id": name, "status": _OK, "done": True})

    async def _tell(self, name: str, data: str) -> None:
        """Send an event, a large one in parts: encoding it takes a while."""
        message = {"type": "stream", "id": name, "data": data}
        if len(data) > STEP:
            await self._send_whole(name, each(joined(encode(message))))
        else:
            await self._call.socket.send_json(message)

    async def _send_whole(self, name: str, parts: AsyncGenerator[bytes, None]) -> None:
        """Send a message in parts; to cancel its request takes effect behind it."""
        scope, meanwhile = self._running[name], trio.CancelScope()
        self._running[name] = meanwhile
        async with contextlib.aclosing(parts):
            await self._call.socket.send_text(parts)
        self._running[name] = scope
        if meanwhile.cancel_called:
            scope.cancel()

    def _split(self, path: str) -> tuple[str, bytes]:
        routed, query = target.split(path.encode())
        return self._prefix + routed, query

    def _request(self, api: Api, method: str, path: str, body: bytes) -> Any:  # noqa: ANN401 - Quart's own class
        """Return the request that the message stands for; who sends it was asked at the handshake."""
        routed, query = self._split(path)
        outer: Any = self._call.request
        headers = Headers([("Content-Type", JSON_TYPE), ("Content-Length", str(len(body)))])
        token = tokens.of_handshake(outer)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        scope: Any = {"type": "http"}
        return api.request_class(
            *(method, "http", target.plain(routed), query, headers, "", "1.1", scope),
            send_push_promise=functools.partial(_no_push),
        )


async def _no_push(path: str, headers: Headers) -> None:
    """Nothing: there is nowhere to push to."""


async def _large(name: str, status: int, body: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """Give the message of an answer that is made piece by piece."""
    head = jsontext.encode({"type": "response", "id": name, "status": status, "done": True})
    yield head.removesuffix(b"}") + b',"body":'
    async for piece in body:
        yield piece
    yield b"}"


def _body(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    try:
        return jsontext.encode(value)
    except RecursionError:
        raise InvalidRequest("cannot accept the request: its body is nested too deeply") from None


def _value(data: bytes) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return msgspec.Raw(data) if msgspec.json.decode(data, type=msgspec.Raw) is not None else None
    except msgspec.DecodeError:
        return data.decode("utf-8", "replace")
