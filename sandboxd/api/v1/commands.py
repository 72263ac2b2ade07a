"""POST …/exec and a process's stdin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...spec import check_process_id
from ..call import nothing, streamed
from . import models, streams

if TYPE_CHECKING:
    from quart_trio.wrappers import TrioResponse

    from ...runtime.sandbox import Sandbox
    from ..call import Call

PROCESS_HEADER = "Sandboxd-Process"


async def execute(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Run a command. Errors before its start are problems; how it ends is a result."""
    model = await call.read(models.ExecIn)
    command = models.to_command(model)
    form = call.accepts()
    execution = await call.stack.enter_async_context(
        sandbox.execute(command, detach=model.detach, batched=form == "json")
    )
    headers = {PROCESS_HEADER: execution.process_id}
    if form == "json":
        return await streams.answer_at_end(execution, model.encoding, call.hold(sandbox), headers)
    headers["Cache-Control"] = "no-store"
    if form == "sse":
        headers["Content-Type"] = "text/event-stream; charset=utf-8"
        return streamed(streams.SseBody(execution, model.encoding), 200, headers)
    headers["Content-Type"] = "application/octet-stream"
    return streamed(streams.RawBody(execution), 200, headers)


async def write_stdin(call: Call, sandbox: Sandbox, process: str) -> TrioResponse:
    """Write the body to a process's stdin; answers once all of it is written."""
    check_process_id(process, "process")
    while piece := await call.body.next_piece():
        await sandbox.write_stdin(process, bytes(piece))
    return nothing()


async def close_stdin(call: Call, sandbox: Sandbox, process: str) -> TrioResponse:
    """Close a process's stdin."""
    await sandbox.close_stdin(check_process_id(process, "process"))
    return nothing()
