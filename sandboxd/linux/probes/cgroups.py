"""cgroup v2: where it is, which controllers it has, and who holds the others."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from .. import cgroupfs, procfs
from .child import Outcome, attempt_in_cgroup
from .feature import LIMIT_CONTROLLERS, Feature, Status, untried
from .files import read_text

if TYPE_CHECKING:
    from ..kernel import Kernel

#: Controller: what is lost without it.
CONTROLLERS: Final[Mapping[str, str]] = {
    "memory": "a sandbox's memory_bytes",
    "pids": "a sandbox's pids",
    "cpu": "a sandbox's cpus",
    "io": "a sandbox's io",
}
#: cgroup2's own mount options that matter here.
OPTIONS: Final[Mapping[str, str]] = {
    "favordynmods": "with it a write to cgroup.procs is fast, without it such a write may wait 10 ms; "
    "a creation and a command avoid such writes, so it is the operator's choice",
    "nsdelegate": "with it the kernel holds a cgroup namespace to its own tree; "
    "sandboxes see theirs read-only and do not depend on it",
}
_UNIFIED: Final = (
    "boot with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all on the kernel's command line, "
    "or start the daemon with --allow-unenforced"
)


@dataclasses.dataclass(frozen=True, slots=True)
class CgroupTree:
    """What the host's cgroup2 is.

    Attributes:
        mount: where it is mounted whole; None is nowhere.
        options: its mount and filesystem options.
        writable: whether this user may make groups in it; None when that says nothing (no root).
        controllers, enabled: what its root offers, and passes on already.
        is_delegated: its root is a part of another hierarchy (a container), so processes in it are in the way.
        has_processes: whether there are any in its root.
        v1: controllers that v1 hierarchies hold, and where.
        disabled: controllers switched off at boot.
        has_kill: whether a group below has cgroup.kill; None without a group.
        into_cgroup: what a creation in a group gave; None when it was not tried.
    """

    mount: str | None
    options: frozenset[str] = frozenset()
    writable: bool | None = None
    controllers: frozenset[str] = frozenset()
    enabled: frozenset[str] = frozenset()
    is_delegated: bool = False
    has_processes: bool = False
    v1: Mapping[str, str] = dataclasses.field(default_factory=dict)
    disabled: frozenset[str] = frozenset()
    has_kill: bool | None = None
    into_cgroup: Outcome | None = None


def gather(kernel: Kernel, *, root: bool) -> CgroupTree:
    """Look at the hierarchies; as root, have a child born in the group that this process is in already."""
    text = read_text("/proc/self/mountinfo") or ""
    mount = cgroupfs.find_mount(procfs.parse_mountinfo(text))
    v1, disabled = v1_controllers(text), disabled_controllers(read_text("/proc/cgroups") or "")
    if mount is None:
        return CgroupTree(None, v1=v1, disabled=disabled)
    path = own_group(read_text("/proc/self/cgroup") or "")
    # A path that leads out of the mount is a group that this mount does not show.
    own = mount if path.startswith("/..") else f"{mount}{path}".rstrip("/")
    groups = [group for group in (own, *(f"{mount}/{name}" for name in cgroupfs.children(mount))) if group != mount]
    return CgroupTree(
        mount,
        options=options_of(text, mount),
        writable=os.access(mount, os.W_OK) if root else None,
        controllers=frozenset((read_text(f"{mount}/cgroup.controllers") or "").split()),
        enabled=frozenset((read_text(f"{mount}/cgroup.subtree_control") or "").split()),
        is_delegated=os.path.exists(f"{mount}/cgroup.type"),
        has_processes=bool(read_text(f"{mount}/cgroup.procs")),
        v1=v1,
        disabled=disabled,
        has_kill=os.path.exists(f"{groups[0]}/cgroup.kill") if groups else None,
        into_cgroup=_born_in(kernel, own) if root else None,
    )


def evaluate(facts: CgroupTree) -> list[Feature]:
    """Tell what can be held and what not."""
    features = [_hierarchy(facts), _into_cgroup(facts)]
    features += [_controller(facts, name, what) for name, what in CONTROLLERS.items()]
    features.append(_kill(facts))
    for name, means in OPTIONS.items():
        found = "set" if name in facts.options else "not set"
        features.append(Feature(name=f"cgroup2:{name}", status=Status.OK, found=found, means=means))
    return features


# --- parsers ------------------------------------------------------------------------------------------------


def own_group(text: str) -> str:
    """Return this process's group in cgroup2, of /proc/self/cgroup."""
    lines = [line for line in text.splitlines() if line.startswith("0::")]
    return lines[0].removeprefix("0::") if lines else "/"


def disabled_controllers(text: str) -> frozenset[str]:
    """Return the controllers that /proc/cgroups names as not enabled."""
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    names = {row[0] for row in rows if len(row) == 4 and row[3] == "0"}
    return frozenset("io" if name == "blkio" else name for name in names)


