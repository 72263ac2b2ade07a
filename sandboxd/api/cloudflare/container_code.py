"""/api/contexts and /api/execute/code: code contexts, and their runs as events while they run."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from ...errors import ContextNotFound, InvalidRequest, SandboxdError
from ...runtime.context_states import State
from ...runtime.logs import STREAMS, TextDecoder
from ...runtime.runs import Run
from ...spec import ContextSpec, check_code, check_env, check_language
from ...wire import worker as frames
from ...wire.times import rfc3339
from ..call import answer
from ..pieces import ascii_only, encode
from ..v1.contexts import to_result
from . import charts, container, problems
from .container import Body, Events, about
from .problems import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from quart_trio.wrappers import TrioResponse

    from ...runtime.context import Context
    from ...runtime.run_log import RunEvent
    from ...runtime.sandbox import Sandbox
    from ..call import Call

#: Their formats by name; what else a result has goes into `data` by media type.
_FORMATS: Final = ("text", "html", "png", "jpeg", "svg", "latex", "markdown", "javascript", "json")


class ContextIn(Body, frozen=True, rename=None):
    """A context to create."""

    language: str | None = None
    cwd: str | None = None
    env_vars: dict[str, str | None] | None = None
    envVars: dict[str, str | None] | None = None
    timeout: float | None = None


class RunIn(Body, frozen=True, rename=None):
    """Code to run; without a context, in the default one of its language."""

    code: str
    context_id: str | None = None
    language: str | None = None
    timeout_ms: float | None = None
    timeout: float | None = None
    env_vars: dict[str, str | None] | None = None
    envVars: dict[str, str | None] | None = None


def _find(sandbox: Sandbox, context_id: str) -> Context:
    try:
        return sandbox.contexts.usable(context_id)
    except ContextNotFound:
        raise Refusal("CONTEXT_NOT_FOUND", f"Context {context_id[:70]} not found", contextId=context_id[:70]) from None


async def health(call: Call, name: str) -> TrioResponse:
    """Say that code can be run."""
    await container.reach(call, name)
    return answer({"success": True, "status": "healthy", "timestamp": problems.timestamp()})


async def create(call: Call, name: str) -> TrioResponse:
    """Start an interpreter that keeps its state; answers when it takes code."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, ContextIn)
    cwd = container.WORKSPACE if model.cwd is None else container.resolve(model.cwd, field="cwd")
    env = container.check_env(model.env_vars)
    with about(language=model.language):
        context = await sandbox.contexts.create(ContextSpec(language=model.language or "python", cwd=cwd, env=env))
    return answer(
        {
            "success": True,
            "contextId": context.id,
            "language": context.spec.language,
            "cwd": cwd,
            "timestamp": rfc3339(context.created_at),
        }
    )


async def show_all(call: Call, name: str) -> TrioResponse:
    """List the contexts, the oldest first."""
    sandbox = await container.reach(call, name)
    shown = [
        {"id": one.id, "language": one.spec.language, "cwd": one.spec.cwd or container.WORKSPACE}
        for one in sandbox.contexts.all()
    ]
    return answer({"success": True, "contexts": shown, "timestamp": problems.timestamp()})


async def delete(call: Call, name: str, context: str) -> TrioResponse:
    """End a context and all that it started."""
    sandbox = await container.reach(call, name)
    _find(sandbox, context)
    await sandbox.contexts.delete(context)
    return answer({"success": True, "contextId": context, "timestamp": problems.timestamp()})


