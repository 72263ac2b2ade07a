"""POST, GET /sandboxes; GET, PATCH, DELETE /sandboxes/{id}; freeze, thaw and stats of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...runtime.registry import DEFAULT_PAGE
from ..bodies import Input
from ..call import answer, nothing
from ..pieces import answer_in_pieces
from ..query import Cursor, Limit
from . import models, patch

if TYPE_CHECKING:
    from quart_trio.wrappers import TrioResponse

    from ...runtime.sandbox import Sandbox
    from ..call import Call


class PageQuery(Input, frozen=True):
    """The page of the list to return."""

    cursor: Cursor = None
    limit: Limit = DEFAULT_PAGE


async def create(call: Call) -> TrioResponse:
    """Create a sandbox."""
    spec = models.to_spec(await call.read(models.SandboxIn))
    sandbox = await call.manager.create(spec)
    return answer(models.sandbox_out(sandbox), 201, {"Location": f"/v1/sandboxes/{sandbox.id}"})


async def show_all(call: Call, query: PageQuery) -> TrioResponse:
    """List sandboxes, oldest first."""
    page, cursor = call.manager.registry.page(query.cursor, query.limit)
    return answer_in_pieces(models.SandboxList([models.sandbox_out(sandbox) for sandbox in page], cursor))


async def show(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Show a sandbox."""
    return answer(models.sandbox_out(sandbox))


async def change(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Change a sandbox's name, env, cwd, labels and limits (JSON merge patch)."""
    sandbox = await call.manager.control.change(sandbox.id, patch.to_change(await call.read(patch.SandboxPatch)))
    return answer(models.sandbox_out(sandbox))


async def freeze(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Suspend every process of a sandbox."""
    return answer(models.sandbox_out(await call.manager.control.freeze(sandbox.id)))


async def thaw(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Resume every process of a frozen sandbox."""
    return answer(models.sandbox_out(await call.manager.control.thaw(sandbox.id)))


async def stats(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Return a sandbox's resource usage."""
    return answer(models.stats_out(*await call.manager.control.stats(sandbox.id)))


async def destroy(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Destroy a sandbox and everything in it."""
    await call.manager.destroy(sandbox.id)
    return nothing()
