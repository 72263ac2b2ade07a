"""Sessions, for synchronous code: `Session`, and a part of `Sandbox`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from sandboxd.errors import SandboxdError, SessionNotFound

from . import calls, process_calls, session_calls
from .models import with_output
from .pty import Pty
from .stream import ExecStream

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from .client import Client
    from .models import ExecResult, SandboxInfo
    from .process_calls import ProcessInfo
    from .session_calls import SessionInfo


class Session:
    """Commands that hand on a shell's state: working folder, variables, functions, aliases, options.

    Made by `Sandbox.create_session` and `get_session`. Its commands run one after the other, those of other sessions
    beside them. Whatever a command does (`exit`, `exec`, a timeout), the session goes on; what a command leaves running
    goes on too. As a context manager it deletes the session at the end of the block.
    """

    def __init__(self, sandbox: SessionPart, info: SessionInfo) -> None:
        self._sandbox = sandbox
        self.info = info

    def __repr__(self) -> str:
        return f"<Session {self.id} of {self._sandbox.id}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.delete()
        except SessionNotFound:
            return
        except SandboxdError as failure:
            if error is None:
                raise
            error.add_note(f"and the session {self.id} could not be deleted: {failure}")

    @property
    def id(self) -> str:
        """The session's id."""
        return self.info.id

    def refresh(self) -> SessionInfo:
        """Ask the daemon how the session is, keep the answer in `info` and return it."""
        self.info = self._sandbox.client.send(session_calls.get(self._sandbox.id, self.id))
        return self.info

    def exec(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | str | None = None,
        timeout: float | None = None,
        keep_orphans: bool = True,
    ) -> ExecResult:
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
        with self.exec_stream(
            command, cwd=cwd, env=env, stdin=stdin, timeout=timeout, keep_orphans=keep_orphans
        ) as stream:
            output: dict[str, builtins.list[bytes]] = {"stdout": [], "stderr": []}
            for chunk in stream:
                output[chunk.stream].append(chunk.data)
            return with_output(stream.wait(), b"".join(output["stdout"]), b"".join(output["stderr"]))

    def exec_stream(  # noqa: PLR0913 - the fields of a command, all by keyword
        self,
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
    ) -> ExecStream:
        """Start a command when those before it have ended, and return its stream; args as of `Sandbox.exec_stream`."""
        call = calls.exec_raw(
            self._sandbox.id,
            command,
            cwd=cwd,
            env=env,
            stdin=stdin,
            timeout=timeout,
            detach=detach,
            keep_orphans=keep_orphans,
            session=self.id,
        )
        return ExecStream(self._sandbox.client, self._sandbox.id, call, on_stdout, on_stderr)

    def start_process(
        self,
        command: str | Sequence[str],
        *,
        id: str | None = None,  # noqa: A002 - the API's own name
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | str | bool | None = None,
        timeout: float | None = None,
        keep_orphans: bool = True,
        restart: Literal["never", "on-failure"] | None = None,
    ) -> ProcessInfo:
        """Start a process with the session's state as it is now; it waits for nobody and leaves nothing to the session.

        Args and errors as of `Sandbox.start_process`, whose other methods are for this process too.
        """
        call = process_calls.start(
            self._sandbox.id,
            command,
            id=id,
            restart=restart,
            cwd=cwd,
            env=env,
            stdin=stdin,
            timeout=timeout,
            keep_orphans=keep_orphans,
            session=self.id,
        )
        return self._sandbox.client.send(call)

    def open_pty(
        self,
        command: str | Sequence[str] | None = None,
        *,
        cols: int = 80,
        rows: int = 24,
        id: str | None = None,  # noqa: A002 - the API's own name
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        linger: float | None = 300.0,
        on_gap: Callable[[int], object] | None = None,
    ) -> Pty:
        """Open a terminal with the session's state as it is now, and look at it; what is done there stays there.

        Args as of `Sandbox.open_pty`, whose `process=` comes back to this one too.
        """
        call = process_calls.start_terminal(
            self._sandbox.id,
            command,
            id=id,
            size=(cols, rows),
            linger=linger,
            cwd=cwd,
            env=env,
            keep_orphans=None,
            session=self.id,
        )
        process = self._sandbox.client.send(call)
        query = process_calls.pty_query(process, cols, rows, fresh=True)
        return Pty(self._sandbox.client.address, self._sandbox.id, query, on_gap)

    def delete(self) -> None:
        """End the session: all that runs with its state is killed, and what its commands left in the background.

        Raises:
            SessionNotFound: it is deleted already.
        """
        self._sandbox.delete_session(self.id)


class SessionPart:
    """Methods of `Sandbox`."""

    info: SandboxInfo

    @property
    def id(self) -> str:
        """The sandbox's id."""
        return self.info.id

    @property
    def client(self) -> Client:
        """The connections that it uses."""
        raise NotImplementedError

    def create_session(
        self,
        *,
        id: str | None = None,  # noqa: A002 - the API's own name
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | int | None = None,
        shell: str | None = None,
    ) -> Session:
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
        call = session_calls.create(self.id, id=id, cwd=cwd, env=env, user=user, shell=shell)
        return Session(self, self.client.send(call))

    def get_session(self, session: str) -> Session:
        """Return the session with that id.

        Raises:
            SessionNotFound: there is none.
        """
        return Session(self, self.client.send(session_calls.get(self.id, session)))

    def list_sessions(self) -> list[Session]:
        """Return every session, the oldest first."""
        return [Session(self, info) for info in self.client.send(session_calls.show_all(self.id))]

    def delete_session(self, session: str) -> None:
        """End a session: all that runs with its state is killed, and what its commands left in the background.

        Raises:
            SessionNotFound: there is none.
        """
        self.client.send(session_calls.delete(self.id, session))
