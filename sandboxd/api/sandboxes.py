"""POST, GET /sandboxes and GET, DELETE /sandboxes/{id}."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..runtime.registry import DEFAULT_PAGE
from . import models
from .call import answer, nothing

if TYPE_CHECKING:
    from quart_trio.wrappers import TrioResponse

    from .call import Call


async def create(call: Call) -> TrioResponse:
    """Create a sandbox."""
    spec = models.to_spec(await call.read(models.SandboxIn))
    sandbox = await call.manager.create(spec)
    return answer(models.sandbox_out(sandbox), 201, {"Location": f"/v1/sandboxes/{sandbox.id}"})


async def show_all(call: Call) -> TrioResponse:
    """List sandboxes, the oldest first."""
    page, cursor = call.manager.registry.page(call.query("cursor"), call.query_int("limit", DEFAULT_PAGE))
    return answer(models.SandboxList([models.sandbox_out(sandbox) for sandbox in page], cursor))


async def show(call: Call, ref: str) -> TrioResponse:
    """Show a sandbox."""
    return answer(models.sandbox_out(call.manager.registry.find(ref)))


async def destroy(call: Call, ref: str) -> TrioResponse:
    """Destroy a sandbox and all that is in it."""
    await call.manager.destroy(ref)
    return nothing()
