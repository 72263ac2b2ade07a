"""The values that the SDK returns for code contexts and runs, frozen, and the code that reads them from JSON."""

from __future__ import annotations

import binascii
import dataclasses
from typing import TYPE_CHECKING, Any, Self

from .failures import CodeFailed
from .models import Json, _text, parse_time

if TYPE_CHECKING:
    import datetime as dt

__all__ = ["CodeContext", "CodeError", "CodeResult", "Result"]

_BINARY = ("png", "jpeg", "pdf")
_TEXT = ("text", "html", "markdown", "svg", "latex", "javascript")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CodeContext:
    """An interpreter that keeps its state between runs, as the daemon described it.

    Attributes:
        id: its id.
        language: python, javascript or typescript.
        cwd: the directory it started in; None for the sandbox's default.
        env: its environment variables, added to the sandbox's.
        state: starting, idle, busy, restarting or exited.
        is_default: whether runs that do not name a context use it.
        execution_count: how many runs it has had.
        version: the interpreter's, such as "Python 3.13.5".
        created_at: the time of creation, with a time zone.
    """

    id: str
    language: str
    cwd: str | None
    env: dict[str, str]
    state: str
    is_default: bool
    execution_count: int
    version: str
    created_at: dt.datetime


@dataclasses.dataclass(frozen=True, slots=True)
class CodeError:
    """An exception that the code did not catch, with Jupyter's field names; `traceback_ansi` has terminal colors."""

    ename: str
    evalue: str
    traceback: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    traceback_ansi: tuple[str, ...] = dataclasses.field(default=(), repr=False)

    def __str__(self) -> str:
        return f"{self.ename}: {self.evalue}" if self.evalue else self.ename


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A value that a run displayed. A format is None if the value does not offer it.

    Attributes:
        is_main: whether it is the value of the last expression.
        png, jpeg, pdf: bytes.
        chart: a chart as data: type, title, axes, series; or type "plotly" or "vega" with its own `spec`.
        data: a table's rows, each a dict.
        extra: other formats, by media type.
        note: what was left out, and why.
        display_id: identifies the result that a later one with `update` replaces.
    """

    is_main: bool = False
    text: str | None = None
    html: str | None = dataclasses.field(default=None, repr=False)
    markdown: str | None = dataclasses.field(default=None, repr=False)
    png: bytes | None = dataclasses.field(default=None, repr=False)
    jpeg: bytes | None = dataclasses.field(default=None, repr=False)
    svg: str | None = dataclasses.field(default=None, repr=False)
    pdf: bytes | None = dataclasses.field(default=None, repr=False)
    latex: str | None = None
    json: Any = None
    javascript: str | None = dataclasses.field(default=None, repr=False)
    chart: dict[str, Any] | None = dataclasses.field(default=None, repr=False)
    data: Any = dataclasses.field(default=None, repr=False)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    note: str | None = None
    display_id: str | None = None
    update: bool = False

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats it has."""
        names = (*_TEXT, *_BINARY, "json", "chart", "data")
        return (*(name for name in names if getattr(self, name) is not None), *self.extra)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CodeResult:
    """The result of a run.

    Attributes:
        id: the run's id. context: its context's id.
        status: ok; error (see `error`); timeout; exited and oom (the interpreter died: restart the context).
        stdout, stderr: the printed output.
        results: the values that the run displayed.
        error: the exception that ended it, or None.
        execution_count: which run of its context it was.
        duration_s: seconds from start to end.
        restarted: whether the state was lost. Either the code ignored an interrupt and the context was restarted, or a
            default context was restarted before the run because its interpreter had ended.
        truncated: whether output or results beyond the limits were dropped.
    """

    id: str
    context: str
    status: str
    stdout: str = ""
    stderr: str = ""
    results: tuple[Result, ...] = ()
    error: CodeError | None = None
    execution_count: int = 0
    duration_s: float = 0.0
    restarted: bool = False
    truncated: bool = False

    @property
    def ok(self) -> bool:
        """Whether the code completed without an error."""
        return self.status == "ok"

    @property
    def main(self) -> Result | None:
        """The value of the last expression, or None."""
        return next((result for result in self.results if result.is_main), None)

    @property
    def text(self) -> str | None:
        """The text of the last expression's value, or None."""
        return self.main.text if self.main is not None else None

    def check(self) -> Self:
        """Return this object if the code completed without an error.

        Raises:
            CodeFailed: it did not; the error's `result` is this object.
        """
        if not self.ok:
            why = f": {self.error}" if self.error is not None else ""
            raise CodeFailed(f"code failed: {self.status}{why}", result=self)
        return self


def parse_context(value: Json) -> CodeContext:
    """Read a context object."""
    return CodeContext(
        id=_text(value["id"]),
        language=_text(value["language"]),
        cwd=value.get("cwd"),
        env=dict(value.get("env") or {}),
        state=_text(value["state"]),
        is_default=bool(value.get("is_default")),
        execution_count=int(value.get("execution_count") or 0),
        version=str(value.get("version") or ""),
        created_at=parse_time(value["created_at"]),
    )


def parse_result(value: Json) -> Result:
    """Read a result object or event."""
    known = {field.name for field in dataclasses.fields(Result)}
    fields = {name: item for name, item in value.items() if name in known}
    for name in _BINARY:
        if fields.get(name) is not None:
            fields[name] = binascii.a2b_base64(fields[name], strict_mode=True)
    return Result(**fields)


def parse_code_result(value: Json) -> CodeResult:
    """Read a run's result, sent as one object."""
    error = value.get("error")
    return CodeResult(
        id=_text(value["id"]),
        context=_text(value["context"]),
        status=_text(value["status"]),
        stdout=_text(value["stdout"]),
        stderr=_text(value["stderr"]),
        results=tuple(parse_result(item) for item in value["results"]),
        error=None if error is None else parse_error(error),
        execution_count=int(value["execution_count"]),
        duration_s=float(value["duration_s"]),
        restarted=bool(value["restarted"]),
        truncated=bool(value["truncated"]),
    )


def parse_error(value: Json) -> CodeError:
    """Read an error object or event."""
    return CodeError(
        _text(value["ename"]),
        _text(value["evalue"]),
        tuple(value.get("traceback") or ()),
        tuple(value.get("traceback_ansi") or ()),
    )
