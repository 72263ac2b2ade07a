"""The cgroup leaf of a command, `work/<id>`, through which its whole tree is counted and killed.

No call here can block, and only creating a leaf can fail. If the sandbox's root has tampered with a leaf (it owns
`work/`), the calls return empty answers; a kill that had no effect is done at the latest when the sandbox ends.

No process is ever created in a leaf that was killed: kernels since 6.14 kill every process that clone3 puts into a
cgroup that was ever killed (they compare its count of kills with that of the parent's own cgroup). So a restart has a
new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from ..linux.eventloop import EventLoop
from ..linux.kernel import Kernel

_READ_BYTES: Final = 4096
#: How long until a leaf that was not empty is tried again; a reaped orphan tries at once.
_RETRY_S: Final = 0.02
#: How often a leaf is looked at until it is empty; nothing tells pid 1 of a process that another one reaps.
POLL_S: Final = 0.01
#: How long what was killed may take to be gone: the kernel may be in the middle of something for one of them.
KILLED_S: Final = 2.0


class LeafCgroups:
    """All leaves: makes them, and removes those that are given up as soon as they are empty."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        #: `work/`; given when the process is the sandbox's.
        self.work_fd = -1
        self._dropped: list[tuple[LeafCgroup, bool]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._dropped)

    def has_room(self, memory_bytes: int, processes: int) -> bool:
        """Whether that much is left of what all leaves together may use; yes where the kernel limits nothing."""
        for controller, wanted in (("memory", memory_bytes), ("pids", processes)):
            words = [_read(self.work_fd, f"{controller}.{name}").strip() for name in ("max", "current")]
            if all(word.isdigit() for word in words) and int(words[0]) - int(words[1]) < wanted:
                return False
        return True

    def new(self, process_id: str) -> LeafCgroup:
        """Return a leaf for a process, not yet made; its name is the id unless an earlier leaf still has that."""
        self._count += 1
        taken = any(leaf.process_id == process_id for leaf, _ in self._dropped)
        return LeafCgroup(self.work_fd, f"{process_id}~{self._count}" if taken else process_id, process_id)

    def drop(self, leaf: LeafCgroup, *, keep_rest: bool = False) -> None:
        """Give up a leaf; what is left in it is killed, or may stay."""
        if leaf.remove():
            return
        if not keep_rest:
            leaf.kill()
        self._dropped.append((leaf, keep_rest))
        self._loop.call_later(_RETRY_S, self.retry)

    def end(self, leaves: Sequence[LeafCgroup], done: Callable[[], None]) -> None:
        """Kill all that is in `leaves`; call back when they are empty, or would be if the kernel let them."""
        for leaf in leaves:
            leaf.kill()
        until = time.monotonic() + KILLED_S

        def look() -> None:
            if time.monotonic() >= until or not any(leaf.is_populated() for leaf in leaves):
                done()
            else:
                self._loop.call_later(POLL_S, look)

        look()

    def retry(self) -> None:
        """Remove what has become empty."""
        if not self._dropped:
            return
        self._dropped = [item for item in self._dropped if not item[0].remove()]
        to_kill = [leaf for leaf, keep_rest in self._dropped if not keep_rest]
        for leaf in to_kill:
            leaf.kill()
        if to_kill:
            self._loop.call_later(_RETRY_S, self.retry)


class LeafCgroup:
    """One leaf; those of processes are made by `LeafCgroups`."""

    def __init__(self, work_fd: int, name: str, process_id: str = "") -> None:
        self._work_fd = work_fd
        self.process_id = process_id
        self.name = name
        self.is_gone = False

    def open(self) -> int:
        """Make the leaf, and return a descriptor of it to be born in; the caller closes it."""
        os.mkdir(self.name, dir_fd=self._work_fd)
        # Out of memory, a tree dies whole: half of a pipeline or of a test runner would only hang.
        self._write("memory.oom.group", b"1")
        try:
            return os.open(self.name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._work_fd)
        except OSError:
            self.remove()
            raise

    def try_out(self, kernel: Kernel) -> None:
        """Begin a process in it, which ends at once; the reaper takes its status.

        Raises:
            OSError: none can begin.
        """
        leaf = os.open(self.name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._work_fd)
        try:
            pid, pidfd = kernel.clone3(0, cgroup_fd=leaf)
        finally:
            os.close(leaf)
        if pid == 0:
            os._exit(0)
        os.close(pidfd)

    def kill(self) -> None:
        """SIGKILL all that is in it."""
        if not self.is_gone:  # another leaf may have the name by now
            self._write("cgroup.kill", b"1")

    def pids(self) -> list[int]:
        """Return who is in it."""
        found = b"" if self.is_gone else _read_all(self._work_fd, f"{self.name}/cgroup.procs")
        return [int(word) for word in found.split()]

    def is_populated(self) -> bool:
        """Return whether anybody is in it; a process that has ended is not, whoever may still have to reap it."""
        return not self.is_gone and "populated 1" in self._read("cgroup.events")

    def remove(self) -> bool:
        """Remove it; False while something is in it."""
        try:
            os.rmdir(self.name, dir_fd=self._work_fd)
        except OSError as error:
            self.is_gone = error.errno != errno.EBUSY
            return self.is_gone
        self.is_gone = True
        return True

    def usage(self, rusage: resource.struct_rusage | None) -> dict[str, Any]:
        """Return what the whole tree used; the main process's own numbers where the leaf has none.

        `cpu_s` is in seconds, `memory_peak_bytes` in bytes or None where nobody knows yet.
        """
        cpu = (rusage.ru_utime + rusage.ru_stime) if rusage else 0.0
        for line in self._read("cpu.stat").splitlines():
            if line.startswith("usage_usec "):
                cpu = int(line.split(" ")[1]) / 1e6
        peak = self._read("memory.peak").strip()
        memory = int(peak) if peak.isdigit() else (rusage.ru_maxrss * 1024 if rusage else None)
        return {"cpu_s": round(cpu, 6), "memory_peak_bytes": memory}

    def oom_kills(self) -> int:
        """Return how many of its processes the kernel killed for want of memory."""
        for line in self._read("memory.events").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split(" ")[1])
        return 0

    def _write(self, name: str, data: bytes) -> None:
        with contextlib.suppress(OSError):
            fd = os.open(f"{self.name}/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._work_fd)
            try:
                os.write(fd, data)
            finally:
                os.close(fd)

    def _read(self, name: str) -> str:
        return _read(self._work_fd, f"{self.name}/{name}")


def _read(dir_fd: int, path: str) -> str:
    """Return a file of facts, which is short."""
    with contextlib.suppress(OSError), _opened(dir_fd, path) as fd:
        return os.read(fd, _READ_BYTES).decode()
    return ""


def _read_all(dir_fd: int, path: str) -> bytes:
    """Return a file whose length has no bound but that of the sandbox's processes."""
    parts: list[bytes] = []
    with contextlib.suppress(OSError), _opened(dir_fd, path) as fd:
        while data := os.read(fd, _READ_BYTES):
            parts.append(data)
    return b"".join(parts)


@contextlib.contextmanager
def _opened(dir_fd: int, path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)
