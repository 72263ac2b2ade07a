"""A request for a WebSocket under way: routed, let in and refused by the same rules as any other."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
from werkzeug.exceptions import HTTPException
from werkzeug.sansio.request import Request

from ..errors import AccessDenied, InvalidRequest, RouteNotFound, SandboxdError
from . import paths, problems
from .access import Level
from .call import JSON_TYPE, Call
from .cloudflare import problems as cloudflare_problems
from .cloudflare import tokens as cloudflare_tokens
from .websocket import Gone, WebSocket, check_handshake

if TYPE_CHECKING:
    import trio

    from .access import Caller
    from .app import Api
    from .http1 import Http1, Upgrade

_log = logging.getLogger(__name__)


class SocketCall(Call):
    """What the handler of a WebSocket gets: the request, the domain, and the socket, which it must `accept`."""

    def __init__(self, request: Request, api: Api, socket: WebSocket, caller: Caller | None = None) -> None:
        super().__init__(request, api.manager, api.facts, api.metrics)  # type: ignore[arg-type]  # query and headers only
        self.socket = socket
        self.api = api
        self.caller = caller


async def serve(api: Api, protocol: Http1, upgrade: Upgrade, caller: Caller | None, stream: trio.SocketStream) -> None:
    """Serve a request for a WebSocket to its end; one that cannot be served is answered with a problem."""
    path, _, query = upgrade.target.partition(b"?")
    routed = paths.routed(path.decode("latin-1"))
    request = Request("GET", "ws", None, "", paths.plain(routed), query, upgrade.headers, None)
    socket: WebSocket | None = None
    try:
        route, arguments = _find(api, request, routed, caller)
        socket = WebSocket(stream, upgrade.early, check_handshake(upgrade.headers))
        call = SocketCall(request, api, socket, caller)
        call.check_query(route.query)
        async with call.stack:
            await route.handler(call, **arguments)
    except Gone:
        return
    except Exception as error:
        await _refuse(protocol, socket, request.path, error)


async def _refuse(protocol: Http1, socket: WebSocket | None, path: str, error: Exception) -> None:
    if cloudflare_problems.is_face(path):
        status, shown = cloudflare_problems.tell(path, error)
        kind = str(shown["code"])
        answer = (status, msgspec.json.encode(shown, enc_hook=str), {"Content-Type": JSON_TYPE})
    else:
        problem = problems.known(error)
        kind, answer = problem.kind, (problems.status_of(problem), problems.to_json(problem), problems.headers(problem))
    if socket is not None and socket.is_accepted:
        await socket.close(1011, kind)
    else:
        await protocol.answer(*answer)


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
    if failure is not None:
        raise failure
    if route is None or not route.websocket:
        raise InvalidRequest(f"cannot open a WebSocket at {request.path[:200]}: it is none")
    return route, paths.arguments(arguments)
