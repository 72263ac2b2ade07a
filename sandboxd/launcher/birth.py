"""One birth: the host's side, the two forks, and the process that becomes init.

    launcher ── clone3(into <id>) ──▶ embryo: unshares every namespace but the user's; so the cgroup
        │                               │      namespace's root is <id>
        │                               └─ clone3(into <id>/init, CLONE_PARENT) ──▶ pid 1: the steps of plan.py,
        │                                                                            then guest.init.serve
        └◀── status pipe: ["pid", n] from the embryo; ["ready", …] or ["failed", …] from pid 1 ──┘

CLONE_PARENT makes pid 1 the launcher's own child, so that its end is seen through a pidfd and its status is read.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import time
from collections.abc import Callable
from typing import Any, Final

from ..errors import LaunchFailed, RemoteProtocolError
from ..linux.kernel import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUTS,
    CLONE_PARENT,
    Kernel,
    SyscallError,
)
from ..wire import framing
from .plan import LaunchSpec, plan
from .steps import Birth

_NAMESPACES: Final = (
    CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_NEWTIME
)
#: Connections that may wait while init is busy; the daemon makes one.
_BACKLOG: Final = 4

#: What a person can do about it, by (step, errno).
_HINTS: Final = {
    (
        "mount-overlay",
        "EINVAL",
    ): "the state directory's filesystem cannot be an overlay's upper layer; use ext4, xfs or btrfs",
    (
        "mount-overlay",
        "EROFS",
    ): "the state directory's filesystem refuses the overlay's upper layer; use ext4, xfs or btrfs",
    (
        "mount-layers",
        "EINVAL",
    ): "the filesystem of the rootfs or the state directory cannot be idmapped; use ext4, xfs or btrfs",
    ("mount-layers", "ENOENT"): "the rootfs was removed meanwhile",
    ("mount-proc", "ELOOP"): "the rootfs' /proc is a link; it must be a directory",
    ("mount-sys", "ELOOP"): "the rootfs' /sys is a link; it must be a directory",
    ("mount-dev", "ELOOP"): "the rootfs' /dev is a link; it must be a directory",
    ("write-identity", "ELOOP"): "a file of the rootfs' /etc that sandboxd writes is a link",
    ("clone", "ENOSPC"): "a namespace limit is reached; see /proc/sys/user",
}


@dataclasses.dataclass(slots=True)
class Parts:
    """What the launcher made for a newborn; the newborn's copies are closed by its own steps."""

    listener: socket.socket
    cgroup_fd: int
    init_cgroup_fd: int
    status_fd: int
    sandbox_userns: int
    disk_userns: int
    filters: list[bytes]

    def close(self) -> None:
        """Close the launcher's side, but for the status pipe's reading end."""
        self.listener.close()
        for fd in (self.cgroup_fd, self.init_cgroup_fd, self.status_fd):
            os.close(fd)


def listen(links_dir: str, sandbox_id: str, owner: tuple[int, int]) -> socket.socket:
    """Return a listening socket at `<links_dir>/<id>.sock` that only `owner` (uid, gid) may connect to.

    Bound by a relative name, since sun_path holds 107 bytes and a state directory may be deep.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        old = os.umask(0o177)
        try:
            os.chdir(links_dir)
            listener.bind(f"{sandbox_id}.sock")
            os.chown(f"{sandbox_id}.sock", *owner)
        finally:
            os.umask(old)
            os.fchdir(here)
            os.close(here)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise SyscallError(error.errno or 0, "bind", f"{links_dir}/{sandbox_id}.sock") from None
    return listener


def spawn(kernel: Kernel, spec: LaunchSpec, parts: Parts, serve: Callable[[socket.socket, int], None]) -> int:
    """Fork the embryo, which forks the init; return the embryo's pid. The children never return.

    Raises:
        SyscallError: the first fork failed; everything later is told over the status pipe.
    """
    pid, pidfd = kernel.clone3(0, cgroup_fd=parts.cgroup_fd)
    if pid == 0:
        _embryo(kernel, spec, parts, serve)
    os.close(pidfd)
    return pid


def _embryo(kernel: Kernel, spec: LaunchSpec, parts: Parts, serve: Callable[[socket.socket, int], None]) -> None:
    step = "unshare"
    try:
        kernel.unshare(_NAMESPACES)
        step = "clone"
        pid, _ = kernel.clone3(CLONE_PARENT, cgroup_fd=parts.init_cgroup_fd, exit_signal=0)
        if pid == 0:
            _newborn(kernel, spec, parts, serve)
        _tell(parts.status_fd, ["pid", pid])
        os._exit(0)
    except Exception as error:
        _tell_failure(parts.status_fd, step, error)
    finally:
        os._exit(1)


def _newborn(kernel: Kernel, spec: LaunchSpec, parts: Parts, serve: Callable[[socket.socket, int], None]) -> None:
    """Run the steps, say so, and serve for ever."""
    step = "start"
    timings: dict[str, float] = {}
    try:
        birth = Birth(
            sandbox_userns=parts.sandbox_userns,
            disk_userns=parts.disk_userns,
            filters=parts.filters,
            keep={parts.status_fd, parts.listener.fileno()},
        )
        for item in plan(spec):
            step = item.name
            began = time.perf_counter()
            item.run(kernel, birth)
            timings[step] = time.perf_counter() - began
        _tell(parts.status_fd, ["ready", birth.devices, timings])
        os.close(parts.status_fd)
    except Exception as error:
        _tell_failure(parts.status_fd, step, error)
        os._exit(1)
    try:
        serve(parts.listener, birth.cgroup)
    finally:
        os._exit(1)


def _tell(fd: int, message: list[Any]) -> None:
    os.write(fd, framing.encode(message, limit=framing.MAX_REPLY_FRAME))


def _tell_failure(fd: int, step: str, error: Exception) -> None:
    if isinstance(error, OSError):
        path = error.filename if isinstance(error.filename, str) else ""
        code = errno.errorcode.get(error.errno or 0, str(error.errno))
        _tell(fd, ["failed", step, getattr(error, "syscall", ""), code, path])
    else:
        _tell(fd, ["failed", step, "", f"{type(error).__name__}: {error}", ""])


def failure(step: str, syscall: str, code: str, path: str, sandbox_id: str) -> LaunchFailed:
    """Return the error that names a failed step."""
    where = f" {path}" if path else ""
    facts: dict[str, Any] = {"step": step, "syscall": syscall, "errno": code, "sandbox": sandbox_id}
    hint = _HINTS.get((step, code))
    if hint:
        facts["hint"] = hint
    reason = f" ({hint})" if hint else ""
    return LaunchFailed(f"cannot create sandbox: step {step}: {syscall}{where}: {code}{reason}", **facts)


class StatusReader:
    """Reads the status pipe of one birth without blocking."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._decoder = framing.FrameDecoder(limit=framing.MAX_REPLY_FRAME)

    def read(self) -> tuple[list[list[Any]], bool]:
        """Return the messages that came and whether the pipe is at its end."""
        ended = False
        try:
            data = os.read(self.fd, 65_536)
            ended = not data
            self._decoder.feed(data)
        except BlockingIOError:
            pass
        messages = []
        try:
            while (message := self._decoder.next_message()) is not None:
                messages.append(message)
        except RemoteProtocolError:
            ended = True
        return messages, ended

    def close(self) -> None:
        """Close the pipe."""
        os.close(self.fd)
