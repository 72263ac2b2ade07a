"""The container's API, below /cloudflare/sandboxes/<name>."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..routes import Route

ROUTES: Final[tuple[Route, ...]] = ()
