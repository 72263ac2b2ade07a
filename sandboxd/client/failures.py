"""Maps failures between the SDK and the daemon to sandboxd's own errors.

One table maps httpx's exceptions here, at the edge, so that none leaks. A broken connection is `DaemonUnavailable`
whatever broke it, because the caller can do the same about it.
"""

from __future__ import annotations

import contextlib
import errno
import json
from typing import TYPE_CHECKING, Any, Final

import httpx

from sandboxd import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .address import Address
    from .code_models import CodeResult
    from .models import ExitStatus

__all__ = ["CodeFailed", "CommandFailed", "from_problem", "mapped", "problem_error", "unreachable"]

#: Connecting takes this long at most (seconds); a local daemon answers in a millisecond.
CONNECT_TIMEOUT_S: Final = 10.0

_REMEDIES: Final = {
    errno.ENOENT: "there is no such socket; start the daemon with 'sandboxd serve', or set SANDBOXD_URL",
    errno.ECONNREFUSED: "nothing listens there; start the daemon with 'sandboxd serve', or set SANDBOXD_URL",
    errno.EACCES: "permission denied; you must be root or a member of the group 'sandboxd'",
}

#: httpx' exception, our error, and what happened; the first that matches counts, so children go before parents.
_TABLE: Final[tuple[tuple[type[Exception], type[errors.SandboxdError], str], ...]] = (
    (httpx.ConnectTimeout, errors.DaemonUnavailable, f"no connection within {CONNECT_TIMEOUT_S:g} s"),
    (httpx.ConnectError, errors.DaemonUnavailable, "the connection failed"),
    (httpx.TimeoutException, errors.DaemonUnavailable, "it did not answer in time"),
    (httpx.LocalProtocolError, errors.LocalProtocolError, "the request violates the HTTP protocol"),
    (httpx.RemoteProtocolError, errors.DaemonUnavailable, "the connection closed before the answer was complete"),
    (httpx.TransportError, errors.DaemonUnavailable, "the connection broke"),
    (httpx.StreamError, errors.LocalProtocolError, "the stream is closed already"),
    (httpx.InvalidURL, errors.ConfigError, "the address is not a URL"),
    (httpx.HTTPError, errors.RemoteProtocolError, "the answer violates the HTTP protocol"),
)
_FOREIGN: Final = tuple(row[0] for row in _TABLE)


class CommandFailed(errors.SandboxdError):
    """`check()` found that the command did not end with exit code 0: see `result`.

    Raised by the SDK only: in the API, a program that failed is a result.
    """

    kind = "command-failed"

    def __init__(self, message: str, *, result: ExitStatus) -> None:
        super().__init__(message, result=result, exit_code=result.exit_code, signal=result.signal)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_remake, (self.message, self.facts["result"]))


def _remake(message: str, result: ExitStatus) -> CommandFailed:
    return CommandFailed(message, result=result)


class CodeFailed(errors.SandboxdError):
    """`check()` found that the code did not complete: see `result`. Raised by the SDK only."""

    kind = "code-failed"

    def __init__(self, message: str, *, result: CodeResult) -> None:
        super().__init__(message, result=result, status=result.status)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_remake_code, (self.message, self.facts["result"]))


def _remake_code(message: str, result: CodeResult) -> CodeFailed:
    return CodeFailed(message, result=result)


@contextlib.contextmanager
def mapped(address: Address) -> Iterator[None]:
    """Raise httpx's exceptions from the block as sandboxd's errors."""
    try:
        yield
    except _FOREIGN as error:
        raise _translate(error, address) from error


def _translate(error: Exception, address: Address) -> errors.SandboxdError:
    ours, what = next(row[1:] for row in _TABLE if isinstance(error, row[0]))
    number = _errno_of(error)
    reason = _REMEDIES.get(number, what) if isinstance(error, httpx.ConnectError) and number is not None else what
    detail = str(error) if reason is what else ""
    text = f"cannot reach the daemon at {address.url}: {reason}" + (f" ({detail})" if detail else "")
    facts = {"address": address.url, "errno": errno.errorcode.get(number, str(number)) if number else None}
    return ours(text, **facts)


def unreachable(address: Address, error: Exception) -> errors.DaemonUnavailable:
    """Return the error for a connection of our own that `error` broke or prevented."""
    number = _errno_of(error)
    reason = (_REMEDIES.get(number) if number else None) or "the connection broke"
    name = errno.errorcode.get(number, str(number)) if number else None
    return errors.DaemonUnavailable(
        f"cannot reach the daemon at {address.url}: {reason}", address=address.url, errno=name
    )


def _errno_of(error: BaseException | None) -> int | None:
    """Return the errno of the system call that failed first, if the chain of causes has one."""
    for _ in range(8):  # httpx over httpcore over anyio over OSError is four deep
        if error is None:
            return None
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        error = error.__cause__ or error.__context__
    return None


def from_problem(problem: object, status: int | None = None) -> errors.SandboxdError:
    """Return the error that a problem object describes, with its facts; `status` is the answer's, if any."""
    if not isinstance(problem, dict) or not isinstance(problem.get("kind"), str):
        return errors.RemoteProtocolError("cannot understand the daemon's answer: it is not a problem object")
    skipped = {"type", "title", "detail", "kind", "message", "self"}
    facts = {str(key): value for key, value in problem.items() if key not in skipped}
    if status is not None:
        facts.setdefault("status", status)
    detail = problem.get("detail") or problem.get("title") or f"cannot complete the request: {problem['kind']}"
    return errors.from_kind(problem["kind"], str(detail), facts)


def problem_error(status: int, content_type: str, body: bytes) -> errors.SandboxdError:
    """Return the error for an answer whose status is 400 or above."""
    if content_type.partition(";")[0].strip() in ("application/problem+json", "application/json"):
        with contextlib.suppress(ValueError):
            return from_problem(json.loads(body), status)
    return errors.RemoteProtocolError(
        f"cannot understand the answer {status}: it has no problem object; is the server at that address sandboxd?",
        status=status,
    )
