"""Sessions, for code on trio or asyncio: `AsyncSession`, and a part of `AsyncSandbox`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from sandboxd.errors import SessionNotFound

from . import session_calls
from .async_processes import AsyncExecStream
from .async_pty import AsyncPty
from .async_stream import AsyncEnding
from .verbs import AsyncPart, async_info_verb, async_verb, like, stream_verb

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .async_client import AsyncClient
    from .calls import Call
    from .session_calls import SessionInfo, SessionKey

P = ParamSpec("P")


class AsyncSession(AsyncEnding):
    """Commands that share a shell's state: working directory, variables, functions, aliases, options.

    Get one from `AsyncSandbox.create_session` or `get_session`. A session's commands run one after the other; different
    sessions run in parallel. Nothing that a command does (`exit`, `exec`, a timeout) ends the session, and processes
    that a command leaves behind keep running. As a context manager it deletes the session at the end of the block.
    """

    def __init__(self, sandbox: AsyncSessionPart, info: SessionInfo) -> None:
        self._sandbox = sandbox
        self.info = info

    def __repr__(self) -> str:
        return f"<AsyncSession {self.id} of {self._sandbox.id}>"

    async def _end(self) -> None:
        with contextlib.suppress(SessionNotFound):
            await self.delete()

    @property
    def id(self) -> str:
        """The session's id."""
        return self.info.id

    @property
    def _target(self) -> tuple[AsyncClient, SessionKey]:
        return self._sandbox.client, (self._sandbox.id, self.id)

    refresh = async_info_verb(session_calls.refresh)
    exec = async_verb(session_calls.exec)
    exec_stream = stream_verb(session_calls.exec_stream, AsyncExecStream)
    start_process = async_verb(session_calls.start_process)
    open_pty = stream_verb(session_calls.open_pty, AsyncPty)
    delete = async_verb(session_calls.delete)


def _opens(
    build: Callable[Concatenate[str, P], Call[SessionInfo]],
) -> Callable[Concatenate[AsyncSessionPart, P], Coroutine[Any, Any, AsyncSession]]:
    """Return the method of a verb that is answered with a session: it returns one to work with."""

    async def method(part: AsyncSessionPart, /, *args: P.args, **kwargs: P.kwargs) -> AsyncSession:
        return AsyncSession(part, await part.client.send(build(part.id, *args, **kwargs)))

    return like(method, build, "AsyncSession")


class AsyncSessionPart(AsyncPart):
    """Methods of `AsyncSandbox`."""

    create_session = _opens(session_calls.create_session)
    get_session = _opens(session_calls.get_session)
    delete_session = async_verb(session_calls.delete_session)

    async def list_sessions(self) -> list[AsyncSession]:
        """Return every session, oldest first."""
        return [AsyncSession(self, info) for info in await self.client.send(session_calls.list_sessions(self.id))]
