"""The JSON of requests and answers, as msgspec structs: shapes and types here, meaning and bounds in spec.py."""

from __future__ import annotations

import base64
import binascii
import shlex
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ...errors import InvalidRequest, NotAvailable
from ...network import NetworkSpec
from ...spec import CommandSpec, Limits, SandboxSpec
from ...wire.times import rfc3339
from ..bodies import Input

if TYPE_CHECKING:
    from ...runtime.sandbox import Sandbox


class IoIn(Input, frozen=True):
    """Disk I/O limits of a sandbox; an absent one is unlimited."""

    read_bytes_per_s: int | None = None
    write_bytes_per_s: int | None = None
    read_iops: int | None = None
    write_iops: int | None = None


class LimitsIn(Input, frozen=True):
    """Limits of a sandbox; an absent one takes the configuration's default."""

    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None
    disk_bytes: int | None = None
    io: IoIn | None = None


class NetworkIn(Input, frozen=True):
    """A sandbox's network access."""

    mode: str | None = None
    allow: list[str] | None = None
    receive_bytes_per_s: int | None = None
    send_bytes_per_s: int | None = None
    connections: int | None = None


class SandboxIn(Input, frozen=True):
    """A sandbox to create."""

    name: str | None = None
    rootfs: str | None = None
    env: dict[str, str] | None = None
    cwd: str | None = None
    user: str | int | None = None
    limits: LimitsIn | None = None
    network: NetworkIn | None = None
    seccomp: str | None = None
    labels: dict[str, str] | None = None
    idle_timeout_s: Any = None
    max_lifetime_s: Any = None
    snapshot: Any = None


class StartIn(Input, frozen=True, kw_only=True):
    """Where and as which user to start: the fields that commands and sessions share."""

    cwd: Annotated[str | None, Meta(description="where it starts, absolute")] = None
    env: dict[str, str] | None = None
    user: Annotated[str | int | None, Meta(description="name or uid")] = None
    umask: Annotated[str | None, Meta(description="the file mode creation mask in octal, such as 0027")] = None


class CommandIn(StartIn, frozen=True, kw_only=True):
    """A command: the fields that exec, processes and terminals share."""

    command: str | list[str]
    stdin: str | bool | None = None
    timeout_s: float | None = None
    encoding: Literal["utf-8", "base64"] = "utf-8"
    session: str | None = None
    orphans: Literal["kill", "keep"] | None = None


class ExecIn(CommandIn, frozen=True, kw_only=True):
    """A command to run."""

    detach: bool = False


class Usage(msgspec.Struct, frozen=True):
    """Resources that a command used."""

    cpu_s: float
    memory_peak_bytes: int | None


class Gap(msgspec.Struct, frozen=True):
    """Missing output: after the first `offset` bytes of a stream, `dropped_bytes` are missing."""

    stream: str
    offset: int
    dropped_bytes: int


class ExecOut(msgspec.Struct, frozen=True, kw_only=True):
    """How a command ended, with its output: all of it, or its beginning and end with the gaps between."""

    id: str
    exit_code: int | None
    signal: str | None
    stdout: str
    stderr: str
    duration_s: float
    timed_out: bool
    oom_killed: bool
    truncated: bool
    dropped_bytes: int
    gaps: list[Gap]
    usage: Usage
    reason: str


class IoOut(msgspec.Struct, frozen=True):
    """Disk I/O limits of a sandbox; null is unlimited."""

    read_bytes_per_s: int | None
    write_bytes_per_s: int | None
    read_iops: int | None
    write_iops: int | None


class LimitsOut(msgspec.Struct, frozen=True):
    """A sandbox's effective limits."""

    memory_bytes: int | None
    cpus: float | None
    pids: int | None
    disk_bytes: int | None
    io: IoOut | None


class NetworkOut(msgspec.Struct, frozen=True):
    """A sandbox's network."""

    mode: str
    allow: list[str]
    receive_bytes_per_s: int | None
    send_bytes_per_s: int | None
    connections: int | None


