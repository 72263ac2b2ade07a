"""The link's operations on commands, the table of all commands, and their reaper.

A command that has ended stays with its log until it is removed or the bounds below are reached; then those that were
run by `exec` go first, since nobody is likely to ask for them again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from ..errors import InvalidRequest, NameTaken, ProcessNotFound, SandboxdError, ServerBusy
from ..spec import CommandSpec, check_port, check_probe_path, check_process_id, check_signal, check_size
from ..wire.journal import DEFAULT_CAPACITY
from . import users
from .followers import Follower
from .leaf_cgroups import LeafCgroup
from .link_server import LinkServer
from .processes import Deps, Process, Shell
from .sessions import Sessions, Waiting
from .spawn import DEFAULT_PATH
from .standby import Children
from .users import User
from .waiting import GOOD_STATUSES, PortWaits

#: Commands that may run at once under the API: each holds up to three descriptors here, of 1024.
MAX_RUNNING: Final = 256
#: What the logs of running commands may take together; many share it evenly.
RUNNING_BYTES: Final = 24 * 1024 * 1024
#: Ended commands that stay with their logs, and what their logs may take together.
MAX_ENDED: Final = 64
MAX_ENDED_BYTES: Final = 8 * 1024 * 1024
#: One page of a list: a reply is a frame, and an item is up to 17 KiB.
MAX_PAGE: Final = 100
PAGE_BYTES: Final = 384 * 1024

Operation = Callable[[LinkServer, int, dict[str, Any]], None]


class Commands:
    """Every command of the sandbox, and the streams that follow them."""

    def __init__(self, deps: Deps, children: Children, on_other_exit: Callable[[int, int], None]) -> None:
        self._on_other_exit = on_other_exit
        self.env: dict[str, str] = {}
        self.cwd = "/"
        self._user: User | None = None
        self._deps = deps
        self._ports = PortWaits(deps.loop)
        self._processes: dict[str, Process] = {}
        self._numbers: dict[str, int] = {}
        self._next_number = 1
        self._running = 0
        self._by_pid: dict[int, Process] = {}
        deps.standby.is_command = self._by_pid.__contains__
        #: Children that are no commands, and who takes their status.
        self.children = children
        #: Called before a status is taken for a stranger's: a child that came from outside may be just known.
        self.before_unknown: Callable[[], None] = lambda: None
        #: What a request of a peer holds open: how to let go of it, and whom it follows.
        self._streams: dict[tuple[LinkServer, int], tuple[Process, Follower, bool]] = {}
        self._waits: dict[tuple[LinkServer, int], Callable[[], None]] = {}
        self.loop = deps.loop
        self.sessions = Sessions(self)
        self.operations: dict[str, Operation] = {
            "exec": self._exec,
            "start": self._start_background,
            "list": self._list,
            "info": self._info,
            "remove": self._remove,
            "remove_all": self._remove_all,
            "follow": self._follow,
            "view": self._view,
            "await_exit": self._await_exit,
            "await_port": self._await_port,
            "stdin": self._write_stdin,
            "stdin_close": self._close_stdin,
            "signal": self._signal,
            "resize": self._resize,
            "redraw": self._redraw,
            **self.sessions.operations,
        }

    # --- what the connections say ---

    def drop_peer(self, peer: LinkServer) -> None:
        """A daemon is gone; commands go on, and nobody is waited for any more."""
        for key in [key for key in self._streams if key[0] is peer]:
            process, follower, _ = self._streams.pop(key)
            self._let_go(process, follower)
        for key in [key for key in self._waits if key[0] is peer]:
            self._waits.pop(key)()

    def wake(self, peer: LinkServer) -> None:
        """Its connection has room again."""
        for (owner, _), (process, _, _) in list(self._streams.items()):
            if owner is peer:
                process.output.wake()

    def credit(self, peer: LinkServer, request: int, count: int) -> None:
        """A stream may send that much more."""
        stream = self._streams.get((peer, request))
        if stream:
            stream[1].credit += count
            stream[0].output.wake()

    def cancel(self, peer: LinkServer, request: int) -> None:
        """Nobody waits for a request any more."""
        wait = self._waits.pop((peer, request), None)
        if wait is not None:
            wait()
            peer.reply(request, {})
        stream = self._streams.pop((peer, request), None)
        if stream is not None:
            process, follower, kill = stream
            self._let_go(process, follower)
            if kill:
                process.kill("killed")
            peer.reply(request, {})

    @staticmethod
    def _let_go(process: Process, follower: Follower) -> None:
        process.output.unfollow(follower)
        if follower.viewer:
            process.remove_viewer()

    # --- start ---

    def _exec(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        spec = CommandSpec.from_message(params)
        if spec.session is None:
            self._follow_start(peer, request, params, self._start(params, spec, background=False))
        else:
            self._wait_for_turn(peer, request, params, spec)

    def _follow_start(self, peer: LinkServer, request: int, params: dict[str, Any], process: Process) -> None:
        follower = Follower(peer, request, 0, params["credit"], lossless=True)
        self._stream(process, follower, kill_on_cancel=not params.get("detach", False))

    def _wait_for_turn(self, peer: LinkServer, request: int, params: dict[str, Any], spec: CommandSpec) -> None:
        """Run in a session when it is free. A caller that leaves before takes the command back, unless it detached."""
        key, is_left = (peer, request), False

        def start(shell: Shell) -> Process:
            self._waits.pop(key, None)
            process = self._start(params, spec, background=False, shell=shell)
            if not is_left:
                self._follow_start(peer, request, params, process)
            return process

        def refuse(error: SandboxdError) -> None:
            self._waits.pop(key, None)
            if not is_left:
                peer.fail(request, error)

        def leave() -> None:
            nonlocal is_left
            is_left = True
            if not params.get("detach", False) and take_back is not None:
                take_back()

        take_back = self.sessions.take_turn(params, Waiting(spec, start, refuse))
        if take_back is not None:
            self._waits[key] = leave

    def _start_background(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        spec = CommandSpec.from_message(params)
        if spec.session is None:
            process = self._start(params, spec, background=True)
        else:
            process = self.sessions.run_beside(
                params, spec, lambda shell: self._start(params, spec, background=True, shell=shell)
            )
        peer.reply(request, process.info())

    def _start(
        self, params: dict[str, Any], spec: CommandSpec, *, background: bool, shell: Shell | None = None
    ) -> Process:
        try:
            return self._make(params, spec, background=background, shell=shell)
        except BaseException:
            if shell is not None:
                shell.close()
            raise

    def _make(self, params: dict[str, Any], spec: CommandSpec, *, background: bool, shell: Shell | None) -> Process:
        process_id = check_process_id(params["process"])
        if process_id in self._processes:
            raise NameTaken(f"cannot start process {process_id}: the id is in use", id=process_id)
        if self._running >= MAX_RUNNING:
            raise ServerBusy(f"cannot start process {process_id}: {MAX_RUNNING} are running already", bound=MAX_RUNNING)
        user = self.user if spec.user is None else users.find_user(spec.user)
        user = user if shell is None else shell.user
        cwd = spec.cwd or self.cwd
        if (shell is None or spec.cwd) and not os.path.isdir(cwd):
            raise InvalidRequest(f"cannot run in {cwd}: no such directory in the sandbox", field="cwd")
        env = self.environment(spec.env, user, terminal=spec.terminal is not None) if shell is None else {}
        process = Process(
            self._deps,
            process_id,
            spec,
            env,
            cwd,
            user,
            self._on_start,
            self._on_end,
            background=background,
            shell=shell,
        )
        self._processes[process_id] = process
        self._numbers[process_id] = self._next_number
        self._next_number += 1
        self._running += 1
        self._share_room()
        return process

    @property
    def user(self) -> User:
        """Who commands run as; None was set for root, who is looked up when first needed."""
        if self._user is None:
            self._user = users.find_user("root")
        return self._user

    @user.setter
    def user(self, user: User | None) -> None:
        self._user = user

    def environment(self, env: dict[str, str], user: User, *, terminal: bool = False) -> dict[str, str]:
        """Return the variables that a program gets; `env` are its own."""
        return {
            "PATH": DEFAULT_PATH,
            "HOME": user.home,
            "USER": user.name,
            "LOGNAME": user.name,
            "SHELL": user.shell or "/bin/sh",
            "LANG": "C.UTF-8",
            **({"TERM": "xterm-256color"} if terminal else {}),
            **self.env,
            **env,
        }

    def _on_start(self, process: Process) -> None:
        self._by_pid[process.pid] = process

    def _share_room(self) -> None:
        """Give every running command's log its share of what there is."""
        if self._running * DEFAULT_CAPACITY > RUNNING_BYTES - DEFAULT_CAPACITY:
            for process in self._processes.values():
                if not process.has_ended:
                    process.output.journal.shrink(min(DEFAULT_CAPACITY, RUNNING_BYTES // self._running))

    # --- streams and waits ---

    def _follow(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        process = self._process(params)
        until = process.output.journal.next if params.get("snapshot") else None
        seen = int(params.get("seen_bytes", 0))
        follower = Follower(peer, request, int(params["from"]), params["credit"], until=until, seen_bytes=seen)
        self._stream(process, follower)

    def _view(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        """Follow a terminal: it goes on while somebody does."""
        process = self._process(params)
        if process.spec.terminal is None:
            raise InvalidRequest(f"cannot view process {process.id}: it has no terminal", field="process")
        start, journal = int(params["from"]), process.output.journal
        first = journal.read(start)
        seen = journal.total_bytes if first is None else first.base
        follower = Follower(peer, request, start, params["credit"], viewer=True, seen_bytes=seen)
        process.add_viewer()
        self._stream(process, follower)

    def _stream(self, process: Process, follower: Follower, *, kill_on_cancel: bool = False) -> None:
        key = (follower.peer, follower.request)
        self._streams[key] = (process, follower, kill_on_cancel)

        def done() -> None:
            if self._streams.pop(key, None) is not None and follower.viewer:
                process.remove_viewer()

        follower.on_done = done
        process.output.follow(follower)

    def _await_exit(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        process = self._process(params)

        def ended() -> None:
            self._waits.pop((peer, request), None)
            peer.reply(request, process.result or {})

        if not process.has_ended:
            self._waits[peer, request] = lambda: process.forget_ended(ended)
        process.when_ended(ended)

    def _await_port(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        """Answer when somebody accepts on a port, or the process, where one is named, has ended before."""
        process = None if params.get("process") is None else self._process(params)
        port, path = check_port(params["port"]), params.get("path")
        if path is not None:
            check_probe_path(path)
        low, high = params.get("statuses") or GOOD_STATUSES
        key = (peer, request)
        is_answered = False

        def answer(result: dict[str, Any]) -> None:
            nonlocal is_answered
            is_answered = True
            if wait := self._waits.pop(key, None):
                wait()
            peer.reply(request, result)

        def ended() -> None:
            answer({"met": False, "result": None if process is None else process.result})

        def met(status: int | None) -> None:
            answer({"met": True, "result": None, "status": status})

        wait = self._ports.add(port, path, met, (int(low), int(high)))
        if is_answered:
            return

        def let_go() -> None:
            self._ports.cancel(wait)
            if process is not None:
                process.forget_ended(ended)

        self._waits[key] = let_go
        if process is not None:
            process.when_ended(ended)

    # --- the table ---

    def _process(self, params: dict[str, Any]) -> Process:
        process = self._processes.get(params["process"])
        if process is None:
            raise ProcessNotFound(f"cannot find process {params['process']!r:.70}: no such process")
        return process

    def _info(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        peer.reply(request, self._process(params).info())

    def _list(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        """Answer a page: `after` is the number of the last one seen, `next` that of the last one here."""
        after, limit = int(params.get("after", 0)), min(MAX_PAGE, int(params.get("limit", MAX_PAGE)))
        items: list[dict[str, Any]] = []
        size, last = 0, None
        for process in self._processes.values():
            number = self._numbers[process.id]
            if number <= after:
                continue
            if len(items) >= limit or size > PAGE_BYTES:
                peer.reply(request, {"items": items, "next": last})
                return
            items.append(process.info())
            size += 512 + sum(len(word.encode()) for word in items[-1]["argv"]) + len(items[-1]["cwd"])
            last = number
        peer.reply(request, {"items": items, "next": None})

    def _remove(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        self._end_and_forget([self._process(params)], lambda: peer.reply(request, {}))

    def _remove_all(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        self._end_and_forget(list(self._processes.values()), lambda: peer.reply(request, {}))

    def _end_and_forget(self, processes: list[Process], done: Callable[[], None]) -> None:
        """End processes with what they have left behind; then drop them with their logs."""

        def ended() -> None:
            for process in processes:
                self._forget(process)
            done()

        self.end(processes, [], ended)

    def end(
        self, processes: Sequence[Process], trees: Sequence[Sequence[LeafCgroup]], done: Callable[[], None]
    ) -> None:
        """Kill processes, what earlier runs of theirs have left, and `trees`; call back when all of it has ended."""
        left = len(processes) + 1

        def one_ended() -> None:
            nonlocal left
            left -= 1
            if not left:
                done()

        for process in processes:
            process.kill("killed")
        for process in processes:
            process.when_ended(one_ended)
        trees = [*trees, *(process.leaves for process in processes)]
        self._deps.leaves.end([leaf for tree in trees for leaf in tree], one_ended)

    def _forget(self, process: Process) -> None:
        if self._processes.get(process.id) is process:
            del self._processes[process.id]
            del self._numbers[process.id]

    # --- what is done to one ---

    def _write_stdin(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        def done(error: SandboxdError | None) -> None:
            if error:
                peer.fail(request, error)
            else:
                peer.reply(request, {})

        self._process(params).write_stdin(params["data"], done)

    def _close_stdin(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        self._process(params).close_stdin()
        peer.reply(request, {})

    def _signal(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        self._process(params).signal(check_signal(params["signal"]))
        peer.reply(request, {})

    def _resize(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        self._process(params).resize(*check_size(params["cols"], params["rows"]))
        peer.reply(request, {})

    def _redraw(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        self._process(params).redraw()
        peer.reply(request, {})

    # --- ends ---

    def reap(self) -> None:
        """Take the status of every child that has ended, those included that a command left behind."""
        while True:
            try:
                pid, status, rusage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            process = self._by_pid.pop(pid, None)
            if process is None and pid not in self.children:
                self.before_unknown()
            on_exit = process.on_exit if process else self.children.pop(pid, None)
            if on_exit:
                on_exit(status, rusage)
            else:
                self._on_other_exit(pid, status)  # a file job, or an orphan
        self._deps.leaves.retry()

    def _on_end(self, _: Process) -> None:
        self._running -= 1
        self._forget_old()
        self.loop.defer(self._deps.standby.on_command_end)  # after the flush that the end has deferred

    def _forget_old(self) -> None:
        """Drop ended commands over the bounds, the oldest first; one that is still being followed stays."""
        ended = [p for p in self._processes.values() if p.has_ended and not p.output.followers]
        size = sum(p.output.journal.size for p in ended)
        if len(ended) <= MAX_ENDED and size <= MAX_ENDED_BYTES:
            return
        ended.sort(key=lambda p: (p.background, p.ended_at))
        count = len(ended)
        for process in ended:
            if count <= MAX_ENDED and size <= MAX_ENDED_BYTES:
                return
            count -= 1
            size -= process.output.journal.size
            self._forget(process)
