"""Reads JSON bodies into models, and names the wrong field if a body does not fit."""

from __future__ import annotations

import re
from typing import Final, TypeVar

import msgspec

from ..errors import InvalidRequest, UnknownField
from . import jsontext


class Input(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The base of what a caller sends; a null field counts as absent."""


_T = TypeVar("_T", bound=Input)
_WHERE: Final = re.compile(r" - at `(?:\$|key in \$)?\.?(?P<path>[^`]*)`\Z")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(?P<name>.*?)`", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(?P<name>[^`]*)`")


def parse(body: bytes, model: type[_T]) -> _T:
    """Return the model that a JSON body holds; an empty body is an empty object.

    Raises:
        UnknownField, InvalidRequest: with the fact `field` where one can be named.
    """
    return convert(jsontext.parse(body or b"{}", unique=True), model)


def convert(value: object, model: type[_T]) -> _T:
    """Return the model that a JSON value holds.

    Raises:
        UnknownField, InvalidRequest: with the fact `field` where one can be named.
    """
    try:
        return msgspec.convert(value, model)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None


def _explain(text: str) -> InvalidRequest:
    """Turn msgspec's sentence, the only place where it names the field, into one of ours with facts."""
    where = _WHERE.search(text)
    path = where["path"].replace("[...]", "") if where else ""  # msgspec does not tell which element
    what = text[: where.start()] if where else text
    for pattern, cls, why in (
        (_UNKNOWN, UnknownField, "there is no such field"),
        (_MISSING, InvalidRequest, "missing"),
    ):
        match = pattern.match(what)
        if match:
            field = ".".join(filter(None, (path, match["name"])))[:200]
            return cls(f"cannot accept {field}: {why}", field=field)
    field = path[:200] or "body"
    return InvalidRequest(f"cannot accept {field}: {what[0].lower()}{what[1:300]}", field=field)
