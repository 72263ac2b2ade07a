"""…/processes: start, list, inspect, signal, remove."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import InvalidRequest
from ...runtime import waiting
from ...runtime.processes import MAX_PAGE
from ...spec import check_process_id, check_signal
from ..bodies import Input
from ..call import answer, nothing
from ..pieces import answer_in_pieces
from ..query import Cursor, Limit
from .process_models import ProcessIn, ProcessList, SignalIn, WaitIn, WaitOut, process_out, to_process

if TYPE_CHECKING:
    from quart_trio.wrappers import TrioResponse

    from ...runtime.sandbox import Sandbox
    from ..call import Call


class PageQuery(Input, frozen=True):
    """The page of the list to return."""

    cursor: Cursor = None
    limit: Limit = MAX_PAGE


async def start(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Start a process that outlives the request."""
    model = await call.read(ProcessIn)
    command = to_process(model)
    info = await sandbox.processes.start(command, None if model.id is None else check_process_id(model.id))
    return answer(process_out(info), 201, {"Location": f"/v1/sandboxes/{sandbox.id}/processes/{info.id}"})


async def show_all(call: Call, sandbox: Sandbox, query: PageQuery) -> TrioResponse:
    """List processes in the order of their start: the running ones, and the ended ones that are kept."""
    page, cursor = await sandbox.processes.page(query.cursor, query.limit)
    return answer_in_pieces(ProcessList([process_out(info) for info in page], cursor))


async def show(call: Call, sandbox: Sandbox, process: str) -> TrioResponse:
    """Show a process."""
    return answer(process_out(await sandbox.processes.get(check_process_id(process, "process"))))


async def remove(call: Call, sandbox: Sandbox, process: str) -> TrioResponse:
    """Kill a process and everything it started, and drop its log."""
    await sandbox.processes.remove(check_process_id(process, "process"))
    return nothing()


async def remove_all(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Kill every process, and drop every log."""
    await sandbox.processes.remove_all()
    return nothing()


async def signal(call: Call, sandbox: Sandbox, process: str) -> TrioResponse:
    """Send a signal to a process's group; TERM and KILL reach everything it started."""
    processes = sandbox.processes
    check_process_id(process, "process")
    number = check_signal((await call.read(SignalIn)).signal)
    await processes.signal(process, number)
    return nothing()


async def wait(call: Call, sandbox: Sandbox, process: str) -> TrioResponse:
    """Wait for a process to end, for a port of the sandbox, or for a line of the process's log."""
    check_process_id(process, "process")
    model = await call.read(WaitIn)
    _check_fields(model)
    if model.condition == "port":
        found = await waiting.for_port(sandbox, process, model.port or 0, model.path, model.timeout_s)
    elif model.condition == "log":
        found = await waiting.for_log(sandbox, process, model.pattern or "", model.timeout_s)
    else:
        found = await waiting.for_exit(sandbox, process, model.timeout_s)
    ended = found.exit
    return answer(
        WaitOut(
            found.met,
            found.reason,
            ended.exit_code if ended else None,
            ended.signal if ended else None,
            found.line,
        )
    )


def _check_fields(model: WaitIn) -> None:
    """Refuse a field that belongs to another condition, and require those that belong to this one."""
    needed = {"exit": (), "port": ("port",), "log": ("pattern",)}[model.condition]
    allowed = (*needed, "path") if model.condition == "port" else needed
    for name in ("port", "path", "pattern"):
        given = getattr(model, name) is not None
        if given and name not in allowed:
            raise InvalidRequest(f"cannot accept {name}: it does not apply to {model.condition!r}", field=name)
        if not given and name in needed:
            raise InvalidRequest(f"cannot accept {name}: missing", field=name)
