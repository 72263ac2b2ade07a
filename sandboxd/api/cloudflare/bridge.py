"""The bridge's REST API: what a caller of Cloudflare's bridge worker does over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..call import answer, nothing
from . import names

if TYPE_CHECKING:
    from quart_trio.wrappers import TrioResponse

    from ..call import Call


async def health(call: Call) -> TrioResponse:
    """Say that the daemon answers."""
    del call
    return answer({"ok": True})


async def create(call: Call) -> TrioResponse:
    """Give an id; the sandbox comes to be when it is first used."""
    del call
    return answer({"id": names.new_bridge_id()})


async def destroy(call: Call, name: str) -> TrioResponse:
    """Destroy a sandbox; one that never came to be is gone already."""
    await names.remove(call.manager, names.check_bridge_id(name))
    return nothing()
