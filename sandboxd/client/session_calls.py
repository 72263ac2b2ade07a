"""…/sessions: what to send, and how to read the answer (see `calls`)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sandboxd.errors import InvalidRequest

from .calls import Call, nothing, sandbox_path
from .models import parse_time

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Mapping

    from .models import Json

__all__ = ["SessionInfo"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """A session as the daemon described it.

    Attributes:
        id: its name in the sandbox, the caller's own or the daemon's.
        shell: the path of its shell.
        user: whose name its commands run under.
        cwd: the working folder that its last command left; None where that has no name in text.
        commands: how many were begun.
        running: the process id of the command that runs now, if one does.
        waiting: how many wait for their turn.
        raw: the daemon's object with every field.
    """

    id: str
    shell: str
    user: str
    cwd: str | None
    created_at: dt.datetime
    commands: int
    running: str | None
    waiting: int
    raw: dict[str, Any] = dataclasses.field(repr=False, compare=False)


def parse_session(value: Json) -> SessionInfo:
    """Read a session object."""
    return SessionInfo(
        id=str(value["id"]),
        shell=str(value["shell"]),
        user=str(value["user"]),
        cwd=value.get("cwd"),
        created_at=parse_time(value["created_at"]),
        commands=int(value["commands"]),
        running=value.get("running"),
        waiting=int(value["waiting"]),
        raw=dict(value),
    )


def create(
    key: str,
    *,
    id: str | None,  # noqa: A002 - the API's own name
    cwd: str | None,
    env: Mapping[str, str] | None,
    user: str | int | None,
    shell: str | None,
) -> Call[SessionInfo]:
    """POST …/sessions."""
    fields = {"id": id, "cwd": cwd, "env": dict(env) if env else None, "user": user, "shell": shell}
    body = {name: value for name, value in fields.items() if value is not None}
    return Call("POST", sandbox_path(key, "/sessions"), body=body, what="session", parse=parse_session)


def show_all(key: str) -> Call[list[SessionInfo]]:
    """GET …/sessions."""
    return Call(
        "GET",
        sandbox_path(key, "/sessions"),
        what="sessions",
        parse=lambda value: [*map(parse_session, value["items"])],
    )


def get(key: str, session: str) -> Call[SessionInfo]:
    """GET …/sessions/{s}."""
    return Call("GET", _path(key, session), what="session", parse=parse_session)


def delete(key: str, session: str) -> Call[None]:
    """DELETE …/sessions/{s}."""
    return Call("DELETE", _path(key, session), what="answer", parse=nothing)


def _path(key: str, session: str) -> str:
    if not session or session in (".", ".."):
        raise InvalidRequest(f"cannot name a session {session!r}", field="session")
    return sandbox_path(key, f"/sessions/{quote(session, safe='')}")
