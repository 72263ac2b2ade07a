"""PATCH /sandboxes/{id}: a JSON merge patch (RFC 7396) on the parts of a sandbox that may change.

null removes a value: a variable, a label, the name. A limit goes back to the configuration's default.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from ...errors import InvalidRequest
from ...network import NetworkSpec
from ...spec import Limits, SandboxSpec
from ..bodies import Input
from . import models

if TYPE_CHECKING:
    from collections.abc import Callable

#: What a sandbox is born with and keeps.
FIXED: Final = ("rootfs", "user", "seccomp", "snapshot", "id", "state", "unenforced", "created_at")
_DEFAULT: Final = SandboxSpec()
LATER: Final = ("idle_timeout_s", "max_lifetime_s")


class IoPatch(Input, frozen=True):
    """New I/O limits; null removes one."""

    read_bytes_per_s: int | UnsetType | None = UNSET
    write_bytes_per_s: int | UnsetType | None = UNSET
    read_iops: int | UnsetType | None = UNSET
    write_iops: int | UnsetType | None = UNSET


class LimitsPatch(Input, frozen=True):
    """New limits, in force at once; null restores the configuration's default."""

    memory_bytes: int | UnsetType | None = UNSET
    cpus: float | UnsetType | None = UNSET
    pids: int | UnsetType | None = UNSET
    disk_bytes: int | UnsetType | None = UNSET
    io: IoPatch | UnsetType | None = UNSET


class NetworkPatch(Input, frozen=True):
    """New rules for a sandbox that has a network, in force at once; connections that they do not allow are cut."""

    mode: str | UnsetType | None = UNSET
    allow: list[str] | UnsetType | None = UNSET
    receive_bytes_per_s: int | UnsetType | None = UNSET
    send_bytes_per_s: int | UnsetType | None = UNSET
    connections: int | UnsetType | None = UNSET


class SandboxPatch(Input, frozen=True):
    """The parts of a sandbox that may change; env and cwd apply to later commands."""

    name: str | UnsetType | None = UNSET
    env: dict[str, str | None] | UnsetType | None = UNSET
    cwd: str | UnsetType | None = UNSET
    labels: dict[str, str | None] | UnsetType | None = UNSET
    limits: LimitsPatch | UnsetType | None = UNSET
    idle_timeout_s: Any = UNSET
    max_lifetime_s: Any = UNSET
    rootfs: Any = UNSET
    user: Any = UNSET
    network: NetworkPatch | UnsetType | None = UNSET
    seccomp: Any = UNSET
    snapshot: Any = UNSET
    id: Any = UNSET
    state: Any = UNSET
    unenforced: Any = UNSET
    created_at: Any = UNSET


def merge(target: Any, patch: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return `target` with `patch` merged in, as RFC 7396 defines it."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def to_change(model: SandboxPatch) -> Callable[[SandboxSpec], SandboxSpec]:
    """Return a function that makes the new spec from the current one.

    Raises:
        InvalidRequest, NotAvailable: a field cannot be changed. The returned function raises for a wrong value.
    """
    patch = msgspec.to_builtins(model)  # leaves out what is not set
    for name in FIXED:
        if name in patch:
            raise InvalidRequest(f"cannot change {name}: it is fixed when the sandbox is created", field=name)
    for name in LATER:
        models._not_yet(name, patch.pop(name, None))

    def change(spec: SandboxSpec) -> SandboxSpec:
        present = {
            "name": spec.name,
            "env": spec.env,
            "cwd": spec.cwd,
            "labels": spec.labels,
            "limits": dataclasses.asdict(spec.limits),
            "network": dataclasses.asdict(spec.network),
        }
        merged = merge(present, patch)
        network = merged.get("network", {})
        return dataclasses.replace(
            spec,
            name=merged.get("name"),
            env=merged.get("env", {}),
            cwd=merged.get("cwd", _DEFAULT.cwd),
            labels=merged.get("labels", {}),
            limits=Limits(**merged.get("limits", {})),
            network=NetworkSpec(**{**network, "allow": tuple(network.get("allow") or ())}),
        )

    return change
