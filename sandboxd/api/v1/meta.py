"""GET /health, /info and /metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta
from quart_trio.wrappers import TrioResponse

from ...runtime import host
from ..bodies import Input
from ..call import answer
from . import models

if TYPE_CHECKING:
    from ..call import Call


class MetricsQuery(Input, frozen=True):
    """The series to include."""

    sandboxes: Annotated[bool, Meta(description="false: leave out the series of each sandbox and each port")] = True


async def health(call: Call) -> TrioResponse:
    """Return whether the daemon is up."""
    return answer(models.Health("ok", call.facts.version))


async def info(call: Call) -> TrioResponse:
    """Describe the daemon, its host and its rootfs."""
    urls = call.manager.previews.urls
    launcher = await call.manager.launcher.info()
    return answer(
        {
            "version": call.facts.version,
            **call.facts.settings,
            "previews": None if urls is None else urls.pattern,
            "launcher": launcher,
            "seccomp": launcher.get("profiles", []),
            "rootfs": await call.manager.rootfs(),
            "sandboxes": call.manager.statistics(),
            "host": host.facts(),
        }
    )


async def metrics(call: Call, query: MetricsQuery) -> TrioResponse:
    """Return metrics of the daemon, its sandboxes and their ports in the Prometheus text format."""
    accept = call.request.headers.get("Accept", "")
    body, content_type = await call.metrics.scrape(accept, sandboxes=query.sandboxes)
    return TrioResponse(body, content_type=content_type)
