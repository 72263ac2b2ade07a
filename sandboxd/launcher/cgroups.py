"""The sandboxes' cgroups (DESIGN section 5).

    <cgroup2>/sandboxd-<hash of the state dir>/     ours; controllers enabled where the host offers them
        <id>/            the root of the sandbox's cgroup namespace; no process of its own once it is born
            init/        pid 1 alone
            work/        everything else, one leaf per command; owned by the sandbox's root

A process is never moved between groups: a write to cgroup.procs waits for an RCU grace period (8 to 20 ms after
an idle gap, measured), so pid 1 and each command are born where they belong (CLONE_INTO_CGROUP).
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final

from ..errors import CgroupError, HostUnsupported
from ..linux import cgroupfs, procfs
from ..linux.kernel import Kernel, SyscallError
from ..spec import Limits

#: Which controller each limit needs.
CONTROLLER_OF: Final = {"memory_bytes": "memory", "cpus": "cpu", "pids": "pids"}
#: init's own share on top of a sandbox's limit, so that a sandbox that used its limit up can still be served.
INIT_MEMORY_SLACK: Final = 32 * 1024 * 1024
INIT_PIDS: Final = 16
#: `<id>/work/<leaf>`: a taken-over init cannot make a tree whose removal would take long or deep.
MAX_DEPTH: Final = 2
MAX_DESCENDANTS: Final = 4096
_CPU_PERIOD_US: Final = 100_000


class SandboxCgroups:
    """Makes, limits, kills and removes the sandboxes' cgroups."""

    def __init__(self, kernel: Kernel, name: str) -> None:
        mount = cgroupfs.find_mount(procfs.mounts())
        if mount is None:
            raise HostUnsupported(
                "cannot make cgroups: no cgroup2 hierarchy is mounted",
                feature="cgroup2",
                remedy="mount -t cgroup2 none /sys/fs/cgroup",
            )
        self._kernel = kernel
        self.root = f"{mount}/{name}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.root)
        offered = cgroupfs.controllers(mount)
        wanted = sorted(set(CONTROLLER_OF.values()) & offered)
        try:
            cgroupfs.enable_controllers(mount, wanted)
            cgroupfs.enable_controllers(self.root, wanted)
            self.controllers = frozenset(wanted)
        except OSError:
            self.controllers = frozenset()

    def unenforceable(self) -> dict[str, str]:
        """Return the limits that this host cannot enforce, each with what is missing."""
        return {
            limit: f"the cgroup2 controller {name!r}"
            for limit, name in CONTROLLER_OF.items()
            if name not in self.controllers
        }

    def path(self, sandbox_id: str) -> str:
        """Return where a sandbox's cgroup is."""
        return f"{self.root}/{sandbox_id}"

    def create(self, sandbox_id: str, owner: int) -> tuple[int, int]:
        """Make `<id>`, `<id>/init`, `<id>/work` and return descriptors of the first two.

        `owner` (the sandbox's root) may make leaves in `work/` and start processes in them; cgroup.procs of `<id>`
        is its too, since the kernel asks for the common ancestor's.
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
        top = self._kernel.open(group, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return top, self._kernel.open(f"{group}/init", os.O_RDONLY | os.O_DIRECTORY)
        except SyscallError:
            os.close(top)
            raise

    def apply(self, sandbox_id: str, limits: Limits) -> None:
        """Write the limits that the host can enforce; `<id>` must have no process of its own any more.

        Raises:
            CgroupError: the kernel refused one.
        """
        if not self.controllers:
            return
        group = self.path(sandbox_id)
        settings: list[tuple[str, str]] = []
        if "memory" in self.controllers and limits.memory_bytes is not None:
            settings += [
                ("memory.max", str(limits.memory_bytes + INIT_MEMORY_SLACK)),
                ("memory.swap.max", "0"),
                ("work/memory.max", str(limits.memory_bytes)),
                ("init/memory.max", str(INIT_MEMORY_SLACK)),
            ]
        if "pids" in self.controllers and limits.pids is not None:
            settings += [
                ("pids.max", str(limits.pids + INIT_PIDS)),
                ("work/pids.max", str(limits.pids)),
                ("init/pids.max", str(INIT_PIDS)),
            ]
        if "cpu" in self.controllers and limits.cpus is not None:
            settings.append(("cpu.max", f"{max(1000, int(limits.cpus * _CPU_PERIOD_US))} {_CPU_PERIOD_US}"))
        try:
            for name in ("", "/work"):
                cgroupfs.enable_controllers(f"{group}{name}", sorted(self.controllers))
            for name, value in settings:
                cgroupfs.write(f"{group}/{name}", value)
        except OSError as error:
            code = errno.errorcode.get(error.errno or 0, str(error.errno))
            raise CgroupError(f"cannot limit {sandbox_id}: {code}", path=error.filename, errno=code) from error

    def kill(self, sandbox_id: str) -> None:
        """SIGKILL everything inside."""
        cgroupfs.kill(self.path(sandbox_id))

    def remove(self, sandbox_id: str) -> bool:
        """Remove a sandbox's groups; False while something is still leaving."""
        try:
            cgroupfs.remove_tree(self.path(sandbox_id))
        except OSError:
            return False
        return True

    def present(self) -> list[str]:
        """Return the ids that have a group."""
        return cgroupfs.children(self.root)

    def close(self) -> None:
        """Remove our own group if it is empty."""
        with contextlib.suppress(OSError):
            os.rmdir(self.root)
