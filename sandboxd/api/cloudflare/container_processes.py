"""/api/process/…: background processes, their logs, and their ends."""

from __future__ import annotations

import contextlib
import re
import secrets
from typing import TYPE_CHECKING, Annotated, Any, Final

import trio
from msgspec import Meta

from ...errors import InvalidRequest, ProcessNotFound, ProcessNotRunning
from ...runtime import logs, waiting
from ...runtime.processes import MAX_PAGE
from ...spec import STOP_GRACE_S, check_process_id, check_signal
from ...wire import utf8
from ...wire.times import rfc3339
from ..bodies import Input
from ..call import answer
from ..pieces import Text, answer_in_pieces
from . import container, problems
from . import container_sessions as sessions
from .container import Events, event
from .container_exec import CommandIn, code_of, command_of, note_of
from .problems import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from quart_trio.wrappers import TrioResponse

    from ...runtime.follow import Follow
    from ...runtime.processes import ProcessInfo
    from ...runtime.sandbox import Sandbox
    from ...wire.messages import Event
    from ..call import Call

KILL_TIMEOUT_S: Final = 10.0
_TERM: Final = 15
_KILL: Final = 9
#: A command of exec has such an id: it is a process to us, and none to them.
_NOT_STARTED_HERE: Final = re.compile(r"p-[a-z2-7]{10}\Z")
STATUSES: Final = ("starting", "running", "completed", "failed", "killed", "error")


class ProcessIn(CommandIn, frozen=True):
    """A process to start; a command that has ended is kept and cleaned up by bounds of its own."""

    process_id: str | None = None
    encoding: str | None = None
    auto_cleanup: bool | None = None


def _check_id(value: str) -> str:
    try:
        return check_process_id(value)
    except InvalidRequest as error:
        raise Refusal("VALIDATION_FAILED", error.message, field="processId", processId=value[:70]) from None


def _status(info: ProcessInfo) -> str:
    ended = info.result
    if ended is None:
        return "running"
    if ended.timed_out or ended.signal is not None:
        return "killed"
    return "completed" if ended.exit_code == 0 else "failed"


def _process_json(info: ProcessInfo) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": info.id,
        "pid": info.pid,
        "command": info.argv[-1],
        "status": _status(info),
        "startTime": rfc3339(info.started_at),
    }
    if info.ended_at is not None:
        found["endTime"] = rfc3339(info.ended_at)
    if info.result is not None:
        found["exitCode"] = code_of(info.result)
    return found


