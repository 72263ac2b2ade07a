"""…/sessions: create, list, inspect, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ...spec import SessionSpec, check_session_id
from ...wire.times import rfc3339
from ..call import answer, nothing
from ..pieces import answer_in_pieces
from .models import StartIn, start_fields

if TYPE_CHECKING:
    from quart_trio.wrappers import TrioResponse

    from ...runtime.sandbox import Sandbox
    from ...runtime.sessions import SessionInfo
    from ..call import Call


class SessionIn(StartIn, frozen=True):
    """A session to create."""

    id: str | None = None
    shell: str | None = None


class SessionOut(msgspec.Struct, frozen=True, kw_only=True):
    """A session; `running` is the process id of the running command, `waiting` the number of queued ones."""

    id: str
    shell: str
    user: str
    cwd: str | None
    created_at: str
    commands: int
    running: str | None
    waiting: int


class SessionList(msgspec.Struct, frozen=True):
    """Every session; `next` is always null."""

    items: list[SessionOut]
    next: str | None


def session_out(info: SessionInfo) -> SessionOut:
    """Return a session as callers see it."""
    return SessionOut(
        id=info.id,
        shell=info.shell,
        user=info.user,
        cwd=info.cwd,
        created_at=rfc3339(info.created_at),
        commands=info.commands,
        running=info.running,
        waiting=info.waiting,
    )


async def create(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Create a session: shell state that each command passes to the next."""
    model = await call.read(SessionIn)
    spec = SessionSpec(id=model.id, shell=model.shell, **start_fields(model))
    info = await sandbox.sessions.create(spec)
    return answer(session_out(info), 201, {"Location": f"/v1/sandboxes/{sandbox.id}/sessions/{info.id}"})


async def show_all(call: Call, sandbox: Sandbox) -> TrioResponse:
    """List sessions, oldest first."""
    return answer_in_pieces(SessionList([session_out(info) for info in await sandbox.sessions.all()], None))


async def show(call: Call, sandbox: Sandbox, session: str) -> TrioResponse:
    """Show a session."""
    return answer(session_out(await sandbox.sessions.get(check_session_id(session))))


async def destroy(call: Call, sandbox: Sandbox, session: str) -> TrioResponse:
    """Delete a session; kills its commands, processes and terminals, and what its commands left running."""
    await sandbox.sessions.delete(check_session_id(session))
    return nothing()
