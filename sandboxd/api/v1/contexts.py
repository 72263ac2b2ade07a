"""…/contexts and …/run: code contexts, their runs, and the two forms of a run's answer."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ...errors import InvalidRequest
from ...runtime.context_states import SHOWN
from ...runtime.logs import CARRY_EVENTS, STREAMS, TextDecoder
from ...runtime.questions import Question
from ...runtime.runs import Run
from ...spec import ContextSpec, check_code, check_env, check_seconds
from ...wire import sse
from ...wire import worker as frames
from ...wire.times import rfc3339
from .. import problems
from ..bodies import Input
from ..call import answer, nothing, streamed
from ..pieces import Text, answer_in_pieces, encode_object, fields_of
from ..pieces import follow as follow_source
from ..query import From
from . import context_models as models

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from quart_trio.wrappers import TrioResponse

    from ...runtime.context import Context
    from ...runtime.run_log import RunEvent
    from ...runtime.sandbox import Sandbox
    from ..call import Call

RUN_HEADER: Final = "Sandboxd-Run"
CONTEXT_HEADER: Final = "Sandboxd-Context"


class FollowQuery(Input, frozen=True):
    """The offset to start at."""

    from_: From = msgspec.field(default=None, name="from")


def _context_out(context: Context) -> models.ContextOut:
    return models.ContextOut(
        id=context.id,
        language=context.spec.language,
        cwd=context.spec.cwd,
        env=context.spec.env,
        state=SHOWN[context.state],
        is_default=context.is_default,
        execution_count=context.execution_count,
        version=context.version,
        created_at=rfc3339(context.created_at),
    )


async def create(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Start an interpreter that keeps its state; answers once it accepts code."""
    contexts = sandbox.contexts
    model = await call.read(models.ContextIn)
    spec = ContextSpec(language=model.language or "python", cwd=model.cwd, env=model.env or {})
    return answer(_context_out(await contexts.create(spec)), 201)


async def show_all(call: Call, sandbox: Sandbox) -> TrioResponse:
    """List the contexts, oldest first."""
    return answer_in_pieces(models.ContextList([_context_out(context) for context in sandbox.contexts.all()], None))


async def show(call: Call, sandbox: Sandbox, context: str) -> TrioResponse:
    """Show one context."""
    return answer(_context_out(sandbox.contexts.find(context)))


async def destroy(call: Call, sandbox: Sandbox, context: str) -> TrioResponse:
    """End a context and everything it started."""
    await sandbox.contexts.delete(context)
    return nothing()


async def interrupt(call: Call, sandbox: Sandbox, context: str) -> TrioResponse:
    """Interrupt the current run; answers once it is over."""
    found = sandbox.contexts.usable(context)
    return answer(models.Interrupted(await found.interrupt()))


async def restart(call: Call, sandbox: Sandbox, context: str) -> TrioResponse:
    """Restart the interpreter; its state is lost."""
    found = sandbox.contexts.usable(context)
    await found.restart()
    return answer(_context_out(found))


async def run(call: Call, sandbox: Sandbox, context: str) -> TrioResponse:
    """Run code in a context. Whatever the code does is a result, even if it fails."""
    found = sandbox.contexts.usable(context)
    model = await call.read(models.RunIn)
    return await _run(call, found, _new_run(model))


async def run_default(call: Call, sandbox: Sandbox) -> TrioResponse:
    """Run code in the default context of its language, which is created on first use."""
    contexts = sandbox.contexts
    model = await call.read(models.RunDefaultIn)
    one = _new_run(model)
    return await _run(call, await contexts.default(ContextSpec(language=model.language or "python").language), one)


async def follow(call: Call, sandbox: Sandbox, context: str, run: str, query: FollowQuery) -> TrioResponse:
    """Follow a run again from any offset; as JSON, wait for its end."""
    contexts = sandbox.contexts
    one = contexts.find_run(context, run)
    start = query.from_ or 0
    last = call.request.headers.get("Last-Event-ID")
    if last is not None:
        if not last.isascii() or not last.isdigit() or len(last) > 18:
            raise InvalidRequest("cannot accept Last-Event-ID: it is not an offset", field="Last-Event-ID")
        start = int(last) + 1
    return await _answer(call, contexts.find(context), one, start)


async def complete(call: Call, sandbox: Sandbox, context: str) -> TrioResponse:
    """Return the completions at the cursor."""
    found = sandbox.contexts.usable(context)
    model = await call.read(models.CompleteIn)
    return _raw(await found.ask(Question.complete(model.code, model.cursor)))


async def inspect(call: Call, sandbox: Sandbox, context: str) -> TrioResponse:
    """Describe the name at the cursor."""
    found = sandbox.contexts.usable(context)
    model = await call.read(models.InspectIn)
    return _raw(await found.ask(Question.inspect(model.code, model.cursor, detail=bool(model.detail))))


def _raw(text: str) -> TrioResponse:
    return answer(_json(text) or msgspec.Raw(b"null"))


def _new_run(model: models.RunIn) -> Run:
    code = check_code(model.code)
    timeout_s = check_seconds(model.timeout_s, "timeout_s")
    return Run(code, timeout_s, check_env(model.env or {}), detach=model.detach)


async def _run(call: Call, context: Context, one: Run) -> TrioResponse:
    context.submit(one)
    if not one.detach:
        call.stack.callback(one.stop)  # a caller that goes away wants it no more; after its end this does nothing
    return await _answer(call, context, one, 0)


