"""sandboxd/api/README.md against the code: every route with its parameters, every kind with its status."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

import sandboxd
from sandboxd import errors
from sandboxd.api import query
from sandboxd.api.route import Route
from sandboxd.api.v1.routes import ROUTES

_README = (Path(sandboxd.__file__).parent / "api" / "README.md").read_text()
#: A cell ends at a bar that no backslash escapes.
_BAR = re.compile(r"(?<!\\)\|")


def _rows() -> list[list[str]]:
    lines = [line for line in _README.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in _BAR.split(line)[1:-1]] for line in lines]


def _written(route: Route) -> tuple[str, str]:
    """Return method and path as the tables spell them: `…` is a sandbox, `{name}` a part that varies."""
    path = re.sub(r"<(\w+)>", r"{\1}", route.path.replace("/v1/sandboxes/<ref>", "…"))
    return route.method, f"`{path}`"


_ROUTES = {(row[0], row[1]): row[2] for row in _rows() if row[0] in {"GET", "POST", "PUT", "PATCH", "DELETE"}}
_KINDS = {row[0].strip("`"): row[1] for row in _rows() if len(row) == 3 and re.fullmatch(r"[1-5]\d\d", row[1])}


def test_the_tables_have_every_route_and_no_other() -> None:
    assert set(_ROUTES) == {_written(route) for route in ROUTES}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_a_row_names_what_its_route_takes(route: Route) -> None:
    row = _ROUTES[_written(route)]
    names = [parameter["name"] for parameter in query.parameters(route.query)]
    assert not [name for name in names if not re.search(rf"\b{name}\b", row)]
    if isinstance(route.body, type) and issubclass(route.body, msgspec.Struct):
        fields = [field.encode_name for field in msgspec.structs.fields(route.body)]
        assert not [name for name in fields if not re.search(rf"\b{name}\b", _README)]


def test_the_tables_have_every_kind_with_its_status() -> None:
    # Without the SDK's own two, which no answer has.
    ours = {kind: cls for kind, cls in errors.kinds().items() if cls.__module__ == errors.__name__}
    assert {kind: str(cls.status) for kind, cls in ours.items()} == _KINDS
