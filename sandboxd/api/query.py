"""Query parameters as a model: one field for each, whose type says how to read its text.

Fields are text, `int`, `float`, flags (`bool`) or one of a few words (`Literal`). A model may inherit fields that
cannot be written as text, such as a command's variables; these are not parameters.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, inspect

from ..errors import InvalidRequest, UnknownField
from .bodies import Input, convert

if TYPE_CHECKING:
    from collections.abc import Callable

    from werkzeug.sansio.request import Request

    _Reader = Callable[[str, str], Any]

#: Parameters that many routes have.
Cursor = Annotated[str | None, Meta(description="the `next` of the previous page")]
Limit = Annotated[int, Meta(description="the page size")]
From = Annotated[
    int | None,
    Meta(description="the offset to start at; default: after `Last-Event-ID`, or the beginning"),
]

_T = TypeVar("_T", bound=Input)
_MAX_DIGITS: Final = 18
_FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}


def read(request: Request, model: type[_T]) -> _T:
    """Return the parameters of a request.

    Raises:
        UnknownField: the route has no such parameter.
        InvalidRequest: a parameter is repeated, or its value is invalid.
    """
    given: dict[str, Any] = {}
    if request.query_string:
        readers = _readers(model)
        for name, texts in request.args.lists():
            if name not in readers:
                raise UnknownField(
                    f"cannot accept query parameter {name[:80]!r}: this route has no such parameter", field=name[:80]
                )
            if len(texts) > 1:
                raise InvalidRequest(f"cannot accept query parameter {name!r}: it is given twice", field=name)
            given[name] = readers[name](name, texts[0])
    return convert(given, model)


def parameters(model: type[Input]) -> list[dict[str, Any]]:
    """Return the parameters as OpenAPI describes them."""
    properties = msgspec.json.schema_components((model,))[1][model.__name__]["properties"]
    return [_described(name, dict(properties[name])) for name in _readers(model)]


def _described(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    description = schema.pop("description", "")
    found = [one for one in schema.pop("anyOf", ()) if one != {"type": "null"}]
    schema |= found[0] if len(found) == 1 else {"anyOf": found} if found else {}
    if "enum" in schema:
        schema |= {"type": "string", "enum": [word for word in schema["enum"] if word is not None]}
    if schema.get("default") is None:
        schema.pop("default", None)
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


@functools.cache
def _readers(model: type[Input]) -> dict[str, _Reader]:
    """Return a function for each parameter that converts its text to its value."""
    shape = inspect.type_info(model)
    assert isinstance(shape, inspect.StructType)  # noqa: S101 - it is one
    found = {field.encode_name: _reader(field.type) for field in shape.fields}
    return {name: reader for name, reader in found.items() if reader is not None}


def _reader(kind: inspect.Type) -> _Reader | None:
    if isinstance(kind, inspect.Metadata):
        return _reader(kind.type)
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    for cls, reader in ((inspect.StrType, _text), (inspect.BoolType, _flag), (inspect.IntType, _whole)):
        if any(isinstance(one, cls) for one in kinds):
            return reader
    for one in kinds:
        if isinstance(one, inspect.FloatType):
            return _number
        if isinstance(one, inspect.LiteralType):
            return functools.partial(_word, tuple(map(str, one.values)))
    return None


def _text(name: str, text: str) -> str:
    del name
    return text


def _whole(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > _MAX_DIGITS:
        raise InvalidRequest(f"cannot accept query parameter {name!r}: it is not a whole number", field=name)
    return int(text)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidRequest(f"cannot accept query parameter {name!r}: it is not a number", field=name) from None


def _flag(name: str, text: str) -> bool:
    if text not in _FLAGS:
        raise InvalidRequest(f"cannot accept query parameter {name!r}: it must be true or false", field=name)
    return _FLAGS[text]


def _word(words: tuple[str, ...], name: str, text: str) -> str:
    if text not in words:
        raise InvalidRequest(f"cannot accept query parameter {name!r}: it is {' or '.join(words)}", field=name)
    return text
