"""The JSON of processes: requests and answers of …/processes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import msgspec

from ...errors import InvalidRequest
from ...spec import CommandSpec, check_size
from ...wire.times import rfc3339
from ..bodies import Input
from .models import CommandIn, Usage, to_command

if TYPE_CHECKING:
    from ...runtime.processes import ProcessInfo

#: How `CommandSpec.shell` begins: a command that begins so was a line.
_SHELL = CommandSpec.shell("")[:-1]


class TerminalIn(Input, frozen=True):
    """A terminal's size in characters."""

    cols: int = 80
    rows: int = 24


class ProcessIn(CommandIn, frozen=True, kw_only=True):
    """A process to start."""

    id: str | None = None
    restart: Literal["never", "on-failure"] = "never"
    terminal: TerminalIn | None = None
    linger_s: float | None = None


class SignalIn(Input, frozen=True):
    """A signal, such as TERM, SIGTERM or 15."""

    signal: str | int


class WaitIn(Input, frozen=True, rename={"condition": "for"}):
    """What to wait for: `port` and `path` belong to "port", `pattern` to "log"."""

    condition: Literal["exit", "port", "log"]
    port: int | None = None
    path: str | None = None
    pattern: str | None = None
    timeout_s: float | None = None


class WaitOut(msgspec.Struct, frozen=True):
    """The outcome of a wait."""

    met: bool
    reason: str
    exit_code: int | None
    signal: str | None
    line: str | None


class ProcessOut(msgspec.Struct, frozen=True, kw_only=True):
    """A process."""

    id: str
    pid: int | None
    status: str
    command: str | list[str]
    cwd: str
    user: str
    started_at: str
    ended_at: str | None
    exit_code: int | None
    signal: str | None
    reason: str | None
    timed_out: bool
    oom_killed: bool
    restarts: int
    terminal: bool
    usage: Usage


class ProcessList(msgspec.Struct, frozen=True):
    """A page of processes; `next` is the cursor of the next page."""

    items: list[ProcessOut]
    next: str | None


class LogsOut(msgspec.Struct, frozen=True):
    """A process's output so far; continue at `next_offset`. `dropped_bytes` counts what its log no longer has."""

    stdout: str
    stderr: str
    next_offset: int
    dropped_bytes: int


def to_process(model: ProcessIn) -> CommandSpec:
    """Return the checked command.

    Raises:
        InvalidRequest: a value is out of its bounds, or requires another field.
    """
    command = to_command(model, restart=model.restart == "on-failure")
    if model.terminal is None:
        if model.linger_s is not None:
            raise InvalidRequest("cannot accept linger_s: the process has no terminal", field="linger_s")
        return command
    if command.restart:
        raise InvalidRequest("cannot accept restart: a process with a terminal is not restarted", field="restart")
    if command.stdin is not None:
        raise InvalidRequest("cannot accept stdin: write to a terminal with …/pty or …/stdin", field="stdin")
    size = check_size(model.terminal.cols, model.terminal.rows)
    return dataclasses.replace(command, terminal=size, linger_s=model.linger_s)


def process_out(info: ProcessInfo) -> ProcessOut:
    """Return a process as callers see it."""
    ended = info.result
    is_line = info.argv[:-1] == _SHELL
    return ProcessOut(
        id=info.id,
        pid=info.pid,
        status="running" if info.running else "exited",
        command=info.argv[-1] if is_line else list(info.argv),
        cwd=info.cwd,
        user=info.user,
        started_at=rfc3339(info.started_at),
        ended_at=None if info.ended_at is None else rfc3339(info.ended_at),
        exit_code=ended.exit_code if ended else None,
        signal=ended.signal if ended else None,
        reason=ended.reason if ended else None,
        timed_out=ended.timed_out if ended else False,
        oom_killed=ended.oom_killed if ended else False,
        restarts=info.restarts,
        terminal=info.terminal,
        usage=Usage(info.cpu_s, info.memory_peak_bytes),
    )