async def _answer(call: Call, context: Context, one: Run, start: int) -> TrioResponse:
    headers = {RUN_HEADER: one.id, CONTEXT_HEADER: context.id}
    call.stack.enter_context(one.following())
    if call.accepts() != "sse":
        return answer_in_pieces(await collect(context.id, one), headers=headers)
    headers |= {"Cache-Control": "no-store", "Content-Type": "text/event-stream; charset=utf-8"}
    return streamed(RunBody(one, start), 200, headers)


# --- JSON at the end ----------------------------------------------------------------------------------------


class _Shown:
    """What a run displays: output and results, with clears and updates applied."""

    def __init__(self) -> None:
        self.output: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        self.results: list[frames.Result] = []
        self._clear_next = False

    def take(self, event: RunEvent) -> None:
        """Take the next event."""
        if event.type == "clear" and isinstance(event.data, dict):
            if event.data["wait"]:
                self._clear_next = True
            else:
                self._clear()
        elif isinstance(event.data, bytes):
            self._clear_if_waiting()
            self.output[event.type].append(event.data)
        elif isinstance(event.data, frames.Result):
            self._clear_if_waiting()
            self._show(event.data)

    def _show(self, result: frames.Result) -> None:
        if not result.update:
            self.results.append(result)
            return
        for index, shown in enumerate(self.results):
            if shown.display_id == result.display_id:
                self.results[index] = result

    def _clear_if_waiting(self) -> None:
        if self._clear_next:
            self._clear()

    def _clear(self) -> None:
        self._clear_next = False
        self.output = {"stdout": [], "stderr": []}
        self.results = []


async def collect(context_id: str, one: Run) -> dict[str, Any]:
    """Wait for a run's end and return all of it, for `pieces.encode`."""
    shown = _Shown()
    position = 0
    while batch := await one.next_batch(position):
        for event in batch:
            shown.take(event)
        position = batch[-1].offset + 1
    error = one.error
    shown_run = models.RunOut(
        id=one.id,
        context=context_id,
        status=one.status or "exited",
        restarted=one.restarted,
        execution_count=one.execution_count,
        stdout="",
        stderr="",
        results=[],
        error=None if error is None else models.ErrorOut(**error),
        duration_s=one.duration_s,
        truncated=one.truncated,
    )
    return {
        **msgspec.structs.asdict(shown_run),
        **{name: Text(parts) for name, parts in shown.output.items()},
        "results": map(to_result, shown.results),
    }


def to_result(result: frames.Result) -> models.ResultOut:
    """Return a result as callers see it; a JSON format that is not valid JSON is left out and noted."""
    formats: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    notes = [] if result.note is None else [result.note]
    for name, value in result.formats.items():
        shown: Any = value
        if name in frames.JSON_FORMATS or (name.endswith("json") and "/" in name and isinstance(value, str)):
            shown = _json(str(value))
            if shown is None:
                notes.append(f"{name}: left out, it is not JSON")
                continue
        if "/" in name:
            extra[name] = shown
        else:
            formats[name] = shown
    return models.ResultOut(
        is_main=result.main,
        **formats,
        extra=extra or msgspec.UNSET,
        note="; ".join(notes) if notes else msgspec.UNSET,
        display_id=result.display_id if result.display_id is not None else msgspec.UNSET,
        update=True if result.update else msgspec.UNSET,
    )


def _json(text: str) -> msgspec.Raw | None:
    """Return JSON unchanged, checked without building its values."""
    try:
        raw: msgspec.Raw = msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    return raw


# --- server-sent events -------------------------------------------------------------------------------------


class RunBody:
    """A run as server-sent events; text is decoded per stream, and a character cut by an event's end waits."""

    def __init__(self, one: Run, start: int) -> None:
        self._run = one
        self._position = start
        self._decoder = TextDecoder()
        # One that begins in the middle of a character has read its beginning.
        self._decoder.prime(one.before(start, CARRY_EVENTS))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return follow_source(self._next_pieces, problems.to_event)

    async def _next_pieces(self) -> tuple[Iterable[bytes], bool]:
        batch = await self._run.next_batch(self._position)
        if batch:
            self._position = batch[-1].offset + 1
        is_last = not batch or batch[-1].type == "end"
        return (part for event in batch for part in self._parts(event)), is_last

    def _parts(self, event: RunEvent) -> Iterator[bytes]:
        if isinstance(event.data, bytes):
            text = self._decoder.decode(event.type, event.data)
            if text:
                yield from _event(event, event.type, {"text": text})
            return
        if isinstance(event.data, frames.Result):
            yield from _event(event, "result", to_result(event.data))
            return
        if event.type == "end":
            for name in STREAMS:
                text = self._decoder.rest(name)
                if text:  # without an id: whoever resumes after it must not miss the end
                    data = {"offset": event.offset, "time": event.time, "text": text}
                    yield sse.encode(msgspec.json.encode(data), event=name)
        yield from _event(event, event.type, event.data)


def _event(event: RunEvent, name: str, fields: dict[str, Any] | models.ResultOut) -> Iterator[bytes]:
    """Yield the parts of an event: its JSON is one line."""
    shown = itertools.chain((("offset", event.offset), ("time", event.time)), fields_of(fields))
    yield b"id: %d\nevent: %s\ndata: " % (event.offset, name.encode())
    yield from encode_object(shown)
    yield b"\n\n"
