"""POST /api/execute and /api/execute/stream: one command, in a session or in none."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ...errors import InvalidRequest
from ...runtime.headtail import collect
from ...runtime.logs import STREAMS, TextDecoder
from ...spec import CommandSpec
from ..pieces import Text, answer_in_pieces
from . import container, problems
from . import container_sessions as sessions
from .container import Body, Events, event
from .problems import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from quart_trio.wrappers import TrioResponse

    from ...runtime.execution import Execution, Exit
    from ...runtime.headtail import Collected, HeadTail
    from ...runtime.sandbox import Sandbox
    from ...wire.messages import Event
    from ..call import Call

#: What one answer keeps of each stream, half of it from the beginning, half from the end; a line tells the gap.
MAX_OUTPUT_BYTES: Final = 32 * 1024 * 1024
#: Theirs for a command whose time is over, as coreutils' timeout has it.
TIMED_OUT: Final = 124
_SIGNALS: Final = 128


class CommandIn(Body, frozen=True):
    """What every command has."""

    command: str
    session_id: str | None = None
    timeout_ms: float | None = None
    env: dict[str, str | None] | None = None
    cwd: str | None = None


class ExecIn(CommandIn, frozen=True):
    """A command to run."""

    background: bool | None = None


async def command_of(sandbox: Sandbox, model: CommandIn) -> CommandSpec:
    """Return the command that is asked for.

    Raises:
        InvalidRequest, Refusal: a value is wrong.
    """
    line = container.check_words(model.command, "command", container.MAX_COMMAND_CHARS)
    session = sessions.session_of(model.session_id)
    return CommandSpec(
        argv=await container.shell_argv(sandbox, line) if session is None else CommandSpec.shell(line),
        env=container.check_env(model.env),
        cwd=None if model.cwd is None else container.resolve(model.cwd, field="cwd"),
        timeout_s=container.check_time(model.timeout_ms),
        keep_orphans=True,  # `server &` goes on, as there
        session=session,
    )


async def exec_of(sandbox: Sandbox, model: ExecIn) -> CommandSpec:
    """Return the command that is asked for, with the time that its session gives it.

    Raises:
        Refusal: a value is wrong.
    """
    if model.timeout_ms is None:
        timeout_ms = sessions.timeout_of(sandbox, sessions.session_of(model.session_id))
        model = msgspec.structs.replace(model, timeout_ms=timeout_ms)
    try:
        return await command_of(sandbox, model)
    except InvalidRequest as error:
        raise container.invalid(error) from None


async def execute(call: Call, name: str) -> TrioResponse:
    """Run a command to its end; how it ends is a result, not an error."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, ExecIn)
    command = await exec_of(sandbox, model)
    shown: dict[str, Any] = {"command": model.command, "timestamp": problems.timestamp()}
    if model.session_id is not None:
        shown["sessionId"] = model.session_id
    try:
        async with contextlib.AsyncExitStack() as stack:
            execution = await sessions.begin(stack, sandbox, command, batched=True)
            shown |= _result_json(await collect(execution, MAX_OUTPUT_BYTES, call.hold(sandbox)), command)
            _check_time(execution, command, model)
    except InvalidRequest as error:
        if error.facts.get("field") != "cwd":
            raise
        shown |= no_directory(model.cwd, in_session=command.session is not None)
    return answer_in_pieces({"success": shown["exitCode"] == 0, **shown})


def _check_time(execution: Execution, command: CommandSpec, model: ExecIn) -> None:
    """Tell a timeout in a session as theirs: an error, where one outside of any is an exit code."""
    if command.session is not None and execution.exit is not None and execution.exit.timed_out:
        why = f"Command timeout after {1000 * (command.timeout_s or 0):g}ms"
        raise Refusal("COMMAND_EXECUTION_ERROR", why, command=model.command, sessionId=command.session)


