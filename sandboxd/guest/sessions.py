"""Sessions: a shell's state that one command leaves to the next; commands of one session run one after the other.

A command in a session is a process like any other, in a leaf and with a journal of its own; `session_shells` has how
the state goes from one to the next. Sessions live here, so that they outlive a daemon; they end with the sandbox.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any, Final

from ..errors import InvalidRequest, LimitExceeded, NameTaken, SandboxdError, ServerBusy, SessionNotFound
from ..spec import CommandSpec, SessionSpec, check_session_id
from ..wire.exhausted import known
from . import lines, users
from . import session_shells as shells
from .leaf_cgroups import LeafCgroup
from .link_server import LinkServer
from .processes import Process, Shell
from .users import User

#: Sessions at once: each holds a descriptor here, of 1024.
MAX_SESSIONS: Final = 64
#: Commands that may wait for their turn in one session.
MAX_WAITING: Final = 64
_BASH: Final = ("/bin/bash", "/usr/bin/bash")
_TAIL_BYTES: Final = 4096 + len(shells.CWD_MARK) + len(shells.END_MARK)

Operation = Callable[[LinkServer, int, dict[str, Any]], None]
#: Starts a command in the session's shell and returns it.
Start = Callable[[Shell], Process]


@dataclasses.dataclass(eq=False, slots=True)
class Session:
    """One session."""

    id: str
    shell: str
    user: User
    state: int
    cwd: str | None
    created_at: float = dataclasses.field(default_factory=time.time)
    commands: int = 0
    running: Process | None = None
    waiting: collections.deque[Waiting] = dataclasses.field(default_factory=collections.deque)
    #: What runs with its state beside its commands: processes in the background, terminals.
    beside: list[Process] = dataclasses.field(default_factory=list)
    #: Where those ran that have ended: something of them may go on.
    trees: list[list[LeafCgroup]] = dataclasses.field(default_factory=list)

    def info(self) -> dict[str, Any]:
        """Return what a list shows of it."""
        return {
            "session": self.id,
            "shell": self.shell,
            "user": self.user.name,
            "cwd": self.cwd,
            "created_at": self.created_at,
            "commands": self.commands,
            "running": None if self.running is None else self.running.id,
            "waiting": len(self.waiting),
        }


@dataclasses.dataclass(eq=False, slots=True)
class Waiting:
    """A command that waits for its turn: how to start it, and how to tell that it will not be."""

    spec: CommandSpec
    start: Start
    refuse: Callable[[SandboxdError], None]


class Sessions:
    """Every session of the sandbox. `commands` gives the sandbox's environment, working directory and user."""

    def __init__(self, commands: Any) -> None:  # noqa: ANN401 - Commands, which imports this
        self._commands = commands
        self._sessions: dict[str, Session] = {}
        self.operations: dict[str, Operation] = {
            "session_create": self._create,
            "session_list": self._list,
            "session_info": lambda peer, request, params: peer.reply(request, self.find(params).info()),
            "session_delete": self._delete,
        }

    def find(self, params: dict[str, Any]) -> Session:
        """Return the session that `params` name.

        Raises:
            SessionNotFound: there is none.
        """
        session = self._sessions.get(params["session"])
        if session is None:
            name = params["session"]
            raise SessionNotFound(f"cannot find session {name!r:.140}: no such session", session=str(name)[:128])
        return session

    # --- operations ---

    def _create(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        name = check_session_id(params["session"])
        if name in self._sessions:
            raise NameTaken(f"cannot create session {name}: the id is in use", id=name)
        if len(self._sessions) >= MAX_SESSIONS:
            raise LimitExceeded(f"cannot create a session: the sandbox has {MAX_SESSIONS} already", bound=MAX_SESSIONS)
        spec = SessionSpec.from_message(params)
        cwd = spec.cwd or self._commands.cwd
        user = self._commands.user if spec.user is None else users.find_user(spec.user)
        if not os.path.isdir(cwd):
            raise InvalidRequest(f"cannot create a session in {cwd}: no such directory in the sandbox", field="cwd")
        shell = find_shell(spec.shell)
        umask = "" if spec.umask is None else f"umask {spec.umask}\n"
        state = lines.memory_file(umask + shells.first_state(shell, self._commands.environment(spec.env, user), cwd))
        session = self._sessions[name] = Session(name, shell, user, state, cwd)
        peer.reply(request, session.info())

    def _list(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        del params
        peer.reply(request, {"items": [session.info() for session in self._sessions.values()]})

    def _delete(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        """End a session: what runs in it or beside its commands is killed, and what earlier ones have left."""
        session = self.find(params)
        del self._sessions[session.id]
        gone = SessionNotFound(f"cannot run in session {session.id}: it was deleted", session=session.id)
        for waiting in session.waiting:
            waiting.refuse(gone)
        session.waiting.clear()

        def ended() -> None:
            os.close(session.state)
            peer.reply(request, {})

        running = [*session.beside, *([session.running] if session.running else [])]
        self._commands.end(running, session.trees, ended)

    # --- commands ---

    def take_turn(self, params: dict[str, Any], waiting: Waiting) -> Callable[[], None] | None:
        """Start a command now, or when those before it have ended; return what takes it back while it waits.

        Raises:
            SandboxdError: it cannot be started; one that waited is refused instead.
        """
        session = self.find(params)
        if session.running is None and not session.waiting:
            self._start_next(session, waiting)
            return None
        if len(session.waiting) >= MAX_WAITING:
            raise ServerBusy(
                f"cannot run in session {session.id}: {MAX_WAITING} commands are waiting already", bound=MAX_WAITING
            )
        session.waiting.append(waiting)

        def take_back() -> None:
            with contextlib.suppress(ValueError):
                session.waiting.remove(waiting)

        return take_back

    def run_beside(self, params: dict[str, Any], spec: CommandSpec, start: Start) -> Process:
        """Start a command with the state as it is now: it waits for nobody, and leaves nothing to the session."""
        session = self.find(params)
        state = os.dup(session.state)
        try:
            shell = self._shell(session, spec, state, saves=False)
            process = start(shell)  # closes the shell's own files where it fails
        except BaseException:
            os.close(state)
            raise

        session.beside.append(process)

        def ended() -> None:
            shell.close()
            os.close(state)
            session.beside.remove(process)
            self._keep_tree(session, process)

        process.when_ended(ended)
        return process

    def _start_next(self, session: Session, waiting: Waiting) -> None:
        shell = self._shell(session, waiting.spec, session.state)
        process = waiting.start(shell)
        session.running = process
        session.commands += 1
        process.when_ended(lambda: self._on_end(session, process, shell))

    def _on_end(self, session: Session, process: Process, shell: Shell) -> None:
        """Take over the state that the command has left, if it is whole, and let the next one begin."""
        session.running = None
        self._keep_tree(session, process)
        new = shell.fds[2]
        with contextlib.suppress(OSError):
            size = os.fstat(new).st_size
            is_whole, cwd = shells.read_end(os.pread(new, _TAIL_BYTES, max(0, size - _TAIL_BYTES)))
            if is_whole:
                # In place, so that the number stays: whoever deletes the session closes that.
                os.dup2(new, session.state, inheritable=False)
                session.cwd = cwd
        shell.close()
        # After the flush that the end has deferred.
        self._commands.loop.defer(lambda: self._next(session))

    def _next(self, session: Session) -> None:
        while session.waiting and session.running is None:
            waiting = session.waiting.popleft()
            try:
                self._start_next(session, waiting)
            except SandboxdError as error:
                waiting.refuse(error)
            except (OSError, MemoryError) as error:
                waiting.refuse(known(error, f"run in session {session.id}"))

    def _shell(self, session: Session, spec: CommandSpec, state: int, *, saves: bool = True) -> Shell:
        if spec.user is not None:
            raise InvalidRequest("cannot accept user: the session has its own", field="user")
        env = {"TERM": "xterm-256color", **spec.env} if spec.terminal is not None else spec.env
        line, long_line = spec.argv[-1], spec.long_line
        if long_line is not None:
            line = lines.beginning(long_line) if saves else lines.EVAL + lines.beginning(long_line)
        text = shells.prelude(session.shell, env, spec.cwd, self._commands.cwd, saves=saves, line=long_line)
        prelude = lines.memory_file(text)
        try:
            new = lines.memory_file("")
        except BaseException:
            os.close(prelude)
            raise
        argv, variables = (shells.argv(session.shell, line), {}) if saves else shells.beside(session.shell, line)
        return Shell(argv, variables, (prelude, state, new), shells.FIRST_FD, session.user)

    @staticmethod
    def _keep_tree(session: Session, process: Process) -> None:
        """Remember where a process ran, for as long as something may be there."""
        trees = (*session.trees, process.leaves)
        session.trees = [tree for tree in trees if any(not leaf.is_gone for leaf in tree)]


def find_shell(wanted: str | None) -> str:
    """Return the path of the shell of that name; bash where there is one, else sh.

    Raises:
        InvalidRequest: the rootfs has no bash.
    """
    if wanted != "sh":
        for path in _BASH:
            if os.access(path, os.X_OK):
                return path
        if wanted == "bash":
            raise InvalidRequest("cannot create a session with bash: the rootfs has no bash", field="shell")
    return "/bin/sh"
