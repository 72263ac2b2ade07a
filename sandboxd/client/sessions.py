"""Sessions, for synchronous code: `Session`, and a part of `Sandbox`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Concatenate, ParamSpec

from sandboxd.errors import SessionNotFound

from . import session_calls
from .processes import ExecStream
from .pty import Pty
from .stream import Ending
from .verbs import Part, like, stream_verb, sync_info_verb, sync_verb

if TYPE_CHECKING:
    from collections.abc import Callable

    from .calls import Call
    from .client import Client
    from .session_calls import SessionInfo, SessionKey

P = ParamSpec("P")


class Session(Ending):
    """Commands that share a shell's state: working directory, variables, functions, aliases, options.

    Get one from `Sandbox.create_session` or `get_session`. A session's commands run one after the other; different
    sessions run in parallel. Nothing that a command does (`exit`, `exec`, a timeout) ends the session, and processes
    that a command leaves behind keep running. As a context manager it deletes the session at the end of the block.
    """

    def __init__(self, sandbox: SessionPart, info: SessionInfo) -> None:
        self._sandbox = sandbox
        self.info = info

    def __repr__(self) -> str:
        return f"<Session {self.id} of {self._sandbox.id}>"

    def _end(self) -> None:
        with contextlib.suppress(SessionNotFound):
            self.delete()

    @property
    def id(self) -> str:
        """The session's id."""
        return self.info.id

    @property
    def _target(self) -> tuple[Client, SessionKey]:
        return self._sandbox.client, (self._sandbox.id, self.id)

    refresh = sync_info_verb(session_calls.refresh)
    exec = sync_verb(session_calls.exec)
    exec_stream = stream_verb(session_calls.exec_stream, ExecStream)
    start_process = sync_verb(session_calls.start_process)
    open_pty = stream_verb(session_calls.open_pty, Pty)
    delete = sync_verb(session_calls.delete)


def _opens(
    build: Callable[Concatenate[str, P], Call[SessionInfo]],
) -> Callable[Concatenate[SessionPart, P], Session]:
    """Return the method of a verb that is answered with a session: it returns one to work with."""

    def method(part: SessionPart, /, *args: P.args, **kwargs: P.kwargs) -> Session:
        return Session(part, part.client.send(build(part.id, *args, **kwargs)))

    return like(method, build, "Session")


class SessionPart(Part):
    """Methods of `Sandbox`."""

    create_session = _opens(session_calls.create_session)
    get_session = _opens(session_calls.get_session)
    delete_session = sync_verb(session_calls.delete_session)

    def list_sessions(self) -> list[Session]:
        """Return every session, oldest first."""
        return [Session(self, info) for info in self.client.send(session_calls.list_sessions(self.id))]