def _result_json(found: Collected, command: CommandSpec) -> dict[str, Any]:
    """Return a command's output and how it ended, for `pieces.encode`."""
    output = {name: _told(stream) for name, stream in found.output.items()}
    output["stderr"].append(note_of(found.exit, command.timeout_s).encode())
    if command.session is not None:  # theirs is read by lines: the last one's end is not kept
        output = {name: _without_line_end(parts) for name, parts in output.items()}
    shown: dict[str, Any] = {name: Text(parts) for name, parts in output.items()}
    shown |= {"exitCode": code_of(found.exit), "duration": round(1000 * found.exit.duration_s)}
    return {**shown, "truncated": True} if found.dropped_bytes else shown


def _told(stream: HeadTail) -> list[bytes | bytearray]:
    """Return what is kept of a stream; their clients show its text alone, so that tells the gap."""
    parts: list[bytes | bytearray] = list(stream.parts)
    if stream.dropped_bytes:
        parts.insert(1, f"\n[{stream.dropped_bytes} bytes of output were dropped here]\n".encode())
    return parts


def _without_line_end(parts: list[bytes | bytearray]) -> list[bytes | bytearray]:
    while parts and not parts[-1]:
        del parts[-1]
    return [*parts[:-1], parts[-1].removesuffix(b"\n")] if parts else parts


def code_of(ended: Exit) -> int:
    """Return an exit code for every way in which a command can end."""
    if ended.timed_out:
        return TIMED_OUT
    if ended.exit_code is not None:
        return ended.exit_code
    return _SIGNALS + _number(ended.signal)


def _number(name: str | None) -> int:
    return next((int(one) for one in signal.Signals if one.name == name), int(signal.SIGKILL))


def note_of(ended: Exit, timeout_s: float | None) -> str:
    """Return what is added to stderr where the exit code says too little."""
    if ended.timed_out:
        return "Command timeout\n" if timeout_s is None else f"Command timeout after {1000 * timeout_s:g}ms\n"
    return "Killed: out of memory\n" if ended.oom_killed else ""


def no_directory(cwd: str | None, *, in_session: bool) -> dict[str, Any]:
    """Return the end of a command whose working directory does not exist."""
    why = f"Failed to change directory to '{cwd}'" + ("" if in_session else "\n")
    return {"exitCode": 1, "stdout": "", "stderr": why, "duration": 0}


async def stream(call: Call, name: str) -> TrioResponse:
    """Run a command and tell its output as it comes; a caller that leaves ends it."""
    sandbox = await container.reach(call, name)
    model = await container.read(call, ExecIn)
    command = await exec_of(sandbox, model)
    try:
        execution = await sessions.begin(call.stack, sandbox, command, batched=False)
    except InvalidRequest as error:
        if error.facts.get("field") == "cwd":
            raise Refusal("COMMAND_EXECUTION_ERROR", error.message, command=model.command) from None
        raise
    return container.stream(_Output(execution, model, command.timeout_s))


class _Output(Events):
    """A command's output as their events."""

    def __init__(self, execution: Execution, model: ExecIn, timeout_s: float | None) -> None:
        self._execution = execution
        self._model = model
        self._timeout_s = timeout_s
        self._decoder = TextDecoder()
        self._facts: dict[str, Any] = {} if model.session_id is None else {"sessionId": model.session_id}

    async def _next_pieces(self) -> tuple[Iterable[bytes], bool]:
        batch = await self._execution.next_batch()
        is_last = not batch or self._execution.exit is not None
        return (part for one in batch for part in self._parts(one)), is_last

    def _parts(self, one: Event) -> list[bytes]:
        if isinstance(one.data, bytes):
            text = self._decoder.decode(one.type, one.data)
            return [event(one.type, data=text, **self._facts)] if text else []
        if one.type == "start":
            return [event("start", command=self._model.command, pid=self._execution.pid, **self._facts)]
        ended = self._execution.exit
        if one.type != "exit" or ended is None:
            return []
        rest = [(name, self._decoder.rest(name)) for name in STREAMS]
        rest.append(("stderr", note_of(ended, self._timeout_s)))
        found = [event(name, data=text, **self._facts) for name, text in rest if text]
        return [*found, event("complete", exitCode=code_of(ended), **self._facts)]
