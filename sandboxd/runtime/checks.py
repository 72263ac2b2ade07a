"""Checks every field that a peer sent before it is used, because init is not trusted.

All checks raise `RemoteProtocolError`; the caller then drops the link (`LinkClient.abort`), and the sandbox fails.
"""

from __future__ import annotations

import re
from typing import Any, Final

from ..errors import (
    InternalError,
    InvalidRequest,
    NotAvailable,
    Origin,
    RemoteProtocolError,
    SandboxdError,
    from_kind,
    kinds_from,
)

#: The kinds that an init may answer with; any other kind would let a taken-over init speak for the daemon.
INIT_KINDS: Final = kinds_from(Origin.INIT)
MAX_MESSAGE_CHARS: Final = 2000
MAX_FACTS: Final = 16
MAX_FACT_CHARS: Final = 1000
#: Why an init cannot do what this version's can.
OLD_INIT: Final = "the sandbox was created by an earlier version of sandboxd, which did not support it"
#: What an init says is wrong where it knows no such operation (guest/init.py, guest/jobs.py); no caller sends these.
_OPERATION_FIELDS: Final = frozenset({"op", "do"})
_FACT_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}\Z")
#: Names that the problem object and the exception's constructor use themselves.
_RESERVED: Final = frozenset({"message", "self", "kind", "type", "title", "status", "detail", "facts"})


def text(data: dict[str, Any], name: str, *, limit: int = 256) -> str:
    """Return the text field `name` of at most `limit` characters."""
    value = data.get(name)
    if not isinstance(value, str) or len(value) > limit or not value.isprintable():
        raise RemoteProtocolError(f"cannot accept field {name!r}: it is not text of at most {limit} characters")
    return value


def words(data: dict[str, Any], name: str, *, limit: int = 4096) -> str:
    """Return the text field `name`, in which any character may be: what a caller or a file of the sandbox's named."""
    value = data.get(name)
    if not isinstance(value, str) or len(value) > limit:
        raise RemoteProtocolError(f"cannot accept field {name!r}: it is not text of at most {limit} characters")
    return value


def integer(data: dict[str, Any], name: str, *, low: int = 0, high: int = 1 << 63) -> int:
    """Return the whole number `name` within its bounds."""
    value = data.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RemoteProtocolError(f"cannot accept field {name!r}: it is not a number from {low} to {high}")
    return value


def number(data: dict[str, Any], name: str, *, high: float = 1e15) -> float:
    """Return the number `name`, 0 to `high`."""
    value = data.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= high:
        raise RemoteProtocolError(f"cannot accept field {name!r}: it is not a number from 0 to {high}")
    return float(value)


def flag(data: dict[str, Any], name: str) -> bool:
    """Return the truth value `name`."""
    value = data.get(name)
    if not isinstance(value, bool):
        raise RemoteProtocolError(f"cannot accept field {name!r}: it is not a boolean")
    return value


def table(data: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the map `name`, whose keys are text."""
    value = data.get(name)
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise RemoteProtocolError(f"cannot accept field {name!r}: it is not a map")
    return value


def items(data: dict[str, Any], name: str, kind: type, *, limit: int = 65_536) -> list[Any]:
    """Return the list `name` whose elements are all of type `kind`."""
    value = data.get(name)
    if not isinstance(value, list) or len(value) > limit or not all(isinstance(item, kind) for item in value):
        raise RemoteProtocolError(f"cannot accept field {name!r}: it is not a list of {kind.__name__}")
    return value


def failure(kind: str, message: str, facts: dict[str, Any], *, allowed: frozenset[str] | None) -> SandboxdError:
    """Return the error that a peer named, with its text cut and its facts filtered; text from it is data."""
    if allowed is not None and kind not in allowed:
        raise RemoteProtocolError(f"cannot accept a failure of kind {kind[:40]!r} from this peer")
    kept: dict[str, Any] = {}
    for name, value in list(facts.items())[:MAX_FACTS]:
        if not isinstance(name, str) or not _FACT_NAME.match(name) or name in _RESERVED:
            continue
        if isinstance(value, str):
            kept[name] = value[:MAX_FACT_CHARS]
        elif value is None or isinstance(value, bool | int | float):
            kept[name] = value
        elif allowed is None and isinstance(value, list | dict):
            kept[name] = value  # the launcher's own lists (`missing`, `available`) are trusted
    if allowed is not None and kind == InvalidRequest.kind and kept.get("field") in _OPERATION_FIELDS:
        return NotAvailable(f"cannot do this in the sandbox: {OLD_INIT}")
    try:
        return from_kind(kind, message[:MAX_MESSAGE_CHARS], kept)
    except TypeError:
        return InternalError(message[:MAX_MESSAGE_CHARS])
