"""The application: Quart's requests, responses and routing over our table, and our own dispatch."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from quart_trio import QuartTrio
from quart_trio.wrappers import TrioResponse
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as WerkzeugMethodNotAllowed

from ..errors import AccessDenied, InvalidRequest, MethodNotAllowed, RouteNotFound, SandboxdError
from ..metrics import Metrics
from . import problems
from .access import Caller, Level, Policy
from .call import Call, DaemonFacts
from .cloudflare import problems as cloudflare_problems
from .cloudflare import routes as cloudflare_routes
from .http import target
from .http.body import ApiRequest
from .v1.routes import ROUTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..runtime.manager import Manager
    from .route import Route


@dataclasses.dataclass(slots=True)  # not frozen: that would cost each request a microsecond
class Admission:
    """What a request's head asks for, and whether its caller may have it.

    Attributes:
        route: None where there is no such route, which `missing` says.
        refusal: why the caller is not let in; nothing of the request's body may be read then.
        is_known: whether the caller has shown who it is. A route that is open to all asks nobody.
    """

    name: str
    arguments: Mapping[str, Any]
    route: Route | None
    missing: HTTPException | None
    refusal: SandboxdError | None
    is_known: bool


class Api(QuartTrio):
    """The daemon's HTTP application. `Exchange` asks it by `answer`; it is not to be served over ASGI."""

    request_class = ApiRequest

    def __init__(self, manager: Manager, policy: Policy, facts: DaemonFacts, metrics: Metrics | None = None) -> None:
        super().__init__("sandboxd.api", static_folder=None)
        self.config["MAX_CONTENT_LENGTH"] = None  # bodies are bounded by what reads them
        self.manager = manager
        self.policy = policy
        self.facts = facts
        self.metrics = metrics or Metrics(manager, facts.version)
        self.routes: dict[str, Route] = {}
        self.url_map.strict_slashes = False
        self.url_map.merge_slashes = False
        self.url_map.converters["path"] = target.AnyPath
        for route in (*ROUTES, *cloudflare_routes.ROUTES):
            self.routes[route.name] = route
            self.add_url_rule(
                route.path, route.name, route.handler, methods=[route.method], provide_automatic_options=False
            )

        self._adapter = self.url_map.bind("")

    def admit(self, call: Call, caller: Caller | None) -> Admission:
        """Return what the head asks for and whether the caller may have it; reads nothing of the body."""
        name = "none"
        arguments: Mapping[str, Any] = {}
        missing: HTTPException | None = None
        try:
            name, found = self._adapter.match(call.routed, call.request.method)
            arguments = target.arguments(found)
        except HTTPException as error:
            missing = error
        route = self.routes.get(name)
        known = caller is not None and self.policy.admits(caller)
        refusal = None if known else self._refusal(call, caller)
        is_open = route is not None and route.access is Level.PUBLIC and caller is not None
        return Admission(name, arguments, route, missing, None if is_open else refusal, refusal is None)

    def _refusal(self, call: Call, caller: Caller | None) -> SandboxdError | None:
        """Return why a caller of whom the kernel tells nothing is not let in; None if it shows the token."""
        if caller is None:
            return AccessDenied("cannot let the request in: nobody knows who sent it")
        try:
            self.policy.check(Level.CALLER, caller, call.request.headers)
        except AccessDenied as error:
            return error
        return None

    async def answer(self, call: Call, admission: Admission) -> TrioResponse:
        """Check access and parameters, run the handler, and turn every error into a problem."""
        path = call.request.path
        try:
            response = await self._dispatch(call, admission)
        except Exception as error:
            if cloudflare_problems.is_face(path):
                response = cloudflare_problems.response(path, error)
            else:
                response = problem_response(problems.known(error))
        self.manager.counters.answers[admission.name, response.status_code] += 1
        return response

    async def _dispatch(self, call: Call, admission: Admission) -> TrioResponse:
        request, route = call.request, admission.route
        if admission.refusal is not None:
            raise admission.refusal
        target.check(request.path, request.query_string)
        if admission.missing is not None:
            raise _routing_error(admission.missing, request)
        assert route is not None  # noqa: S101 - the map holds our rules only
        if route.websocket:
            raise InvalidRequest(f"cannot answer {request.path[:200]}: it is for WebSockets")
        call.check_query(route.query)
        if route.body is None:
            call.body.discard()
        answer: TrioResponse = await route.handler(call, **self.bind(admission.arguments))
        return answer

    def bind(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a route's handler is called with: where the path names a sandbox, that sandbox itself.

        Raises:
            SandboxNotFound: there is none.
        """
        bound = dict(arguments)
        if "ref" in bound:
            bound["sandbox"] = self.manager.registry.find(bound.pop("ref"))
        return bound


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
    return TrioResponse(problems.to_json(error), error.status, problems.headers(error))


__all__ = ["Api", "Caller", "DaemonFacts", "Policy", "problem_response"]
