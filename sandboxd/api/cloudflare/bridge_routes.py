"""The bridge's REST API, below /cloudflare/v1."""

from __future__ import annotations

from typing import Final

from ..access import Level
from ..routes import Route
from . import bridge

_SANDBOX: Final = "/cloudflare/v1/sandbox/<name>"

ROUTES: Final[tuple[Route, ...]] = (
    Route(method="GET", path="/cloudflare/health", handler=bridge.health, access=Level.PUBLIC),
    Route(method="GET", path="/cloudflare/v1/health", handler=bridge.health, access=Level.PUBLIC),
    Route(method="POST", path="/cloudflare/v1/sandbox", handler=bridge.create),
    Route(method="DELETE", path=_SANDBOX, handler=bridge.destroy, status=204),
)
