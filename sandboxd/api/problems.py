"""Errors as `application/problem+json` (RFC 9457): one table from kind to status."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from .. import errors
from . import jsontext

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
#: Seconds after which a refused caller may try again; births take 10 ms each, so a full queue is gone by then.
RETRY_AFTER_S: Final = 1

#: Every kind of errors.py; a test holds it complete.
STATUS: Final[Mapping[str, int]] = {
    "error": 500,
    # the caller's fault
    "invalid-request": 400,
    "unknown-field": 400,
    "request-timeout": 408,
    "not-available": 422,
    "limit-unenforceable": 422,
    "rootfs-not-found": 422,
    "interpreter-missing": 422,
    "profile-not-found": 422,
    "not-found": 404,
    "route-not-found": 404,
    "method-not-allowed": 405,
    "sandbox-not-found": 404,
    "process-not-found": 404,
    "file-not-found": 404,
    "context-not-found": 404,
    "run-not-found": 404,
    "session-not-found": 404,
    "port-not-found": 404,
    "preview-not-found": 404,
    "preview-gone": 410,
    "conflict": 409,
    "name-taken": 409,
    "context-exited": 409,
    "context-restarting": 409,
    "port-exposed": 409,
    "not-a-file": 409,
    "file-exists": 409,
    "directory-not-empty": 409,
    "archive-refused": 422,
    "process-not-running": 409,
    "sandbox-failed": 409,
    "sandbox-frozen": 409,
    "sandbox-gone": 409,
    "already-running": 409,
    "limit-exceeded": 422,
    "body-too-large": 413,
    "header-too-large": 431,
    "range-not-satisfiable": 416,
    "quota-exceeded": 507,
    "access-denied": 403,
    "unauthenticated": 401,
    "file-permission-denied": 403,
    "git-error": 500,
    "git-authentication": 422,  # 401 would read as our own token
    "git-repository-not-found": 404,
    "git-ref-not-found": 404,
    "git-refused": 422,
    "git-unreachable": 502,
    "git-timeout": 504,
    "git-protocol-error": 502,
    # the host's fault
    "launch-failed": 500,
    "host-unsupported": 500,
    "config-error": 500,
    "cgroup-error": 500,
    "rootfs-error": 500,
    "storage-full": 507,
    "port-closed": 502,
    "upstream-broken": 502,
    "server-busy": 503,
    "daemon-unavailable": 503,
    "launcher-gone": 503,
    "network-unavailable": 422,
    "template-unavailable": 503,
    "internal-error": 500,
    "protocol-error": 500,
    "local-protocol-error": 500,
    "remote-protocol-error": 500,
}

#: Facts that a header carries instead of, or beside, the body.
_HEADERS: Final[Mapping[str, tuple[str, str]]] = {
    "unauthenticated": ("WWW-Authenticate", 'Bearer realm="sandboxd"'),
    "server-busy": ("Retry-After", str(RETRY_AFTER_S)),
}
_RESERVED: Final = frozenset({"type", "title", "status", "detail", "kind"})


def known(error: Exception) -> errors.SandboxdError:
    """Return `error` if it is one of ours; anything else is a bug: log its traceback and tell no details."""
    if isinstance(error, errors.SandboxdError):
        return error
    _log.error("Failed with an unexpected %s", type(error).__name__, exc_info=error)
    return errors.InternalError("cannot answer: a bug in sandboxd; its log has the traceback")


def status_of(error: errors.SandboxdError) -> int:
    """Return the HTTP status of an error; a subclass that the table does not name has its parent's."""
    for cls in type(error).__mro__:
        kind: str = getattr(cls, "kind", "")
        if kind in STATUS:
            return STATUS[kind]
    return 500


def to_dict(error: errors.SandboxdError) -> dict[str, Any]:
    """Return the problem object."""
    status = status_of(error)
    facts = {name: value for name, value in error.facts.items() if name not in _RESERVED}
    return {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": error.message,
        "kind": error.kind,
        **facts,
    }


def to_json(error: errors.SandboxdError) -> bytes:
    """Return the problem object as JSON, whatever is in its facts."""
    return jsontext.encode(to_dict(error))


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