async def start(call: Call, name: str) -> TrioResponse:
    """Start a process that outlives the request."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, ProcessIn)
    process = f"proc_{secrets.token_hex(8)}" if model.process_id is None else _check_id(model.process_id)
    with container.about(processId=process):
        info = await sessions.start(sandbox, await command_of(sandbox, model), process)
    return answer(
        {
            "success": True,
            "processId": info.id,
            "pid": info.pid,
            "command": model.command,
            "timestamp": problems.timestamp(),
        }
    )


async def _all(sandbox: Sandbox) -> list[ProcessInfo]:
    """Return what was started as a process: no command of exec, no terminal."""
    found: list[ProcessInfo] = []
    cursor: str | None = None
    while True:
        page, cursor = await sandbox.processes.page(cursor, MAX_PAGE)
        found += [info for info in page if not info.terminal and not _NOT_STARTED_HERE.match(info.id)]
        if cursor is None:
            return found


class ListQuery(Input, frozen=True):
    """Which processes are wanted."""

    status: Annotated[str | None, Meta(description="only processes with this status")] = None


class KillQuery(Input, frozen=True):
    """How to end a process."""

    signal: Annotated[str | None, Meta(description="send only this signal")] = None


async def show_all(call: Call, name: str, query: ListQuery) -> TrioResponse:
    """List the processes, in the order of their start."""
    wanted = query.status
    if wanted is not None and wanted not in STATUSES:
        raise Refusal(
            "VALIDATION_FAILED", f"cannot accept status: it must be one of {', '.join(STATUSES)}", field="status"
        )
    found = [_process_json(info) for info in await _all(await container.reach(call, name))]
    shown = [item for item in found if wanted in (None, item["status"])]
    return answer_in_pieces({"success": True, "processes": shown, "timestamp": problems.timestamp()})


async def show(call: Call, name: str, process: str) -> TrioResponse:
    """Show a process."""
    sandbox = await container.reach(call, name)
    with container.about(processId=process):
        info = await sandbox.processes.get(_check_id(process))
    return answer({"success": True, "process": _process_json(info), "timestamp": problems.timestamp()})


async def kill(call: Call, name: str, process: str, query: KillQuery) -> TrioResponse:
    """End a process with all below it: SIGTERM, and SIGKILL after five seconds; or send it `signal` and no more."""
    sandbox = await container.reach(call, name)
    wanted = query.signal
    with container.about(processId=process):
        _check_id(process)
        try:
            if wanted is None:
                await _end(sandbox, process)
            else:
                number = check_signal(wanted)
                await sandbox.processes.signal(process, number)
        except ProcessNotRunning:
            raise Refusal("PROCESS_NOT_FOUND", f"cannot kill process {process}: it has ended") from None
    return answer({"success": True, "processId": process, "timestamp": problems.timestamp()})


async def _end(sandbox: Sandbox, process: str) -> None:
    await sandbox.processes.signal(process, _TERM)
    if not (await waiting.for_exit(sandbox, process, STOP_GRACE_S)).met:
        with contextlib.suppress(ProcessNotRunning):  # in the same moment
            await sandbox.processes.signal(process, _KILL)
        await waiting.for_exit(sandbox, process, KILL_TIMEOUT_S)


async def kill_all(call: Call, name: str) -> TrioResponse:
    """End every process that runs; tells how many there were."""
    sandbox = await container.reach(call, name)
    running = [info.id for info in await _all(sandbox) if info.running]
    ended = 0

    async def end(process: str) -> None:
        nonlocal ended
        try:
            await _end(sandbox, process)
        except (ProcessNotFound, ProcessNotRunning):
            return  # by itself, meanwhile
        ended += 1

    async with trio.open_nursery() as nursery:
        for process in running:
            nursery.start_soon(end, process)
    return answer({"success": True, "cleanedCount": ended, "timestamp": problems.timestamp()})


# --- logs ---


async def show_logs(call: Call, name: str, process: str) -> TrioResponse:
    """Show what a process has printed."""
    sandbox = await container.reach(call, name)
    with container.about(processId=process):
        found = await logs.read(sandbox.processes, _check_id(process), hold=call.hold(sandbox))
    shown = {}
    for stream in logs.STREAMS:
        parts = [one.data for one in found.events if one.type == stream and isinstance(one.data, bytes)]
        # Of one that runs the rest of a character is still to come.
        shown[stream] = Text(utf8.whole_parts(parts) if found.running else parts)
    return answer_in_pieces({"success": True, "processId": process, **shown, "timestamp": problems.timestamp()})


async def stream_logs(call: Call, name: str, process: str) -> TrioResponse:
    """Tell what a process has printed and prints, to its end."""
    sandbox = await container.reach(call, name)
    with container.about(processId=process):
        info = await sandbox.processes.get(_check_id(process))
        follow = await call.stack.enter_async_context(sandbox.processes.follow(process))
    return container.stream(_Log(follow, info))


class _Log(Events):
    """A process's log as their events."""

    def __init__(self, follow: Follow, info: ProcessInfo) -> None:
        self._follow = follow
        self._info = info
        self._decoder = logs.TextDecoder()
        self.first = event("process_info", processId=info.id, command=info.argv[-1], status=_status(info))

    async def _next_pieces(self) -> tuple[Iterable[bytes], bool]:
        batch = await self._follow.next_batch()
        return (part for one in batch for part in self._parts(one)), not batch

    def _parts(self, one: Event) -> list[bytes]:
        process = self._info.id
        if isinstance(one.data, bytes):
            text = self._decoder.decode(one.type, one.data)
            return [event(one.type, data=text, processId=process)] if text else []
        ended = self._follow.exit
        if one.type != "exit" or ended is None:
            return []
        rest = [(name, self._decoder.rest(name)) for name in logs.STREAMS]
        rest.append(("stderr", note_of(ended, None)))
        found = [event(name, data=text, processId=process) for name, text in rest if text]
        code = code_of(ended)
        how = "Process completed successfully" if code == 0 else f"Process failed with exit code {code}"
        return [*found, event("exit", processId=process, exitCode=code, data=how)]
