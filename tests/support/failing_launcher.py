"""A launcher whose n-th kernel call fails: run as a program, as the daemon would run the real one.

The number is in the sandbox's id: `fail0000000000000042` fails the 42nd call of the launcher, the zygote and the
builder, `pid10000000000000042` that of pid 1, which runs beside the builder. The counts lie in memory that all of them
share, so 1, 2, 3 … fails every call of a creation in turn, wherever it is made.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import msgpack

from sandboxd.guest import init
from sandboxd.launcher import profiles
from sandboxd.launcher.create_child import Deps
from sandboxd.launcher.server import Launcher
from sandboxd.launcher.settings import Settings
from sandboxd.launcher.zygote import Zygote
from sandboxd.linux.kernel import Kernel, SyscallError

ROLES = ("fail", "pid1")


class FailingKernel(Kernel):
    """The real kernel, but the armed call answers EIO. Wraps whatever methods `Kernel` has: no list to keep."""

    def __init__(self) -> None:
        self.left = {role: multiprocessing.Value("q", 0, lock=multiprocessing.Lock()) for role in ROLES}

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith("_") or not callable(value):
            return value
        return self._counted(name, value)

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            left = self.left["pid1" if os.getpid() == 1 else "fail"]
            lock = left.get_lock()
            lock.acquire(timeout=1)  # who held it may have been killed just then
            left.get_obj().value -= 1
            is_armed = left.get_obj().value == 0
            with contextlib.suppress(ValueError):  # it was only slow, and has released it itself
                lock.release()
            if is_armed:
                raise SyscallError(errno.EIO, name)
            return call(*arguments, **options)

        return counted


KERNEL = FailingKernel()


class FailingLauncher(Launcher):
    """Arms the kernel by the id of each creation."""

    def _checked(self, params: dict[str, Any]) -> tuple[str, str, str]:
        checked = super()._checked(params)
        self._ranges.close()  # so that a range and its namespaces are made within the count
        role, number = checked[0][:4], int(checked[0][4:])
        for name in ROLES:
            KERNEL.left[name].get_obj().value = number if name == role else 0  # below 1 nothing fails
        return checked

    def _destroy(self, request: int, params: dict[str, Any]) -> dict[str, Any] | None:
        for name in ROLES:
            KERNEL.left[name].get_obj().value = 0  # only creations are to fail
        return super()._destroy(request, params)

    def _prepare_ids(self) -> None:
        """Prepare nothing ahead: what is made ahead would not be counted."""


def main() -> None:
    fd, config_fd = int(sys.argv[2]), int(sys.argv[4])
    with open(config_fd, "rb") as file:
        settings = Settings.from_message(msgpack.unpackb(file.read()))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    init.preload()
    filters = profiles.compile_all(settings.profile_dir, settings.own_profile_dir)
    zygote = Zygote(KERNEL, Deps(filters.profiles, init.prepare()))
    FailingLauncher(settings, socket.socket(fileno=fd), KERNEL, zygote, filters).run()


if __name__ == "__main__":
    main()
