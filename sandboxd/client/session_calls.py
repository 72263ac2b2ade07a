"""…/sessions: what to send, and how to read the answer (see `calls`)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import quote

from sandboxd.errors import InvalidRequest

from . import process_calls
from .calls import Call, given, listed, nothing, sandbox_path
from .exec_calls import ExecRequest, WholeExec, exec_call
from .models import parse_time

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Mapping, Sequence

    from .calls import Request
    from .models import ExecResult, Json
    from .process_calls import ProcessInfo, TerminalRequest

__all__ = ["SessionInfo"]

#: What a session's verbs are about: the sandbox's id, and the session's.
SessionKey: TypeAlias = tuple[str, str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """A session as the daemon described it.

    Attributes:
        id: its name in the sandbox, the caller's own or the daemon's.
        shell: the path of its shell.
        user: whose name its commands run under.
        cwd: the working directory that its last command left; None where that has no name in text.
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


def create_session(
    key: str,
    *,
    id: str | None = None,  # noqa: A002 - the API's own name
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    user: str | int | None = None,
    shell: str | None = None,
) -> Call[SessionInfo]:
    """Begin a session.

    Args:
        id: a name of your own, unique in the sandbox.
        cwd: where it begins; else the sandbox's.
        env: variables on top of the sandbox's.
        user: name or uid that its commands run as; else the sandbox's.
        shell: "bash" or "sh"; else bash where the rootfs has it. An sh keeps no functions.

    Raises:
        InvalidRequest: a value is wrong; `field` names it.
        NameTaken: another session has that id.
        LimitExceeded: there are as many as may be.
    """
    body = given(id=id, cwd=cwd, env=dict(env) if env else None, user=user, shell=shell)
    return Call("POST", sandbox_path(key, "/sessions"), body=body, what="session", parse=parse_session)


def list_sessions(key: str) -> Call[list[SessionInfo]]:
    """Return every session, the oldest first."""
    return Call("GET", sandbox_path(key, "/sessions"), what="sessions", parse=listed(parse_session))


def get_session(key: str, session: str) -> Call[SessionInfo]:
    """Return the session with that id.

    Raises:
        SessionNotFound: there is none.
    """
    return Call("GET", _path(key, session), what="session", parse=parse_session)


def delete_session(key: str, session: str) -> Call[None]:
    """End a session: all that runs with its state is killed, and what its commands left in the background.

    Raises:
        SessionNotFound: there is none.
    """
    return Call("DELETE", _path(key, session), what="answer", parse=nothing)


def _path(key: str, session: str) -> str:
    if not session or session in (".", ".."):
        raise InvalidRequest(f"cannot name a session {session!r}", field="session")
    return sandbox_path(key, f"/sessions/{quote(session, safe='')}")


# --- verbs of a session ---


def refresh(key: SessionKey) -> Call[SessionInfo]:
    """Ask the daemon how the session is, keep the answer in `info` and return it."""
    return get_session(*key)


def delete(key: SessionKey) -> Call[None]:
    """End the session: all that runs with its state is killed, and what its commands left in the background.

    Raises:
        SessionNotFound: it is deleted already.
    """
    return delete_session(*key)


def exec(  # noqa: A001 - the verb's name
    key: SessionKey,
    command: str | Sequence[str],
    *,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | str | None = None,
    timeout: float | None = None,
    keep_orphans: bool = True,
) -> Request[ExecResult]:
    """Run a command to its end, when those before it have ended, and return how it ended and what it printed.

    Args:
        command: a line for the session's shell, or a list of words, of which the first may be a function too.
        cwd: where it runs; for this command alone.
        env: variables for this command alone.
        stdin: what it reads, up to 4 MiB of JSON; else nothing.
        timeout: seconds from its start after which it is killed with all its children; the session goes on.
        keep_orphans: whether processes that it leaves behind go on.

    Raises:
        SessionNotFound: the session was deleted, before or while the command waited.
        InvalidRequest: a value is wrong; `field` names it.
    """
    return WholeExec(
        exec_stream(key, command, cwd=cwd, env=env, stdin=stdin, timeout=timeout, keep_orphans=keep_orphans)
    )


def exec_stream(  # noqa: PLR0913 - the fields of a command, all by keyword
    key: SessionKey,
    command: str | Sequence[str],
    *,
    on_stdout: Callable[[str], object] | None = None,
    on_stderr: Callable[[str], object] | None = None,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | str | bool | None = None,
    timeout: float | None = None,
    detach: bool = False,
    keep_orphans: bool = True,
) -> ExecRequest:
    """Start a command when those before it have ended, and return its stream; args as of the sandbox's `exec_stream`.

    In asynchronous code `async with` starts it.
    """
    sandbox, session = key
    how = {"cwd": cwd, "env": env, "stdin": stdin, "timeout": timeout, "keep_orphans": keep_orphans}
    call = exec_call(sandbox, command, detach=detach, session=session, **how)
    return ExecRequest(sandbox, call, on_stdout, on_stderr)


def start_process(  # noqa: PLR0913 - the fields of a process, all by keyword
    key: SessionKey,
    command: str | Sequence[str],
    *,
    id: str | None = None,  # noqa: A002 - the API's own name
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | str | bool | None = None,
    timeout: float | None = None,
    keep_orphans: bool = True,
    restart: Literal["never", "on-failure"] | None = None,
) -> Call[ProcessInfo]:
    """Start a process with the session's state as it is now; it waits for nobody and leaves nothing to the session.

    Args and errors as of the sandbox's `start_process`; the sandbox's other methods are for this process too.
    """
    sandbox, session = key
    how = {"cwd": cwd, "env": env, "stdin": stdin, "timeout": timeout, "keep_orphans": keep_orphans}
    return process_calls.start(sandbox, command, {**how, "session": session}, id=id, restart=restart)


def open_pty(  # noqa: PLR0913 - the fields of a terminal, all by keyword
    key: SessionKey,
    command: str | Sequence[str] | None = None,
    *,
    cols: int = 80,
    rows: int = 24,
    id: str | None = None,  # noqa: A002 - the API's own name
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    linger: float | None = 300.0,
    on_gap: Callable[[int], object] | None = None,
) -> TerminalRequest:
    """Open a terminal with the session's state as it is now, and look at it; what is done there stays there.

    Args as of the sandbox's `open_pty`, whose `process=` comes back to this one too. In asynchronous code `async with`
    opens it, with the session's state as it is then.
    """
    sandbox, session = key
    how = {"cwd": cwd, "env": env, "keep_orphans": None, "session": session}
    return process_calls.new_terminal(
        sandbox, command, cols=cols, rows=rows, on_gap=on_gap, id=id, linger=linger, **how
    )
