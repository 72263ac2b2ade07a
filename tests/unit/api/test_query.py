"""Queries as models: how each type's text is read, what is refused, and what OpenAPI tells of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta
from werkzeug.datastructures import Headers
from werkzeug.sansio.request import Request

from sandboxd.api import query
from sandboxd.api.bodies import Input
from sandboxd.api.faces import FACES
from sandboxd.errors import InvalidRequest, SandboxdError, UnknownField


class Base(Input, frozen=True):
    """What a model may inherit."""

    env: dict[str, str] | None = None
    user: str | int | None = None


class Wanted(Base, frozen=True):
    """One parameter of each type."""

    text: str = "none"
    count: Annotated[int, Meta(ge=1, description="how many")] = 3
    seconds: float | None = None
    flag: bool = False
    word: Literal["this", "that"] | None = None
    from_: int | None = msgspec.field(default=None, name="from")


def read(text: str, model: type[Input] = Wanted) -> Any:
    return query.read(Request("GET", "http", None, "", "/", text.encode(), Headers(), None), model)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("", {}),
        ("&", {}),
        ("text=a%20b&user=5", {"text": "a b", "user": "5"}),
        ("text=", {"text": ""}),
        ("count=0012", {"count": 12}),
        ("seconds=1.5", {"seconds": 1.5}),
        ("flag=true", {"flag": True}),
        ("flag=1", {"flag": True}),
        ("flag=0", {"flag": False}),
        ("word=that", {"word": "that"}),
        ("from=7", {"from_": 7}),
    ],
)
def test_each_type_has_its_form(text: str, fields: dict[str, Any]) -> None:
    assert read(text) == Wanted(**fields)


@pytest.mark.parametrize(
    ("text", "kind", "field"),
    [
        ("nothing=1", UnknownField, "nothing"),
        ("from_=1", UnknownField, "from_"),
        ("env=a", UnknownField, "env"),  # no text is a table
        ("text=a&text=a", InvalidRequest, "text"),
        ("count=", InvalidRequest, "count"),
        ("count=-1", InvalidRequest, "count"),
        ("count=%2B1", InvalidRequest, "count"),
        ("count=1.0", InvalidRequest, "count"),
        ("count=%C2%B2", InvalidRequest, "count"),
        ("count=" + "1" * 19, InvalidRequest, "count"),
        ("count=0", InvalidRequest, "count"),  # the model's own bound
        ("seconds=soon", InvalidRequest, "seconds"),
        ("flag=True", InvalidRequest, "flag"),
        ("flag=", InvalidRequest, "flag"),
        ("word=other", InvalidRequest, "word"),
    ],
)
def test_what_does_not_fit_is_refused(text: str, kind: type[SandboxdError], field: str) -> None:
    with pytest.raises(SandboxdError) as caught:
        read(text)
    assert type(caught.value) is kind
    assert caught.value.facts["field"] == field


def test_a_route_without_parameters_takes_none() -> None:
    assert read("", Input) == Input()
    with pytest.raises(UnknownField):
        read("a=1", Input)


def test_openapi_tells_the_types() -> None:
    found = {one["name"]: one for one in query.parameters(Wanted)}
    assert {name: one["schema"] for name, one in found.items()} == {
        "user": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        "text": {"type": "string", "default": "none"},
        "count": {"type": "integer", "minimum": 1, "default": 3},
        "seconds": {"type": "number"},
        "flag": {"type": "boolean", "default": False},
        "word": {"type": "string", "enum": ["that", "this"]},
        "from": {"type": "integer"},
    }
    assert found["count"]["description"] == "how many"
    assert not any(one["required"] for one in found.values())


@pytest.mark.parametrize("route", [route for face in FACES for route in face.routes], ids=lambda route: route.name)
def test_every_parameter_is_described(route: Any) -> None:
    assert all(one["description"] for one in query.parameters(route.query))
