"""Both faces: the container's API that Cloudflare's npm client speaks, and the REST API of their bridge worker."""

from __future__ import annotations

from typing import Final

from ..face import Face, below
from . import bridge_routes, container_routes, problems, tokens

BRIDGE: Final = Face(
    name="bridge",
    routes=bridge_routes.ROUTES,
    tell=problems.tell_bridge,
    claim=below("/cloudflare/v1/"),
    token=tokens.PLACE,
)
#: The bridge's own health, which asks for no token, is told at this face's address.
CONTAINER: Final = Face(
    name="container",
    routes=(bridge_routes.HEALTH, *container_routes.ROUTES),
    tell=problems.tell_container,
    claim=below("/cloudflare/"),
    token=tokens.PLACE,
)
