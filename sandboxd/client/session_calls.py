"""…/sessions: what to send, and how to read the answer (see `calls`)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Unpack
from urllib.parse import quote

from sandboxd.errors import InvalidRequest

from . import process_calls
from .calls import Call, given, listed, nothing, sandbox_path
from .exec_calls import ExecRequest, WholeExec, exec_call
from .models import parse_time
from .options import PlaceOptions, SessionCommandOptions, StartOptions, command_json, options_json, takes

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Sequence

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
        id: its id, chosen by the caller or the daemon.
        shell: the path of its shell.
        user: the user that its commands run as.
        cwd: the working directory after its last command; None if its name is not valid text.
        commands: how many commands were started.
        running: the process id of the running command, or None.
        waiting: how many commands are queued.
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


@takes(StartOptions)
def create_session(
    key: str,
    *,
    id: str | None = None,  # noqa: A002 - the API's own name
    shell: str | None = None,
    **options: Unpack[StartOptions],
) -> Call[SessionInfo]:
    """Create a session.

    Args:
        id: an id of your choice, unique in the sandbox; default: the daemon chooses one.
        shell: "bash" or "sh"; default: bash if the rootfs has it. In sh, functions are not kept between commands.
        options: those of `StartOptions`, for all of its commands.

    Raises:
        InvalidRequest: a value is wrong; `field` names it.
        NameTaken: another session has that id.
        LimitExceeded: the sandbox has reached its limit of sessions.
    """
    body = given(id=id, shell=shell) | options_json(options)
    return Call("POST", sandbox_path(key, "/sessions"), body=body, what="session", parse=parse_session)


def list_sessions(key: str) -> Call[list[SessionInfo]]:
    """Return every session, the oldest first."""
    return Call("GET", sandbox_path(key, "/sessions"), what="sessions", parse=listed(parse_session))


def get_session(key: str, session: str) -> Call[SessionInfo]:
    """Return the session with that id.

    Raises:
        SessionNotFound: no such session.
    """
    return Call("GET", _path(key, session), what="session", parse=parse_session)


def delete_session(key: str, session: str) -> Call[None]:
    """Delete a session, and kill its commands and everything they left in the background.

    Raises:
        SessionNotFound: no such session.
    """
    return Call("DELETE", _path(key, session), what="answer", parse=nothing)


def _path(key: str, session: str) -> str:
    if not session or session in (".", ".."):
        raise InvalidRequest(f"{session!r} is not a valid session id", field="session")
    return sandbox_path(key, f"/sessions/{quote(session, safe='')}")


# --- verbs of a session ---


def refresh(key: SessionKey) -> Call[SessionInfo]:
    """Fetch the session's current state, store it in `info` and return it."""
    return get_session(*key)


def delete(key: SessionKey) -> Call[None]:
    """Delete the session, and kill its commands and everything they left in the background.

    Raises:
        SessionNotFound: it was deleted already.
    """
    return delete_session(*key)


@takes(SessionCommandOptions, keep_orphans=True)
def exec(  # noqa: A001 - the verb's name
    key: SessionKey,
    command: str | Sequence[str],
    *,
    stdin: bytes | str | None = None,
    **options: Unpack[SessionCommandOptions],
) -> Request[ExecResult]:
    """Run a command once those before it have ended, and return how it ended and its output.

    `cwd` and `env` apply to this command alone; without `cwd` it starts where the last command ended. A timeout counts
    from the command's start and does not end the session.

    Args:
        command: a string for the session's shell, or a list of arguments, the first of which may be a function.
        stdin: the command's standard input, up to 4 MiB as JSON; default: empty.
        options: those of `SessionCommandOptions`.

    Raises:
        SessionNotFound: the session was deleted, before or while the command waited.
        InvalidRequest: a value is wrong; `field` names it.
    """
    sandbox, session = key
    return WholeExec(ExecRequest(sandbox, exec_call(sandbox, command, options, stdin=stdin, session=session)))


@takes(SessionCommandOptions, keep_orphans=True)
def exec_stream(
    key: SessionKey,
    command: str | Sequence[str],
    *,
    on_stdout: Callable[[str], object] | None = None,
    on_stderr: Callable[[str], object] | None = None,
    stdin: bytes | str | bool | None = None,
    detach: bool = False,
    **options: Unpack[SessionCommandOptions],
) -> ExecRequest:
    """Start a command once those before it have ended, and return its stream; args as for the sandbox's `exec_stream`.

    In asynchronous code `async with` starts it.
    """
    sandbox, session = key
    call = exec_call(sandbox, command, options, stdin=stdin, session=session, detach=detach)
    return ExecRequest(sandbox, call, on_stdout, on_stderr)


@takes(SessionCommandOptions, keep_orphans=True)
def start_process(
    key: SessionKey,
    command: str | Sequence[str],
    *,
    id: str | None = None,  # noqa: A002 - the API's own name
    stdin: bytes | str | bool | None = None,
    restart: Literal["never", "on-failure"] | None = None,
    **options: Unpack[SessionCommandOptions],
) -> Call[ProcessInfo]:
    """Start a process with a copy of the session's current state. It does not wait for other commands.

    Args and errors as for the sandbox's `start_process`; manage it with the sandbox's other process methods.
    """
    sandbox, session = key
    body = command_json(command, options, stdin=stdin, session=session)
    return process_calls.start(sandbox, body, id=id, restart=restart)


@takes(PlaceOptions)
def open_pty(
    key: SessionKey,
    command: str | Sequence[str] | None = None,
    *,
    cols: int = 80,
    rows: int = 24,
    id: str | None = None,  # noqa: A002 - the API's own name
    linger: float | None = 300.0,
    on_gap: Callable[[int], object] | None = None,
    **options: Unpack[PlaceOptions],
) -> TerminalRequest:
    """Open a terminal with a copy of the session's current state.

    Args as for the sandbox's `open_pty`, whose `process=` reconnects to this one too. In asynchronous code `async with`
    opens it, with the session's state as it is then.
    """
    sandbox, session = key
    line = process_calls.DEFAULT_SHELL if command is None else command
    body = command_json(line, options, session=session)
    return process_calls.new_terminal(sandbox, body, cols=cols, rows=rows, on_gap=on_gap, id=id, linger=linger)
