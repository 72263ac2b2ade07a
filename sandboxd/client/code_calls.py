"""The requests of code contexts, and the reader of a run's events; no I/O (see `calls`)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import quote

from sandboxd.errors import RemoteProtocolError
from sandboxd.wire import sse

from .calls import Call, StreamCall, Streamed, given, listed, nothing, read_events, sandbox_path
from .code_models import (
    CodeContext,
    CodeError,
    CodeResult,
    Result,
    parse_code_result,
    parse_context,
    parse_error,
    parse_result,
)
from .models import read

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import httpx

    from .calls import Request

SSE_TYPE: Final = "text/event-stream"
RUN_HEADER: Final = "Sandboxd-Run"
CONTEXT_HEADER: Final = "Sandboxd-Context"
#: A result of 10 MiB is 14 MiB in base64; with its other formats as JSON text it may be twice that.
MAX_EVENT_BYTES: Final = 64 * 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """A piece of a run's printed output; `stream` is "stdout" or "stderr"."""

    stream: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Cleared:
    """Clear the output shown so far; with `wait`, only once new output arrives."""

    wait: bool


RunItem: TypeAlias = Output | Result | CodeError | Cleared


def _context_path(key: str, context: CodeContext | str, rest: str = "") -> str:
    name = context.id if isinstance(context, CodeContext) else context
    return sandbox_path(key, f"/contexts/{quote(name, safe='')}{rest}")


def create_code_context(
    key: str, language: str = "python", *, cwd: str | None = None, env: Mapping[str, str] | None = None
) -> Call[CodeContext]:
    """Start an interpreter that keeps its state between runs.

    Args:
        language: python, javascript or typescript (or py, js, ts).
        cwd: the working directory, absolute; default: the sandbox's.
        env: environment variables, added to the sandbox's.

    Raises:
        InterpreterMissing: the rootfs lacks what the language needs.
    """
    body = given(language=language, cwd=cwd, env=None if env is None else dict(env))
    return Call("POST", sandbox_path(key, "/contexts"), body=body, what="context", parse=parse_context)


def get_code_context(key: str, context: CodeContext | str) -> Call[CodeContext]:
    """Return a context's current state."""
    return Call("GET", _context_path(key, context), what="context", parse=parse_context)


def list_code_contexts(key: str) -> Call[list[CodeContext]]:
    """Return every context of the sandbox."""
    return Call("GET", sandbox_path(key, "/contexts"), what="list of contexts", parse=listed(parse_context))


def delete_code_context(key: str, context: CodeContext | str) -> Call[None]:
    """End a context and everything it started."""
    return Call("DELETE", _context_path(key, context), what="answer", parse=nothing)


def interrupt_code_context(key: str, context: CodeContext | str) -> Call[bool]:
    """Interrupt the current run, wait for its end, and return whether there was one."""
    path = _context_path(key, context, "/interrupt")
    return Call("POST", path, what="answer", parse=lambda value: bool(value["interrupted"]))


def restart_code_context(key: str, context: CodeContext | str) -> Call[CodeContext]:
    """Restart a context's interpreter; its state is lost."""
    return Call("POST", _context_path(key, context, "/restart"), what="context", parse=parse_context)


def complete_code(key: str, context: CodeContext | str, code: str, cursor: int | None = None) -> Call[dict[str, Any]]:
    """Return the completions at the cursor: `matches`, each of which replaces the code from `start` to `end`."""
    return _ask(key, context, "complete", code=code, cursor=cursor)


def inspect_code(
    key: str, context: CodeContext | str, code: str, cursor: int | None = None, *, detail: bool = False
) -> Call[dict[str, Any]]:
    """Return a description of the name at the cursor: `found`, `name`, `text`."""
    return _ask(key, context, "inspect", code=code, cursor=cursor, detail=detail)


def _ask(key: str, context: CodeContext | str, what: str, **fields: object) -> Call[dict[str, Any]]:
    path = _context_path(key, context, f"/{what}")
    return Call("POST", path, body=given(**fields), what="answer", parse=dict)


def run_code(  # noqa: PLR0913 - the fields of a run, all by keyword
    key: str,
    code: str,
    *,
    context: CodeContext | str | None = None,
    language: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    on_stdout: Callable[[str], object] | None = None,
    on_stderr: Callable[[str], object] | None = None,
    on_result: Callable[[Result], object] | None = None,
    on_error: Callable[[CodeError], object] | None = None,
) -> Request[CodeResult]:
    """Run code, wait for it to end, and return its result. An exception in the code is a result, not an error.

    Args:
        code: up to 1 MiB of text.
        context: the context to run it in; default: the default context of `language`.
        language: python (the default), javascript or typescript.
        env: variables for this run only.
        timeout: seconds after which the code is interrupted; the context keeps its state.
        on_stdout: called with each piece of standard output as it arrives; in asynchronous code it may be a coroutine
            function.
        on_stderr: the same for standard error.
        on_result: called with each value that the code displays.
        on_error: called with the exception that ended it.

    Raises:
        ContextExited: the context's interpreter has ended; restart it.
        InvalidRequest: a value is wrong; `field` names it.
    """
    run = _run_call(key, context, language, env, code=code, timeout_s=timeout)
    callbacks = {"stdout": on_stdout, "stderr": on_stderr, "result": on_result, "error": on_error}
    if any(callback is not None for callback in callbacks.values()):
        return RunRequest(run, callbacks)
    # One object at the end: a third of the work where nobody looks on.
    return Call(run.method, run.path, body=run.body, timeout_s=None, what="result of the run", parse=parse_code_result)


