"""/api/session/…, and what a session is to every other route: created where it is first named, as their server does."""

from __future__ import annotations

import posixpath
import weakref
from typing import TYPE_CHECKING, Any, Final

from ...errors import InvalidRequest, NameTaken, SessionNotFound
from ...spec import CommandSpec, SessionSpec, check_session_id
from ...wire.times import rfc3339
from ..call import answer
from . import container, problems
from .container import Body, about
from .problems import Refusal

if TYPE_CHECKING:
    import contextlib

    from quart_trio.wrappers import TrioResponse

    from ...runtime.execution import Execution
    from ...runtime.processes import ProcessInfo
    from ...runtime.sandbox import Sandbox
    from ...runtime.sessions import SessionInfo
    from ..call import Call

#: What a command in a session may take, where its session was created with a bound; a new daemon has forgotten them.
_TIMEOUTS: Final[weakref.WeakKeyDictionary[Sandbox, dict[str, float]]] = weakref.WeakKeyDictionary()


class SessionIn(Body, frozen=True):
    """A session to create. `isolation` is not heeded: sessions share the sandbox's processes, there and here."""

    id: str | None = None
    name: str | None = None
    cwd: str | None = None
    env: dict[str, str | None] | None = None
    command_timeout_ms: float | None = None


class DeleteIn(Body, frozen=True):
    """A session to end."""

    session_id: str


def session_of(value: str | None) -> str | None:
    """Return the session that a request names; None for none.

    Raises:
        Refusal: it may not name one.
    """
    if value is None or value == container.NO_SESSION:
        return None
    try:
        return check_session_id(value)
    except InvalidRequest as error:
        raise Refusal("VALIDATION_FAILED", error.message, field="sessionId", sessionId=value[:140]) from None


def timeout_of(sandbox: Sandbox, session: str | None) -> float | None:
    """Return how long a command in that session may take, in milliseconds; None for ever."""
    return None if session is None else _TIMEOUTS.get(sandbox, {}).get(session)


async def create(call: Call, name: str) -> TrioResponse:
    """Begin a session."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, SessionIn)
    container.check_time(model.command_timeout_ms, "commandTimeoutMs")
    wanted = session_of(model.id)
    cwd = None if model.cwd is None else container.resolve(model.cwd, field="cwd")
    try:
        with about(sessionId=wanted):
            info = await sandbox.sessions.create(SessionSpec(id=wanted, cwd=cwd, env=container.check_env(model.env)))
    except Refusal as error:
        if isinstance(error.__cause__, NameTaken):
            raise Refusal("SESSION_ALREADY_EXISTS", f"Session '{wanted}' already exists", sessionId=wanted) from None
        raise
    if model.command_timeout_ms is not None:
        _TIMEOUTS.setdefault(sandbox, {})[info.id] = model.command_timeout_ms
    data = {"id": info.id, "cwd": info.cwd, "shell": info.shell, "createdAt": rfc3339(info.created_at)}
    return _done(data=data, sessionId=info.id, containerPlacementId=None)


def _done(**fields: Any) -> TrioResponse:  # noqa: ANN401 - any JSON value
    return answer({"success": True, **fields, "timestamp": problems.timestamp()})


async def show_all(call: Call, name: str) -> TrioResponse:
    """List the sessions' ids, the oldest first."""
    sandbox = await container.reach(call, name)
    return _done(data=[info.id for info in await sandbox.sessions.all()])


async def delete(call: Call, name: str) -> TrioResponse:
    """End a session, with what runs in it."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, DeleteIn)
    session = session_of(model.session_id)
    if session is None:
        raise Refusal("VALIDATION_FAILED", "cannot end a session: that is not a session's id", field="sessionId")
    _TIMEOUTS.get(sandbox, {}).pop(session, None)
    try:
        await sandbox.sessions.delete(session)
    except SessionNotFound:
        why = f"Session '{session}' does not exist"
        raise Refusal("SESSION_DESTROYED", why, sessionId=session) from None
    return _done(sessionId=session)


# --- for the other routes ---


async def ensure(sandbox: Sandbox, session: str) -> SessionInfo:
    """Return a session, which is begun where there is none of that name."""
    while True:
        try:
            return await sandbox.sessions.get(session)
        except SessionNotFound:
            try:
                return await sandbox.sessions.create(SessionSpec(id=session))
            except NameTaken:
                continue  # another caller was first


async def base_of(sandbox: Sandbox, path: str, session: str | None) -> str:
    """Return the directory that a relative path counts from: where the session is, or the workspace."""
    named = session_of(session)
    if posixpath.isabs(path) or named is None:
        return container.WORKSPACE
    return (await ensure(sandbox, named)).cwd or container.WORKSPACE


async def begin(
    stack: contextlib.AsyncExitStack, sandbox: Sandbox, command: CommandSpec, *, batched: bool
) -> Execution:
    """Begin a command; its session comes to be where it must."""
    try:
        return await stack.enter_async_context(sandbox.execute(command, batched=batched))
    except SessionNotFound:
        await ensure(sandbox, command.session or "")
        return await stack.enter_async_context(sandbox.execute(command, batched=batched))


async def start(sandbox: Sandbox, command: CommandSpec, process: str) -> ProcessInfo:
    """Start a process; its session comes to be where it must."""
    try:
        return await sandbox.processes.start(command, process)
    except SessionNotFound:
        await ensure(sandbox, command.session or "")
        return await sandbox.processes.start(command, process)
