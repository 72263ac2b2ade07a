"""A WebSocket request in progress: routed, admitted and refused by the same rules as any other."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from werkzeug.sansio.request import Request

from .call import Call
from .http import target
from .http.websocket import Gone, WebSocket, check_handshake

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from .access import Caller
    from .app import Api
    from .faces import Found
    from .http.http1 import Http1, Upgrade


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
    """Serve a WebSocket request until its end; an error before the handshake is answered in the face's form.

    Calls `admitted` once the caller is admitted.
    """
    routed, query = target.split(upgrade.target)
    request = Request("GET", "ws", None, "", target.plain(routed), query, upgrade.headers, None)
    admission = api.admit(request, routed, caller, is_handshake=True)
    try:
        arguments = api.prepare(request, admission, is_handshake=True)
        admitted()
        socket = WebSocket(stream, upgrade.early, check_handshake(upgrade.headers))
        call = SocketCall(request, api, socket, caller)
        await socket.serve(functools.partial(_handle, call, admission.found, arguments))
    except Exception as error:
        told = admission.found.face.tell(error)
        await protocol.answer(told.status, told.body, told.headers)


async def _handle(call: SocketCall, found: Found, arguments: dict[str, Any]) -> None:
    """Run a handler; an error after the handshake closes the socket with the error's close code."""
    assert found.route is not None  # noqa: S101 - `prepare` has raised otherwise
    try:
        async with call.stack:
            await found.route.handler(call, **arguments)
    except Gone:
        return
    except Exception as error:
        if not call.socket.is_accepted:
            raise
        told = found.face.tell(error)
        await call.socket.close(told.close_code, told.kind)