class SandboxOut(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox."""

    id: str
    name: str | None
    state: str
    rootfs: str
    cwd: str
    user: str | int
    env: dict[str, str]
    limits: LimitsOut
    network: NetworkOut
    seccomp: str
    labels: dict[str, str]
    unenforced: list[str]
    created_at: str
    reason: str | msgspec.UnsetType | None = msgspec.UNSET
    degraded: list[str] | msgspec.UnsetType = msgspec.UNSET


class SandboxList(msgspec.Struct, frozen=True):
    """A page of sandboxes; `next` is the cursor of the next page."""

    items: list[SandboxOut]
    next: str | None


class IoStats(msgspec.Struct, frozen=True):
    """Disk I/O so far."""

    read_bytes: int
    write_bytes: int
    reads: int
    writes: int


class PortStats(msgspec.Struct, frozen=True):
    """Traffic of an exposed port: bytes of bodies and tunnels, to the sandbox and from it.

    `active` counts requests and tunnels in progress, `connections` the open connections to the service, idle ones too.
    """

    port: int
    requests: int
    bytes_in: int
    bytes_out: int
    active: int
    connections: int


class NetworkStats(msgspec.Struct, frozen=True):
    """A sandbox's network traffic, as the sandbox sees it."""

    received_bytes: int
    sent_bytes: int
    received_packets: int
    sent_packets: int


class StatsOut(msgspec.Struct, frozen=True, kw_only=True):
    """The resource usage of a sandbox as a whole; null for what this host does not count.

    `memory_bytes` is what counts against the limit (page cache and /dev/shm included), `memory_peak_bytes` its peak;
    `pids` counts threads too; `oom_kills` counts processes killed for lack of memory.
    """

    id: str
    state: str
    limits: LimitsOut
    cpu_s: float | None
    cpu_user_s: float | None
    cpu_system_s: float | None
    cpu_throttled_s: float | None
    memory_bytes: int | None
    memory_peak_bytes: int | None
    oom_kills: int | None
    pids: int | None
    disk_bytes: int | None
    io: IoStats | None
    network: NetworkStats | None = None
    ports: list[PortStats]


class Health(msgspec.Struct, frozen=True):
    """The daemon answers."""

    status: str
    version: str


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error (RFC 9457); each kind may add facts."""

    type: str
    title: str
    status: int
    detail: str
    kind: str


def _not_yet(field: str, value: object) -> None:
    if value is not None:
        raise NotAvailable(f"cannot accept {field}: this version does not support it yet", field=field)


def to_spec(model: SandboxIn) -> SandboxSpec:
    """Return the checked spec of a sandbox.

    Raises:
        InvalidRequest: a value is wrong.
        NotAvailable: a feature is not available.
    """
    for name in ("idle_timeout_s", "max_lifetime_s", "snapshot"):
        _not_yet(name, getattr(model, name))
    given = {name: getattr(model, name) for name in ("name", "rootfs", "env", "cwd", "user", "seccomp", "labels")}
    return SandboxSpec(
        limits=Limits(**msgspec.to_builtins(model.limits or LimitsIn())),
        network=to_network(model.network),
        **{name: value for name, value in given.items() if value is not None},
    )


def to_network(model: NetworkIn | None) -> NetworkSpec:
    """Return the checked network."""
    given = {name: value for name, value in msgspec.to_builtins(model or NetworkIn()).items() if value is not None}
    return NetworkSpec(**{**given, "allow": tuple(given.get("allow", ()))})


def start_fields(model: StartIn) -> dict[str, Any]:
    """Return the fields of a `StartSpec` that were given."""
    return {name: value for name in StartIn.__struct_fields__ if (value := getattr(model, name)) is not None}


def to_command(model: CommandIn, *, restart: bool = False) -> CommandSpec:
    """Return the checked command.

    Raises:
        InvalidRequest: a value is out of its bounds.
    """
    if isinstance(model.command, str):
        # The shell itself would run an empty line well: say that nothing was asked for.
        argv = CommandSpec.shell(model.command) if model.command.strip() else ()
    else:
        argv = tuple(model.command)
        if model.session is not None and argv:
            argv = CommandSpec.shell(shlex.join(argv))  # its shell's functions and aliases are programs too
    return CommandSpec(
        argv=argv,
        stdin=_stdin(model.stdin, model.encoding),
        timeout_s=model.timeout_s,
        # A session's commands leave their children running, as a shell that goes on would.
        keep_orphans=(model.orphans or ("kill" if model.session is None else "keep")) == "keep",
        session=model.session,
        restart=restart,
        **start_fields(model),
    )


def _stdin(value: str | bool | None, encoding: str) -> bytes | bool | None:
    if isinstance(value, bool):
        return value or None
    if value is None:
        return None
    if encoding == "base64":
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest("cannot accept stdin: it is not valid base64", field="stdin") from None
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("cannot accept stdin: it has a lone surrogate", field="stdin") from None


def stats_out(sandbox: Sandbox, stats: dict[str, Any]) -> StatsOut:
    """Return a sandbox's usage as callers see it."""
    limits = msgspec.convert(sandbox.limits, LimitsOut, from_attributes=True)
    ports = [port.statistics() for port in sandbox.ports]
    return msgspec.convert(
        {
            **stats,
            "id": sandbox.id,
            "state": sandbox.state.value,
            "limits": msgspec.to_builtins(limits),
            "ports": ports,
        },
        StatsOut,
    )


def sandbox_out(sandbox: Sandbox) -> SandboxOut:
    """Return a sandbox as callers see it."""
    spec, limits = sandbox.spec, sandbox.limits
    return SandboxOut(
        id=sandbox.id,
        name=spec.name,
        state=sandbox.state.value,
        rootfs=spec.rootfs,
        cwd=spec.cwd,
        user=spec.user,
        env=spec.env,
        limits=msgspec.convert(limits, LimitsOut, from_attributes=True),
        network=msgspec.convert(sandbox.network, NetworkOut, from_attributes=True),
        seccomp=spec.seccomp,
        labels=spec.labels,
        unenforced=list(sandbox.unenforced),
        created_at=rfc3339(sandbox.created_at),
        reason=sandbox.reason if sandbox.reason is not None else msgspec.UNSET,
        degraded=[f"names: {sandbox.names_lost}"] if sandbox.names_lost is not None else msgspec.UNSET,
    )
