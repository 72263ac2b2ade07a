"""A launcher and inits that live in the test's own process: plain sockets that speak wire/link, no privilege.

Each operation is a method `op_<name>`; a test replaces what it needs (`fake.answers["create"] = ...`) to be slow,
to fail, to die or to send garbage.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from sandboxd.errors import SandboxdError
from sandboxd.wire.link import LinkConnection, Role
from sandboxd.wire.messages import Cancel, Credit, Event, Failure, Message, Reply, Request

Handler = Callable[["Conversation", Request], Awaitable[None]]


class Conversation:
    """One connection, seen from the answering side."""

    def __init__(self, stream: trio.SocketStream, handlers: dict[str, Handler]) -> None:
        self.stream = stream
        self.wire = LinkConnection(Role.ANSWERER)
        self.handlers = handlers
        self.requests: list[Request] = []
        self.cancelled: dict[int, trio.Event] = {}
        self.credit: dict[int, int] = {}
        self._more = trio.Event()
        self._send = trio.Lock()
        self.sent_bytes = 0

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self.send_bytes(self.wire.greet())
                while data := await self.stream.receive_some(65536):
                    for message in self.wire.receive(data):
                        self._take(message, nursery)
            nursery.cancel_scope.cancel()

    def _take(self, message: Message, nursery: trio.Nursery) -> None:
        if isinstance(message, Request):
            self.requests.append(message)
            self.cancelled[message.id] = trio.Event()
            self.credit[message.id] = message.params.get("credit", 0)
            nursery.start_soon(self._handle, message)
        elif isinstance(message, Cancel):
            self.cancelled[message.id].set()
        elif isinstance(message, Credit):
            self.credit[message.id] += message.bytes
            self._more.set()

    async def _handle(self, request: Request) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            try:
                handler = self.handlers[request.op]
                await handler(self, request)
            except SandboxdError as error:
                await self.send(Failure(request.id, error.kind, error.message, error.facts))

    async def send_bytes(self, data: bytes) -> None:
        async with self._send:
            await self.stream.send_all(data)

    async def send(self, message: Message) -> None:
        await self.send_bytes(self.wire.send(message))

    async def reply(self, request: Request, **result: Any) -> None:
        await self.send(Reply(request.id, result))

    async def reply_fds(self, request: Request, fds: list[int], announced: int | None = None, **result: Any) -> None:
        frame = self.wire.send(Reply(request.id, result, len(fds) if announced is None else announced))
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        async with self._send:
            await self.stream.socket.sendmsg([frame], ancillary)
        for fd in fds:
            os.close(fd)

    async def event(self, request: Request, offset: int, kind: str, data: bytes | dict[str, Any]) -> None:
        """Send an event as init does: not without credit."""
        message = Event(request.id, offset, time.time(), kind, data)
        while self.credit[request.id] <= 0:
            self._more = trio.Event()
            await self._more.wait()
        self.credit[request.id] -= message.cost
        await self.send(message)
        self.sent_bytes += len(data) if isinstance(data, bytes) else 0


def exit_data(code: int | None = 0, **changes: Any) -> dict[str, Any]:
    return {
        "exit_code": code,
        "signal": None,
        "duration_s": 0.01,
        "timed_out": False,
        "oom_killed": False,
        "usage": {"cpu_s": 0.001, "memory_peak_bytes": 4096},
        "reason": "exited",
        **changes,
    }


class FakeInit:
    """Listens where an init would; `files` is the sandbox's tree, `script` the output of each exec."""

    def __init__(self, path: Path, tree: Path) -> None:
        self.path = path
        self.tree = tree
        self.conversations: list[Conversation] = []
        self.script: list[tuple[str, bytes]] = [("stdout", b"hello\n")]
        self.exit = exit_data()
        self.wait_for_cancel = False
        self.stdin: dict[str, bytearray] = {}
        self.tickets: dict[str, tuple[Path, Path]] = {}
        self.answers: dict[str, Handler] = {
            "configure": self.op_configure,
            "exec": self.op_exec,
            "stdin": self.op_stdin,
            "stdin_close": self.op_stdin_close,
            "open_read": self.op_open_read,
            "open_write": self.op_open_write,
            "commit_write": self.op_commit_write,
            "abort_write": self.op_abort_write,
            "ping": self.op_configure,
            "context_list": self.op_context_list,
        }
        self.scope = trio.CancelScope()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(self.path))
        sock.listen(8)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        with self.scope, contextlib.suppress(trio.ClosedResourceError):
            await trio.serve_listeners(self._serve, [listener], task_status=task_status)  # type: ignore[arg-type]

    async def _serve(self, stream: trio.SocketStream) -> None:
        conversation = Conversation(stream, self.answers)
        self.conversations.append(conversation)
        async with stream:
            await conversation.run()

    def die(self) -> None:
        self.scope.cancel()

    @property
    def requests(self) -> list[Request]:
        return [request for conversation in self.conversations for request in conversation.requests]

    def asked(self, op: str) -> list[dict[str, Any]]:
        return [request.params for request in self.requests if request.op == op]

    # --- operations -------------------------------------------------------------------------------------

    async def op_configure(self, talk: Conversation, request: Request) -> None:
        await talk.reply(request)

    async def op_context_list(self, talk: Conversation, request: Request) -> None:
        await talk.reply(request, items=[], next=None)

    async def op_exec(self, talk: Conversation, request: Request) -> None:
        await talk.event(request, 0, "start", {"id": request.params["process"], "pid": 7})
        offset = 0
        for offset, (kind, data) in enumerate(self.script, 1):
            await talk.event(request, offset, kind, data)
        if self.wait_for_cancel:
            await talk.cancelled[request.id].wait()
        await talk.event(request, offset + 1, "exit", self.exit)
        await talk.reply(request)

    async def op_stdin(self, talk: Conversation, request: Request) -> None:
        self.stdin.setdefault(request.params["process"], bytearray()).extend(request.params["data"])
        await talk.reply(request)

    async def op_stdin_close(self, talk: Conversation, request: Request) -> None:
        await talk.reply(request)

    def _local(self, path: bytes) -> Path:
        return self.tree / os.fsdecode(path).lstrip("/")

    async def op_open_read(self, talk: Conversation, request: Request) -> None:
        from sandboxd.errors import FileNotFound

        try:
            fd = os.open(self._local(request.params["path"]), os.O_RDONLY)
        except FileNotFoundError:
            raise FileNotFound(f"cannot open {request.params['path']}: ENOENT") from None
        await talk.reply_fds(request, [fd], size=os.fstat(fd).st_size, mtime=0.0, mode=0o644)

    async def op_open_write(self, talk: Conversation, request: Request) -> None:
        target = self._local(request.params["path"])
        target.parent.mkdir(parents=True, exist_ok=True)
        ticket = f"t{len(self.tickets)}"
        temporary = target.with_name(f".{ticket}")
        self.tickets[ticket] = (temporary, target)
        await talk.reply_fds(request, [os.open(temporary, os.O_WRONLY | os.O_CREAT)], ticket=ticket)

    async def op_commit_write(self, talk: Conversation, request: Request) -> None:
        temporary, target = self.tickets.pop(request.params["ticket"])
        created = not target.exists()
        temporary.rename(target)
        await talk.reply(request, created=created)

    async def op_abort_write(self, talk: Conversation, request: Request) -> None:
        temporary, _ = self.tickets.pop(request.params["ticket"])
        temporary.unlink()
        await talk.reply(request)


