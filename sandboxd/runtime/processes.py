"""The processes of one sandbox, seen from the daemon: what init says of them, checked."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

from ..errors import InvalidRequest, RemoteProtocolError
from ..spec import check_process_id
from . import checks
from .execution import MAX_DURATION_S, Exit, new_process_id, parse_exit
from .follow import Follow

if TYPE_CHECKING:
    from ..spec import CommandSpec
    from .sandbox import Sandbox

#: How many a page of the list has, at most and by default; init may give fewer.
MAX_PAGE: Final = 100
#: What may be on its way to a terminal's viewer: little, so that Ctrl-C is seen at once.
VIEW_WINDOW: Final = 128 * 1024
#: Words of a command that init shows; it cuts what is longer.
_MAX_WORDS: Final = 257
_MAX_WORD_CHARS: Final = 131_072
_MAX_TIME: Final = 1e11


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """A process as init described it.

    Attributes:
        pid: its main process' in the sandbox; None when it has none (it has ended, or rests before a restart).
        argv: its words, cut where they are very long.
        started_at, ended_at: seconds since the epoch.
        restarts: how often it was started again.
        terminal: whether it has one.
        result: how it ended; None while it runs.
        cpu_s, memory_peak_bytes: what its tree has used, in seconds and bytes; None where nobody can say.
        next_offset: the offset that the next event of its log gets.
    """

    id: str
    pid: int | None
    running: bool
    argv: tuple[str, ...]
    cwd: str
    user: str
    started_at: float
    ended_at: float | None
    restarts: int
    terminal: bool
    result: Exit | None
    cpu_s: float
    memory_peak_bytes: int | None
    next_offset: int


def parse_info(data: dict[str, Any]) -> ProcessInfo:
    """Check what init said of a process.

    Raises:
        RemoteProtocolError: a field is missing or out of its bounds.
    """
    running = checks.flag(data, "running")
    result = None if running else parse_exit(checks.table(data, "result"))
    usage = checks.table(data, "usage") if running else {}
    peak = usage.get("memory_peak_bytes")
    argv = checks.items(data, "argv", str, limit=_MAX_WORDS)
    if not argv or any(len(word) > _MAX_WORD_CHARS for word in argv):
        raise RemoteProtocolError("cannot accept a process without a command, or with very long arguments")
    return ProcessInfo(
        id=check_id(data),
        pid=None if data.get("pid") is None else checks.integer(data, "pid", high=1 << 31),
        running=running,
        argv=tuple(argv),
        cwd=checks.words(data, "cwd"),
        user=checks.words(data, "user"),
        started_at=checks.number(data, "started_at", high=_MAX_TIME),
        ended_at=None if running else checks.number(data, "ended_at", high=_MAX_TIME),
        restarts=checks.integer(data, "restarts", high=1 << 31),
        terminal=checks.flag(data, "terminal"),
        result=result,
        cpu_s=checks.number(usage, "cpu_s", high=MAX_DURATION_S) if result is None else result.cpu_s,
        memory_peak_bytes=(None if peak is None else checks.integer(usage, "memory_peak_bytes"))
        if result is None
        else result.memory_peak_bytes,
        next_offset=checks.integer(data, "next"),
    )


def check_id(data: dict[str, Any]) -> str:
    """Return the process id in `data`."""
    try:
        return check_process_id(checks.text(data, "id", limit=64))
    except InvalidRequest:
        raise RemoteProtocolError("cannot accept a process with an invalid id") from None


class Processes:
    """What can be asked of a sandbox's processes; made by it. Every method may raise `SandboxFailed`, `SandboxGone`."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    async def start(self, command: CommandSpec, process_id: str | None = None) -> ProcessInfo:
        """Start a process that nobody has to follow.

        Raises:
            InvalidRequest: init cannot run it: no such user or directory.
            NameTaken: another process has that id.
            ServerBusy: as many as may run do.
        """
        await self.sandbox.check_fields(command)
        wanted = process_id or new_process_id()
        return await self._info("start", **command.to_message(), process=wanted)

    async def get(self, process: str) -> ProcessInfo:
        """Return one process.

        Raises:
            ProcessNotFound: there is none with that id.
        """
        return await self._info("info", process=process)

    async def _info(self, op: str, **params: Any) -> ProcessInfo:  # noqa: ANN401 - the link's parameters
        data = await self.sandbox.ask(op, **params)
        try:
            info = parse_info(data)
            if info.id != params["process"]:
                raise RemoteProtocolError(f"cannot accept process {info.id} for {params['process']}")
        except RemoteProtocolError as error:
            raise await self.sandbox.why_broken(error) from error
        return info

    async def page(self, cursor: str | None, limit: int) -> tuple[list[ProcessInfo], str | None]:
        """Return processes in the order in which they were started, and the cursor of the page after it.

        Raises:
            InvalidRequest: the cursor is none of ours.
        """
        if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
            raise InvalidRequest("cannot accept cursor: it is not one that a list returned", field="cursor")
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidRequest(f"cannot accept limit: it must be 1 to {MAX_PAGE}", field="limit")
        data = await self.sandbox.ask("list", after=int(cursor or 0), limit=limit)
        try:
            found = [parse_info(item) for item in checks.items(data, "items", dict, limit=limit)]
            following = None if data.get("next") is None else str(checks.integer(data, "next"))
        except RemoteProtocolError as error:
            raise await self.sandbox.why_broken(error) from error
        return found, following

    async def remove(self, process: str) -> None:
        """End a process and all that is below it, and drop its log; returns when it is gone.

        Raises:
            ProcessNotFound: there is none with that id.
        """
        await self.sandbox.ask("remove", process=process)

    async def remove_all(self) -> None:
        """End every process and drop every log."""
        await self.sandbox.ask("remove_all")

    async def signal(self, process: str, number: int) -> None:
        """Send a signal to a process's group; SIGTERM and SIGKILL go to its whole tree.

        Raises:
            ProcessNotFound, ProcessNotRunning: as their names say.
        """
        await self.sandbox.ask("signal", process=process, signal=number)

    async def resize(self, process: str, cols: int, rows: int) -> None:
        """Give a process's terminal another size.

        Raises:
            ProcessNotFound, ProcessNotRunning: as their names say.
        """
        await self.sandbox.ask("resize", process=process, cols=cols, rows=rows)

    async def redraw(self, process: str) -> None:
        """Let what runs in a terminal's foreground paint it anew.

        Raises:
            ProcessNotFound, ProcessNotRunning: as their names say.
        """
        await self.sandbox.ask("redraw", process=process)

    def follow(self, process: str, start: int = 0, *, snapshot: bool = False, seen_bytes: int = 0) -> Follow:
        """Return the events from offset `start` on, to the process's end or, as a snapshot, those that are there.

        `seen_bytes` is the output that the reader had before `start`, so that a gap can be told to the byte.
        """
        params = {"process": process, "from": start, "snapshot": snapshot, "seen_bytes": seen_bytes}
        return Follow(self.sandbox, self.sandbox.open_stream("follow", params), process)

    def view(self, process: str, start: int) -> Follow:
        """Return a terminal's events from `start` on; it is not hung up while somebody views it.

        Raises (by the first batch):
            InvalidRequest: the process has no terminal.
        """
        params = {"process": process, "from": start}
        return Follow(self.sandbox, self.sandbox.open_stream("view", params, window=VIEW_WINDOW), process)
