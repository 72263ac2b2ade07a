"""A face: one API that callers speak to this daemon, such as /v1 or another product's. faces.py lists them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from .access import BEARER, TokenPlace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from werkzeug.sansio.request import Request

    from .problems import Told
    from .route import Route


def everything(request: Request) -> Mapping[str, Any] | None:
    """Claim whatever no other face has claimed."""
    del request
    return {}


def below(prefix: str) -> Callable[[Request], Mapping[str, Any] | None]:
    """Return what claims the paths that begin with a prefix."""

    def claim(request: Request) -> Mapping[str, Any] | None:
        return {} if request.path.startswith(prefix) else None

    return claim


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """One API, which is a folder of handlers and a row in `faces.FACES`.

    Attributes:
        name: what the code's readers call it.
        routes: its table; a route's name must be its own among all faces' (metrics tell it).
        tell: returns an error as its callers read it. What is no `SandboxdError` and no exception of the face's own is
            a bug: `problems.known` logs it.
        claim: looks at the head of a request (path, host, headers) and returns None where that is another face's.
            Otherwise it returns the arguments of handlers that the head gives beside the path: `ref`, say, for the
            sandbox that a host name or a header names, which handlers get as `sandbox`.
        token: where its callers show the daemon's token.
    """

    name: str
    routes: tuple[Route, ...]
    tell: Callable[[Exception], Told]
    claim: Callable[[Request], Mapping[str, Any] | None] = everything
    token: TokenPlace = BEARER
