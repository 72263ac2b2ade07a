"""One sandbox as the daemon knows it: its spec, its state, its link to init, and what can be asked of it."""

from __future__ import annotations

import functools
import socket
import weakref
from typing import TYPE_CHECKING, Any, Final

import trio

from ..errors import (
    Conflict,
    LaunchFailed,
    NotAvailable,
    ProtocolError,
    RemoteProtocolError,
    SandboxdError,
    SandboxFailed,
    SandboxFrozen,
    SandboxGone,
    SandboxNotFound,
    ServerBusy,
)
from ..spec import CommandSpec, SessionSpec
from ..wire.link import DEFAULT_WINDOW
from ..wire.messages import VERSION
from . import checks
from .contexts import Contexts
from .execution import Execution, new_process_id
from .files import Files
from .git import Git
from .handoff import Handoff
from .jobs import FileJob
from .lifecycle import ALIVE, State, may_move
from .link_client import LinkClient
from .ports import Ports
from .processes import Processes
from .sessions import Sessions
from .store import Record

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ..network import NetworkSpec
    from ..spec import Limits, SandboxSpec, StartSpec
    from .launcher import Launched
    from .link_client import Stream
    from .services import Services

#: A piece of stdin on the link; init writes it before it answers.
STDIN_PIECE_BYTES: Final = 256 * 1024
#: An init that does not answer its settings for so long is stuck.
CONNECT_TIMEOUT_S: Final = 10.0
#: How long a broken link waits for the launcher to say why.
REASON_TIMEOUT_S: Final = 1.0
#: Threads that look for patterns in its output.
SEARCH_THREADS: Final = 2


