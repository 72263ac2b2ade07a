"""PATCH, freeze, thaw and stats: what to send, and how to read the answer (see `calls`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import EllipsisType
from typing import Any, TypeAlias

from sandboxd.spec import Limits

from .calls import Call, limits_json, sandbox_path
from .models import Json, SandboxInfo, parse_sandbox

__all__ = ["Change", "IoUse", "LimitsChange", "NetworkChange", "NetworkUse", "PortUse", "SandboxStats"]

#: A mapping in a change: None takes a key away.
Change: TypeAlias = Mapping[str, str | None] | EllipsisType | None
LimitsChange: TypeAlias = Limits | Mapping[str, Any] | EllipsisType | None
NetworkChange: TypeAlias = Mapping[str, Any] | EllipsisType


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class IoUse:
    """Disk I/O so far: bytes and operations."""

    read_bytes: int
    write_bytes: int
    reads: int
    writes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NetworkUse:
    """A sandbox's network traffic, as the sandbox sees it."""

    received_bytes: int
    sent_bytes: int
    received_packets: int
    sent_packets: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PortUse:
    """Traffic of an exposed port since it was exposed or the daemon started.

    Attributes:
        bytes_in: bytes of bodies and tunnels sent to the sandbox; `bytes_out` counts those from it.
        active: requests and tunnels in progress.
        connections: open connections to the service, including idle ones.
    """

    port: int
    requests: int
    bytes_in: int
    bytes_out: int
    active: int
    connections: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStats:
    """The resource usage of a sandbox as a whole. A value that the host does not measure is None.

    Attributes:
        state: running or frozen.
        limits: its limits.
        cpu_s: seconds of CPU time since its creation; `cpu_user_s` and `cpu_system_s` are its parts.
        cpu_throttled_s: seconds that it was throttled by `limits.cpus`.
        memory_bytes: memory that counts against `limits.memory_bytes`, including page cache and /dev/shm.
        memory_peak_bytes: the peak of `memory_bytes`.
        oom_kills: processes killed for lack of memory.
        pids: processes and threads.
        disk_bytes: disk space used by its files.
        io: disk I/O so far.
        network: its network traffic; None if it has no network.
        ports: the traffic of each exposed port.
        raw: the daemon's object with every field.
    """

    state: str
    limits: Limits
    cpu_s: float | None
    cpu_user_s: float | None
    cpu_system_s: float | None
    cpu_throttled_s: float | None
    memory_bytes: int | None
    memory_peak_bytes: int | None
    oom_kills: int | None
    pids: int | None
    disk_bytes: int | None
    io: IoUse | None
    network: NetworkUse | None
    ports: tuple[PortUse, ...] = ()
    raw: dict[str, Any] = dataclasses.field(repr=False, compare=False)


def update(
    key: str,
    *,
    name: str | EllipsisType | None = ...,
    env: Change = ...,
    cwd: str | EllipsisType | None = ...,
    labels: Change = ...,
    limits: LimitsChange = ...,
    network: NetworkChange = ...,
) -> Call[SandboxInfo]:
    """Change a sandbox, store its new state in `info` and return it. Options not given stay unchanged.

    Args:
        name: a new unique name; None removes it.
        env: variables for later commands, merged with the existing ones; a value of None unsets one.
        cwd: the working directory of later commands; None restores the default.
        labels: merged like env.
        limits: merged with the existing ones, in force at once; None restores the daemon's default. If a memory limit
            is below what is in use, the kernel first reclaims memory and then kills (`oom_killed`).
        network: a mapping of new rules for a sandbox that has a network, in force at once. `allow` replaces the whole
            list, and existing connections that the new list does not allow end.

    Raises:
        InvalidRequest: a value is wrong; `field` names it. LimitUnenforceable is a subclass.
        NameTaken: another sandbox has that name.
    """
    body: dict[str, Any] = {}
    given = {"name": name, "env": env, "cwd": cwd, "labels": labels, "limits": limits, "network": network}
    for field, value in given.items():  # `...` is not sent, None is null
        if value is ...:
            continue
        if isinstance(value, Limits) or (field == "limits" and isinstance(value, Mapping)):
            body[field] = limits_json(value)
        else:
            body[field] = dict(value) if isinstance(value, Mapping) else value
    return Call("PATCH", sandbox_path(key), body=body, what="sandbox", parse=parse_sandbox)


def set_env_vars(key: str, env: Mapping[str, str | None]) -> Call[SandboxInfo]:
    """Set variables for later commands; None unsets one."""
    return update(key, env=env)


def freeze(key: str) -> Call[SandboxInfo]:
    """Suspend every process. Until `thaw`, calls that need the sandbox raise `SandboxFrozen`."""
    return Call("POST", sandbox_path(key, "/freeze"), what="sandbox", parse=parse_sandbox)


def thaw(key: str) -> Call[SandboxInfo]:
    """Resume every process."""
    return Call("POST", sandbox_path(key, "/thaw"), what="sandbox", parse=parse_sandbox)


def stats(key: str) -> Call[SandboxStats]:
    """Return the sandbox's resource usage."""
    return Call("GET", sandbox_path(key, "/stats"), what="statistics", parse=parse_stats)


def parse_stats(value: Json) -> SandboxStats:
    """Read a sandbox's resource usage."""
    io = value.get("io")
    names = {field.name for field in dataclasses.fields(SandboxStats)} - {
        "state",
        "limits",
        "io",
        "network",
        "ports",
        "raw",
    }
    known = {field.name for field in dataclasses.fields(Limits)}
    return SandboxStats(
        state=str(value["state"]),
        limits=Limits(**{name: item for name, item in value["limits"].items() if name in known}),
        io=None if io is None else IoUse(**{field.name: int(io[field.name]) for field in dataclasses.fields(IoUse)}),
        network=None if value.get("network") is None else _network_use(value["network"]),
        ports=tuple(_port_use(row) for row in value.get("ports", ())),
        raw=dict(value),
        **{name: value.get(name) for name in names},
    )


def _network_use(row: Json) -> NetworkUse:
    return NetworkUse(**{field.name: int(row[field.name]) for field in dataclasses.fields(NetworkUse)})


def _port_use(row: Json) -> PortUse:
    return PortUse(**{field.name: int(row[field.name]) for field in dataclasses.fields(PortUse)})
