"""WS …/pty: opens a terminal in a sandbox, or reconnects to one."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import trio
from msgspec import Meta

from ...errors import InvalidRequest, ProcessNotRunning, SandboxdError, ServerBusy
from ...runtime import logs, replay
from ...runtime.sandbox import STDIN_PIECE_BYTES
from ...spec import check_process_id, check_size
from ..http.websocket import CLOSE_TIMEOUT_S, Gone, WebSocket, parse_json
from .models import CommandIn, StartIn, start_fields, to_command

if TYPE_CHECKING:
    from ...runtime.follow import Follow
    from ...runtime.processes import ProcessInfo
    from ...runtime.sandbox import Sandbox
    from ...spec import CommandSpec
    from ..socket_call import SocketCall

#: The shell that the sandbox's own passwd names for the user.
DEFAULT_COMMAND: Final = 'exec "${SHELL:-/bin/sh}"'
#: How long a terminal without a viewer goes on.
DEFAULT_LINGER_S: Final = 300.0
#: What of a viewer's input waits for the program to read it; with more it is not listened to until there is room.
MAX_UNREAD_BYTES: Final = 4 * 1024 * 1024
_PIECE_OVERHEAD: Final = 256  # single keys are small
#: A viewer that is not listened to for this long is dropped, and may come back: nobody would notice that it has left.
INPUT_TIMEOUT_S: Final = 60.0
_MAX_LINGER_S: Final = 86_400.0 * 365
#: Close codes of our own begin at 4000: the HTTP status of what happened is added.
_CLOSE_BASE: Final = 4000


class TerminalQuery(StartIn, frozen=True, kw_only=True):
    """A terminal to open, or with `process` one to reconnect to."""

    cols: Annotated[int | None, Meta(description="the terminal's columns, 1 to 2000")] = None
    rows: Annotated[int | None, Meta(description="the terminal's rows, 1 to 2000")] = None
    command: Annotated[str | None, Meta(description="a command line for `sh -c`; default: the user's shell")] = None
    session: Annotated[str | None, Meta(description="a session id")] = None
    orphans: Annotated[
        Literal["kill", "keep"] | None, Meta(description="what happens to processes that it leaves behind")
    ] = None
    id: Annotated[str | None, Meta(description="an id for the process, chosen by the caller")] = None
    linger_s: Annotated[
        float | None, Meta(description="seconds that it keeps running without a viewer; default: 300")
    ] = None
    process: Annotated[str | None, Meta(description="a process id")] = None
    fresh: Annotated[
        bool, Meta(description="true: the viewer has shown nothing yet, so no terminal reset precedes the replay")
    ] = False


#: What is said of a new terminal, and not of one that is there.
_NEW: Final = tuple(
    name for name in TerminalQuery.__struct_fields__ if name not in ("cols", "rows", "process", "fresh")
)


async def open_terminal(call: SocketCall, sandbox: Sandbox, query: TerminalQuery) -> None:
    """Open a terminal, or with `process` reconnect to one. Binary messages carry its output and input.

    Text messages are JSON. The client may send `{"type": "resize", "cols", "rows"}`; it receives `start`, `truncated`,
    `error`, and finally `exit`.
    """
    size = _size(query)
    if query.process is None:
        info = await sandbox.processes.start(*_command(query, size or (80, 24)))
    else:
        for name in _NEW:
            if getattr(query, name) is not None:
                raise InvalidRequest(f"cannot accept {name}: the terminal exists already", field=name)
        info = await sandbox.processes.get(check_process_id(query.process, "process"))
        if not info.terminal:
            raise InvalidRequest(f"cannot view process {info.id}: it has no terminal", field="process")
    await call.socket.accept()
    # Whose terminal has shown nothing of it yet needs no reset, and may well be asked what it is.
    is_fresh = query.process is None or query.fresh
    await Viewer(call.socket, sandbox, info, size, is_fresh).run()


def _size(query: TerminalQuery) -> tuple[int, int] | None:
    if query.cols is None and query.rows is None:
        return None
    return check_size(80 if query.cols is None else query.cols, 24 if query.rows is None else query.rows)


def _command(query: TerminalQuery, size: tuple[int, int]) -> tuple[CommandSpec, str | None]:
    model = CommandIn(
        command=query.command or DEFAULT_COMMAND,
        session=query.session,
        orphans=query.orphans or "kill",  # in a session too
        **start_fields(query),
    )
    command = dataclasses.replace(to_command(model), terminal=size, linger_s=_linger(query.linger_s))
    return command, None if query.id is None else check_process_id(query.id)


def _linger(value: float | None) -> float:
    if value is None:
        return DEFAULT_LINGER_S
    if not 0 < value <= _MAX_LINGER_S:
        raise InvalidRequest("cannot accept linger_s: it must be a number of seconds", field="linger_s")
    return value


class Typed:
    """A viewer's input that the program has not read yet, in order. `wait_for_room` bounds it."""

    def __init__(self) -> None:
        self._waiting, self._next = trio.open_memory_channel[bytes](math.inf)
        self._size = 0
        self._changed = trio.Event()

    def put(self, data: bytes) -> None:
        """Take input."""
        for start in range(0, len(data), STDIN_PIECE_BYTES):
            piece = data[start : start + STDIN_PIECE_BYTES]
            self._size += len(piece) + _PIECE_OVERHEAD
            self._waiting.send_nowait(piece)

    @property
    def has_room(self) -> bool:
        """Whether the waiting input is within its bound."""
        return self._size <= MAX_UNREAD_BYTES

    async def wait_for_room(self) -> bool:
        """Wait for room; return False if the program has read nothing for a long time."""
        while not self.has_room:
            with trio.move_on_after(INPUT_TIMEOUT_S) as scope:
                await self._changed.wait()
            if scope.cancelled_caught:
                return False
        return True

    async def wait_until_read(self) -> None:
        """Wait until the program has read everything."""
        while self._size:
            await self._changed.wait()

    async def get(self) -> bytes:
        """Return the next piece; it counts as waiting until `done` is called."""
        return await self._next.receive()

    def done(self, piece: bytes) -> None:
        """Note that a piece was read, or never will be."""
        self._size -= len(piece) + _PIECE_OVERHEAD
        self._changed.set()
        self._changed = trio.Event()


