"""A row of a route table: path, methods, handler, access, and the models of request and answer."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from .access import Level
from .bodies import Input

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One row.

    Attributes:
        name: the operation's name. It is stable, since metrics and openapi.json report it.
        query: the model of the query's parameters (query.py), which the handler gets as `query`; `Input` for none.
        body: the model of the JSON body; bytes for any bytes; None for none.
        result: the model of the answer; bytes for bytes; str for plain text; None for no content.
        kinds: the route's own error kinds, besides those that any route can return.
        websocket: whether the handler gets a `SocketCall` instead of a `Call`, and returns no answer.
    """

    name: str
    method: str
    path: str
    handler: Callable[..., Awaitable[Any]]
    access: Level = Level.CALLER
    query: type[Input] = Input
    body: type[Any] | None = None
    result: type[Any] | None = None
    status: int = 200
    kinds: tuple[str, ...] = ()
    websocket: bool = False
