"""A terminal in their form: binary frames are bytes, text frames `ready`, `error` and `exit`; one for each session.

Whoever comes to a session's terminal sees what it showed, and shares it with those who are there.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from ...errors import InvalidRequest, NameTaken, ProcessNotFound, SandboxdError
from ...spec import CommandSpec, check_size
from ..v1.terminals import Viewer
from . import container, problems
from . import container_sessions as sessions
from .container_exec import code_of
from .tokens import SocketQuery

if TYPE_CHECKING:
    from ...runtime.processes import ProcessInfo
    from ...runtime.sandbox import Sandbox
    from ..socket_call import SocketCall

#: How long a terminal that nobody looks at goes on: longer than their browser's add-on tries to come back.
LINGER_S: Final = 3600.0
#: The same for one that nobody can come back to: long enough for the first client to come.
OWN_LINGER_S: Final = 5.0
_DEFAULT_SESSION: Final = "default"
_PREFIX: Final = "pty-"


class SizedQuery(SocketQuery, frozen=True):
    """How large a terminal is, and what runs in it."""

    cols: Annotated[int, Meta(description="the terminal's columns, 1 to 2000")] = 80
    rows: Annotated[int, Meta(description="the terminal's rows, 1 to 2000")] = 24
    shell: Annotated[str | None, Meta(description="the program to run; default: bash, or sh")] = None


class TerminalQuery(SizedQuery, frozen=True):
    """Whose terminal is wanted."""

    session_id: Annotated[str | None, Meta(description="a session id")] = msgspec.field(default=None, name="sessionId")


async def open_terminal(call: SocketCall, name: str, query: TerminalQuery) -> None:
    """Open the terminal of a session, or come to it."""
    sandbox = await container.reach(call, name)
    session = sessions.session_of(query.session_id) or _DEFAULT_SESSION
    await serve(call, sandbox, session, query)


async def serve(call: SocketCall, sandbox: Sandbox, session: str | None, query: SizedQuery) -> None:
    """Serve one client at a session's terminal, which is made where there is none, or its program has ended.

    Without a session the client has a terminal of its own, which ends when it leaves.

    Raises:
        Refusal, SandboxdError: why there is none; the handshake is not answered yet.
    """
    size, shell = (query.cols, query.rows), query.shell
    try:
        check_size(*size)
    except InvalidRequest as error:
        raise container.invalid(error) from None
    if shell is not None:
        container.check_words(shell, "shell", container.MAX_PATH_CHARS)
    with container.about(sessionId=session):
        if session is None:
            info, is_fresh = await _own(sandbox, size, shell), True
        else:
            info, is_fresh = await _reach(sandbox, session, size, shell)
    await call.socket.accept()
    await _Viewer(call.socket, sandbox, info, size, is_fresh).run()


async def _own(sandbox: Sandbox, size: tuple[int, int], shell: str | None) -> ProcessInfo:
    """Start a terminal for one client."""
    program = shell or await container.shell_of(sandbox)
    return await sandbox.processes.start(CommandSpec(argv=(program,), terminal=size, linger_s=OWN_LINGER_S))


async def _reach(sandbox: Sandbox, session: str, size: tuple[int, int], shell: str | None) -> tuple[ProcessInfo, bool]:
    """Return a session's terminal, and whether it is new."""
    process = _PREFIX + session
    if len(process) > 64:  # a process's id may be shorter than a session's
        process = _PREFIX + hashlib.blake2b(session.encode(), digest_size=16).hexdigest()
    while True:
        with contextlib.suppress(ProcessNotFound):
            info = await sandbox.processes.get(process)
            if info.running and info.terminal:
                return info, False
            await sandbox.processes.remove(process)
        program = shlex.quote(shell or await container.shell_of(sandbox))
        command = CommandSpec(
            argv=CommandSpec.shell(f"exec {program}"), session=session, terminal=size, linger_s=LINGER_S
        )
        with contextlib.suppress(NameTaken):  # another client was first
            return await sessions.start(sandbox, command, process), True


class _Viewer(Viewer):
    """What a client hears, in their words."""

    async def say_start(self) -> None:
        """Nothing: in their form the first word comes behind what was there."""

    async def say_ready(self) -> None:
        """Say that the client has seen what was there."""
        await self.socket.send_json({"type": "ready"})

    async def say_truncated(self, dropped_bytes: int) -> None:
        """Nothing: what was lost is shown anew as far as it is there."""

    async def say_error(self, error: SandboxdError) -> None:
        """Say what went wrong."""
        shown = problems.container(error)[1]
        await self.socket.send_json({"type": "error", "message": shown["message"], "code": shown["code"]})

    async def say_exit(self, info: ProcessInfo) -> None:
        """Say how the program ended."""
        ended = info.result
        shown = {"type": "exit", "code": 0 if ended is None else code_of(ended)}
        if ended is not None and ended.signal is not None:
            shown["signal"] = ended.signal
        await self.socket.send_json(shown)
