"""openapi.json, made from the route table and the models."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ... import errors
from .. import problems, query
from ..access import Level
from .models import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..route import Route

_ARGUMENT: Final = re.compile(r"<([a-z]+)>")
#: Errors that every route can give; routes with access control add two.
_COMMON: Final = ("invalid-request", "internal-error")
_GUARDED: Final = ("unauthenticated", "access-denied")
#: What a path's arguments are. A query's parameters say it themselves.
_ARGUMENTS: Final = {
    "ref": "a sandbox's id or name",
    "process": "a process id",
    "port": "a TCP port of the sandbox",
    "context": "a code context's id",
    "run": "a run's id",
    "session": "a session id",
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
            *(_argument(name) for name in _ARGUMENT.findall(route.path)),
            *query.parameters(route.query),
        ],
        "responses": _responses(route, schemas),
    }
    if route.access is not Level.PUBLIC:
        operation["security"] = [{"token": []}]
    if route.body is not None:
        operation["requestBody"] = {"content": _content(route.body, schemas)}
    return operation


def _argument(name: str) -> dict[str, Any]:
    schema = {"type": "string"}
    return {"name": name, "in": "path", "required": True, "description": _ARGUMENTS[name], "schema": schema}


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
