"""The sandboxes' cgroups.

    <cgroup2><parent>/sandboxd-<hash of the state dir>/     ours; controllers enabled where the host offers them
        <id>/            the root of the sandbox's cgroup namespace; no process of its own once it is born
            init/        pid 1 alone
            work/        everything else, one leaf per command; owned by the sandbox's root
        template-<n>/    a template's process (templates.py); its children are born in leaves of sandboxes

The parent is cgroup2's root, or what the service manager delegated: under systemd the group of a unit that does
nothing else (systemd/sandboxd-cgroups.service), so that the daemon's own unit can stop and start with nobody in it.

A process is never moved between groups: a write to cgroup.procs waits for an RCU grace period (8 to 20 ms after
an idle gap, measured), so pid 1 and each command are born where they belong (CLONE_INTO_CGROUP).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

from ..errors import CgroupError, HostUnsupported
from ..linux import cgroupfs, disks, procfs
from ..linux.kernel import Kernel
from ..spec import Limits
from . import groupns, stats
from .limits import CONTROLLER_OF, HUGETLB, settings_of

#: `<id>/work/<leaf>`: a taken-over init cannot make a tree whose removal would take long or deep.
MAX_DEPTH: Final = 2
MAX_DESCENDANTS: Final = 4096


class Places(NamedTuple):
    """Descriptors of where a sandbox's processes are born; their owner closes them.

    Attributes:
        builder: the group of the builder.
        init: the group of pid 1.
        namespace: the cgroup namespace to join; -1 where the builder makes it, being born in its root.
    """

    builder: int
    init: int
    namespace: int = -1

    def close(self) -> None:
        """Close all."""
        for fd in self:
            if fd >= 0:
                os.close(fd)


class SandboxCgroups:
    """Makes, limits, kills and removes the sandboxes' cgroups."""

    def __init__(
        self, kernel: Kernel, name: str, *, parent: str = "", directories: Sequence[str] = (), mount: str | None = None
    ) -> None:
        """Make our own group with every controller that can be had.

        Args:
            kernel: makes the sandboxes' groups.
            name: of our own group.
            parent: the group above ours, as a path from the hierarchy's root; "" is that root.
            directories: where sandboxes read and write: io limits apply to the disks below.
            mount: the hierarchy; found where none is given.

        Raises:
            HostUnsupported: there is no hierarchy, or no such parent.
        """
        mount = mount or cgroupfs.find_mount(procfs.mounts())
        if mount is None:
            raise HostUnsupported(
                "cannot create cgroups: no cgroup2 hierarchy is mounted",
                feature="cgroup2",
                remedy="mount -t cgroup2 none /sys/fs/cgroup",
            )
        self._kernel = kernel
        above = mount + parent
        if not os.path.isdir(above):
            raise HostUnsupported(
                f"cannot create cgroups: there is no cgroup {parent}",
                feature="cgroup",
                remedy="systemctl start sandboxd-cgroups, or name another one with --cgroup",
            )
        self._directories = tuple(directories)
        self.root = f"{above}/{name}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.root)
        wanted = set(CONTROLLER_OF.values()) & cgroupfs.controllers(above)
        if "memory" in wanted and HUGETLB in cgroupfs.controllers(above):
            wanted.add(HUGETLB)
        for group in (above, self.root):
            wanted = {name for name in wanted if cgroupfs.try_controller(group, name)}
        self.controllers = frozenset(wanted)

    def unenforceable(self) -> dict[str, str]:
        """Return the limits that this host cannot enforce, each with what is missing."""
        missing = {
            limit: f"the cgroup2 controller {name!r}"
            for limit, name in CONTROLLER_OF.items()
            if name not in self.controllers
        }
        if "io" not in missing and not self._disks():
            missing["io"] = "a disk of their own under the sandboxes' files"
        return missing

    def _disks(self) -> list[str]:
        return disks.under(self._directories)

    def path(self, sandbox_id: str) -> str:
        """Return where a sandbox's cgroup is."""
        return f"{self.root}/{sandbox_id}"

    def create(self, sandbox_id: str, owner: int, limits: Limits) -> Places:
        """Make `<id>`, `<id>/init` and `<id>/work`, limited from the start.

        `owner` (the sandbox's root) may make leaves in `work/` and start processes in them; cgroup.procs of `<id>`
        is its too, since the kernel asks for the common ancestor's.

        Raises:
            SyscallError, CgroupError: the kernel refused something; `remove` takes away what was made.
        """
        group = self.path(sandbox_id)
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.root)  # somebody may have tidied our empty group away
        for path in (group, f"{group}/init", f"{group}/work"):
            self._kernel.mkdir(path)
        for name, value in (("cgroup.max.depth", MAX_DEPTH), ("cgroup.max.descendants", MAX_DESCENDANTS)):
            fd = self._kernel.open(f"{group}/{name}", os.O_WRONLY)
            try:
                self._kernel.write(fd, str(value).encode())
            finally:
                os.close(fd)
        for path in ("cgroup.procs", "work", "work/cgroup.procs", "work/cgroup.subtree_control"):
            self._kernel.chown(f"{group}/{path}", owner, owner)
        init = self._kernel.open(f"{group}/init", os.O_RDONLY | os.O_DIRECTORY)
        try:
            if not self.controllers:  # nothing to pass on: the builder may as well make the namespace
                return Places(self._kernel.open(group, os.O_RDONLY | os.O_DIRECTORY), init)
            namespace = groupns.make(self._kernel, group)
            try:
                self._limit(sandbox_id, limits)
                return Places(os.dup(init), init, namespace)
            except (OSError, CgroupError):
                os.close(namespace)
                raise
        except (OSError, CgroupError):
            os.close(init)
            raise

    def _limit(self, sandbox_id: str, limits: Limits) -> None:
        """Enable the controllers and write the limits; nothing may be in the groups yet (see `groupns`)."""
        group = self.path(sandbox_id)
        try:
            for name in ("", "/work"):
                cgroupfs.enable_controllers(f"{group}{name}", sorted(self.controllers))
            if HUGETLB in self.controllers:
                for name in cgroupfs.files(group, "hugetlb.", ".max"):
                    cgroupfs.write(f"{group}/{name}", "0")
        except OSError as error:
            raise _refused(sandbox_id, error) from error
        self._write(sandbox_id, limits, self._disks() if limits.io else ())

    def change(self, sandbox_id: str, limits: Limits) -> None:
        """Write the limits of a sandbox that lives; one of memory that is above it waits for the kernel to reclaim.

        Raises:
            CgroupError: the kernel refused one.
        """
        self._write(sandbox_id, limits, self._disks() if "io" in self.controllers else ())

    def _write(self, sandbox_id: str, limits: Limits, on: Collection[str]) -> None:
        try:
            for name, value in settings_of(limits, self.controllers, on):
                path = f"{self.path(sandbox_id)}/{name}"
                if name == "memory.swap.max" and not os.path.exists(path):
                    continue  # a kernel without swap
                cgroupfs.write(path, value)
        except OSError as error:
            raise _refused(sandbox_id, error) from error

    def used_memory(self, sandbox_id: str) -> int:
        """Return what counts against a sandbox's limit of memory; 0 where nobody counts."""
        return stats.number(f"{self.path(sandbox_id)}/work/memory.current") or 0

    def stats(self, sandbox_id: str) -> dict[str, Any]:
        """Return what a sandbox uses (`stats.py`)."""
        return stats.collect(self.path(sandbox_id))

    def freeze(self, sandbox_id: str, frozen: bool) -> None:
        """Stop every process where it is, or let all go on; `is_frozen` says when it is done.

        Raises:
            CgroupError: the kernel refused it.
        """
        try:
            cgroupfs.write(f"{self.path(sandbox_id)}/cgroup.freeze", "1" if frozen else "0")
        except OSError as error:
            raise _refused(sandbox_id, error, "freeze" if frozen else "thaw") from error

    def is_frozen(self, sandbox_id: str) -> bool:
        """Tell whether every process has stopped."""
        return cgroupfs.is_frozen(self.path(sandbox_id))

    def is_to_freeze(self, sandbox_id: str) -> bool:
        """Tell whether `freeze` was asked for, done or not."""
        return stats.number(f"{self.path(sandbox_id)}/cgroup.freeze") == 1

    def kill(self, sandbox_id: str) -> None:
        """SIGKILL everything inside."""
        cgroupfs.kill(self.path(sandbox_id))

    def remove(self, sandbox_id: str, budget: int) -> tuple[bool, int]:
        """Remove a sandbox's groups, at most `budget`; returns whether all are gone, and how many were removed.

        They are not while something is still leaving, or there are more.
        """
        try:
            removed = cgroupfs.remove_tree(self.path(sandbox_id), budget)
        except OSError:
            return False, 0
        return removed < budget, removed

    def present(self) -> list[str]:
        """Return the ids that have a group; a template's (templates.py) has a dash in its name."""
        return [name for name in cgroupfs.children(self.root) if "-" not in name]

    def close(self) -> None:
        """Remove our own group if it is empty."""
        with contextlib.suppress(OSError):
            os.rmdir(self.root)


def _refused(sandbox_id: str, error: OSError, verb: str = "limit") -> CgroupError:
    code = errno.errorcode.get(error.errno or 0, str(error.errno))
    return CgroupError(f"cannot {verb} {sandbox_id}: {code}", path=str(error.filename or ""), errno=code)
