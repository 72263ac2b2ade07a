"""The sessions of one sandbox, seen from the daemon: what init says of them, checked."""

from __future__ import annotations

import dataclasses
import secrets
import string
from typing import TYPE_CHECKING, Any, Final

from ..errors import InvalidRequest, RemoteProtocolError
from ..spec import SessionSpec, check_session_id
from . import checks

if TYPE_CHECKING:
    from .sandbox import Sandbox

#: As many as init lets there be.
MAX_SESSIONS: Final = 64
_LETTERS: Final = string.ascii_lowercase + "234567"
_MAX_TIME: Final = 1e11


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """A session as init described it.

    Attributes:
        shell: the path of its shell.
        user: whose name its commands run under.
        cwd: the working directory that its last command left; the sandbox's programs say so. None where they say
        nonsense.
        created_at: seconds since the epoch.
        commands: how many were begun.
        running: the process of the command that runs now.
        waiting: how many wait for their turn.
    """

    id: str
    shell: str
    user: str
    cwd: str | None
    created_at: float
    commands: int
    running: str | None
    waiting: int


def parse_info(data: dict[str, Any]) -> SessionInfo:
    """Check what init said of a session.

    Raises:
        RemoteProtocolError: a field is missing or out of its bounds.
    """
    try:
        name = check_session_id(checks.text(data, "session", limit=128))
    except InvalidRequest:
        raise RemoteProtocolError("cannot accept a session with an invalid id") from None
    return SessionInfo(
        id=name,
        shell=checks.text(data, "shell", limit=64),
        user=checks.words(data, "user"),
        cwd=None if data.get("cwd") is None else checks.text(data, "cwd", limit=4096),
        created_at=checks.number(data, "created_at", high=_MAX_TIME),
        commands=checks.integer(data, "commands"),
        running=None if data.get("running") is None else checks.text(data, "running", limit=64),
        waiting=checks.integer(data, "waiting", high=1 << 16),
    )


class Sessions:
    """What can be asked of a sandbox's sessions; made by it. Every method may raise `SandboxFailed`, `SandboxGone`."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def create(self, spec: SessionSpec) -> SessionInfo:
        """Begin a session.

        Raises:
            InvalidRequest: init cannot: no such user, directory or shell.
            NameTaken: another session has that id.
            LimitExceeded: there are as many as may be.
        """
        await self._sandbox.check_fields(spec)
        name = spec.id or "s-" + "".join(_LETTERS[byte & 31] for byte in secrets.token_bytes(10))
        return await self._info("session_create", name, **dataclasses.replace(spec, id=None).to_message())

    async def get(self, session: str) -> SessionInfo:
        """Return one session.

        Raises:
            SessionNotFound: there is none with that id.
        """
        return await self._info("session_info", session)

    async def _info(self, op: str, session: str, **params: Any) -> SessionInfo:  # noqa: ANN401 - the link's parameters
        data = await self._sandbox.ask(op, session=session, **params)
        try:
            info = parse_info(data)
            if info.id != session:
                raise RemoteProtocolError(f"cannot accept session {info.id} for {session}")
        except RemoteProtocolError as error:
            raise await self._sandbox.why_broken(error) from error
        return info

    async def all(self) -> list[SessionInfo]:
        """Return every session, the oldest first."""
        data = await self._sandbox.ask("session_list")
        try:
            return [parse_info(item) for item in checks.items(data, "items", dict, limit=MAX_SESSIONS)]
        except RemoteProtocolError as error:
            raise await self._sandbox.why_broken(error) from error

    async def delete(self, session: str) -> None:
        """End a session with all that runs in it or with its state, and what earlier commands left in the background.

        Raises:
            SessionNotFound: there is none with that id.
        """
        await self._sandbox.ask("session_delete", session=session)
