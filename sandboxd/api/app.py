"""The application: Quart's routing over our table, our own dispatch, and a connection that bounds bodies."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import trio
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioResponse
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as WerkzeugMethodNotAllowed

from ..errors import AccessDenied, InvalidRequest, MethodNotAllowed, RouteNotFound, SandboxdError
from ..metrics import Metrics
from . import problems
from .access import Caller, Level, Policy
from .body import ApiRequest
from .call import Call, Facts
from .cloudflare import problems as cloudflare_problems
from .cloudflare import routes as cloudflare_routes
from .routes import ROUTES, Route

if TYPE_CHECKING:
    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
    from quart.ctx import RequestContext

    from ..runtime.manager import Manager

_log = logging.getLogger(__name__)

#: How long the head of a streamed answer waits for the first piece.
HEAD_WAITS_S: Final = 0.005


class _Connection(TrioASGIHTTPConnection):
    """One request: its messages in one task, its handler in another; a client that leaves cancels the handler."""

    #: hypercorn sends "disconnect" also while it takes the last piece of an answer; that one must not cancel it.
    _answered = False

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve the request."""
        request: Any = self._create_request_from_scope(send)
        app: Any = self.app  # Api below
        call = Call(request, app.manager, app.facts, app.metrics)
        request.scope["sandboxd.call"] = call
        if not request.content_length and "Transfer-Encoding" not in request.headers:
            call.body.set_complete()  # it has none: do not wait for the message that says so
        wire: Any = self.scope.get("state", {}).get("wire")
        if wire is not None:
            wire.body = call.body
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._receive, nursery, request, receive)
                async with call.stack:
                    response = await self.app.handle_request(request)
                    try:
                        await self._answer(send, request, response, nursery)
                    except SandboxdError as error:
                        # The headers are gone; hypercorn cuts a connection whose answer has no end.
                        _log.warning("Cut the answer to %s %s: %s", request.method, request.path[:200], error)
                nursery.cancel_scope.cancel()
        finally:
            call.body.discard()  # whoever reads the connection must not wait for room

    async def _receive(self, nursery: trio.Nursery, request: ApiRequest, receive: ASGIReceiveCallable) -> None:
        body: Any = request.body
        while True:
            message: Any = await receive()
            if message["type"] == "http.disconnect":
                break
            await body.put(message.get("body", b""))
            if not message.get("more_body", False):
                body.set_complete()
        if not self._answered:
            nursery.cancel_scope.cancel()

    async def _answer(
        self,
        send: ASGISendCallable,
        request: ApiRequest,
        response: Any,  # noqa: ANN401
        nursery: trio.Nursery,
    ) -> None:
        """Send the answer in as few writes as can be: each wakes the client.

        Its head waits a moment for the first piece, and a piece that says that it is the last takes the end with it.
        """
        body: Any = request.body
        wire: Any = self.scope.get("state", {}).get("wire")
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in response.headers.items()]
        start: Any = {"type": "http.response.start", "status": response.status_code, "headers": headers}
        last: Any = {"type": "http.response.body", "body": b"", "more_body": False}
        if body.is_complete and hasattr(response.response, "data"):
            if wire is not None:
                wire.hold()
            await send(start)
            last["body"] = response.response.data
            self._answered = True
            await send(last)
            return
        if wire is not None:
            wire.hold()
            nursery.start_soon(wire.release_after, HEAD_WAITS_S)
        await send(start)
        if request.method != "HEAD":
            async with response.response as pieces:
                async for piece in pieces:
                    is_last = body.is_complete and getattr(response.response, "is_over", False)
                    if is_last and wire is not None:
                        wire.hold()
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                    if not is_last and wire is not None:
                        await wire.release()
        if not body.is_complete:
            await body.linger()
        self._answered = True
        await send(last)


class Api(QuartTrio):
    """The daemon's HTTP application."""

    asgi_http_class = _Connection
    request_class = ApiRequest

    def __init__(self, manager: Manager, policy: Policy, facts: Facts, metrics: Metrics | None = None) -> None:
        super().__init__("sandboxd.api", static_folder=None)
        self.config["MAX_CONTENT_LENGTH"] = None  # bodies are bounded by what reads them
        self.manager = manager
        self.policy = policy
        self.facts = facts
        self.metrics = metrics or Metrics(manager, facts.version)
        self.routes: dict[str, Route] = {}
        self.url_map.strict_slashes = False
        self.url_map.merge_slashes = False
        for route in (*ROUTES, *cloudflare_routes.ROUTES):
            self.routes[route.name] = route
            self.add_url_rule(
                route.path, route.name, route.handler, methods=[route.method], provide_automatic_options=False
            )

    async def full_dispatch_request(self, request_context: RequestContext | None = None) -> Any:  # noqa: ANN401
        """Check access and parameters, run the handler, and turn every error into a problem."""
        assert request_context is not None  # noqa: S101 - handle_request gives it
        request: Any = request_context.request
        try:
            response = await self._dispatch(request)
        except Exception as error:
            if cloudflare_problems.is_face(request.path):
                response = cloudflare_problems.response(request.path, error)
            else:
                response = problem_response(problems.known(error))
        name = request.url_rule.endpoint if request.url_rule is not None else "none"
        self.manager.counters.answers[name, response.status_code] += 1
        return response

    async def _dispatch(self, request: Any) -> TrioResponse:  # noqa: ANN401 - Quart types its own class
        route = self.routes.get(request.url_rule.endpoint) if request.url_rule is not None else None
        caller = request.scope.get("state", {}).get("caller")
        if caller is None:
            raise AccessDenied("cannot let the request in: nobody knows who sent it")
        self.policy.check(Level.CALLER if route is None else route.access, caller, request.headers)
        if request.routing_exception is not None:
            raise _routing_error(request.routing_exception, request)
        assert route is not None  # noqa: S101 - Quart's map holds our rules only
        if route.websocket:
            raise InvalidRequest(f"cannot answer {request.path[:200]}: it is for WebSockets")
        call: Call = request.scope["sandboxd.call"]
        call.check_query(route.query)
        if route.body is None:
            call.body.discard()
        answer: TrioResponse = await route.handler(call, **(request.view_args or {}))
        return answer


def _routing_error(error: HTTPException, request: ApiRequest) -> SandboxdError:
    if isinstance(error, WerkzeugMethodNotAllowed):
        allowed = sorted(error.valid_methods or ())
        return MethodNotAllowed(
            f"cannot {request.method[:20]} {request.path[:200]}: the methods are {', '.join(allowed)}", allow=allowed
        )
    if error.code == 404:
        return RouteNotFound(f"cannot find {request.path[:200]}: there is no such route", path=request.path[:200])
    return InvalidRequest(f"cannot route {request.path[:200]}: {error.name}")


def problem_response(error: SandboxdError) -> TrioResponse:
    """Return an error as an answer."""
    return TrioResponse(problems.to_json(error), problems.status_of(error), problems.headers(error))


__all__ = ["Api", "Caller", "Facts", "Policy", "problem_response"]
