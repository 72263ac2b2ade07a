"""A request for a WebSocket under way: routed, let in and refused by the same rules as any other."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import HTTPException
from werkzeug.sansio.request import Request

from ..errors import AccessDenied, InvalidRequest, RouteNotFound, SandboxdError
from . import jsontext, problems
from .access import Level
from .call import JSON_TYPE, Call
from .cloudflare import problems as cloudflare_problems
from .cloudflare import tokens as cloudflare_tokens
from .http import target
from .http.websocket import Gone, WebSocket, check_handshake

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import trio

    from .access import Caller
    from .app import Api
    from .http.http1 import Http1, Upgrade

_log = logging.getLogger(__name__)


class SocketCall(Call):
    """What the handler of a WebSocket gets: the request, the domain, and the socket, which it must `accept`."""

    def __init__(self, request: Request, api: Api, socket: WebSocket, caller: Caller | None = None) -> None:
        super().__init__(request, api.manager, api.facts, api.metrics)  # type: ignore[arg-type]  # query and headers only
        self.socket = socket
        self.api = api
        self.caller = caller


async def serve(
    api: Api,
    protocol: Http1,
    upgrade: Upgrade,
    caller: Caller | None,
    stream: trio.SocketStream,
    admitted: Callable[[], None],
) -> None:
    """Serve a request for a WebSocket to its end; one that cannot be served is answered with a problem.

    `admitted` is called once the caller has been let in.
    """
    routed, query = target.split(upgrade.target)
    request = Request("GET", "ws", None, "", target.plain(routed), query, upgrade.headers, None)
    try:
        route, arguments = _find(api, request, routed, caller)
        admitted()
        socket = WebSocket(stream, upgrade.early, check_handshake(upgrade.headers))
        call = SocketCall(request, api, socket, caller)
        call.check_query(route.query)
        await socket.serve(functools.partial(_handle, call, route.handler, api.bind(arguments)))
    except Exception as error:
        await protocol.answer(*_told(request.path, error)[1])


async def _handle(call: SocketCall, handler: Callable[..., Awaitable[None]], arguments: dict[str, Any]) -> None:
    """Run a handler; what fails after the handshake is answered with a close code."""
    try:
        async with call.stack:
            await handler(call, **arguments)
    except Gone:
        return
    except Exception as error:
        if not call.socket.is_accepted:
            raise
        await call.socket.close(1011, _told(call.request.path, error)[0])


def _told(path: str, error: Exception) -> tuple[str, tuple[int, bytes, dict[str, str]]]:
    """Return an error's kind and the answer that tells of it: status, body, headers."""
    if cloudflare_problems.is_face(path):
        status, shown = cloudflare_problems.tell(path, error)
        return str(shown["code"]), (status, jsontext.encode(shown), {"Content-Type": JSON_TYPE})
    problem = problems.known(error)
    return problem.kind, (problem.status, problems.to_json(problem), problems.headers(problem))


def _find(api: Api, request: Request, routed: str, caller: Caller | None) -> tuple[Any, dict[str, Any]]:
    """Return the route and its arguments, once the caller may have it.

    Raises:
        SandboxdError: why not; who may not ask at all does not hear what there is.
    """
    if caller is None:
        raise AccessDenied("cannot let the request in: nobody knows who sent it")
    failure: SandboxdError | None = None
    route = None
    arguments: Any = {}
    try:
        name, arguments = api.url_map.bind("").match(routed, "GET")
        route = api.routes[name]
    except HTTPException:
        failure = RouteNotFound(f"cannot find {request.path[:200]}: there is no such route", path=request.path[:200])
    api.policy.check(Level.CALLER if route is None else route.access, caller, cloudflare_tokens.headers_of(request))
    target.check(request.path, request.query_string)
    if failure is not None:
        raise failure
    if route is None or not route.websocket:
        raise InvalidRequest(f"cannot open a WebSocket at {request.path[:200]}: it is none")
    return route, target.arguments(arguments)
