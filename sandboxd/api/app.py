"""The application: Quart's requests and responses, routing over the faces' tables, and our own dispatch."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from quart_trio import QuartTrio
from quart_trio.wrappers import TrioResponse
from werkzeug.exceptions import MethodNotAllowed as WerkzeugMethodNotAllowed

from ..errors import AccessDenied, InvalidRequest, MethodNotAllowed, RouteNotFound, SandboxdError, Unauthenticated
from ..metrics import Metrics
from . import socket_call
from .access import Caller, Level, Policy
from .bodies import Input
from .call import Call, DaemonFacts
from .faces import FACES, Faces, Found
from .http import target
from .http.body import ApiRequest
from .query import read as read_query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import trio
    from werkzeug.exceptions import HTTPException
    from werkzeug.sansio.request import Request

    from ..runtime.manager import Manager
    from .face import Face
    from .http.http1 import Http1, Upgrade


@dataclasses.dataclass(slots=True)  # not frozen: that would cost each request a microsecond
class Admission:
    """What a request's head asks for, and whether its caller is admitted.

    Attributes:
        refusal: why the caller is not admitted; the request's body must not be read then.
        is_known: whether the caller is authenticated. A route that is open to all does not ask.
    """

    found: Found
    refusal: SandboxdError | None
    is_known: bool


class Api(QuartTrio):
    """The daemon's HTTP application. `Exchange` calls its `answer`; it is not served over ASGI."""

    request_class = ApiRequest

    def __init__(
        self,
        manager: Manager,
        policy: Policy,
        facts: DaemonFacts,
        metrics: Metrics | None = None,
        faces: Iterable[Face] = FACES,
    ) -> None:
        super().__init__("sandboxd.api", static_folder=None)
        self.config["MAX_CONTENT_LENGTH"] = None  # bodies are bounded by what reads them
        self.manager = manager
        self.policy = policy
        self.facts = facts
        self.metrics = metrics or Metrics(manager, facts.version)
        self.faces = Faces(faces)

    def admit(self, request: Request, routed: str, caller: Caller | None, *, is_handshake: bool = False) -> Admission:
        """Return what the head asks for and whether the caller is admitted, without reading the body."""
        found = self.faces.find(request, routed)
        if caller is None:
            refusal: SandboxdError = AccessDenied("cannot authorize the request: its sender is unknown")
            return Admission(found, refusal, is_known=False)
        place = found.face.token
        try:
            if not self.policy.admits(caller):
                token = (place.of_handshake if is_handshake else place.of_request)(request)
                self.policy.check(caller, token, place.form)
        except (AccessDenied, Unauthenticated) as error:
            is_open = found.route is not None and found.route.access is Level.PUBLIC
            return Admission(found, None if is_open else error, is_known=False)
        return Admission(found, None, is_known=True)

    async def serve_socket(
        self,
        protocol: Http1,
        upgrade: Upgrade,
        caller: Caller | None,
        stream: trio.SocketStream,
        admitted: Callable[[], None],
    ) -> None:
        """Serve a request for a WebSocket until its end; calls `admitted` once the caller is admitted."""
        await socket_call.serve(self, protocol, upgrade, caller, stream, admitted)

    async def answer(self, call: Call, admission: Admission) -> TrioResponse:
        """Check access and parameters, run the handler, and report every error in the form of the request's face."""
        found = admission.found
        try:
            arguments = self.prepare(call.request, admission)
            assert found.route is not None  # noqa: S101 - `prepare` has raised otherwise
            if found.route.body is None:
                call.body.discard()
            response: TrioResponse = await found.route.handler(call, **arguments)
        except Exception as error:
            told = found.face.tell(error)
            response = TrioResponse(told.body, told.status, told.headers)
        name = "none" if found.route is None else found.route.name
        self.manager.counters.answers[name, response.status_code] += 1
        return response

    def prepare(self, request: Request, admission: Admission, *, is_handshake: bool = False) -> dict[str, Any]:
        """Check a request's head, and return the arguments of its handler.

        Where the path, or a face, names a sandbox, that sandbox itself is one of them.

        Raises:
            SandboxdError: why there is no answer. A caller who is not admitted does not learn which routes and
                sandboxes exist.
        """
        if admission.refusal is not None:
            raise admission.refusal
        target.check(request.path, request.query_string)
        _, route, given, missing = admission.found
        if missing is not None or route is None:
            raise _routing_error(missing, request, is_handshake=is_handshake)
        if route.websocket is not is_handshake:
            if is_handshake:
                why = f"cannot open a WebSocket at {request.path[:200]}: this route does not support WebSockets"
            else:
                why = f"cannot answer {request.path[:200]}: this route accepts only WebSockets"
            raise InvalidRequest(why)
        arguments = dict(given)
        if route.query is not Input:
            arguments["query"] = read_query(request, route.query)
        elif request.query_string:
            read_query(request, Input)  # which has no parameters
        if "ref" in arguments:
            arguments["sandbox"] = self.manager.registry.find(arguments.pop("ref"))
        return arguments


def _routing_error(error: HTTPException | None, request: Request, *, is_handshake: bool) -> SandboxdError:
    if isinstance(error, WerkzeugMethodNotAllowed) and not is_handshake:
        allowed = sorted(error.valid_methods or ())
        return MethodNotAllowed(
            f"cannot {request.method[:20]} {request.path[:200]}: this route supports {', '.join(allowed)}",
            allow=allowed,
        )
    if error is None or error.code == 404 or is_handshake:
        return RouteNotFound(f"cannot find {request.path[:200]}: there is no such route", path=request.path[:200])
    return InvalidRequest(f"cannot route {request.path[:200]}: {error.name}")


__all__ = ["Api", "Caller", "DaemonFacts", "Policy"]