async def run(call: Call, name: str) -> TrioResponse:
    """Run code and tell what comes of it while it runs; a caller that leaves interrupts it."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, RunIn)
    env = container.check_env(model.env_vars)
    timeout = model.timeout_ms if model.timeout_ms is not None else model.timeout
    try:
        language = None if model.language is None else check_language(model.language)
        one = Run(
            check_code(model.code),
            container.check_time(timeout, "timeout_ms"),
            check_env(dict(env)),
            detach=False,
            wants_json=True,
        )
    except InvalidRequest as error:
        raise container.invalid(error) from None
    if model.context_id is None:
        context = await sandbox.contexts.default(language or "python")
    else:
        context = _find(sandbox, model.context_id)
        if language not in (None, context.spec.language):
            why = f"cannot run {language} code in context {context.id}: its language is {context.spec.language}"
            raise Refusal("VALIDATION_FAILED", why, field="language", contextId=context.id)
    with about(contextId=context.id):
        if context.state is State.EXITED and not context.is_default:  # `os._exit()`: their clients know no restart
            await context.restart()
        context.submit(one)
    call.stack.callback(one.stop)
    call.stack.enter_context(one.following())
    return container.stream(_Run(one))


class _Run(Events):
    """A run as their events.

    Their client decodes each piece of the network's for itself and breaks a character that one cuts: all is ASCII.
    """

    def __init__(self, one: Run) -> None:
        self._run = one
        self._position = 0
        self._decoder = TextDecoder()

    async def _next_pieces(self) -> tuple[Iterable[bytes], bool]:
        batch = await self._run.next_batch(self._position)
        if not batch:
            return (), True
        self._position = batch[-1].offset + 1
        with trio.CancelScope(shield=True):  # a sign of life that is due meanwhile must not cost the batch
            formats = {
                one.offset: await trio.to_thread.run_sync(_formats, one.data)  # large charts take a while
                for one in batch
                if isinstance(one.data, frames.Result)
            }
        return (part for one in batch for part in self._parts(one, formats)), batch[-1].type == "end"

    def _parts(self, event: RunEvent, formats: dict[int, dict[str, Any]]) -> Iterator[bytes]:
        if isinstance(event.data, bytes):
            text = self._decoder.decode(event.type, event.data)
            if text:
                yield from _event(event.type, event, text=text)
        elif isinstance(event.data, frames.Result):
            yield from _event("result", event, **formats[event.offset])
        elif event.type == "error":
            yield from _error(event, event.data["ename"], event.data["evalue"], event.data["traceback"])
        elif event.type == "truncated":
            note = "{dropped_bytes} bytes of output and {dropped_results} results were dropped\n".format_map(event.data)
            yield from _event("stderr", event, text=note)
        elif event.type == "end":
            yield from self._end(event)

    def _end(self, event: RunEvent) -> Iterator[bytes]:
        for stream in STREAMS:
            text = self._decoder.rest(stream)
            if text:
                yield from _event(stream, event, text=text)
        one = self._run
        if one.status == "timeout":  # after the KeyboardInterrupt by which it ended: the last error stands
            traceback = [] if one.error is None else one.error["traceback"]
            yield from _error(event, "TimeoutError", f"the run took over {one.timeout_s:g} s", traceback)
        elif one.error is None and one.status != "ok":
            yield from _error(event, "InterpreterExited", f"the interpreter has ended: {one.status}", [])
        more = {"restarted": True} if one.restarted else {}
        done = {"execution_count": one.execution_count, "status": one.status, **more}
        yield from _event("execution_complete", event, **done)

    def _failed(self, error: SandboxdError) -> bytes:
        shown = {"type": "error", "ename": "ExecutionError", "evalue": error.message, "traceback": []}
        return b"".join(_data(shown))


def _error(event: RunEvent, ename: str, evalue: str, traceback: list[str]) -> Iterator[bytes]:
    return _event("error", event, ename=ename, evalue=evalue, traceback=traceback)


def _event(kind: str, event: RunEvent, /, **fields: Any) -> Iterator[bytes]:  # noqa: ANN401 - any JSON value
    return _data({"type": kind, **fields, "timestamp": round(event.time * 1000)})


def _data(fields: dict[str, Any]) -> Iterator[bytes]:
    yield b"data: "
    yield from ascii_only(encode(fields))
    yield b"\n\n"


def _formats(result: frames.Result) -> dict[str, Any]:
    """Return a result's formats under their names; `chart` in their shape."""
    shown = to_result(result)
    found = {name: value for name in _FORMATS if (value := getattr(shown, name)) is not msgspec.UNSET}
    if shown.chart is not msgspec.UNSET:
        with contextlib.suppress(RecursionError):  # JSON that is nested too deep is no chart
            found["chart"] = charts.convert(msgspec.json.decode(shown.chart), found.get("png"))
    data: dict[str, Any] = dict(shown.extra) if shown.extra is not msgspec.UNSET else {}
    if shown.pdf is not msgspec.UNSET:
        data["application/pdf"] = shown.pdf
    if shown.data is not msgspec.UNSET:
        data["application/vnd.dataresource+json"] = shown.data
    if data:
        found["data"] = data
    metadata = {name: value for name in ("display_id", "update", "note") if (value := getattr(shown, name))}
    return {**found, "metadata": {key: value for key, value in metadata.items() if value is not msgspec.UNSET}}
