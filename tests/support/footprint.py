"""What a daemon holds of its host, counted from outside: for tests that say that nothing is left over."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import pathlib

import msgpack

from sandboxd.launcher.idranges import CLAIMS_DIR
from sandboxd.linux import procfs
from tests.support.daemon import Daemon

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
#: Files of a daemon itself, not of a sandbox.
OWN_FILES = frozenset({"lock", "sandboxd.sock"})


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Two that are equal mean that nothing was left over between them."""

    mounts: tuple[str, ...]
    namespaces: dict[str, int]
    interfaces: tuple[str, ...]
    loop_devices: tuple[str, ...]
    files: tuple[str, ...]
    cgroups: tuple[str, ...]
    claims: int
    processes: int
    zombies: int
    daemon_fds: dict[str, int]
    launcher_fds: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Memory:
    """Resident memory in bytes."""

    daemon: int
    launcher: int


def take(daemon: Daemon, launcher: int) -> Footprint:
    """Count everything but the prepared sandbox that is held for the next sandbox."""
    assert daemon.process
    held = daemon.prepared() or "none"
    pids = [daemon.process.pid, launcher, *sandboxed(daemon, held)]
    return Footprint(
        mounts=tuple(sorted(m.target for m in procfs.mounts() if _is_ours(m.target, daemon))),
        namespaces=_namespaces(pids),
        interfaces=tuple(sorted(os.listdir("/sys/class/net"))),
        loop_devices=tuple(sorted(path for path in _loop_files() if _is_ours(path, daemon))),
        files=tuple(path for path in _files(daemon) if held not in path),
        cgroups=tuple(sorted(str(p) for p in daemon.cgroup().rglob("*") if p.is_dir() and held not in str(p))),
        claims=len(claims(daemon, launcher, held)),
        processes=len(pids),
        zombies=len(zombies(daemon.process.pid)) + len(zombies(launcher)),
        daemon_fds=_fds(daemon.process.pid),
        launcher_fds=_fds(launcher),
    )


def _is_ours(path: str, daemon: Daemon) -> bool:
    """Whether a path is the daemon's: others may mount and unmount on the same host meanwhile."""
    return path.startswith((f"{daemon.state_dir}/", f"{daemon.runtime_dir}/", str(daemon.cgroup())))


def _loop_files() -> list[str]:
    found = []
    for path in pathlib.Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            found.append(path.read_text().strip())
    return found


def sandboxed(daemon: Daemon, but: str | None = None) -> list[int]:
    """Return every process in a sandbox of this daemon, but for those of one, or of the prepared sandbox."""
    found: list[int] = []
    but = but or daemon.prepared() or "none"
    for path in daemon.cgroup().rglob("cgroup.procs"):
        if but in str(path):
            continue
        with contextlib.suppress(FileNotFoundError, OSError):
            found += map(int, path.read_text().split())
    return found


def claims(daemon: Daemon, launcher: int, but: str | None = None) -> list[str]:
    """Return the id ranges that this daemon's sandboxes, or its launcher alone, have a claim on, but for one's."""
    found = []
    but = but or daemon.prepared() or "none"
    for path in pathlib.Path(CLAIMS_DIR).glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError):
            pid, _, group = msgpack.unpackb(path.read_bytes())
            if but in group:
                continue
            if pid == launcher or str(daemon.cgroup()) in group:
                found.append(path.name)
    return found


def zombies(pid: int) -> list[int]:
    """Return a process's children that nobody has waited for."""
    found = []
    for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if procfs.parse_stat(pathlib.Path(f"/proc/{child}/stat").read_text())[0] == "Z":
                found.append(int(child))
    return found


def memory(daemon: Daemon, launcher: int) -> Memory:
    """Return the resident memory of the two."""
    assert daemon.process
    return Memory(rss(daemon.process.pid), rss(launcher))


def rss(pid: int) -> int:
    """Return a process's resident memory."""
    return _status(f"/proc/{pid}/status", "VmRSS:")


def pss(pid: int) -> int:
    """Return a process's memory, what it shares divided among those that share it."""
    return _status(f"/proc/{pid}/smaps_rollup", "Pss:")


def available() -> int:
    """Return MemAvailable of the host."""
    return _status("/proc/meminfo", "MemAvailable:")


def _status(path: str, name: str) -> int:
    for line in pathlib.Path(path).read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{path} has no {name}")


def _namespaces(pids: list[int]) -> dict[str, int]:
    found: dict[str, set[str]] = {name: set() for name in NAMESPACES}
    for pid in pids:
        for name, inodes in found.items():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                inodes.add(os.readlink(f"/proc/{pid}/ns/{name}"))
    return {name: len(inodes) for name, inodes in found.items()}


def _files(daemon: Daemon) -> list[str]:
    found = []
    for top in (daemon.state_dir, daemon.runtime_dir):
        found += [str(path) for path in top.rglob("*") if path.name not in OWN_FILES]
    return sorted(found)


def _fds(pid: int) -> dict[str, int]:
    """Count a process's descriptors by what they are, so that a difference says what leaked."""
    found: collections.Counter[str] = collections.Counter()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[os.readlink(f"/proc/{pid}/fd/{fd}").partition(":[")[0]] += 1
    return dict(found)
