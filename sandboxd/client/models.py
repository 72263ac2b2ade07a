"""The values that the SDK returns, frozen, and the code that reads them from the daemon's JSON.

Reading is strict about the fields it needs and ignores unknown ones, so that a newer daemon can add fields.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar

from sandboxd.errors import InvalidRequest, RemoteProtocolError
from sandboxd.spec import Limits
from sandboxd.wire.times import calendar

from .failures import CommandFailed
from .text import decode_between

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ExecResult", "ExitStatus", "OutputChunk", "SandboxInfo", "Usage"]

T = TypeVar("T")
#: What `json.loads` returns; the readers below find out what it is.
Json: TypeAlias = Any


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """Resources that a command used: `cpu_s` (CPU seconds) and `memory_peak_bytes`; None if the host cannot tell."""

    cpu_s: float | None = None
    memory_peak_bytes: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExitStatus:
    """How a command ended.

    Attributes:
        id: the process's id. exit_code: 0 to 255, or None if a signal killed it (127: the program was not found).
        signal: such as "SIGKILL", or None.
        duration_s: seconds from start to end.
        timed_out: whether `timeout` ended it.
        oom_killed: whether it ran out of memory.
        truncated: whether output was dropped.
        usage: the resources it used.
        reason: why it ended ("exit", "signal", "timeout", "oom" …), if the daemon reports it.
    """

    id: str
    exit_code: int | None = None
    signal: str | None = None
    duration_s: float = 0.0
    timed_out: bool = False
    oom_killed: bool = False
    truncated: bool = False
    usage: Usage = Usage()
    reason: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the command ended by itself with exit code 0."""
        return self.exit_code == 0 and not self.timed_out

    def describe(self) -> str:
        """Return how it ended in words, such as "exit code 2" or "out of memory (SIGKILL)"."""
        how = f"exit code {self.exit_code}" if self.signal is None else self.signal
        if self.timed_out:
            return f"timed out ({how})"
        return f"out of memory ({how})" if self.oom_killed else how

    def check(self) -> Self:
        """Return this object if the command ended with exit code 0.

        Raises:
            CommandFailed: it did not; the error's `result` is this object.
        """
        if not self.ok:
            raise CommandFailed(f"command failed: {self.describe()}{self._last_words()}", result=self)
        return self

    def _last_words(self) -> str:
        return ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult(ExitStatus):
    """How a command ended, and all its output, byte for byte in `stdout_bytes` and `stderr_bytes`."""

    stdout_bytes: bytes = dataclasses.field(default=b"", repr=False)
    stderr_bytes: bytes = dataclasses.field(default=b"", repr=False)

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are not UTF-8 become U+FFFD."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Standard error as text; bytes that are not UTF-8 become U+FFFD."""
        return self.stderr_bytes.decode("utf-8", "replace")

    def _last_words(self) -> str:
        lines = self.stderr_bytes[-2000:].decode("utf-8", "replace").strip().splitlines()
        return f": {lines[-1][:500]}" if lines else ""


@dataclasses.dataclass(frozen=True, slots=True)
class OutputChunk:
    """A piece of output as it arrived: `stream` is "stdout" or "stderr", `data` the bytes, `text` the decoded text.

    `text` contains whole characters only: a character split between two pieces belongs to the second.
    """

    stream: Literal["stdout", "stderr"]
    data: bytes
    _carried: bytes = dataclasses.field(default=b"", repr=False)
    _held: int = dataclasses.field(default=0, repr=False)

    @property
    def text(self) -> str:
        """The piece decoded as UTF-8; bytes that are not UTF-8 become U+FFFD."""
        return decode_between(self._carried, self.data, self._held)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SandboxInfo:
    """A sandbox as the daemon described it.

    Attributes:
        id: 20 to 26 characters of a-z and 0-9.
        name: its name, or None.
        state: creating, running, frozen or failed.
        rootfs: the name of the rootfs.
        cwd: the working directory of commands.
        user: a name or a uid.
        env: environment variables for every command.
        limits: its limits.
        network: the mode; "none" means the loopback interface only.
        seccomp: the name of the profile.
        labels: its labels.
        unenforced: limits that this host cannot enforce.
        created_at: the time of creation, with a time zone.
        reason: why it failed, or None.
        degraded: which parts of it do not work at the moment, and why.
        raw: the daemon's object with every field, including fields unknown to this version.
    """

    id: str
    name: str | None
    state: str
    rootfs: str
    cwd: str
    user: str | int
    env: dict[str, str]
    limits: Limits
    network: str
    seccomp: str
    labels: dict[str, str]
    unenforced: tuple[str, ...]
    created_at: dt.datetime
    reason: str | None
    degraded: tuple[str, ...]
    raw: dict[str, Any] = dataclasses.field(repr=False, compare=False)


def read(what: str, parse: Callable[[Json], T], value: Json) -> T:
    """Return `parse(value)`; a value of another shape is a fault of the daemon.

    Raises:
        RemoteProtocolError: the value lacks a field or has one of the wrong type.
    """
    try:
        return parse(value)
    except (KeyError, TypeError, ValueError, AttributeError, InvalidRequest) as error:
        raise RemoteProtocolError(f"cannot understand the daemon's {what}: {type(error).__name__}: {error}") from error


def parse_sandbox(value: Json) -> SandboxInfo:
    """Read a sandbox object."""
    known = {field.name for field in dataclasses.fields(Limits)}
    network = value.get("network") or {}
    return SandboxInfo(
        id=_text(value["id"]),
        name=value.get("name"),
        state=_text(value["state"]),
        rootfs=_text(value["rootfs"]),
        cwd=value.get("cwd", "/"),
        user=value.get("user", "root"),
        env=dict(value.get("env") or {}),
        limits=Limits(**{key: item for key, item in (value.get("limits") or {}).items() if key in known}),
        network=network if isinstance(network, str) else network.get("mode", "none"),
        seccomp=value.get("seccomp", "default"),
        labels=dict(value.get("labels") or {}),
        unenforced=tuple(value.get("unenforced") or ()),
        created_at=parse_time(value["created_at"]),
        reason=value.get("reason"),
        degraded=tuple(value.get("degraded") or ()),
        raw=dict(value),
    )


def parse_exit(process_id: str, value: Json) -> ExitStatus:
    """Read an exit event."""
    usage = value.get("usage") or {}
    code = value["exit_code"]
    return ExitStatus(
        id=process_id or str(value.get("id", "")),
        exit_code=None if code is None else int(code),
        signal=value.get("signal"),
        duration_s=float(value.get("duration_s") or 0.0),
        timed_out=bool(value.get("timed_out")),
        oom_killed=bool(value.get("oom_killed")),
        truncated=bool(value.get("truncated")),
        usage=Usage(usage.get("cpu_s"), usage.get("memory_peak_bytes")),
        reason=value.get("reason"),
    )


def with_output(status: ExitStatus, stdout: bytes, stderr: bytes) -> ExecResult:
    """Combine a command's exit status with its output."""
    fields = {field.name: getattr(status, field.name) for field in dataclasses.fields(ExitStatus)}
    return ExecResult(**fields, stdout_bytes=stdout, stderr_bytes=stderr)


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def parse_time(value: Json) -> dt.datetime:
    """Read an ISO 8601 time or seconds since 1970."""
    if isinstance(value, int | float):
        return calendar(value)
    found = dt.datetime.fromisoformat(value)
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)
