"""openapi.json, made from the route table and the models."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ... import errors
from .. import problems
from ..access import Level
from .models import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..route import Route

_ARGUMENT: Final = re.compile(r"<([a-z]+)>")
#: Errors that every route can give; routes with access control add two.
_COMMON: Final = ("invalid-request", "internal-error")
_GUARDED: Final = ("unauthenticated", "access-denied")
_FLAGS: Final = frozenset({"fresh", "sandboxes", "recursive", "hidden", "follow"})
_NUMBERS: Final = frozenset({"limit", "from", "tail", "seen_bytes", "cols", "rows", "linger_s"})
_DESCRIPTIONS: Final = {
    "ref": "a sandbox' id or its unique name",
    "process": "a process' id",
    "sandbox": "a sandbox' id, or the name that it had at the time",
    "type": "types of events, with commas between",
    "port": "a TCP port of the sandbox",
    "context": "a code context's id",
    "run": "a run's id",
    "session": "a session's id",
    "path": "an absolute path in the sandbox, without '..'",
    "cursor": "`next` of the page before",
    "limit": "how many a page",
    "path_b64": "instead of `path`, for names that are no UTF-8: the bytes in base64",
    "mode": "the file's mode, octal; else the old one's, or 0644",
    "format": "tar, tar.gz or zip",
    "recursive": "true: with all that is in it",
    "include": "patterns of what is meant, with commas between",
    "exclude": "patterns of what is left out, with commas between",
    "hidden": "true: names that begin with a dot too",
    "cols": "the terminal's columns, 1 to 2000",
    "rows": "the terminal's rows, 1 to 2000",
    "command": "a line for `sh -c`; else the user's shell",
    "cwd": "where it starts, absolute",
    "user": "name or uid",
    "umask": "which permissions new files do not get, octal, such as 0027",
    "id": "a name of the caller's own for the process",
    "linger_s": "how long it goes on without a viewer; 300 seconds if not said",
    "fresh": "true: nothing of it was shown yet, so that no reset goes before what is replayed",
    "orphans": "`kill` or `keep` what it leaves behind",
    "follow": "true: of a file, what a link leads to, not the link; of a log, go on to the process' end",
    "from": "the offset to begin at; without it, what follows `Last-Event-ID`, or the beginning",
    "tail": "begin with the last so many lines",
    "encoding": "`utf-8` or `base64`",
    "sandboxes": "false: leave out what is told of each sandbox and each port",
    "seen_bytes": "output that the reader had before `from`, so that a gap can be told to the byte",
}


def document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """Return the OpenAPI document."""
    routes = tuple(routes)
    structs = {
        model
        for route in routes
        for model in (route.body, route.result)
        if isinstance(model, type) and issubclass(model, msgspec.Struct)
    }
    ordered = sorted(structs | {Problem}, key=lambda model: model.__name__)
    refs, components = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    schemas = dict(zip(ordered, refs, strict=True))
    components["Problem"]["properties"]["kind"]["enum"] = sorted(errors.kinds())
    paths: dict[str, Any] = {}
    for route in routes:
        path = _ARGUMENT.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "sandboxd", "version": version},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(route: Route, schemas: dict[type, dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": (route.handler.__doc__ or "").strip().splitlines()[0],
        "parameters": [
            *(_parameter(name, "path") for name in _ARGUMENT.findall(route.path)),
            *(_parameter(name, "query") for name in route.query),
        ],
        "responses": _responses(route, schemas),
    }
    if route.access is not Level.PUBLIC:
        operation["security"] = [{"token": []}]
    if route.body is not None:
        operation["requestBody"] = {"content": _content(route.body, schemas)}
    return operation


def _parameter(name: str, where: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": where,
        "required": where == "path",
        "description": _DESCRIPTIONS[name],
        "schema": {"type": "integer" if name in _NUMBERS else "boolean" if name in _FLAGS else "string"},
    }


def _responses(route: Route, schemas: dict[type, dict[str, Any]]) -> dict[str, Any]:
    good: dict[str, Any] = {"description": HTTPStatus(route.status).phrase}
    if route.result is not None:
        good["content"] = _content(route.result, schemas)
    responses = {str(route.status): good}
    kinds = (*_COMMON, *(() if route.access is Level.PUBLIC else _GUARDED), *route.kinds)
    for kind in kinds:
        status = str(errors.kinds()[kind].status)
        entry = responses.setdefault(
            status, {"description": "", "content": {problems.MEDIA_TYPE: {"schema": schemas[Problem]}}}
        )
        entry["description"] = ", ".join(filter(None, (entry["description"], kind)))
    return responses


def _content(model: type, schemas: dict[type, dict[str, Any]]) -> dict[str, Any]:
    if model is str:
        return {"text/plain": {"schema": {"type": "string"}}}
    if model is bytes:
        return {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {"application/json": {"schema": schemas.get(model, {"type": "object"})}}
