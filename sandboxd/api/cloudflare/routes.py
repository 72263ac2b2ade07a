"""The routes of both faces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from . import bridge_routes, container_routes

if TYPE_CHECKING:
    from ..route import Route

ROUTES: Final[tuple[Route, ...]] = (*bridge_routes.ROUTES, *container_routes.ROUTES)
