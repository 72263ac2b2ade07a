"""Errors as Cloudflare's clients read them: one table of codes and their statuses, one from our kinds to codes.

The container's form is `{code, message, context, operation?, httpStatus, timestamp, suggestion?}`, the bridge's
`{error, code}` with codes of its own. No answer is a 503 unless trying again helps: their client repeats those for
two minutes.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any, Final

from ...errors import SandboxdError
from .. import jsontext
from .. import problems as native
from ..call import JSON_TYPE
from ..problems import Told

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Every code of the container's API that is given here, with its status.
STATUS: Final[Mapping[str, int]] = {
    "IS_DIRECTORY": 400,
    "NOT_DIRECTORY": 400,
    "INVALID_COMMAND": 400,
    "INVALID_PORT_NUMBER": 400,
    "INVALID_PORT": 400,
    "INVALID_GIT_URL": 400,
    "CUSTOM_DOMAIN_REQUIRED": 400,
    "NAME_TOO_LONG": 400,
    "VALIDATION_FAILED": 400,
    "MISSING_CREDENTIALS": 400,
    "INVALID_MOUNT_CONFIG": 400,
    "BACKUP_EXPIRED": 400,
    "INVALID_BACKUP_CONFIG": 400,
    "UNAUTHORIZED": 401,
    "GIT_AUTH_FAILED": 401,
    "PERMISSION_DENIED": 403,
    "COMMAND_PERMISSION_DENIED": 403,
    "PROCESS_PERMISSION_DENIED": 403,
    "READ_ONLY": 403,
    "FILE_NOT_FOUND": 404,
    "COMMAND_NOT_FOUND": 404,
    "PROCESS_NOT_FOUND": 404,
    "PORT_NOT_EXPOSED": 404,
    "GIT_REPOSITORY_NOT_FOUND": 404,
    "GIT_BRANCH_NOT_FOUND": 404,
    "CONTEXT_NOT_FOUND": 404,
    "WATCH_NOT_FOUND": 404,
    "BACKUP_NOT_FOUND": 404,
    "UNKNOWN_ERROR": 404,  # theirs for a route that does not exist
    "PROCESS_READY_TIMEOUT": 408,
    "FILE_EXISTS": 409,
    "PORT_ALREADY_EXPOSED": 409,
    "PORT_IN_USE": 409,
    "RESOURCE_BUSY": 409,
    "SESSION_ALREADY_EXISTS": 409,
    "OPERATION_INTERRUPTED": 409,
    "SESSION_DESTROYED": 410,
    "SESSION_TERMINATED": 410,
    "FILE_TOO_LARGE": 413,
    "NO_SPACE": 500,
    "TOO_MANY_FILES": 500,
    "TOO_MANY_LINKS": 500,
    "FILESYSTEM_ERROR": 500,
    "COMMAND_EXECUTION_ERROR": 500,
    "STREAM_START_ERROR": 500,
    "PROCESS_ERROR": 500,
    "PORT_OPERATION_ERROR": 500,
    "GIT_CLONE_FAILED": 500,
    "GIT_CHECKOUT_FAILED": 500,
    "GIT_OPERATION_FAILED": 500,
    "CODE_EXECUTION_ERROR": 500,
    "BUCKET_MOUNT_ERROR": 500,
    "BUCKET_UNMOUNT_ERROR": 500,
    "BACKUP_CREATE_FAILED": 500,
    "BACKUP_RESTORE_FAILED": 500,
    "PROCESS_EXITED_BEFORE_READY": 500,
    "WATCH_START_ERROR": 500,
    "INTERNAL_ERROR": 500,
    "PYTHON_NOT_AVAILABLE": 501,
    "JAVASCRIPT_NOT_AVAILABLE": 501,
    "SERVICE_NOT_RESPONDING": 502,
    "GIT_NETWORK_ERROR": 502,
    "CONTAINER_UNAVAILABLE": 503,
}

#: From our kinds. One that is not here has its parent's, and in the end INTERNAL_ERROR.
CODES: Final[Mapping[str, str]] = {
    "invalid-request": "VALIDATION_FAILED",
    "interpreter-missing": "PYTHON_NOT_AVAILABLE",
    "not-found": "UNKNOWN_ERROR",
    "process-not-found": "PROCESS_NOT_FOUND",
    "file-not-found": "FILE_NOT_FOUND",
    "context-not-found": "CONTEXT_NOT_FOUND",
    "session-not-found": "SESSION_DESTROYED",
    "port-not-found": "PORT_NOT_EXPOSED",
    "conflict": "RESOURCE_BUSY",
    "port-exposed": "PORT_ALREADY_EXPOSED",
    "not-a-file": "IS_DIRECTORY",
    "file-exists": "FILE_EXISTS",
    "directory-not-empty": "IS_DIRECTORY",
    "archive-refused": "BACKUP_RESTORE_FAILED",
    "process-not-running": "PROCESS_NOT_FOUND",
    "context-exited": "CODE_EXECUTION_ERROR",
    "limit-exceeded": "PROCESS_ERROR",
    "body-too-large": "FILE_TOO_LARGE",
    "quota-exceeded": "NO_SPACE",
    "storage-full": "NO_SPACE",
    "access-denied": "PERMISSION_DENIED",
    "unauthenticated": "UNAUTHORIZED",
    "port-closed": "SERVICE_NOT_RESPONDING",
    "server-busy": "CONTAINER_UNAVAILABLE",
    "daemon-unavailable": "CONTAINER_UNAVAILABLE",
    "launcher-gone": "CONTAINER_UNAVAILABLE",
}

#: What a caller can do about a code; `{…}` is taken from the context.
SUGGESTIONS: Final[Mapping[str, str]] = {
    "FILE_NOT_FOUND": "Check that {path} exists before using it",
    "FILE_EXISTS": "Choose a path other than {path}, or remove what exists there first",
    "IS_DIRECTORY": "{path} is a directory: give the path of a file",
    "NOT_DIRECTORY": "{path} is not a directory",
    "FILE_TOO_LARGE": "Read the file as a stream, or in parts",
    "PERMISSION_DENIED": "Check the permissions of {path}",
    "NO_SPACE": "Remove files, or give the sandbox a larger disk",
    "PROCESS_NOT_FOUND": "The process {processId} may have ended; list the processes to see which ones exist",
    "PROCESS_READY_TIMEOUT": "Check the output of the process to see why it is not ready, or wait longer",
    "PROCESS_EXITED_BEFORE_READY": "Check the output of the process to see why it ended",
    "RESOURCE_BUSY": "Try again in a moment, or use another id",
    "SESSION_ALREADY_EXISTS": "Use another id, or the existing session {sessionId}",
    "SESSION_DESTROYED": "Create a new session",
    "CONTEXT_NOT_FOUND": "Create a context first, or leave it out to use the default one",
    "PORT_ALREADY_EXPOSED": "Port {port} is exposed: use its URL, or unexpose it first",
    "PORT_NOT_EXPOSED": "Expose port {port} first",
    "INVALID_PORT": "Use a port from 1024 to 65535 that is not reserved",
    "GIT_AUTH_FAILED": "Check the user name and password, or the token, in the URL",
    "GIT_REPOSITORY_NOT_FOUND": "Check the repository's URL, and whether it is private",
    "GIT_BRANCH_NOT_FOUND": "Check that the branch {branch} exists in the repository",
    "GIT_NETWORK_ERROR": "Check the URL, and that the sandbox may use the network",
    "INVALID_GIT_URL": "Use a URL such as https://host/owner/repository",
    "VALIDATION_FAILED": "Check the request's fields",
    "CONTAINER_UNAVAILABLE": "Try again in a moment",
    "UNAUTHORIZED": "Send 'Authorization: Bearer <token>'",
}

#: From our kinds to the bridge's code and status; the rest are the last row.
_BRIDGE: Final[Mapping[str, tuple[str, int]]] = {
    "unauthenticated": ("unauthorized", 401),
    "access-denied": ("invalid_request", 403),
    "body-too-large": ("payload_too_large", 413),
    "limit-exceeded": ("capacity_exceeded", 422),
    "not-found": ("invalid_request", 404),
    "conflict": ("exec_transport_error", 409),
    "interpreter-missing": ("invalid_request", 422),
    "invalid-request": ("invalid_request", 400),
    "route-not-found": ("invalid_request", 404),
    "method-not-allowed": ("invalid_request", 405),
    "server-busy": ("capacity_exceeded", 503),
    "error": ("exec_transport_error", 502),
}
#: The bridge's own codes, for a `Refusal`.
BRIDGE_STATUS: Final[Mapping[str, int]] = {
    "invalid_request": 400,
    "forbidden": 403,  # told as invalid_request
    "unauthorized": 401,
    "workspace_read_not_found": 404,
    "payload_too_large": 413,
    "exec_transport_error": 502,
    "mount_error": 502,
    "unmount_error": 502,
    "session_error": 502,
    "session_exists": 409,  # told as session_error, as the next
    "session_missing": 404,
    "mount_unsupported": 501,  # told as mount_error, as the next
    "unmount_unsupported": 501,
    "tunnel_error": 502,
    "pool_error": 502,
    "workspace_archive_read_error": 502,
    "workspace_archive_write_error": 502,
    "capacity_exceeded": 503,
}
_TOLD_AS: Final[Mapping[str, str]] = {
    "forbidden": "invalid_request",
    "session_exists": "session_error",
    "session_missing": "session_error",
    "mount_unsupported": "mount_error",
    "unmount_unsupported": "unmount_error",
}
#: Facts of ours under their names in a context.
_FACTS: Final[Mapping[str, str]] = {"process": "processId", "session": "sessionId", "context": "contextId"}


class Refusal(Exception):
    """An answer with a code of theirs; `context` says what it is about (`path`, `processId`, `port` …).

    Attributes:
        operation: what was asked for, in their words (`file.read`); the route sets it.
    """

    def __init__(self, code: str, message: str, **context: Any) -> None:  # noqa: ANN401 - any JSON value
        super().__init__(message)
        self.code = code
        self.message = message
        self.context = context
        self.operation: str | None = None

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def tell_container(error: Exception) -> Told:
    """Return an error in the container's form; a bug's details are logged only."""
    known = _known(error)
    status, shown = container(known)
    return Told(shown["code"], status, jsontext.encode(shown), _headers(known))


def tell_bridge(error: Exception) -> Told:
    """Return an error in the bridge's form; a bug's details are logged only."""
    known = _known(error)
    status, shown = _bridge(known)
    return Told(shown["code"], status, jsontext.encode(shown), _headers(known))


def _known(error: Exception) -> Refusal | SandboxdError:
    return error if isinstance(error, Refusal) else native.known(error)


def _headers(error: Refusal | SandboxdError) -> dict[str, str]:
    found = native.headers(error) if isinstance(error, SandboxdError) else {}
    return {**found, "Content-Type": JSON_TYPE}


def _bridge(error: Refusal | SandboxdError) -> tuple[int, dict[str, Any]]:
    if isinstance(error, Refusal):
        if error.code in STATUS:  # of what both faces share
            status = STATUS[error.code]
            return status, {
                "error": error.message,
                "code": "invalid_request" if status < 500 else "exec_transport_error",
            }
        return BRIDGE_STATUS[error.code], {"error": error.message, "code": _TOLD_AS.get(error.code, error.code)}
    rows = (_BRIDGE.get(getattr(cls, "kind", "")) for cls in type(error).__mro__)
    code, status = next(row for row in rows if row is not None)
    return status, {"error": error.message, "code": code}


def container(error: Refusal | SandboxdError) -> tuple[int, dict[str, Any]]:
    """Return an error in the container's form."""
    operation = None
    if isinstance(error, Refusal):
        code, context, operation = error.code, dict(error.context), error.operation
    else:
        code = code_of(error)
        context = {_FACTS.get(name, name): value for name, value in error.facts.items()}
    status = STATUS[code]
    shown: dict[str, Any] = {"code": code, "message": error.message, "context": context}
    if operation is not None:
        shown["operation"] = operation
    shown["httpStatus"] = status
    shown["timestamp"] = timestamp()
    text = suggestion(code, context)
    if text is not None:
        shown["suggestion"] = text
    return status, shown


def code_of(error: SandboxdError) -> str:
    """Return the container's code for one of our errors."""
    for cls in type(error).__mro__:
        code = CODES.get(getattr(cls, "kind", ""))
        if code is not None:
            return code
    return "INTERNAL_ERROR"


def suggestion(code: str, context: Mapping[str, Any]) -> str | None:
    """Return what a caller can do about it, or None."""
    text = SUGGESTIONS.get(code)
    return None if text is None else text.format_map(_Words(context))


class _Words(dict[str, Any]):
    """A context in which what is not named is "it"."""

    def __missing__(self, name: str) -> str:
        return "it"


def timestamp() -> str:
    """Return the time as JavaScript writes it."""
    now = datetime.datetime.now(datetime.UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%S.") + f"{now.microsecond // 1000:03d}Z"
