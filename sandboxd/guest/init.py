"""pid 1 of a sandbox: the loop, the link's operations, the reaper."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import Any, Final

import prctl

from ..errors import InternalError, InvalidRequest, SandboxdError
from ..linux.eventloop import READ, EventLoop
from ..linux.kernel import Kernel
from ..spec import CommandSpec, SessionSpec, check_env, check_mode, check_path, check_user
from ..wire import exhausted
from ..wire.messages import Cancel, Credit, Message, Request
from . import archives, file_operations, search, tree_digest, users, watching
from .clones import Clones
from .commands import Commands
from .contexts import Contexts
from .files import Files
from .incoming import IncomingChildren
from .jobs import FileJobs
from .leaf_cgroups import LeafCgroups
from .link_server import LinkServer
from .paths import path_of
from .processes import Deps
from .standby import Children, Standby

#: Daemons that may be connected at once: the present one, and an old one that is on its way out.
MAX_PEERS: Final = 4
#: What a caller reads of operations whose names say less.
_VERBS: Final = {"context_start": "start an interpreter", "start": "start a process", "exec": "start a process"}
#: What a daemon is told: only these it may ask for beside the fields that there always were.
_KNOWN_FIELDS: Final = [*CommandSpec.LATER | SessionSpec.LATER]
#: What runs in a process of its own.
JOBS: Final = {
    **file_operations.FUNCTIONS,
    **search.FUNCTIONS,
    **archives.FUNCTIONS,
    **watching.FUNCTIONS,
    **tree_digest.FUNCTIONS,
}


class Init:
    """The state of one sandbox.

    Made once, before any sandbox: in the process that all inits are forked from, which is never one itself. What is
    made here is shared by all; what is the sandbox's own (descriptors, the epoll) comes with `run`.
    """

    _listener: socket.socket

    def __init__(self) -> None:
        self._loop = EventLoop()
        self._kernel = Kernel()
        self._leaves = leaves = LeafCgroups(self._loop)
        self._jobs = FileJobs(self._loop, self._kernel, leaves, JOBS)
        children: Children = {}
        standby = Standby(self._loop, self._kernel, leaves, children)
        self._deps = deps = Deps(self._loop, self._kernel, leaves, standby)
        self._commands = Commands(deps, children, self._jobs.on_exit)
        incoming = IncomingChildren(self._loop)
        self._commands.before_unknown = incoming.drain
        self._contexts = Contexts(deps, self._commands, incoming)
        self._clones = Clones(self._loop, self._kernel, leaves, incoming, self._commands)
        self._files = Files(self._kernel)
        self._peers: list[LinkServer] = []
        self._operations: dict[str, Callable[[LinkServer, int, dict[str, Any]], None]] = {
            "configure": self._configure,
            **self._commands.operations,
            **self._contexts.operations,
            **self._clones.operations,
            "open_read": self._open_read,
            "open_write": self._open_write,
            "commit_write": self._commit_write,
            "abort_write": self._abort_write,
            "stat": lambda peer, request, params: peer.reply(request, file_operations.stat_file(self._kernel, params)),
            "errand": self._job,
            "ping": lambda peer, request, _params: peer.reply(request, {}),
        }

    def run(self, listener_fd: int, cgroup_fd: int) -> None:
        """Serve for ever."""
        self._loop.open()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, listener_fd)
        work = os.open("work", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=cgroup_fd)
        self._leaves.work_fd = work
        self._deps.null_fd = self._deps.standby.null_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._loop.watch(wake_read, READ, lambda: self._reap(wake_read))
        self._loop.watch(self._listener.fileno(), READ, self._accept)
        self._loop.run()

    def warm_up(self, connection: socket.socket, ask: Callable[[], object]) -> None:
        """Serve whoever is behind `connection` for as many turns as `ask` is true, and be as nothing had happened."""
        self._loop.open()
        self._welcome(connection)
        while ask():
            self._loop.turn()
        for peer in list(self._peers):
            peer.close()
        self._loop.close()

    # --- connections ---

    def _accept(self) -> None:
        try:
            # Not accept(), which makes enumerations of the family and the type again.
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
        except OSError:
            return
        self._welcome(connection)

    def _welcome(self, connection: socket.socket) -> None:
        if len(self._peers) >= MAX_PEERS:
            connection.close()
            return
        try:
            peer = LinkServer(self._loop, connection, self._on_message, self._on_room, self._on_gone)
        except OSError:  # the sandbox's own processes have used up what its user may watch
            connection.close()
            return
        self._peers.append(peer)

    def _on_gone(self, peer: LinkServer) -> None:
        """A daemon is gone; commands go on, and nobody is waited for any more."""
        self._peers.remove(peer)
        self._commands.drop_peer(peer)
        self._jobs.drop(peer)
        self._clones.drop(peer)
        self._files.abort_of(lambda holder: holder[0] is peer)
        self._contexts.drop_peer(peer)

    def _on_room(self, peer: LinkServer) -> None:
        self._commands.wake(peer)
        self._contexts.wake(peer)

    def _on_message(self, peer: LinkServer, message: Message) -> None:
        if isinstance(message, Request):
            self._run_operation(peer, message)
        elif isinstance(message, Credit):
            self._commands.credit(peer, message.id, message.bytes)
            self._contexts.credit(peer, message.id, message.bytes)
        elif isinstance(message, Cancel):
            self._commands.cancel(peer, message.id)
            self._jobs.cancel(peer, message.id)
            self._clones.cancel(peer, message.id)
            # An open_write whose answer nobody took: nobody will commit it.
            self._files.abort_of(lambda holder: holder == (peer, message.id))
            self._contexts.cancel(peer, message.id)

    def _run_operation(self, peer: LinkServer, message: Request) -> None:
        operation = self._operations.get(message.op)
        try:
            if operation is None:
                raise InvalidRequest(f"cannot do {message.op[:40]!r}: no such operation", field="op")
            operation(peer, message.id, message.params)
        except SandboxdError as error:
            peer.fail(message.id, error)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            peer.fail(message.id, InternalError(f"cannot {message.op}: bad parameters ({error!r})"))
        except (OSError, MemoryError) as error:
            peer.fail(message.id, exhausted.known(error, _VERBS.get(message.op, message.op)))

    # --- operations ---

    def _configure(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        env = check_env(params["env"])
        cwd = check_path(params["cwd"], "cwd")
        wanted = check_user(params["user"])
        # Root needs no look into the rootfs's files, which an idle sandbox is spared: there always is one.
        user = None if wanted in ("root", 0) else users.find_user(wanted)
        if not os.path.isdir(cwd):
            raise InvalidRequest(f"cannot use {cwd} as cwd: no such directory in the rootfs", field="cwd")
        self._commands.env, self._commands.cwd, self._commands.user = env, cwd, user
        self._deps.standby.idle_s = float(params.get("standby_s", 0))
        if user and user.uid:
            # The default working directory belongs to whom the sandbox is for.
            with contextlib.suppress(FileNotFoundError):
                os.chown("/workspace", user.uid, user.gid, follow_symlinks=False)
        peer.reply(request, {"knows": _KNOWN_FIELDS})

    def _job(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        self._jobs.start(peer, request, params, self._commands.user)

    def _open_read(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        facts, fd = self._files.open_read(path_of(params))
        peer.reply(request, facts, fd)

    def _open_write(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        mode = check_mode(params.get("mode"))
        ticket, fd = self._files.open_write(path_of(params), self._commands.user, mode, (peer, request))
        peer.reply(request, {"ticket": ticket}, fd)

    def _commit_write(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        peer.reply(request, {"created": self._files.commit(params["ticket"])})

    def _abort_write(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        self._files.abort(params["ticket"])
        peer.reply(request, {})

    def _reap(self, wake: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)
        self._commands.reap()


def preload() -> None:
    """Touch what init uses lazily, in the launcher: after pivot_root every import would run the rootfs's code."""
    users.find_user("root")
    archives.preload()


def prepare() -> Callable[[int, int], None]:
    """Return what makes a process, forked from this one, a sandbox's init; it takes the listener and the cgroup.

    It never returns. The process has the default signal dispositions, and a handler of SIGCHLD that does nothing
    (launcher/zygote.py): the wake-up pipe does the work.
    """
    init = Init()

    def serve(listener_fd: int, cgroup_fd: int) -> None:
        prctl.set_proctitle("sandboxd: init")
        prctl.set_name("init")
        init.run(listener_fd, cgroup_fd)

    return serve
