"""Work that a cancelled task must still finish, on trio and on asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

#: How long a cancelled task waits for its clean-up (seconds); destroying takes milliseconds, a hung daemon longer.
CLEANUP_TIMEOUT_S: Final = 30.0


def cleanup_scope() -> anyio.CancelScope:
    """Return a scope whose block a cancellation from outside does not reach, for a bounded time."""
    return anyio.move_on_after(CLEANUP_TIMEOUT_S, shield=True)


async def owned(
    make: Callable[[], Coroutine[object, object, T]], undo: Callable[[T], Coroutine[object, object, None]]
) -> T:
    """Return what `make` makes. A cancellation waits for it to finish, so that nothing is left without an owner.

    On trio (and under anyio) a shielded scope does that, and the caller's next wait raises the cancellation, in a
    block that owns the result. asyncio's own `Task.cancel` goes through any scope: there the making is a task of
    its own, and what it made is undone before the cancellation goes on.
    """
    if not _on_asyncio():
        with anyio.CancelScope(shield=True):
            made = await make()
        return made
    task = asyncio.ensure_future(make())
    try:
        with anyio.CancelScope(shield=True):
            made = await asyncio.shield(task)
        return made
    except asyncio.CancelledError:
        with cleanup_scope():
            await undo(await task)
        raise


def _on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
