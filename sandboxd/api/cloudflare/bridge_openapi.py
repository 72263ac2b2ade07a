"""The bridge's OpenAPI document, made from its routes."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from .. import query
from ..access import Level

if TYPE_CHECKING:
    from ..route import Route

#: Filled by `bridge_routes`, whose handlers use this module.
ROUTES: Final[list[Route]] = []
_ARGUMENT: Final = re.compile(r"<(?:path:)?([a-z]+)>")
_NO_WORD: Final = re.compile("[^a-z0-9]+")
_DESCRIPTIONS: Final = {
    "name": "a sandbox id, 1 to 63 characters of a-z and 2-7; the sandbox is created on first use",
    "path": "the path of a file in /workspace",
    "session": "a session id",
    "port": "a TCP port of the sandbox",
}
_ERROR: Final = {
    "type": "object",
    "required": ["error", "code"],
    "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
}


def document(version: str) -> dict[str, Any]:
    """Return the OpenAPI document."""
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(_shown_path(route), {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "sandboxd: Cloudflare's sandbox bridge", "version": version},
        "servers": [{"url": "/cloudflare"}],
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def page(version: str) -> str:
    """Return the routes as an HTML page."""
    rows = "".join(
        f"<tr><td>{route.method}</td><td><code>{html.escape(_path(route))}</code></td>"
        f"<td>{html.escape(_summary(route))}</td></tr>"
        for route in ROUTES
    )
    title = f"sandboxd {html.escape(version)}: Cloudflare's sandbox bridge"
    return f"<!doctype html><meta charset=utf-8><title>{title}</title><h1>{title}</h1><table>{rows}</table>"


def _path(route: Route) -> str:
    return _ARGUMENT.sub(r"{\1}", route.path)


def _shown_path(route: Route) -> str:
    """Return the path below the server's address."""
    return _path(route).removeprefix("/cloudflare")


def _summary(route: Route) -> str:
    return (route.handler.__doc__ or "").strip().splitlines()[0]


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}_{_NO_WORD.sub('_', _shown_path(route)).strip('_')}",
        "summary": _summary(route),
        "parameters": [
            *(_argument(name) for name in _ARGUMENT.findall(route.path)),
            *query.parameters(route.query),
        ],
        "responses": {
            str(route.status): {"description": "done"},
            "default": {
                "description": "an error",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if route.access is not Level.PUBLIC:
        operation["security"] = [{"token": []}]
    if route.body is bytes:
        operation["requestBody"] = {"content": {"application/octet-stream": {}}}
    elif route.body is not None:
        schema = msgspec.json.schema(route.body)
        (shape,) = schema["$defs"].values()
        operation["requestBody"] = {"content": {"application/json": {"schema": shape}}}
    return operation


def _argument(name: str) -> dict[str, Any]:
    schema = {"type": "string"}
    return {"name": name, "in": "path", "required": True, "description": _DESCRIPTIONS[name], "schema": schema}