class Sandbox:
    """Made by `Manager`; its methods raise `SandboxFailed` or `SandboxGone` when it is no longer there."""

    def __init__(
        self,
        sandbox_id: str,
        spec: SandboxSpec,
        created_at: float,
        services: Services,
    ) -> None:
        self.id = sandbox_id
        self.spec = spec
        self.created_at = created_at
        self.services = services
        #: What the daemon may hold in memory for its callers.
        self.share = services.budget.share()
        self.state = State.CREATING
        self.reason: str | None = None
        self.limits: Limits = spec.limits
        self.unenforced: tuple[str, ...] = ()
        self.network: NetworkSpec = spec.network
        self.timings: dict[str, float] = {}
        #: Filesystems of its own: files of others are not taken from its init.
        self.devices: frozenset[int] = frozenset()
        self._peer: LinkClient | None = None
        self.disconnected = trio.Event()
        #: Set when init has heard its settings, or the link has ended before.
        self._configured = trio.Event()
        self._known_fields: frozenset[str] = frozenset()
        #: Why nobody answers its questions about names; None while somebody does, or it has no network.
        self.names_lost: str | None = None
        #: Set, and another one, whenever the state changes.
        self.moved = trio.Event()
        #: Held while it is changed, frozen or thawed: one after the other.
        self.changing = trio.Lock()
        self.contexts = Contexts(self)
        self.files = Files(self)
        self.git = Git(self)
        self.processes = Processes(self)
        self.sessions = Sessions(self)
        self.ports = Ports(sandbox_id)
        self.search_turns = trio.CapacityLimiter(SEARCH_THREADS)
        self._stdin_locks: weakref.WeakValueDictionary[str, trio.Lock] = weakref.WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<Sandbox {self.id} {self.state.value}>"

    # --- its life, for the manager ----------------------------------------------------------------------

    def move(self, new: State, reason: str | None = None) -> None:
        """Go to another state.

        Raises:
            Conflict: no such transition.
        """
        if not may_move(self.state, new):
            old = self.state.value
            raise Conflict(f"cannot make sandbox {self.id} {new.value}: it is {old}", state=old)
        self.state = new
        self.reason = reason
        moved, self.moved = self.moved, trio.Event()
        moved.set()
        self.services.tell_move(self)

    def take_over(self, launched: Launched) -> None:
        """Take over what the launcher said."""
        self.limits = launched.limits
        self.unenforced = launched.unenforced
        self.network = launched.network
        self.timings = launched.timings
        self.devices = launched.devices

    def record(self) -> Record:
        """Return what is to be kept of it."""
        return Record(self.id, self.spec, self.created_at, self.ports.specs())

    def connect(self, links: Path) -> LinkClient:
        """Connect to init, which takes no wait, since it listens; the caller runs the peer.

        Raises:
            OSError: it cannot be reached.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(str(links / f"{self.id}.sock"))
        except BaseException:
            sock.close()
            raise
        self._peer = LinkClient(sock, f"sandbox {self.id}", failure_kinds=checks.INIT_KINDS)
        return self._peer

    def connect_nowhere(self) -> LinkClient:
        """Have a link that is at its end, for an init that cannot be reached: whoever asks then hears why."""
        ours, theirs = socket.socketpair()
        theirs.close()
        self._peer = LinkClient(ours, f"sandbox {self.id}", failure_kinds=checks.INIT_KINDS)
        return self._peer

    @property
    def settings(self) -> dict[str, Any]:
        """What init must hear first, since it never passes through the launcher: env, and commands' defaults."""
        standby_s = self.services.standby_s
        return {"env": self.spec.env, "cwd": self.spec.cwd, "user": self.spec.user, "standby_s": standby_s}

    async def configure(self) -> None:
        """Tell init its settings."""
        with trio.fail_after(CONNECT_TIMEOUT_S):
            answer, _ = await self._request(self._peer or self._link(), "configure", self.settings, 0)
        self.note_fields(answer)

    def note_fields(self, answer: dict[str, Any]) -> None:
        """Note which fields init knows, from its answer to `configure`; one of the first says nothing."""
        known = answer.get("knows")
        # Nothing else of it is kept: it is as long as init likes.
        wanted = CommandSpec.LATER | SessionSpec.LATER
        self._known_fields = frozenset(name for name in wanted if isinstance(known, list) and name in known)
        self._configured.set()

    async def check_fields(self, spec: StartSpec) -> None:
        """Wait until it is known that init knows all that `spec` says.

        Raises:
            NotAvailable: it does not: an older daemon has created the sandbox.
        """
        later = spec.later()
        if not later:
            return
        peer = self._link()
        await self._configured.wait()
        self.check_usable()
        if peer.ended is not None:
            raise await self.why_broken(peer.ended) if isinstance(peer.ended, ProtocolError) else peer.ended
        for name in later:
            if name not in self._known_fields:
                raise NotAvailable(f"cannot accept {name}: {checks.OLD_INIT}", field=name)

    @property
    def has_link(self) -> bool:
        """Whether somebody speaks for its init."""
        return self._peer is not None and self._peer.ended is None

    @property
    def version_refusal(self) -> str | None:
        """What to say of an init that speaks another version of the link; None where it does not."""
        ended = None if self._peer is None else self._peer.ended
        if not isinstance(ended, RemoteProtocolError) or "version" not in ended.facts:
            return None
        return f"its init speaks version {ended.facts['version']} of the link, and this daemon version {VERSION}"

    def link_statistics(self) -> dict[str, int] | None:
        """Return its link's figures, or None."""
        return None if self._peer is None or self._peer.ended is not None else self._peer.statistics()

    def mark_failed(self, reason: str) -> bool:
        """Note that init is gone; return whether that was news."""
        if self.state not in ALIVE:
            return False
        self.move(State.FAILED, reason)
        self.disconnect(SandboxFailed(f"cannot continue in sandbox {self.id}: {reason}", reason=reason))
        return True

    def disconnect(self, error: SandboxdError) -> None:
        """Drop the link; what is under way ends with `error`."""
        self.disconnected.set()
        self._configured.set()
        self.contexts.lose_sandbox(error)
        if self._peer is not None:
            self._peer.abort(error)

    def fail_protocol(self, error: ProtocolError) -> None:
        """Drop the link to an init that broke a rule."""
        if self._peer is not None and self._peer.ended is None:
            self._peer.fail_protocol(error)

    async def why_broken(self, error: ProtocolError) -> SandboxdError:
        """Return what to tell a caller whose request a broken link ended."""
        self.fail_protocol(error)  # it broke a rule that only the caller of `stream` could see
        if self.state is State.CREATING:
            return LaunchFailed(f"cannot configure the init of sandbox {self.id}: {error}", step="configure")
        with trio.move_on_after(REASON_TIMEOUT_S):
            await self.disconnected.wait()
        return self._absence() or SandboxFailed(f"cannot continue in sandbox {self.id}: {error}", reason="link lost")

    def _absence(self) -> SandboxdError | None:
        """Return why nothing can be asked of it, or None."""
        if self.state is State.RUNNING:
            return None
        if self.state is State.CREATING:
            return Conflict(f"cannot use sandbox {self.id}: it is being created", state="creating")
        if self.state is State.FROZEN:
            return SandboxFrozen(f"cannot use sandbox {self.id}: it is frozen", id=self.id)
        if self.state is State.FAILED:
            return SandboxFailed(f"cannot use sandbox {self.id}: it failed ({self.reason})", reason=self.reason)
        if self.state is State.DESTROYING:
            return SandboxGone(f"cannot use sandbox {self.id}: it was destroyed")
        return SandboxNotFound(f"cannot find sandbox {self.id!r}", id=self.id)

    # --- what can be asked of it ------------------------------------------------------------------------

    def check_usable(self) -> None:
        """Raise why nothing can be asked of it, if so."""
        absence = self._absence()
        if absence is not None:
            raise absence

    def _link(self) -> LinkClient:
        self.check_usable()
        return self._peer or self.services.open_link(self)

    async def ask(self, op: str, /, **params: object) -> dict[str, Any]:
        """Ask init for an operation of the link and return its answer, which the caller checks.

        Raises:
            SandboxdError: what init answered, or why the sandbox cannot be asked.
        """
        return (await self._ask_fds(op, params, 0))[0]

    async def ask_for_fd(self, op: str, /, **params: object) -> tuple[dict[str, Any], int]:
        """Ask init for an operation whose answer comes with one descriptor, the caller's to vet and to close.

        Raises:
            SandboxdError: as of `ask`.
        """
        result, (fd,) = await self._ask_fds(op, params, 1)
        return result, fd

    def open_stream(
        self, op: str, params: dict[str, Any], *, window: int = DEFAULT_WINDOW, fds: Iterable[int] = ()
    ) -> Stream:
        """Return the stream of an operation's events; entering it asks. `window` bytes may be on their way.

        `fds` go with the request and are the peer's once it was entered.
        """
        return self._link().stream(op, params, window=window, fds=fds)

    def handoff(self) -> Handoff:
        """Return where a template's child may come to its init."""
        return Handoff(functools.partial(self.services.enter, self.id))

    async def _ask_fds(self, op: str, params: dict[str, Any], fds: int) -> tuple[dict[str, Any], list[int]]:
        peer = self._peer if self.state is State.CREATING and self._peer is not None else self._link()
        return await self._request(peer, op, params, fds)

    async def _request(
        self, peer: LinkClient, op: str, params: dict[str, Any], fds: int
    ) -> tuple[dict[str, Any], list[int]]:
        try:
            return await peer.request(op, params, fds=fds)
        except ProtocolError as error:
            raise await self.why_broken(error) from error

    def execute(self, command: CommandSpec, *, detach: bool = False, batched: bool = False) -> Execution:
        """Return a command to run: an async context manager that starts it.

        A batched caller is not woken for each event, but for much output or the exit.

        Raises (on entry):
            InvalidRequest: init cannot run it: no such user or directory.
            SandboxFailed, SandboxGone: as their names say.
        """
        process = new_process_id()
        params = {**command.to_message(), "process": process, "detach": detach}
        stream = self._link().stream("exec", params)
        return Execution(self, command, stream, process, batched=batched)

    async def write_stdin(self, process: str, data: bytes) -> None:
        """Feed a process that was started with an open stdin; returns when it has been written.

        Raises:
            ProcessNotFound, ProcessNotRunning: as their names say.
        """
        # One writer at a time: the pieces of two would mix, and init lets only a few wait.
        lock = self._stdin_locks.setdefault(process, trio.Lock())
        async with lock:
            for start in range(0, len(data), STDIN_PIECE_BYTES):
                await self.ask("stdin", process=process, data=data[start : start + STDIN_PIECE_BYTES])

    async def close_stdin(self, process: str) -> None:
        """Let a process see the end of its input."""
        await self.ask("stdin_close", process=process)

    async def ping(self) -> None:
        """Return when init has answered."""
        await self.ask("ping")

    def job(self, do: str, params: dict[str, Any], *, feed: bool = False, timeout_s: float | None = None) -> FileJob:
        """Return an operation on files that init does in a process of its own: an async context manager starts it.

        Raises (on entry or later):
            SandboxdError: what the operation says; SandboxFailed and SandboxGone as their names say.
        """
        return FileJob(self, self._link(), {"do": do, "with": params, "feed": feed, "timeout_s": timeout_s})

    def stop(self) -> None:
        """End what is under way because the daemon ends; the sandbox itself goes on."""
        if self._peer is not None:
            self._peer.abort(ServerBusy("cannot continue: the daemon is stopping"))
        self._configured.set()
