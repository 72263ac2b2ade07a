"""A launcher whose sandboxes have an init that can be taken over: `exec ["takeover", source]` runs source in pid 1.

Everything else is the real thing: the steps of a creation, the filter, the capabilities, the daemon before it. `source`
sees `init` (the Init), `peer` and `request` (who asked), `cgroup` and `listener` (pid 1's own descriptors), `raw` (a
system call by number) and the modules below. What it puts in `answer` is the command's output.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import socket
import struct
import time
from typing import Any

from sandboxd.guest import init
from sandboxd.guest.link_server import LinkServer
from sandboxd.launcher import __main__ as launcher
from sandboxd.wire import framing, messages

LIBC = ctypes.CDLL(None, use_errno=True)


def raw(number: int, *arguments: int) -> str:
    """Make a system call; return `allowed <result>` or the name of what refused it."""
    ctypes.set_errno(0)
    LIBC.syscall.restype = ctypes.c_long
    result = LIBC.syscall(ctypes.c_long(number), *(ctypes.c_long(value) for value in arguments))
    return f"allowed {result}" if result >= 0 else errno.errorcode[ctypes.get_errno()]


class TakenOver(init.Init):
    """The real init with one more operation."""

    def __init__(self) -> None:
        super().__init__()
        self._honest_exec = self._operations["exec"]
        self._operations["exec"] = self._exec

    def run(self, listener_fd: int, cgroup_fd: int) -> None:
        self._work_fd = os.open("work", os.O_RDONLY | os.O_DIRECTORY, dir_fd=cgroup_fd)
        self._cgroup_fd = cgroup_fd
        super().run(listener_fd, cgroup_fd)

    def names(self) -> dict[str, Any]:
        """Return what the source sees."""
        return {
            **{"array": array, "contextlib": contextlib, "ctypes": ctypes, "errno": errno, "fcntl": fcntl},
            **{"json": json, "mmap": mmap, "os": os, "socket": socket, "struct": struct, "time": time},
            **{"framing": framing, "messages": messages, "raw": raw, "libc": LIBC},
            **{"init": self, "cgroup": self._cgroup_fd, "listener": self._listener},
        }

    def _exec(self, peer: LinkServer, request: int, params: dict[str, Any]) -> None:
        if params["argv"][0] != "takeover":
            self._honest_exec(peer, request, params)
            return
        names = {**self.names(), "peer": peer, "request": request, "params": params, "answer": None}
        try:
            exec(params["argv"][1], names)
        except Exception as error:
            names["answer"] = f"{type(error).__name__}: {error}"
        if names["answer"] is not None:
            params["argv"] = ["printf", "%s", json.dumps(names["answer"])]
            self._honest_exec(peer, request, params)


init.Init = TakenOver  # type: ignore[misc]

if __name__ == "__main__":
    launcher.main()
