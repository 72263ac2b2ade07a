"""A command's cgroup leaf, `work/<id>`: what its whole tree is counted and killed by.

No call here can block or fail its caller: a leaf that the sandbox's root has meddled with (it owns `work/`) gives
empty answers, and what it was for (a kill) is done by the sandbox's own end at the latest.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from typing import Any

_READ_BYTES = 4096


class Leaf:
    """One leaf; `name` is the process' id."""

    def __init__(self, work_fd: int, name: str) -> None:
        self._work_fd = work_fd
        self.name = name

    def open(self) -> int:
        """Make the leaf if it is not there, and return a descriptor of it to be born in; the caller closes it."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.name, dir_fd=self._work_fd)
            # Out of memory, a tree dies whole: half of a pipeline or of a test runner would only hang.
            self._write("memory.oom.group", b"1")
        return os.open(self.name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._work_fd)

    def kill(self) -> None:
        """SIGKILL all that is in it."""
        self._write("cgroup.kill", b"1")

    def remove(self) -> bool:
        """Remove it; False while something is in it."""
        try:
            os.rmdir(self.name, dir_fd=self._work_fd)
        except OSError as error:
            return error.errno != errno.EBUSY
        return True

    def usage(self, rusage: resource.struct_rusage | None) -> dict[str, Any]:
        """Return what the whole tree used; the main process' own numbers where the leaf has none.

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
        try:
            fd = os.open(f"{self.name}/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._work_fd)
        except OSError:
            return ""
        try:
            return os.read(fd, _READ_BYTES).decode()
        except OSError:
            return ""
        finally:
            os.close(fd)