@dataclasses.dataclass(slots=True)
class Viewer:
    """One client of one terminal. The `say_…` methods define the messages it gets besides bytes."""

    socket: WebSocket
    sandbox: Sandbox
    info: ProcessInfo
    size: tuple[int, int] | None
    is_fresh: bool
    typed: Typed = dataclasses.field(default_factory=Typed)

    async def run(self) -> None:
        """Pass output and input until the terminal ends or the client leaves, then close the connection."""
        goodbye: tuple[int, str] | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_client, nursery.cancel_scope)
            with contextlib.suppress(Gone):
                goodbye = await self._show()
            nursery.cancel_scope.cancel()
        if goodbye is not None:
            await self.socket.close(*goodbye)

    async def _show(self) -> tuple[int, str]:
        try:
            await self._start()
            is_ready = False
            while True:
                with self.sandbox.share.hold() as hold:
                    found = await logs.read(self.sandbox.processes, self.info.id, hold=hold)
                    async with self.sandbox.processes.view(self.info.id, found.next_offset) as follow:
                        await self._replay(found)
                        del found  # it may be watched for days
                        hold.close()
                        if not is_ready:
                            is_ready = True
                            await self.say_ready()
                        if await self._follow(follow):
                            break
            return await self._end()
        except SandboxdError as error:
            await self.say_error(error)
            code = 1012 if isinstance(error, ServerBusy) else _CLOSE_BASE + error.status
            return code, error.kind

    async def _start(self) -> None:
        if self.size is not None:
            with contextlib.suppress(ProcessNotRunning):  # what it showed last is still there
                await self.sandbox.processes.resize(self.info.id, *self.size)
        await self.say_start()

    async def _replay(self, found: logs.Snapshot) -> None:
        if self.is_fresh and not found.dropped_bytes:
            self.is_fresh = False
            await self.socket.send_bytes(replay.output_of(found.events))
            return
        # Up to a MiB of regular expressions: a few milliseconds that the loop need not wait for.
        shown = await trio.to_thread.run_sync(
            lambda: replay.build(found.events, dropped_bytes=found.dropped_bytes, known=found.modes),
            limiter=self.sandbox.search_turns,
        )
        await self.socket.send_bytes(shown.data)
        if not shown.is_whole and found.running:
            with contextlib.suppress(ProcessNotRunning):
                await self.sandbox.processes.redraw(self.info.id)

    async def _follow(self, follow: Follow) -> bool:
        """Send output as it comes; return False if a gap requires redrawing the screen."""
        while batch := await follow.next_batch():
            data: list[bytes] = []
            for event in batch:
                if isinstance(event.data, bytes):
                    data.append(event.data)
                elif event.type == "truncated" and isinstance(event.data, dict):
                    await self.say_truncated(event.data["dropped_bytes"])
                    return False
            await self.socket.send_bytes(b"".join(data))
        return True

    async def _end(self) -> tuple[int, str]:
        await self.say_exit(await self.sandbox.processes.get(self.info.id))
        return 1000, "exit"

    # --- what it hears ---

    async def say_start(self) -> None:
        """Send the terminal's process id, before anything else."""
        await self.socket.send_json({"type": "start", "id": self.info.id, "pid": self.info.pid})

    async def say_ready(self) -> None:
        """Nothing: what it showed before was sent, and what follows is new."""

    async def say_truncated(self, dropped_bytes: int) -> None:
        """Report how many bytes the client missed because it was too slow."""
        await self.socket.send_json({"type": "truncated", "dropped_bytes": dropped_bytes})

    async def say_error(self, error: SandboxdError) -> None:
        """Report an error."""
        await self.socket.send_problem(error)

    async def say_exit(self, info: ProcessInfo) -> None:
        """Report how the program ended."""
        facts: dict[str, Any] = {} if info.result is None else info.result.to_dict()
        await self.socket.send_json({"type": "exit", "id": info.id, **facts})

    # --- what it says ---

    async def _read_client(self, whole: trio.CancelScope) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._feed)
                await self._take_all()
                with trio.move_on_after(CLOSE_TIMEOUT_S):  # what was typed before the goodbye
                    await self.typed.wait_until_read()
                whole.cancel()
        except* Gone:
            whole.cancel()

    async def _take_all(self) -> None:
        """Handle the client's messages until it leaves."""
        with contextlib.suppress(Gone):
            while True:
                await self._on_message(await self.socket.receive())

    async def _on_message(self, message: bytes | str) -> None:
        try:
            if isinstance(message, bytes):
                await self._type(message)
            else:
                await self._obey(parse_json(message))
        except ProcessNotRunning:
            return  # its end is on its way to the client
        except SandboxdError as error:
            await self.say_error(error)

    async def _type(self, data: bytes) -> None:
        """Queue input for the program, so that a resize or close message behind it need not wait."""
        self.typed.put(data)
        if not await self.typed.wait_for_room():
            await self.socket.close(1013, "the program reads no input")
            raise Gone

    async def _feed(self) -> None:
        """Pass queued input to the program as it reads."""
        while True:
            data = await self.typed.get()
            try:
                await self.sandbox.write_stdin(self.info.id, data)
            except ProcessNotRunning:
                pass  # its end is on its way to the client
            except SandboxdError as error:
                await self.say_error(error)
            self.typed.done(data)

    async def _obey(self, message: dict[str, Any]) -> None:
        if message.get("type") != "resize":
            raise InvalidRequest("cannot understand the message: its type must be 'resize'", field="type")
        unknown = set(message) - {"type", "cols", "rows"}
        size = [message.get(name) for name in ("cols", "rows")]
        if unknown or not all(isinstance(value, int) and not isinstance(value, bool) for value in size):
            raise InvalidRequest("cannot resize: cols and rows must be whole numbers", field="cols")
        cols, rows = (int(value) for value in size if value is not None)
        await self.sandbox.processes.resize(self.info.id, *check_size(cols, rows))
