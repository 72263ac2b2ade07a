"""Parts that rows of the route table share: path prefixes, and error kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..bodies import Input
from ..route import Route

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from quart_trio.wrappers import TrioResponse

SANDBOX: Final = "/v1/sandboxes/<ref>"
GONE: Final = ("sandbox-not-found", "sandbox-failed", "sandbox-frozen", "sandbox-gone", "conflict")
BODY: Final = ("unknown-field", "body-too-large")
_FILE: Final = ("file-not-found", "not-a-file", "file-permission-denied", "limit-exceeded", "server-busy")
#: Where something comes to be.
NEW: Final = ("file-exists", "directory-not-empty", "quota-exceeded")


def file_route(  # noqa: PLR0913 - a row of a table
    name: str,
    method: str,
    path: str,
    handler: Callable[..., Awaitable[TrioResponse]],
    *,
    query: type[Input] = Input,
    body: type[Any] | None = None,
    result: type[Any] | None = None,
    status: int = 200,
    kinds: tuple[str, ...] = (),
) -> Route:
    """Return a row of …/files, with the errors that all of them can return."""
    own = BODY if body is not None and body is not bytes else ()
    return Route(
        name=name,
        method=method,
        path=f"{SANDBOX}/files{path}",
        handler=handler,
        query=query,
        body=body,
        result=result,
        status=status,
        kinds=(*own, *GONE, *_FILE, *kinds),
    )
