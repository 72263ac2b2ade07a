"""The machine: what it is, and what its processes hold."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def facts() -> dict[str, Any]:
    """Return what a reader needs to judge figures."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cpus": os.cpu_count(),
        "memory_gib": round(int(_field("/proc/meminfo", "MemTotal").split()[0]) / 1024 / 1024, 1),
        "kernel": platform.release(),
        "os": _field("/etc/os-release", "PRETTY_NAME", "=").strip('"'),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "cgroup2_controllers": _controllers(),
    }


def available_bytes() -> int:
    """Return MemAvailable."""
    return int(_field("/proc/meminfo", "MemAvailable").split()[0]) * 1024


def tree_pss(root: int) -> int:
    """Return the proportional set size of a process and of all below it, in bytes."""
    return sum(_pss(pid) for pid in descendants(root, parents()))


def parents() -> dict[int, int]:
    """Return every process's parent."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text()
            except OSError:
                continue
            found[int(entry.name)] = int(stat[stat.rindex(")") + 2 :].split()[1])
    return found


def descendants(root: int, parent_of: dict[int, int]) -> set[int]:
    """Return a process and all below it."""
    found, size = {root}, 0
    while size != len(found):
        size = len(found)
        found |= {pid for pid, parent in parent_of.items() if parent in found}
    return found


def _pss(pid: int) -> int:
    try:
        return int(_field(f"/proc/{pid}/smaps_rollup", "Pss").split()[0]) * 1024
    except (OSError, IndexError):
        return 0  # it has ended


def _field(path: str, name: str, separator: str = ":") -> str:
    with open(path) as file:
        for line in file:
            key, found, value = line.partition(separator)
            if found and key.strip() == name:
                return value.strip()
    return ""


def _controllers() -> list[str]:
    for path in ("/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/unified/cgroup.controllers"):
        if Path(path).exists():
            return Path(path).read_text().split()
    return []