class FakeLauncher:
    """The launcher's side of the daemon's socket pair; gives each sandbox a `FakeInit`."""

    def __init__(self, links: Path, trees: Path) -> None:
        self.links = links
        self.trees = trees
        self.inits: dict[str, FakeInit] = {}
        self.created: list[dict[str, Any]] = []
        self.destroyed: list[str] = []
        self.killed: list[str] = []
        self.limited: list[dict[str, Any]] = []
        self.frozen: set[str] = set()
        self.rows: list[dict[str, Any]] = []
        self.ended = trio.open_memory_channel[tuple[str, str]](16)
        self.init_class: Callable[[Path, Path], FakeInit] = FakeInit
        self.prepare: Callable[[FakeInit], None] = lambda init: None
        self.before_create: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.answers: dict[str, Handler] = {
            "create": self.op_create,
            "prepare": self.op_prepare,
            "destroy": self.op_destroy,
            "kill": self.op_kill,
            "limit": self.op_limit,
            "freeze": self.op_freeze,
            "thaw": self.op_thaw,
            "stats": self.op_stats,
            "list": self.op_list,
            "watch": self.op_watch,
            "rootfs": self.op_rootfs,
            "info": self.op_info,
        }
        self._nursery: trio.Nursery | None = None
        self.conversation: Conversation | None = None

    async def run(self, sock: socket.socket, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            self.conversation = Conversation(stream, self.answers)
            task_status.started()
            async with stream:
                await self.conversation.run()
            nursery.cancel_scope.cancel()

    async def start_init(self, sandbox_id: str) -> FakeInit:
        tree = self.trees / sandbox_id
        tree.mkdir(parents=True, exist_ok=True)
        init = self.init_class(self.links / f"{sandbox_id}.sock", tree)
        self.prepare(init)
        self.inits[sandbox_id] = init
        assert self._nursery is not None
        await self._nursery.start(init.run)
        return init

    def row(self, sandbox_id: str, *, alive: bool = True) -> dict[str, Any]:
        return {
            "id": sandbox_id,
            "alive": alive,
            "pid": 4242,
            "frozen": sandbox_id in self.frozen,
            "devices": [self.trees.stat().st_dev],
            "unenforced": ["disk_bytes"],
            "limits": {"memory_bytes": 2 << 30, "cpus": 2.0, "pids": 1024, "disk_bytes": 8 << 30},
            "rootfs": "default",
            "seccomp": "default",
        }

    async def op_create(self, talk: Conversation, request: Request) -> None:
        self.created.append(request.params)
        await self.before_create()
        await self.start_init(request.params["id"])
        row = self.row(request.params["id"])
        await talk.reply(
            request,
            **{key: row[key] for key in ("pid", "devices", "unenforced", "limits")},
            timings={"mount overlay": 0.002},
        )

    async def op_prepare(self, talk: Conversation, request: Request) -> None:
        await talk.reply(request)

    async def op_destroy(self, talk: Conversation, request: Request) -> None:
        self.destroyed.append(request.params["id"])
        init = self.inits.pop(request.params["id"], None)
        if init is not None:
            init.die()
            init.path.unlink(missing_ok=True)
        await talk.reply(request)

    async def op_kill(self, talk: Conversation, request: Request) -> None:
        self.killed.append(request.params["id"])
        await talk.reply(request)

    async def op_limit(self, talk: Conversation, request: Request) -> None:
        self.limited.append(request.params)
        asked = {name: value for name, value in request.params["limits"].items() if value is not None}
        await talk.reply(request, limits={**self.row("x")["limits"], **asked}, unenforced=["io"])

    async def op_freeze(self, talk: Conversation, request: Request) -> None:
        """As the kernel: asked for at once, done a moment later."""
        done = request.params["id"] in self.frozen
        self.frozen.add(request.params["id"])
        await talk.reply(request, frozen=done)

    async def op_thaw(self, talk: Conversation, request: Request) -> None:
        self.frozen.discard(request.params["id"])
        await talk.reply(request)

    async def op_stats(self, talk: Conversation, request: Request) -> None:
        names = ("cpu_user_s", "cpu_system_s", "cpu_throttled_s", "memory_peak_bytes", "oom_kills", "disk_bytes", "io")
        await talk.reply(request, cpu_s=1.5, memory_bytes=4096, pids=3, **dict.fromkeys(names))

    async def op_list(self, talk: Conversation, request: Request) -> None:
        await talk.reply(request, sandboxes=self.rows)

    async def op_watch(self, talk: Conversation, request: Request) -> None:
        offset = 0
        async for sandbox_id, reason in self.ended[1]:
            await talk.event(request, offset, "ended", {"id": sandbox_id, "reason": reason})
            offset += 1

    async def op_rootfs(self, talk: Conversation, request: Request) -> None:
        await talk.reply(request, items=[{"name": "default", "trusted": True, "built_at": 0, "size_bytes": 1}])

    async def op_info(self, talk: Conversation, request: Request) -> None:
        await talk.reply(request, pid=1, kernel="6", enforceable=[], missing=[], uid_ranges_used=0)
