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
    """Claim every request that no other face has claimed."""
    del request
    return {}


def below(prefix: str) -> Callable[[Request], Mapping[str, Any] | None]:
    """Return a function that claims the paths that begin with a prefix."""

    def claim(request: Request) -> Mapping[str, Any] | None:
        return {} if request.path.startswith(prefix) else None

    return claim


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """One API, which is a folder of handlers and a row in `faces.FACES`.

    Attributes:
        name: its name in the code.
        routes: its route table. Names of routes must be unique among all faces, since metrics report them.
        tell: converts an exception to an answer in the face's form. An exception that is neither a `SandboxdError` nor
            the face's own is a bug, which `problems.known` logs.
        claim: inspects the head of a request (path, host, headers) and returns None if another face serves it.
            Otherwise it returns handler arguments that the head gives besides the path, such as `ref` for a sandbox
            named by a host name or a header; handlers get that one as `sandbox`.
        token: where its callers send the daemon's token.
    """

    name: str
    routes: tuple[Route, ...]
    tell: Callable[[Exception], Told]
    claim: Callable[[Request], Mapping[str, Any] | None] = everything
    token: TokenPlace = BEARER
