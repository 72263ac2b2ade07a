"""Runs a function as a launcher would run: in a process and a mount namespace of its own, which may be killed."""

from __future__ import annotations

import os
import pathlib
import pickle
import traceback
from collections.abc import Callable
from typing import Any

from sandboxd.launcher.settings import Settings
from sandboxd.launcher.storage.choice import Storage, open_storage
from sandboxd.launcher.zygote import leave_the_hosts_mounts
from sandboxd.linux.kernel import Kernel


class Apart:
    """A forked child; `say` in it is heard by `hear` here."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._read, write = os.pipe()
        self._buffer = b""
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(self._read)
                leave_the_hosts_mounts(Kernel())
                answer = function(lambda line: os.write(write, line.encode() + b"\n"), *arguments)
                os.write(write, b"=" + pickle.dumps(answer))
                status = 0
            except BaseException:
                os.write(write, b"!" + traceback.format_exc().encode())
            finally:
                os._exit(status)
        os.close(write)

    def hear(self) -> str:
        """Return the next line; "" at the end."""
        while b"\n" not in self._buffer:
            data = os.read(self._read, 65_536)
            if not data:
                return ""
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        assert not line.startswith(b"!"), line.decode() + self._buffer.decode()
        return line.decode()

    def result(self) -> Any:
        """Return what the function returned; a failure in it is one here."""
        while data := os.read(self._read, 65_536):
            self._buffer += data
        self.end()
        kind, rest = self._buffer[:1], self._buffer[1:]
        assert kind == b"=", rest.decode(errors="replace")
        return pickle.loads(rest)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        os.kill(self.pid, 9)
        self.end()

    def end(self) -> None:
        os.waitpid(self.pid, 0)
        os.close(self._read)


def settings(directory: pathlib.Path, **changes: Any) -> Settings:
    """Return settings whose state and runtime lie below `directory`, with a pool of 1 GiB."""
    for name in ("state/pool", "run"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    values = {"storage": "btrfs", "storage_bytes": 1 << 30, "storage_reserve_bytes": 0, **changes}
    return Settings(
        state_dir=str(directory / "state"), runtime_dir=str(directory / "run"), rootfs_dir="", profile_dir="", **values
    )


def opened(directory: pathlib.Path, kernel: Kernel | None = None, **changes: Any) -> Storage:
    """Open the storage of `settings`."""
    return open_storage(kernel or Kernel(), settings(directory, **changes))


def kernel_seconds() -> float:
    """Return the processor time that the kernel's own worker threads have taken."""
    ticks = 0
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, fields = path.read_text().rpartition(")")
        except OSError:  # it has ended meanwhile
            continue
        if "(kworker/" in name:
            ticks += sum(int(field) for field in fields.split()[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def loops(path: pathlib.Path | str) -> list[str]:
    """Return the loop devices that are attached to the file `path`."""
    found = []
    for file in pathlib.Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if file.read_text().strip() == str(path):
                found.append(file.parent.parent.name)
        except OSError:  # it has cleared itself meanwhile
            continue
    return found
