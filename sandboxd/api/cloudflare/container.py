"""What every route of the container's API shares: bodies, paths, errors with their context, and its event streams."""

from __future__ import annotations

import contextlib
import functools
import posixpath
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from ...errors import InvalidRequest, NotAFile, SandboxdError
from ...spec import MAX_JSON_BODY_BYTES
from .. import jsontext
from ..call import streamed
from ..pieces import follow
from . import names, problems
from .problems import Refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

    from quart_trio.wrappers import TrioResponse

    from ...runtime.budget import Hold
    from ...runtime.sandbox import Sandbox
    from ..call import Call

_T = TypeVar("_T")

#: Where relative paths begin, and what may be watched.
WORKSPACE: Final = "/workspace"
#: Their bounds.
MAX_PATH_CHARS: Final = 4096
MAX_COMMAND_CHARS: Final = 8192
#: A caller that wants no session says so by this id.
NO_SESSION: Final = "__DISABLE_SESSION__"
#: Statuses after which their client tries again by itself: those keep the headers of the native answer.
_BUSY: Final = 503
_SHELLS: weakref.WeakKeyDictionary[Sandbox, str] = weakref.WeakKeyDictionary()


class Body(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A JSON body of theirs: unknown fields are ignored (new versions add some), null is as if it were not there."""


async def reach(call: Call, name: str) -> Sandbox:
    """Return the caller's sandbox, running; it comes to be at its first use."""
    return await names.reach(call.manager, names.check_container_id(name))


async def read(call: Call, model: type[_T], *, limit: int = MAX_JSON_BODY_BYTES, hold: Hold | None = None) -> _T:
    """Return the body as a model; a large one is charged to `hold`.

    Raises:
        Refusal: it is none.
        BodyTooLarge: it is over `limit` bytes.
    """
    return parse(await call.body.read_json(limit, hold), model)


def parse(body: bytes, model: type[_T]) -> _T:
    """Return a body that has come as a model.

    Raises:
        Refusal: it is none.
    """
    try:
        return msgspec.convert(jsontext.parse(body or b"{}"), model)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        raise Refusal("VALIDATION_FAILED", f"cannot accept the request: {what}", field=where.strip("`$.")) from None
    except InvalidRequest as error:
        raise invalid(error) from None


def check_words(value: str, field: str, limit: int) -> str:
    """Return a text that has no NUL and is not too long."""
    if "\0" in value:
        raise Refusal("VALIDATION_FAILED", f"cannot accept {field}: it has a null byte", field=field)
    if len(value) > limit:
        raise Refusal("VALIDATION_FAILED", f"cannot accept {field}: it is over {limit} characters", field=field)
    return value


def check_env(env: dict[str, str | None] | None) -> dict[str, str]:
    """Return variables without those that are null."""
    return {key: value for key, value in (env or {}).items() if value is not None}


def check_time(milliseconds: float | None, field: str = "timeoutMs") -> float | None:
    """Return a time in seconds; none for none."""
    if milliseconds is None:
        return None
    if not 0 < milliseconds < 1e12:
        raise Refusal("VALIDATION_FAILED", f"cannot accept {field}: it must be above 0", field=field)
    return milliseconds / 1000


def resolve(path: str, base: str = WORKSPACE, field: str = "path") -> str:
    """Return a path as absolute, without `.` and `..`, as a shell in `base` takes it.

    Raises:
        Refusal: it is empty, too long or has a null byte.
    """
    if not path:
        raise Refusal("VALIDATION_FAILED", f"cannot accept {field}: it is empty", field=field)
    check_words(path, field, MAX_PATH_CHARS)
    return "/" + posixpath.normpath(posixpath.join(base, path)).lstrip("/")


async def shell_of(sandbox: Sandbox) -> str:
    """Return the shell that runs command lines: bash, as there; `sh` where the rootfs has none."""
    found = _SHELLS.get(sandbox)
    if found is None:
        found = "/bin/sh" if await sandbox.files.find("/bin/bash", follow=True) is None else "/bin/bash"
        _SHELLS[sandbox] = found
    return found


async def shell_argv(sandbox: Sandbox, line: str) -> tuple[str, ...]:
    """Return the argv that runs a command line."""
    return (await shell_of(sandbox), "-c", "--", line)


# --- errors ---


@contextlib.contextmanager
def about(**context: Any) -> Iterator[None]:  # noqa: ANN401 - any JSON value
    """Tell errors of the domain with what they are about."""
    try:
        yield
    except Refusal as error:
        error.context = {**context, **error.context}
        raise
    except SandboxdError as error:
        if error.status == _BUSY:
            raise
        raise refusal_of(error, context) from error


def refusal_of(error: SandboxdError, context: dict[str, Any]) -> Refusal:
    """Return one of our errors as one of theirs; `context` goes before our own facts."""
    code = problems.code_of(error)
    if isinstance(error, NotAFile) and code == "IS_DIRECTORY":
        kind = error.facts.get("file_type")
        code = {"directory": "IS_DIRECTORY", "not a directory": "NOT_DIRECTORY"}.get(str(kind), "FILESYSTEM_ERROR")
    return Refusal(code, error.message, **{**error.facts, **context})


def named(operation: str, handler: Callable[..., Awaitable[_T]]) -> Callable[..., Awaitable[_T]]:
    """Return a handler whose errors say what was asked for."""

    @functools.wraps(handler)
    async def serve(*given: Any, **arguments: Any) -> _T:  # noqa: ANN401 - as the handler's own
        try:
            with about():
                return await handler(*given, **arguments)
        except Refusal as error:
            error.operation = operation
            raise

    return serve


# --- events ---


def event(kind: str, /, **fields: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """Return one server-sent event in their form: all of it in `data`, without an event's name."""
    shown = {"type": kind, **fields, "timestamp": problems.timestamp()}
    return b"data: " + jsontext.encode(shown) + b"\n\n"


def stream(body: Events) -> TrioResponse:
    """Return an answer of server-sent events."""
    headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    return streamed(body, 200, headers)


class Events:
    """The pieces of an answer of server-sent events; the call's stack owns what they follow.

    Attributes:
        first: what goes out before anything is waited for.
    """

    first = b""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return follow(self._next_pieces, self._failed, first=self.first)

    async def _next_pieces(self) -> tuple[Iterable[bytes], bool]:
        """Wait for what comes next; return its parts, and whether nothing comes after them. It may be cancelled."""
        raise NotImplementedError

    def _failed(self, error: SandboxdError) -> bytes:
        """Return the event that tells why there is no more."""
        shown = problems.container(error)[1]
        return event("error", error=shown["message"], code=shown["code"], context=shown["context"])


def invalid(error: InvalidRequest) -> Refusal:
    """Return a refusal of a field."""
    return Refusal("VALIDATION_FAILED", error.message, **error.facts)
