"""The requests of code contexts, and the reader of a run's events; without I/O, as calls.py."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import quote

from sandboxd.errors import RemoteProtocolError
from sandboxd.wire import sse

from .calls import Call, StreamCall, nothing, sandbox_path
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
from .failures import from_problem
from .models import read

if TYPE_CHECKING:
    from collections.abc import Mapping

SSE_TYPE: Final = "text/event-stream"
RUN_HEADER: Final = "Sandboxd-Run"
CONTEXT_HEADER: Final = "Sandboxd-Context"
#: A result of 10 MiB is 14 MiB in base64; with its other formats as JSON text it may be twice that.
MAX_EVENT_BYTES: Final = 64 * 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """A piece of what a run printed; `stream` says where."""

    stream: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Cleared:
    """What was shown so far is to go; with `wait`, once something new comes."""

    wait: bool


RunItem: TypeAlias = Output | Result | CodeError | Cleared


def _context_path(key: str, context: str, rest: str = "") -> str:
    return sandbox_path(key, f"/contexts/{quote(context, safe='')}{rest}")


def context_id(context: CodeContext | str) -> str:
    """Return a context's id."""
    return context.id if isinstance(context, CodeContext) else context


def create(key: str, language: str | None, cwd: str | None, env: Mapping[str, str] | None) -> Call[CodeContext]:
    """POST …/contexts."""
    fields = {"language": language, "cwd": cwd, "env": None if env is None else dict(env)}
    body = {name: value for name, value in fields.items() if value is not None}
    return Call("POST", sandbox_path(key, "/contexts"), body=body, what="context", parse=parse_context)


def get(key: str, context: CodeContext | str) -> Call[CodeContext]:
    """GET …/contexts/{c}."""
    return Call("GET", _context_path(key, context_id(context)), what="context", parse=parse_context)


def show_all(key: str) -> Call[list[CodeContext]]:
    """GET …/contexts."""
    return Call(
        "GET",
        sandbox_path(key, "/contexts"),
        what="list of contexts",
        parse=lambda value: [parse_context(item) for item in value["items"]],
    )


def delete(key: str, context: CodeContext | str) -> Call[None]:
    """DELETE …/contexts/{c}."""
    return Call("DELETE", _context_path(key, context_id(context)), what="answer", parse=nothing)


def interrupt(key: str, context: CodeContext | str) -> Call[bool]:
    """POST …/interrupt: whether there was a run to interrupt."""
    path = _context_path(key, context_id(context), "/interrupt")
    return Call("POST", path, what="answer", parse=lambda value: bool(value["interrupted"]))


def restart(key: str, context: CodeContext | str) -> Call[CodeContext]:
    """POST …/restart."""
    return Call("POST", _context_path(key, context_id(context), "/restart"), what="context", parse=parse_context)


def ask(key: str, context: CodeContext | str, what: str, body: dict[str, Any]) -> Call[dict[str, Any]]:
    """POST …/complete or …/inspect."""
    body = {name: value for name, value in body.items() if value is not None}
    return Call("POST", _context_path(key, context_id(context), f"/{what}"), body=body, what="answer", parse=dict)


def run(
    key: str,
    code: str,
    *,
    context: CodeContext | str | None,
    language: str | None,
    env: Mapping[str, str] | None,
    timeout: float | None,
    detach: bool,
) -> StreamCall:
    """POST …/run, answered by events. Waits for ever: code may be silent for as long as it likes."""
    body: dict[str, Any] = {"code": code}
    if env:
        body["env"] = dict(env)
    if timeout is not None:
        body["timeout_s"] = timeout
    if detach:
        body["detach"] = True
    if context is None:
        if language is not None:
            body["language"] = language
        return StreamCall("POST", sandbox_path(key, "/run"), body=body, accept=SSE_TYPE, timeout_s=None)
    path = _context_path(key, context_id(context), "/run")
    return StreamCall("POST", path, body=body, accept=SSE_TYPE, timeout_s=None)


def run_whole(key: str, code: str, **fields: Any) -> Call[CodeResult]:  # noqa: ANN401 - as of `run`
    """POST …/run, answered by one object at the end: a third of the work where nobody looks on."""
    call = run(key, code, detach=False, **fields)
    return Call(
        call.method, call.path, body=call.body, timeout_s=None, what="result of the run", parse=parse_code_result
    )


def follow(key: str, context: CodeContext | str, run_id: str, start: int) -> StreamCall:
    """GET …/runs/{r}: the events of a run from an offset on."""
    path = _context_path(key, context_id(context), f"/runs/{quote(run_id, safe='')}")
    return StreamCall("GET", path, {"from": str(start)}, accept=SSE_TYPE, timeout_s=None)


class RunReader:
    """Reads the events of one run, and keeps what is to be seen of it, as its clearings and updates leave it.

    Attributes:
        result: what came of it; None before its end.
        next_offset: where to go on if the connection breaks.
    """

    def __init__(self) -> None:
        self.run_id = ""
        self.context_id = ""
        self.result: CodeResult | None = None
        self.next_offset = 0
        self._decoder = sse.SseDecoder(MAX_EVENT_BYTES)
        self._output: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._results: list[Result] = []
        self._error: CodeError | None = None
        self._clear_next = False

    def feed(self, data: bytes) -> list[RunItem]:
        """Take bytes of the answer's body and return what they complete.

        Raises:
            SandboxdError: what the daemon says broke the stream, as its kind.
            RemoteProtocolError: the events are malformed.
        """
        found: list[RunItem] = []
        for event in self._decoder.feed(data):
            try:
                value = json.loads(event.data)
            except ValueError as error:
                raise RemoteProtocolError("cannot read the run's events: one is no JSON") from error
            if event.event == "problem":
                raise from_problem(value)
            self.next_offset = read("event", lambda item: int(item["offset"]) + 1, value)
            item = self._take(event.event, value)
            if item is not None:
                found.append(item)
        return found

    def close(self) -> CodeResult:
        """Say that the body has ended, and return what came of the run.

        Raises:
            RemoteProtocolError: the body was cut.
        """
        if self.result is None:
            raise RemoteProtocolError("cannot read the run's events: they ended before the run did")
        return self.result

    def _take(self, kind: str, value: Any) -> RunItem | None:  # noqa: ANN401 - `read` finds out
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
            self.result = read("end", self._end, value)
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
