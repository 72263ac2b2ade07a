"""The bridge's REST API, below /cloudflare/v1; a worker's URL here is `http://…/cloudflare`."""

from __future__ import annotations

from typing import Final

from ..access import Level
from ..route import Route
from . import bridge, bridge_openapi, tokens

_V1: Final = "/cloudflare/v1"
_SANDBOX: Final = _V1 + "/sandbox/<name>"

HEALTH: Final = Route(
    method="GET", path="/cloudflare/health", name="cloudflare.health", handler=bridge.health, access=Level.PUBLIC
)
ROUTES: Final[tuple[Route, ...]] = (
    Route(method="GET", path=_V1 + "/health", name="bridge.health", handler=bridge.health, access=Level.PUBLIC),
    Route(method="GET", path=_V1 + "/openapi.json", name="bridge.openapi", handler=bridge.openapi),
    Route(method="GET", path=_V1 + "/openapi.html", name="bridge.openapi_page", handler=bridge.openapi_page),
    Route(method="POST", path=_V1 + "/sandbox", name="bridge.sandbox.create", handler=bridge.create),
    Route(method="DELETE", path=_SANDBOX, name="bridge.sandbox.delete", handler=bridge.destroy, status=204),
    Route(method="GET", path=_SANDBOX + "/running", name="bridge.sandbox.running", handler=bridge.running),
    Route(method="POST", path=_SANDBOX + "/exec", name="bridge.exec", handler=bridge.execute, body=bridge.ExecIn),
    Route(
        method="GET",
        path=_SANDBOX + "/pty",
        name="bridge.pty",
        handler=bridge.open_terminal,
        query=("cols", "rows", "shell", "session", tokens.PARAMETER),
        status=101,
        websocket=True,
    ),
    Route(
        method="GET",
        path=_SANDBOX + "/file/<path:path>",
        name="bridge.file.read",
        handler=bridge.read_file,
        result=bytes,
    ),
    Route(
        method="PUT",
        path=_SANDBOX + "/file/<path:path>",
        name="bridge.file.write",
        handler=bridge.write_file,
        body=bytes,
    ),
    Route(
        method="POST",
        path=_SANDBOX + "/persist",
        name="bridge.persist",
        handler=bridge.persist,
        query=("excludes",),
        result=bytes,
    ),
    Route(method="POST", path=_SANDBOX + "/hydrate", name="bridge.hydrate", handler=bridge.hydrate, body=bytes),
    Route(
        method="POST",
        path=_SANDBOX + "/session",
        name="bridge.session.create",
        handler=bridge.create_session,
        body=bridge.SessionIn,
    ),
    Route(
        method="DELETE",
        path=_SANDBOX + "/session/<session>",
        name="bridge.session.delete",
        handler=bridge.delete_session,
    ),
    Route(
        method="POST",
        path=_SANDBOX + "/tunnel/<port>",
        name="bridge.tunnel.open",
        handler=bridge.open_tunnel,
        body=bridge.TunnelIn,
    ),
    Route(
        method="DELETE",
        path=_SANDBOX + "/tunnel/<port>",
        name="bridge.tunnel.close",
        handler=bridge.close_tunnel,
        status=204,
    ),
    Route(method="POST", path=_SANDBOX + "/mount", name="bridge.mount", handler=bridge.mount),
    Route(method="POST", path=_SANDBOX + "/unmount", name="bridge.unmount", handler=bridge.unmount),
    Route(method="GET", path=_V1 + "/pool/stats", name="bridge.pool.stats", handler=bridge.pool_stats),
    Route(method="POST", path=_V1 + "/pool/prime", name="bridge.pool.prime", handler=bridge.pool_nothing),
    Route(
        method="POST", path=_V1 + "/pool/shutdown-prewarmed", name="bridge.pool.shutdown", handler=bridge.pool_nothing
    ),
)
bridge_openapi.ROUTES.extend((HEALTH, *ROUTES))
