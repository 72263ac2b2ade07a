"""Converts a request to the steps of a creation. Pure: nothing here touches the host.

The builder's steps run in parallel with pid 1's (create_child.py), and pid 1's last steps wait for the builder. The
builder's first steps do not depend on the rootfs, so they can be done before a request (create.py). The host's root
makes the mounts and the other namespaces, so the user namespace owns none of them.
"""

from __future__ import annotations

import dataclasses
from typing import Final, Self

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
class PreparedSpec:
    """What a prepared sandbox is made of before anybody has ordered it: names and numbers only.

    Attributes:
        id: the sandbox's id, and its host name.
        stage: the directory that its root is built on.
        processes: RLIMIT_NPROC of each of its users.
        seccomp: the profile's name.
        range_base: the first host id of its range.
        tcp_rmem, tcp_wmem: what a TCP socket of its network namespace may hold (buffers.py).
    """

    id: str
    stage: str
    processes: int
    seccomp: str
    range_base: int
    tcp_rmem: str
    tcp_wmem: str

    def order(self) -> bytes:
        """Return what the zygote is sent: an `ChildRequest`."""
        spec = msgpack.packb(dataclasses.asdict(self))
        order: bytes = msgpack.packb([self.range_base, self.processes, self.seccomp, spec])
        return order

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Return what is in an `ChildRequest`."""
        return cls(**msgpack.unpackb(packed))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """The rest of a validated creation.

    Attributes:
        id: the sandbox's id.
        rootfs: the rootfs's name.
        tree: where that rootfs is unpacked.
        disk: where the sandbox's own files are.
        limits: every one filled in.
        has_veth: whether it has a network, and so somebody who answers for names.
    """

    id: str
    rootfs: str
    tree: str
    disk: str
    limits: Limits
    machine_id: str
    has_veth: bool = False

    def pack(self) -> bytes:
        """Return it as what the builder is sent."""
        packed: bytes = msgpack.packb(dataclasses.asdict(self))
        return packed

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Return what `pack` made."""
        message = msgpack.unpackb(packed)
        return cls(**{**message, "limits": Limits(**message["limits"])})


@dataclasses.dataclass(frozen=True, slots=True)
class ChildRequest:
    """What pid 1 has to know, and beside it the whole `PreparedSpec`, packed: only the builder opens it."""

    range_base: int
    processes: int
    seccomp: str
    spec: bytes


def plan_prepared(spec: PreparedSpec) -> tuple[Step, ...]:
    """Return the builder's ordered steps that need no rootfs: done ahead where a prepared sandbox is held ready."""
    return (
        privilege.AdjustOomScore(),
        filesystem.IsolateMounts(stage=spec.stage),
        privilege.MapIds(first_id=spec.range_base),
        filesystem.ActAsOwner(owner=spec.range_base),
        filesystem.MountProc(),
        filesystem.MountSys(),
        filesystem.MountDev(tty_gid=spec.range_base + 5),
        privilege.ConfigureNetwork(first_gid=spec.range_base, tcp_rmem=spec.tcp_rmem, tcp_wmem=spec.tcp_wmem),
        filesystem.RestrictProc(),
        privilege.NameHost(hostname=spec.id),
    )


def plan_builder(spec: LaunchSpec) -> tuple[Step, ...]:
    """Return the builder's ordered steps from an order on."""
    return (
        filesystem.MountLayers(tree=spec.tree, disk=spec.disk),
        filesystem.MountOverlay(),
        filesystem.MountShm(size=int((spec.limits.memory_bytes or 0) * SHM_SHARE)),
        filesystem.AttachMounts(),
        filesystem.WriteIdentity(hostname=spec.id, machine_id=spec.machine_id, has_resolver=spec.has_veth),
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