def v1_controllers(mountinfo: str) -> dict[str, str]:
    """Return which controllers v1 hierarchies hold, and where each is mounted; blkio is told as io."""
    found: dict[str, str] = {}
    for target, fstype, options in _rows(mountinfo):
        if fstype == "cgroup":
            for name in options:
                found.setdefault("io" if name == "blkio" else name, target)
    return found


def options_of(mountinfo: str, mount: str) -> frozenset[str]:
    """Return the filesystem's own options of the cgroup2 at `mount`."""
    return frozenset(
        option
        for target, fstype, options in _rows(mountinfo)
        if (target, fstype) == (mount, "cgroup2")
        for option in options
    )


def _rows(mountinfo: str) -> list[tuple[str, str, list[str]]]:
    rows = []
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        place, fields = before.split(" "), after.split(" ")
        if separator and len(place) >= 5 and len(fields) >= 3:
            rows.append((place[4], fields[0], fields[2].split(",")))
    return rows


# --- trials and verdicts ------------------------------------------------------------------------------------


def _born_in(kernel: Kernel, group: str) -> Outcome:
    try:
        fd = kernel.open(group, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        return Outcome.of(error)
    try:
        return attempt_in_cgroup(kernel, lambda: True, fd)
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


def _hierarchy(facts: CgroupTree) -> Feature:
    means = "each sandbox's processes are limited, counted and killed as one group"
    if facts.mount is None:
        remedy = "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified"
        status, found, means = Status.MISSING, "not mounted as a whole", "no sandbox can be created"
    elif facts.writable is False:
        status, found, means = Status.MISSING, f"{facts.mount} cannot be written to", "no sandbox can be created"
        remedy = f"mount -o remount,rw {facts.mount}, or let the container have its own writable cgroup2"
    else:
        held = sorted(name for name in CONTROLLERS if name in facts.v1)
        found = f"at {facts.mount}" + (f"; v1 hierarchies hold {', '.join(held)} (a hybrid host)" if held else "")
        return Feature(name="cgroup2", status=Status.OK, found=found, means=means, essential=True)
    return Feature(name="cgroup2", status=status, found=found, means=means, remedy=remedy, essential=True)


def _into_cgroup(facts: CgroupTree) -> Feature:
    name, means = "clone-into-cgroup", "pid 1 of a sandbox and each command start in their own cgroups"
    if facts.mount is None or facts.into_cgroup is None:
        why = "cannot be tested without cgroup2" if facts.mount is None else None
        return untried(name, means, essential=True, **({"why": why} if why else {}))
    if facts.into_cgroup.ok:
        return Feature(name=name, status=Status.OK, found="works", means=means, essential=True)
    return Feature(
        name=name,
        status=Status.MISSING,
        found=str(facts.into_cgroup.error),
        means="no sandbox can be created",
        remedy="run it outside of a container or seccomp filter that refuses clone3",
        essential=True,
    )


def _controller(facts: CgroupTree, name: str, what: str) -> Feature:
    feature = f"cgroup:{name}"
    if name in facts.enabled:
        return Feature(name=feature, status=Status.OK, found="enabled", means=f"{what} can be limited")
    if name in facts.controllers:
        if not (facts.is_delegated and facts.has_processes):
            return Feature(name=feature, status=Status.OK, found="available", means=f"{what} can be limited")
        found = f"available, but blocked by processes in {facts.mount} itself"
        remedy = "move them to a group of their own, or give sandboxd a delegated cgroup (systemd: Delegate=yes)"
    elif name in facts.v1:
        found, remedy = f"held by the v1 hierarchy at {facts.v1[name]}", _UNIFIED
    elif name in facts.disabled:
        found, remedy = "switched off at boot", f"take cgroup_disable={name} off the kernel's command line"
    elif facts.mount is None:
        found, remedy = "there is no cgroup2", "mount cgroup2"
    else:
        found = f"not among {facts.mount}'s controllers"
        remedy = f"enable it in the cgroup above ('+{name}' to its cgroup.subtree_control), or use a kernel that has it"
    means = f"{what} cannot be limited"
    if name in LIMIT_CONTROLLERS:
        means += ": a sandbox that asks for it is refused unless the daemon has --allow-unenforced"
    return Feature(name=feature, status=Status.DEGRADED, found=found, means=means, remedy=remedy)


def _kill(facts: CgroupTree) -> Feature:
    means = "a sandbox is killed as a whole, at once"
    if facts.has_kill is None:
        return untried("cgroup.kill", means, why="no cgroup to check; Linux has it since 5.14")
    if facts.has_kill:
        return Feature(name="cgroup.kill", status=Status.OK, found="there", means=means)
    means = "a sandbox's processes may outlive it"
    remedy = "upgrade the kernel to 6.1 or newer"
    return Feature(name="cgroup.kill", status=Status.MISSING, found="not there", means=means, remedy=remedy)
