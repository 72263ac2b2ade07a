"""The JSON of code contexts and runs, as msgspec structs."""

from __future__ import annotations

from typing import Any

import msgspec

from ..bodies import Input

Maybe = msgspec.UnsetType


class ContextIn(Input, frozen=True):
    """A code context to create."""

    language: str | None = None
    cwd: str | None = None
    env: dict[str, str] | None = None


class ContextOut(msgspec.Struct, frozen=True, kw_only=True):
    """A code context."""

    id: str
    language: str
    cwd: str | None
    env: dict[str, str]
    state: str
    is_default: bool
    execution_count: int
    version: str
    created_at: str


class ContextList(msgspec.Struct, frozen=True):
    """A page of contexts; there is only one page."""

    items: list[ContextOut]
    next: str | None


class RunIn(Input, frozen=True):
    """Code to run for at most `timeout_s`. `env` applies to this run alone; `detach` lets it outlive its caller."""

    code: str
    timeout_s: float | None = None
    env: dict[str, str] | None = None
    detach: bool = False


class RunDefaultIn(RunIn, frozen=True):
    """Code to run in the default context of a language."""

    language: str | None = None


class CompleteIn(Input, frozen=True):
    """Code, and the cursor's position in it, in characters; default: its end."""

    code: str
    cursor: int | None = None


class InspectIn(CompleteIn, frozen=True):
    """Code and a cursor; with `detail` the answer includes the source code if there is any."""

    detail: bool = False


class Interrupted(msgspec.Struct, frozen=True):
    """Whether there was a run to interrupt."""

    interrupted: bool


class ErrorOut(msgspec.Struct, frozen=True, kw_only=True):
    """An exception that the code did not catch; its traceback's lines come without and with terminal colors."""

    ename: str
    evalue: str
    traceback: list[str]
    traceback_ansi: list[str]


class ResultOut(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A value in its formats: png, jpeg and pdf in base64; `extra` by media type; `note` says what was left out."""

    is_main: bool
    text: str | Maybe = msgspec.UNSET
    html: str | Maybe = msgspec.UNSET
    markdown: str | Maybe = msgspec.UNSET
    png: bytes | Maybe = msgspec.UNSET
    jpeg: bytes | Maybe = msgspec.UNSET
    svg: str | Maybe = msgspec.UNSET
    pdf: bytes | Maybe = msgspec.UNSET
    latex: str | Maybe = msgspec.UNSET
    json: msgspec.Raw | Maybe = msgspec.UNSET
    javascript: str | Maybe = msgspec.UNSET
    chart: msgspec.Raw | Maybe = msgspec.UNSET
    data: msgspec.Raw | Maybe = msgspec.UNSET
    extra: dict[str, Any] | Maybe = msgspec.UNSET
    note: str | Maybe = msgspec.UNSET
    display_id: str | Maybe = msgspec.UNSET
    update: bool | Maybe = msgspec.UNSET


class RunOut(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a run; status is ok, error, timeout, exited or oom."""

    id: str
    context: str
    status: str
    restarted: bool
    execution_count: int
    stdout: str
    stderr: str
    results: list[ResultOut]
    error: ErrorOut | None
    duration_s: float
    truncated: bool
