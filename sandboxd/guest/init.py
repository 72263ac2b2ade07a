"""pid 1 of a sandbox: the loop, the link's operations, the reaper."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import Any, Final

import prctl

from ..errors import (
    InternalError,
    InvalidRequest,
    NameTaken,
    ProcessNotFound,
    SandboxdError,
)
from ..linux.kernel import Kernel
from ..spec import CommandSpec, check_env, check_path, check_process_id, check_user
from ..wire.messages import Cancel, Credit, Message, Request
from . import users
from .files import Files
from .loop import READ, Loop
from .peer import Peer
from .processes import Follower, Process
from .spawn import DEFAULT_PATH

#: Daemons that may be connected at once: the present one, and an old one that is on its way out.
MAX_PEERS: Final = 4
#: Ended commands that stay with their logs, and what their logs may take together (DESIGN section 8).
MAX_ENDED: Final = 64
MAX_ENDED_BYTES: Final = 8 * 1024 * 1024
#: How long until a leaf that was not empty is tried again; a reaped orphan tries at once.
_LEAF_RETRY_S: Final = 0.02


class Init:
    """The state of one sandbox."""

    def __init__(self, listener: socket.socket, cgroup_fd: int) -> None:
        self._loop = Loop()
        self._kernel = Kernel()
        self._listener = listener
        self._work_fd = os.open("work", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=cgroup_fd)
        self._null_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._files = Files(self._kernel)
        self._peers: list[Peer] = []
        self._processes: dict[str, Process] = {}
        self._by_pid: dict[int, Process] = {}
        self._streams: dict[tuple[Peer, int], tuple[Process, Follower, bool]] = {}
        self._full_leaves: list[Process] = []
        self._env: dict[str, str] = {}
        self._cwd = "/"
        self._user = users.find_user("root")
        self._operations: dict[str, Callable[[Peer, int, dict[str, Any]], None]] = {
            "configure": self._configure,
            "exec": self._exec,
            "follow": self._follow,
            "stdin": self._write_stdin,
            "stdin_close": self._close_stdin,
            "signal": self._signal,
            "open_read": self._open_read,
            "open_write": self._open_write,
            "commit_write": self._commit_write,
            "abort_write": self._abort_write,
            "ping": lambda peer, request, _params: peer.reply(request, {}),
        }

    def run(self) -> None:
        """Serve for ever."""
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore)
        self._loop.watch(wake_read, READ, lambda: self._reap(wake_read))
        self._loop.watch(self._listener.fileno(), READ, self._accept)
        self._loop.run()

    # --- connections ---

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if len(self._peers) >= MAX_PEERS:
            connection.close()
            return
        self._peers.append(Peer(self._loop, connection, self._on_message, self._on_room, self._on_gone))

    def _on_gone(self, peer: Peer) -> None:
        """A daemon is gone; commands go on, and nobody is waited for any more."""
        self._peers.remove(peer)
        for key in [key for key in self._streams if key[0] is peer]:
            process, follower, _ = self._streams.pop(key)
            process.unfollow(follower)
        if not self._peers:
            self._files.abort_all()

    def _on_room(self, peer: Peer) -> None:
        for (owner, _), (process, _, _) in list(self._streams.items()):
            if owner is peer:
                process.wake()

    def _on_message(self, peer: Peer, message: Message) -> None:
        if isinstance(message, Request):
            self._run_operation(peer, message)
        elif isinstance(message, Credit):
            stream = self._streams.get((peer, message.id))
            if stream:
                stream[1].credit += message.bytes
                stream[0].wake()
        elif isinstance(message, Cancel):
            self._cancel(peer, message.id)

    def _run_operation(self, peer: Peer, message: Request) -> None:
        operation = self._operations.get(message.op)
        try:
            if operation is None:
                raise InvalidRequest(f"cannot do {message.op[:40]!r}: no such operation", field="op")
            operation(peer, message.id, message.params)
        except SandboxdError as error:
            peer.fail(message.id, error)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            peer.fail(message.id, InternalError(f"cannot {message.op}: bad parameters ({error!r})"))
        except OSError as error:
            peer.fail(message.id, InternalError(f"cannot {message.op}: {error}"))

    def _cancel(self, peer: Peer, request: int) -> None:
        stream = self._streams.pop((peer, request), None)
        if stream is None:
            return
        process, follower, kill = stream
        process.unfollow(follower)
        if kill:
            process.kill("killed")
        peer.reply(request, {})

    # --- operations ---

    def _configure(self, peer: Peer, request: int, params: dict[str, Any]) -> None:
        env = check_env(params["env"])
        cwd = check_path(params["cwd"], "cwd")
        user = users.find_user(check_user(params["user"]))
        if not os.path.isdir(cwd):
            raise InvalidRequest(f"cannot use {cwd} as cwd: it is no directory of the rootfs", field="cwd")
        self._env, self._cwd, self._user = env, cwd, user
        if user.uid:
            # The default working folder belongs to whom the sandbox is for.
            with contextlib.suppress(FileNotFoundError):
                os.chown("/workspace", user.uid, user.gid, follow_symlinks=False)
        peer.reply(request, {})

    def _exec(self, peer: Peer, request: int, params: dict[str, Any]) -> None:
        process = self._start(params)
        kill_on_cancel = not params.get("detach", False)
        self._stream(
            peer, request, process, Follower(peer, request, 0, params["credit"], lossless=True), kill_on_cancel
        )

    def _start(self, params: dict[str, Any]) -> Process:
        spec = CommandSpec(
            argv=tuple(params["argv"]),
            env=params.get("env") or {},
            cwd=params.get("cwd"),
            user=params.get("user"),
            stdin=params.get("stdin"),
            timeout_s=params.get("timeout_s"),
            keep_orphans=bool(params.get("keep_orphans", False)),
        )
        process_id = check_process_id(params["process"])
        if process_id in self._processes:
            raise NameTaken(f"cannot start process {process_id}: the id is in use", id=process_id)
        user = self._user if spec.user is None else users.find_user(spec.user)
        cwd = spec.cwd or self._cwd
        if not os.path.isdir(cwd):
            raise InvalidRequest(f"cannot run in {cwd}: no such directory in the sandbox", field="cwd")
        env = {
            "PATH": DEFAULT_PATH,
            "HOME": user.home,
            "USER": user.name,
            "LOGNAME": user.name,
            "SHELL": user.shell or "/bin/sh",
            "LANG": "C.UTF-8",
            **self._env,
            **spec.env,
        }
        process = Process(
            loop=self._loop,
            kernel=self._kernel,
            work_fd=self._work_fd,
            null_fd=self._null_fd,
            process_id=process_id,
            spec=spec,
            env=env,
            cwd=cwd,
            user=user,
            on_end=self._on_process_end,
        )
        self._processes[process_id] = process
        self._by_pid[process.pid] = process
        return process

    def _follow(self, peer: Peer, request: int, params: dict[str, Any]) -> None:
        process = self._process(params)
        follower = Follower(peer, request, int(params["from"]), params["credit"], lossless=False)
        self._stream(peer, request, process, follower, kill_on_cancel=False)

    def _stream(self, peer: Peer, request: int, process: Process, follower: Follower, kill_on_cancel: bool) -> None:
        self._streams[peer, request] = (process, follower, kill_on_cancel)
        process.follow(follower)

    def _process(self, params: dict[str, Any]) -> Process:
        process = self._processes.get(params["process"])
        if process is None:
            raise ProcessNotFound(f"cannot find process {params['process']!r:.70}: no such process")
        return process

    def _write_stdin(self, peer: Peer, request: int, params: dict[str, Any]) -> None:
        def done(error: SandboxdError | None) -> None:
            if error:
                peer.fail(request, error)
            else:
                peer.reply(request, {})

        self._process(params).write_stdin(params["data"], done)

    def _close_stdin(self, peer: Peer, request: int, params: dict[str, Any]) -> None:
        self._process(params).close_stdin()
        peer.reply(request, {})

    def _signal(self, peer: Peer, request: int, params: dict[str, Any]) -> None:
        self._process(params).signal(int(params["signal"]))
        peer.reply(request, {})

    def _open_read(self, peer: Peer, request: int, params: dict[str, Any]) -> None:
        facts, fd = self._files.open_read(params["path"])
        peer.reply(request, facts, fd)

    def _open_write(self, peer: Peer, request: int, params: dict[str, Any]) -> None:
        ticket, fd = self._files.open_write(params["path"], self._user)
        peer.reply(request, {"ticket": ticket}, fd)

    def _commit_write(self, peer: Peer, request: int, params: dict[str, Any]) -> None:
        peer.reply(request, {"created": self._files.commit(params["ticket"])})

    def _abort_write(self, peer: Peer, request: int, params: dict[str, Any]) -> None:
        self._files.abort(params["ticket"])
        peer.reply(request, {})

    # --- ends ---

    def _reap(self, wake: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)
        while True:
            try:
                pid, status, rusage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            process = self._by_pid.pop(pid, None)
            if process:
                process.on_exit(status, rusage)
        self._retry_leaves()

    def _on_process_end(self, process: Process) -> None:
        for key in [key for key, stream in self._streams.items() if stream[0] is process]:
            if self._streams[key][1] not in process.followers:
                del self._streams[key]
        if not process.remove_leaf():
            self._full_leaves.append(process)
            self._loop.call_later(_LEAF_RETRY_S, self._retry_leaves)
        self._forget_old()

    def _retry_leaves(self) -> None:
        if not self._full_leaves:
            return
        self._full_leaves = [process for process in self._full_leaves if not process.remove_leaf()]
        if any(not process.spec.keep_orphans for process in self._full_leaves):
            self._loop.call_later(_LEAF_RETRY_S, self._retry_leaves)

    def _forget_old(self) -> None:
        """Drop the oldest ended commands over the bounds; one that is still being followed stays."""
        ended = [p for p in self._processes.values() if p.ended_at is not None and not p.followers]
        ended.sort(key=lambda p: p.ended_at or 0)
        size = sum(p.journal.size for p in ended)
        while ended and (len(ended) > MAX_ENDED or size > MAX_ENDED_BYTES):
            gone = ended.pop(0)
            size -= gone.journal.size
            del self._processes[gone.id]


def _ignore(number: int, frame: object) -> None:
    """Let the wake-up pipe do the work."""


def preload() -> None:
    """Touch what init uses lazily, in the launcher: after pivot_root every import would run the rootfs' code."""
    users.find_user("root")


def serve(listener: socket.socket, cgroup_fd: int) -> None:
    """Be a sandbox's init; never returns."""
    prctl.set_proctitle("sandboxd: init")
    prctl.set_name("init")
    # The defaults, so that no command has to reset them: a pid namespace's init gets no signal that it has not asked
    # for, SIGPIPE of its own writes included (kernel/signal.c, SIGNAL_UNKILLABLE); a handler ends with execve anyway.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    Init(listener, cgroup_fd).run()
