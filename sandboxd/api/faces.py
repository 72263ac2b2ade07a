"""The registry of faces: finds the face and the route that serve a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule

from .cloudflare.faces import BRIDGE, CONTAINER
from .http import target
from .v1.face import V1

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from werkzeug.routing import MapAdapter
    from werkzeug.sansio.request import Request

    from .face import Face
    from .route import Route

#: The first that claims a request has it; the last one claims all.
FACES: Final[tuple[Face, ...]] = (BRIDGE, CONTAINER, V1)


class Found(NamedTuple):
    """What a request's head asks for.

    Attributes:
        route: the route; None if the face has no such route, which `missing` then reports.
        arguments: the handler's arguments, from the path and from the face's `claim`.
    """

    face: Face
    route: Route | None
    arguments: Mapping[str, Any]
    missing: HTTPException | None


class Faces:
    """The faces of one application, each with its compiled route table."""

    def __init__(self, faces: Iterable[Face] = FACES) -> None:
        self._tables = [(face, _table(face)) for face in faces]
        names = [route.name for face, _ in self._tables for route in face.routes]
        if len(set(names)) != len(names):
            raise ValueError("two routes have one name")

    def __repr__(self) -> str:
        return f"<Faces {' '.join(face.name for face, _ in self._tables)}>"

    def find(self, request: Request, routed: str) -> Found:
        """Return the face and route for a request; `routed` is its path as the router reads it (http/target.py)."""
        for entry in self._tables:
            given = entry[0].claim(request)
            if given is not None:
                break
        else:
            given = {}  # nobody's: the last one tells the caller
        face, table = entry
        try:
            route, matched = table.match(routed, request.method)
        except HTTPException as error:
            return Found(face, None, {}, error)
        arguments = target.arguments(matched)
        arguments.update(given)
        return Found(face, route, arguments, None)


def _table(face: Face) -> MapAdapter:
    rules = [Rule(route.path, endpoint=route, methods=[route.method]) for route in face.routes]
    converters = {"path": target.AnyPath}
    return Map(rules, strict_slashes=False, merge_slashes=False, converters=converters).bind("")