def run_code_stream(  # noqa: PLR0913 - the fields of a run, all by keyword
    key: str,
    code: str,
    *,
    context: CodeContext | str | None = None,
    language: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    detach: bool = False,
    on_stdout: Callable[[str], object] | None = None,
    on_stderr: Callable[[str], object] | None = None,
    on_result: Callable[[Result], object] | None = None,
    on_error: Callable[[CodeError], object] | None = None,
) -> RunRequest:
    """Start a run and return its stream. With `detach` the run continues after the stream is closed.

    In asynchronous code, `async with` starts it.
    """
    run = _run_call(key, context, language, env, code=code, timeout_s=timeout, detach=detach or None)
    return RunRequest(run, {"stdout": on_stdout, "stderr": on_stderr, "result": on_result, "error": on_error})


def _run_call(
    key: str, context: CodeContext | str | None, language: str | None, env: Mapping[str, str] | None, **fields: object
) -> StreamCall:
    """POST …/run, answered by events. Waits for ever: code may be silent for as long as it likes."""
    language = language if context is None else None
    path = sandbox_path(key, "/run") if context is None else _context_path(key, context, "/run")
    body = given(language=language, env=dict(env) if env else None, **fields)
    return StreamCall("POST", path, body=body, accept=SSE_TYPE, timeout_s=None)


def follow_code(key: str, context: CodeContext | str, run_id: str, start: int = 0) -> RunRequest:
    """Follow a run again from an offset: one that was detached, or whose stream broke.

    Raises:
        RunNotFound: the context no longer keeps the run.
    """
    path = _context_path(key, context, f"/runs/{quote(run_id, safe='')}")
    return RunRequest(StreamCall("GET", path, {"from": str(start)}, accept=SSE_TYPE, timeout_s=None), {})


class RunRequest(Streamed[RunItem, CodeResult]):
    """A run: keeps what it displays, with clears and updates applied.

    Attributes:
        run_id, context_id: the ids of the run and its context; empty before the answer begins.
        next_offset: the offset at which to continue if the connection breaks.
    """

    def __init__(self, call: StreamCall, callbacks: Mapping[str, Callable[[Any], object] | None]) -> None:
        super().__init__(call)
        self._callbacks = callbacks
        self.run_id = ""
        self.context_id = ""
        self._result: CodeResult | None = None
        self.next_offset = 0
        self._decoder = sse.SseDecoder(MAX_EVENT_BYTES)
        self._output: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._results: list[Result] = []
        self._error: CodeError | None = None
        self._clear_next = False

    def begin(self, response: httpx.Response) -> None:
        self.run_id = response.headers.get(RUN_HEADER, "")
        self.context_id = response.headers.get(CONTEXT_HEADER, "")

    def callback(self, item: RunItem) -> Callable[[], object] | None:
        value: Any = item
        if isinstance(item, Output):
            name, value = item.stream, item.text
        else:
            name = "result" if isinstance(item, Result) else "error" if isinstance(item, CodeError) else "clear"
        callback = self._callbacks.get(name)
        return None if callback is None else lambda: callback(value)

    def feed(self, data: bytes) -> list[RunItem]:
        found: list[RunItem] = []
        complaint = "cannot read the run's events: one is not JSON"
        for kind, value in read_events(self._decoder, data, complaint):
            self.next_offset = read("event", lambda item: int(item["offset"]) + 1, value)
            item = self._take_event(kind, value)
            if item is not None:
                found.append(item)
        return found

    def close(self) -> CodeResult:
        if self._result is None:
            raise RemoteProtocolError("cannot read the run's events: they ended before the run did")
        return self._result

    def _take_event(self, kind: str, value: Any) -> RunItem | None:  # noqa: ANN401 - `read` finds out
        if kind in self._output:
            self._clear_if_waiting()
            output = Output(kind, read("event", lambda item: str(item["text"]), value))
            self._output[kind].append(output.text)
            return output
        if kind == "result":
            self._clear_if_waiting()
            return self._show(read("result", parse_result, value))
        if kind == "error":
            self._error = read("error", parse_error, value)
            return self._error
        if kind == "clear":
            return self._clear(read("event", lambda item: bool(item["wait"]), value))
        if kind == "end":
            self._result = read("end", self._end, value)
        return None

    def _show(self, result: Result) -> Result:
        if not result.update:
            self._results.append(result)
        else:
            self._results = [result if shown.display_id == result.display_id else shown for shown in self._results]
        return result

    def _clear(self, wait: bool) -> Cleared:
        if wait:
            self._clear_next = True
        else:
            self._clear_now()
        return Cleared(wait)

    def _clear_if_waiting(self) -> None:
        if self._clear_next:
            self._clear_now()

    def _clear_now(self) -> None:
        self._clear_next = False
        self._output = {"stdout": [], "stderr": []}
        self._results = []

    def _end(self, value: Any) -> CodeResult:  # noqa: ANN401 - called by `read`
        return CodeResult(
            id=self.run_id,
            context=self.context_id,
            status=str(value["status"]),
            stdout="".join(self._output["stdout"]),
            stderr="".join(self._output["stderr"]),
            results=tuple(self._results),
            error=self._error,
            execution_count=int(value["execution_count"]),
            duration_s=float(value["duration_s"]),
            restarted=bool(value["restarted"]),
            truncated=bool(value["truncated"]),
        )


class RunStream:
    """The attributes that both kinds of run streams share. The ids are empty before the answer begins."""

    _request: RunRequest

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._request.run_id

    @property
    def context_id(self) -> str:
        """The id of the run's context."""
        return self._request.context_id

    @property
    def next_offset(self) -> int:
        """The offset at which `follow_code` continues if this stream breaks."""
        return self._request.next_offset
