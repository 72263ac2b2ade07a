"""The bridge's REST API, below /cloudflare/v1; a worker's URL here is `http://…/cloudflare`."""

from __future__ import annotations

from typing import Final

from ..access import Level
from ..routes import Route
from . import bridge, bridge_openapi, tokens

_V1: Final = "/cloudflare/v1"
_SANDBOX: Final = _V1 + "/sandbox/<name>"

ROUTES: Final[tuple[Route, ...]] = (
    Route(method="GET", path="/cloudflare/health", handler=bridge.health, access=Level.PUBLIC),
    Route(method="GET", path=_V1 + "/health", handler=bridge.health, access=Level.PUBLIC),
    Route(method="GET", path=_V1 + "/openapi.json", handler=bridge.openapi),
    Route(method="GET", path=_V1 + "/openapi.html", handler=bridge.openapi_page),
    Route(method="POST", path=_V1 + "/sandbox", handler=bridge.create),
    Route(method="DELETE", path=_SANDBOX, handler=bridge.destroy, status=204),
    Route(method="GET", path=_SANDBOX + "/running", handler=bridge.running),
    Route(method="POST", path=_SANDBOX + "/exec", handler=bridge.execute, body=bridge.ExecIn),
    Route(
        method="GET",
        path=_SANDBOX + "/pty",
        handler=bridge.open_terminal,
        query=("cols", "rows", "shell", "session", tokens.PARAMETER),
        status=101,
        websocket=True,
    ),
    Route(method="GET", path=_SANDBOX + "/file/<path:path>", handler=bridge.read_file, result=bytes),
    Route(method="PUT", path=_SANDBOX + "/file/<path:path>", handler=bridge.write_file, body=bytes),
    Route(method="POST", path=_SANDBOX + "/persist", handler=bridge.persist, query=("excludes",), result=bytes),
    Route(method="POST", path=_SANDBOX + "/hydrate", handler=bridge.hydrate, body=bytes),
    Route(method="POST", path=_SANDBOX + "/session", handler=bridge.create_session, body=bridge.SessionIn),
    Route(method="DELETE", path=_SANDBOX + "/session/<session>", handler=bridge.delete_session),
    Route(method="POST", path=_SANDBOX + "/tunnel/<port>", handler=bridge.open_tunnel, body=bridge.TunnelIn),
    Route(method="DELETE", path=_SANDBOX + "/tunnel/<port>", handler=bridge.close_tunnel, status=204),
    Route(method="POST", path=_SANDBOX + "/mount", handler=bridge.mount),
    Route(method="POST", path=_SANDBOX + "/unmount", handler=bridge.unmount),
    Route(method="GET", path=_V1 + "/pool/stats", handler=bridge.pool_stats),
    Route(method="POST", path=_V1 + "/pool/prime", handler=bridge.pool_nothing),
    Route(method="POST", path=_V1 + "/pool/shutdown-prewarmed", handler=bridge.pool_nothing),
)
bridge_openapi.ROUTES.extend(ROUTES)
