"""From limits to what is written into a sandbox's cgroups, purely; and what this host can hold at all.

    <id>/         the limit and what init needs besides: a taken-over init is limited too
        init/     small, and ahead of the rest where processors are short
        work/     the limit: everything that a user runs

A sandbox that used all of `work/` up still has an init that answers: the kernel looks for somebody to kill, to
throttle or to refuse below the group whose limit was met, which is never the one that init is in. No oom_score_adj
does that: children inherit it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from typing import Final

from ..errors import InvalidRequest
from ..spec import MAX_PIDS, Limits

#: Which controller each limit needs.
CONTROLLER_OF: Final = {"memory_bytes": "memory", "cpus": "cpu", "pids": "pids", "io": "io"}
#: Enabled besides where the memory controller is, so that huge pages, which memory.max does not count, are none.
HUGETLB: Final = "hugetlb"
#: init's own share on top of a sandbox's limit: its pages, its journals (8 MiB) and what waits for slow readers.
INIT_MEMORY: Final = 64 * 1024 * 1024
#: init, a helper or two, and the prepared sandbox's parents.
INIT_PIDS: Final = 16
#: init's share of a processor when the sandbox has used its own up.
INIT_CPUS: Final = 0.25
#: Against `work/` (100), while the sandbox as a whole is short of processors.
INIT_CPU_WEIGHT: Final = 1000
CPU_PERIOD_US: Final = 100_000
#: The least that the kernel takes (kernel/sched/core.c, min_cfs_quota_period).
_MIN_QUOTA_US: Final = 1000
_IO_KEYS: Final = {"rbps": "read_bytes_per_s", "wbps": "write_bytes_per_s", "riops": "read_iops", "wiops": "write_iops"}


@dataclasses.dataclass(frozen=True, slots=True)
class Host:
    """What there is to share: bytes of RAM, processors, processes, bytes of the pool (None: nobody limits those)."""

    memory_bytes: int
    cpus: int
    pids: int
    disk_bytes: int | None = None

    @classmethod
    def look(cls, disk_bytes: int | None = None) -> Host:
        """Return this host's; `disk_bytes` is what its pool holds."""
        with open("/proc/meminfo") as file:
            memory = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemTotal:"))
        pids = MAX_PIDS
        for name in ("pid_max", "threads-max"):
            with open(f"/proc/sys/kernel/{name}") as file:
                pids = min(pids, int(file.read()))
        return cls(memory, len(os.sched_getaffinity(0)), pids, disk_bytes)

    def fit(self, default: Limits) -> Limits:
        """Return `default` with nothing above what the host has: a small host gives what it has."""
        return dataclasses.replace(
            default,
            memory_bytes=min(default.memory_bytes or self.memory_bytes, self.memory_bytes),
            cpus=min(default.cpus or self.cpus, self.cpus),
            pids=min(default.pids or self.pids, self.pids),
            disk_bytes=min((size for size in (default.disk_bytes, self.disk_bytes) if size is not None), default=None),
        )

    def check(self, limits: Limits) -> None:
        """Refuse limits that the host could never give.

        Raises:
            InvalidRequest: `field` names the limit, `bound` is what the host has.
        """
        for name, bound in self._bounds():
            value = getattr(limits, name)
            if value is not None and bound is not None and value > bound:
                raise InvalidRequest(
                    f"cannot accept limits.{name}: {value} is above what this host has ({bound})",
                    field=f"limits.{name}",
                    bound=bound,
                )

    def _bounds(self) -> tuple[tuple[str, int | None], ...]:
        return tuple((name, getattr(self, name)) for name in ("memory_bytes", "cpus", "pids", "disk_bytes"))


def settings_of(limits: Limits, controllers: Collection[str], disks: Collection[str]) -> list[tuple[str, str]]:
    """Return what to write, in order: (file below `<id>`, text). A limit that is None is lifted.

    `<id>` has no limit of memory while that of `work/` changes: its own would name init as somebody to kill.
    """
    found: list[tuple[str, str]] = []
    if "memory" in controllers:
        found += [
            ("memory.swap.max", "0"),
            ("memory.max", "max"),
            ("init/memory.max", str(INIT_MEMORY)),
            ("work/memory.max", _more(limits.memory_bytes, 0)),
            ("memory.max", _more(limits.memory_bytes, INIT_MEMORY)),
        ]
    if "pids" in controllers:
        found += [
            ("pids.max", _more(limits.pids, INIT_PIDS)),
            ("init/pids.max", str(INIT_PIDS)),
            ("work/pids.max", _more(limits.pids, 0)),
        ]
    if "cpu" in controllers:
        found += [
            ("cpu.max", _quota(limits.cpus, INIT_CPUS)),
            ("init/cpu.weight", str(INIT_CPU_WEIGHT)),
            ("work/cpu.max", _quota(limits.cpus, 0)),
        ]
    if "io" in controllers:
        rates = " ".join(f"{key}={getattr(limits.io, name, None) or 'max'}" for key, name in _IO_KEYS.items())
        found += [("io.max", f"{disk} {rates}") for disk in disks]
    return found


def processes_of(limits: Limits, controllers: Collection[str]) -> int:
    """Return RLIMIT_NPROC of each user and, at a creation, of the user namespace: it stands in for a controller."""
    return MAX_PIDS if "pids" in controllers else limits.pids or MAX_PIDS


def _more(value: int | None, slack: int) -> str:
    return "max" if value is None else str(value + slack)


def _quota(cpus: float | None, slack: float) -> str:
    quota = "max" if cpus is None else max(_MIN_QUOTA_US, round((cpus + slack) * CPU_PERIOD_US))
    return f"{quota} {CPU_PERIOD_US}"
