"""The link's operations on code contexts: start, feed, interrupt and end their workers; the table of them.

The daemon sends a worker's program once; init keeps it in a sealed memory file, so the rootfs needs only the
interpreter. Sandboxes do not share that file, because a shared one could be locked and watched across them. Init keeps
each worker's purpose (`note`, a map from the daemon) for the next daemon.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, Final

from ..errors import ContextNotFound, InvalidRequest, LimitExceeded, NameTaken, ProcessNotRunning, SandboxdError
from ..linux import memfd
from ..spec import CommandSpec, check_process_id
from . import users
from .commands import Commands
from .incoming import IncomingChildren
from .link_server import LinkServer
from .processes import Deps
from .spares import Spares, Wish
from .worker import Worker

#: Workers at once. The daemon's own bound for contexts is the same; each holds seven descriptors here, of 1024.
MAX_WORKERS: Final = 16
#: Programs and their size: ours are two, of less than 100 KiB.
MAX_SOURCES: Final = 4
MAX_SOURCE_BYTES: Final = 1024 * 1024
#: What the daemon may leave with a worker: its language, working directory and variables.
MAX_NOTE_ENTRIES: Final = 2048

Operation = Callable[[LinkServer, int, dict[str, Any]], None]


class Contexts:
    """Every worker of the sandbox."""

    def __init__(self, deps: Deps, commands: Commands, incoming: IncomingChildren) -> None:
        self._deps = deps
        self._commands = commands
        self._incoming = incoming
        self._workers: dict[str, Worker] = {}
        self._spares = Spares(deps.loop, deps.leaves, self._new_worker)
        self._notes: dict[str, dict[str, Any]] = {}
        self._sources: dict[str, int] = {}
        self.operations: dict[str, Operation] = {
            "context_source": self._source,
            "context_start": self._start,
            "context_follow": self._follow,
            "context_list": self._list,
            "context_send": self._write,
            "context_interrupt": self._interrupt,
            "context_mute": self._mute,
            "context_kill": self._kill,
            "context_forget": self._forget,
            "context_drop_spare": self._drop_spare,
        }

    # --- what the connections say ---

    def drop_peer(self, peer: LinkServer) -> None:
        """A daemon is gone; its workers wait for the next one."""
        for worker in self._workers.values():
            if worker.is_followed_by(peer):
                worker.unfollow()

    def wake(self, peer: LinkServer) -> None:
        """Its connection has room again."""
        for worker in self._workers.values():
            if worker.is_followed_by(peer):
                worker.wake()

    def credit(self, peer: LinkServer, request: int, count: int) -> None:
        """A stream may send that much more."""
        for worker in self._workers.values():
            if worker.is_followed_by(peer, request):
                worker.add_credit(count)

    def cancel(self, peer: LinkServer, request: int) -> None:
        """Nobody follows any more."""
        for worker in self._workers.values():
            if worker.is_followed_by(peer, request):
                worker.unfollow({})

    # --- operations ---

    def _source(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        name, data = check_process_id(params["name"]), params["data"]
        if not isinstance(data, bytes) or len(data) > MAX_SOURCE_BYTES:
            raise LimitExceeded(f"cannot accept program {name}: it is over {MAX_SOURCE_BYTES} bytes")
        if name not in self._sources and len(self._sources) >= MAX_SOURCES:
            raise LimitExceeded(f"cannot accept program {name}: there are {MAX_SOURCES} already")
        known = self._sources.get(name)
        if known is not None and os.pread(known, len(data) + 1, 0) == data:
            peer.reply(request, {})  # as an earlier daemon sent it
            return
        self._spares.drop()  # it runs the old one
        fd = os.memfd_create(f"sandboxd-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(fd, data)
            memfd.seal(fd)
        except BaseException:
            os.close(fd)
            raise
        old, self._sources[name] = self._sources.get(name), fd
        if old is not None:
            os.close(old)
        peer.reply(request, {})

    def _start(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        """Start a worker; with `incoming child`, a socket came along at which a template's child may be expected."""
        fds = peer.take_fds(1) if params.get("entrant") else []
        try:
            self._start_with(peer, request, params, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _start_with(self, peer: LinkServer, request: int, params: dict[str, Any], fds: list[int]) -> None:
        name = check_process_id(params["context"])
        note = params["note"]
        if name in self._workers:
            raise NameTaken(f"cannot start worker {name}: the id is in use", id=name)
        if len(self._workers) >= MAX_WORKERS:
            raise LimitExceeded(f"cannot start worker {name}: {MAX_WORKERS} are running already", bound=MAX_WORKERS)
        if not isinstance(note, dict) or len(note) > MAX_NOTE_ENTRIES:
            raise InvalidRequest("cannot keep the worker's note", field="note")
        spec = CommandSpec(argv=tuple(params["argv"]), env=params["env"], cwd=params["cwd"], user=params.get("user"))
        user = self._commands.user if spec.user is None else users.find_user(spec.user)
        cwd = spec.cwd or self._commands.cwd
        if not os.path.isdir(cwd):
            raise InvalidRequest(f"cannot run in {cwd}: no such directory in the sandbox", field="cwd")
        wish = Wish(spec.argv, self._commands.environment(spec.env, user), cwd, user, params["source"])
        spare = params.get("spare")
        worker = self._spares.take(wish) if spare and spare["use"] else None
        is_spare = worker is not None
        if worker is None:
            worker = self._new_worker(wish, name, fds.pop() if fds else None)
        else:
            worker.become(name)
        self._workers[name] = worker
        self._notes[name] = note
        worker.follow(peer, request, params["credit"], is_spare=is_spare)
        if params.get("begin"):
            with contextlib.suppress(ProcessNotRunning):  # it has ended already: that is told
                worker.write(params["begin"], lambda error: None)
        if spare:
            self._spares.arm(wish, spare["park"], spare["idle_s"])

    def _new_worker(self, wish: Wish, name: str, handoff: int | None = None) -> Worker:
        return Worker(
            self._deps,
            name,
            wish.argv,
            wish.env,
            wish.cwd,
            wish.user,
            self._sources[wish.source],
            self._commands.children,
            self._incoming,
            handoff,
        )

    def _drop_spare(self, peer: LinkServer, request: int, _params: dict[str, Any]) -> None:
        self._spares.drop()
        peer.reply(request, {})

    def _follow(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        self._worker(params).follow(peer, request, params["credit"])

    def _list(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        """Answer one worker a page: a note may hold as much as an environment does."""
        names = list(self._workers)
        at = int(params.get("after", 0))
        items = [{"context": name, "note": self._notes[name]} for name in names[at : at + 1]]
        peer.reply(request, {"items": items, "next": at + 1 if at + 1 < len(names) else None})

    def _write(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        def done(error: SandboxdError | None) -> None:
            if error:
                peer.fail(request, error)
            else:
                peer.reply(request, {})

        self._worker(params).write(params["data"], done)

    def _interrupt(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        self._worker(params).interrupt(int(params["run"]))
        peer.reply(request, {})

    def _mute(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        peer.reply(request, {"dropped_bytes": self._worker(params).mute(on=bool(params["on"]))})

    def _kill(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        self._worker(params).kill("killed")
        peer.reply(request, {})

    def _forget(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        """Drop a worker that has ended."""
        worker = self._worker(params)
        if not worker.ended:
            raise InvalidRequest(f"cannot forget worker {worker.name}: it is running", field="context")
        del self._workers[worker.name], self._notes[worker.name]
        peer.reply(request, {})

    def _worker(self, params: dict[str, Any]) -> Worker:
        worker = self._workers.get(params["context"])
        if worker is None:
            raise ContextNotFound(f"cannot find worker {params['context']!r:.70}: no such worker")
        return worker
