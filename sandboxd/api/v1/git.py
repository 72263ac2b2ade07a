"""…/git/clone: its progress as server-sent events, or its result as JSON."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

from ...git_spec import CloneSpec
from ...wire import sse
from .. import problems
from ..call import answer, streamed
from ..pieces import follow
from . import git_models as models

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from quart_trio.wrappers import TrioResponse

    from ...runtime.clone import Clone, CloneResult, Progress
    from ...runtime.sandbox import Sandbox
    from ..call import Call

_HEADERS: Final = {"Cache-Control": "no-store", "Content-Type": "text/event-stream; charset=utf-8"}


async def clone(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Clone a git repository into a sandbox. A clone that fails, or whose caller leaves, leaves nothing behind."""
    model = await call.read(models.CloneIn)
    spec = CloneSpec(
        url=model.url,
        ref=model.branch,
        target_dir=model.target_dir,
        depth=model.depth,
        single_branch=model.single_branch,
        submodules=model.submodules,
        sparse=tuple(model.sparse or ()),
        username=model.username,
        password=model.password,
        token=model.token,
        timeout_s=model.timeout_s,
    )
    found = await call.stack.enter_async_context(sandbox.git.clone(spec))
    if call.accepts() == "sse":
        return streamed(CloneBody(found), 200, dict(_HEADERS))
    return answer(_clone_out(await found.finish()))


def _clone_out(result: CloneResult) -> models.CloneOut:
    return models.CloneOut(
        target_dir=result.target_dir,
        branch=result.branch,
        commit=result.commit,
        objects=result.objects,
        received_bytes=result.received_bytes,
        files=result.files,
    )


def _told(told: Progress) -> models.CloneProgress:
    return models.CloneProgress(
        phase=told.phase,
        done=told.done,
        total=told.total,
        received_bytes=told.received_bytes,
        percent=100 * told.done // told.total if told.total else None,
        submodule=told.submodule,
    )


class CloneBody:
    """A clone as server-sent events: `progress`, then `end` or `problem`. The call's stack ends the clone."""

    def __init__(self, clone: Clone) -> None:
        self._clone = clone
        self._offset = -1

    def __aiter__(self) -> AsyncIterator[bytes]:
        return follow(self._next_pieces, problems.to_event)

    async def _next_pieces(self) -> tuple[Iterable[bytes], bool]:
        told = await self._clone.next_progress()
        if told is not None:
            return (self._event("progress", _told(told)),), False
        return (self._event("end", _clone_out(await self._clone.finish())),), True

    def _event(self, name: str, fields: msgspec.Struct) -> bytes:
        self._offset += 1
        head = msgspec.json.encode({"offset": self._offset, "time": time.time()})
        return sse.encode(head[:-1] + b"," + msgspec.json.encode(fields)[1:], event=name, id=self._offset)
