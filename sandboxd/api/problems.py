"""Errors as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .. import errors
from ..wire import sse
from . import jsontext

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
#: Seconds after which a refused caller may try again; creations take 10 ms each, so a full queue is gone by then.
RETRY_AFTER_S: Final = 1

#: Facts that a header carries instead of, or beside, the body.
_HEADERS: Final[Mapping[str, tuple[str, str]]] = {
    "unauthenticated": ("WWW-Authenticate", 'Bearer realm="sandboxd"'),
    "server-busy": ("Retry-After", str(RETRY_AFTER_S)),
}
_RESERVED: Final = frozenset({"type", "title", "status", "detail", "kind"})


class Told(NamedTuple):
    """An error in the form of a face.

    Attributes:
        kind: the word by which programs tell errors apart; also the reason with which a WebSocket is closed.
        close_code: the code with which a WebSocket is closed after its handshake.
    """

    kind: str
    status: int
    body: bytes
    headers: dict[str, str]
    close_code: int = 1011


def known(error: Exception) -> errors.SandboxdError:
    """Return `error` if it is one of ours. Anything else is a bug: log its traceback and reveal no details."""
    if isinstance(error, errors.SandboxdError):
        return error
    _log.error("Failed with an unexpected %s", type(error).__name__, exc_info=error)
    return errors.InternalError("cannot answer: a bug in sandboxd; its log has the traceback")


def tell(error: Exception) -> Told:
    """Return any error, a bug included, as a problem."""
    problem = known(error)
    return Told(problem.kind, problem.status, to_json(problem), headers(problem))


def to_dict(error: errors.SandboxdError) -> dict[str, Any]:
    """Return the problem object."""
    facts = {name: value for name, value in error.facts.items() if name not in _RESERVED}
    return {
        "type": "about:blank",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.message,
        "kind": error.kind,
        **facts,
    }


def to_json(error: errors.SandboxdError) -> bytes:
    """Return the problem object as JSON, whatever its facts contain."""
    return jsontext.encode(to_dict(error))


def to_event(error: errors.SandboxdError) -> bytes:
    """Return the problem as the server-sent event that ends a stream."""
    return sse.encode(to_json(error), event="problem")


def headers(error: errors.SandboxdError) -> dict[str, str]:
    """Return the headers that go with the problem."""
    found = {"Content-Type": MEDIA_TYPE}
    extra = _HEADERS.get(error.kind)
    if extra is not None:
        found[extra[0]] = extra[1]
    if isinstance(error, errors.MethodNotAllowed) and "allow" in error.facts:
        found["Allow"] = ", ".join(error.facts["allow"])
    if isinstance(error, errors.RangeNotSatisfiable) and "size" in error.facts:
        found["Content-Range"] = f"bytes */{error.facts['size']}"
    return found
