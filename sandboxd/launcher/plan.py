"""From a request to the steps of a birth, purely: nothing here touches the host.

The builder's steps run beside pid 1's (birth.py), whose last wait for the builder's end. The user namespace owns none
of the mounts and none of the other namespaces: they are made by the host's root.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final, Self

import msgpack

from ..spec import Limits
from . import filesystem, privilege
from .steps import InitStep, Step

#: What a sandbox's root may do, and nothing of it reaches a namespace of the host: mask of CAP_CHOWN, DAC_OVERRIDE,
#: FOWNER, FSETID, KILL, SETGID, SETUID (include/uapi/linux/capability.h).
SANDBOX_CAPABILITIES: Final = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7))

#: Part of the memory limit that /dev/shm may take.
SHM_SHARE: Final = 0.5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """A validated creation: names and numbers only.

    Attributes:
        id: the sandbox's id, and its host name.
        rootfs: the rootfs' name.
        tree: where that rootfs is unpacked.
        limits: every one filled in.
        processes: RLIMIT_NPROC of each of its users.
        seccomp: the profile's name.
        range_base: the first host id of its range.
    """

    id: str
    rootfs: str
    tree: str
    disk: str
    stage: str
    limits: Limits
    processes: int
    seccomp: str
    range_base: int
    machine_id: str

    def to_message(self) -> dict[str, Any]:
        """Return it as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Self:
        """Return what `to_message` made."""
        return cls(**{**message, "limits": Limits(**message["limits"])})

    def order(self) -> bytes:
        """Return what the zygote is sent: an `Order`."""
        spec = msgpack.packb(self.to_message())
        order: bytes = msgpack.packb([self.range_base, self.processes, self.seccomp, spec])
        return order


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """What pid 1 has to know, and beside it the whole `LaunchSpec`, packed: only the builder opens it."""

    range_base: int
    processes: int
    seccomp: str
    spec: bytes


def plan_builder(spec: LaunchSpec) -> tuple[Step, ...]:
    """Return the ordered steps that make what the sandbox of `spec` sees."""
    shm_bytes = int((spec.limits.memory_bytes or 0) * SHM_SHARE)
    return (
        privilege.AdjustOomScore(),
        filesystem.IsolateMounts(stage=spec.stage),
        privilege.MapIds(first_id=spec.range_base),
        filesystem.MountLayers(tree=spec.tree, disk=spec.disk),
        filesystem.ActAsOwner(owner=spec.range_base),
        filesystem.MountOverlay(),
        filesystem.MountProc(),
        filesystem.MountSys(),
        filesystem.MountDev(shm_bytes=shm_bytes, tty_gid=spec.range_base + 5),
        filesystem.WriteIdentity(hostname=spec.id, machine_id=spec.machine_id),
        privilege.ConfigureNetwork(first_gid=spec.range_base),
        filesystem.RestrictProc(),
        privilege.NameHost(hostname=spec.id),
        filesystem.PivotRoot(),
    )


#: The ordered steps that turn pid 1 into a sandbox's init: values of the zygote, so that no init has to make them.
INIT_PLAN: Final[tuple[InitStep, ...]] = (
    privilege.PrepareProcess(),
    filesystem.MakeProc(),
    privilege.MakeUserNamespace(),
    privilege.CallBuilder(),
    privilege.LimitResources(),
    filesystem.EnterRoot(),  # here it waits: what does not need the builder's work comes before
    privilege.BecomeRoot(),
    privilege.DropPrivileges(keep=SANDBOX_CAPABILITIES),
    privilege.ApplySeccomp(),
    privilege.CloseDescriptors(),
)
