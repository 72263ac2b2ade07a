"""The registry of faces: whose a request is, and which route of that face's it is for."""

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
        route: None where the face has no such route, which `missing` says.
        arguments: its handler's, from the path and from what the face has seen in the head.
    """

    face: Face
    route: Route | None
    arguments: Mapping[str, Any]
    missing: HTTPException | None


class Faces:
    """The faces of one application, each with its table ready to be searched."""

    def __init__(self, faces: Iterable[Face] = FACES) -> None:
        self._tables = [(face, _table(face)) for face in faces]
        names = [route.name for face, _ in self._tables for route in face.routes]
        if len(set(names)) != len(names):
            raise ValueError("two routes have one name")

    def __repr__(self) -> str:
        return f"<Faces {' '.join(face.name for face, _ in self._tables)}>"

    def find(self, request: Request, routed: str) -> Found:
        """Return what a request is for; `routed` is its path as the router takes it (http/target.py)."""
        for entry in self._tables:
            given = entry[0].claim(request)
            if given is not None:
                break
        else:
            given = {}  # nobody's: the last one tells the caller
        face, table = entry
        try:
            route, arguments = table.match(routed, request.method)
        except HTTPException as error:
            return Found(face, None, {}, error)
        return Found(face, route, {**target.arguments(arguments), **given}, None)


def _table(face: Face) -> MapAdapter:
    rules = [Rule(route.path, endpoint=route, methods=[route.method]) for route in face.routes]
    converters = {"path": target.AnyPath}
    return Map(rules, strict_slashes=False, merge_slashes=False, converters=converters).bind("")
