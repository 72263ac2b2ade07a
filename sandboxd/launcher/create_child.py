"""One creation: a builder that makes what the sandbox sees, and pid 1, which enters it and becomes init.

    zygote ── clone3(CLONE_PARENT) ──▶ builder: unshares every namespace but the user's; the cgroup namespace's root
                │                        is <id>, made ahead (groupns.py) or by being born there
                ├─ clone3(into <id>/init, CLONE_PARENT) ──▶ pid 1
                │   ◀── its /proc: only a member of a pid namespace can mount it
                ├─ the builder's first steps of plan.py: /proc, /sys, /dev, the network
                │   ◀── the launcher's order, which may be long in coming (a prepared sandbox that is held ready)
                ├─ its other steps, pivot_root at their end
                └── the root and the cgroup ──▶ pid 1: its own steps, then guest.init's loop

Memory that pid 1 touches before it serves stays its own for the sandbox's whole life (Python's reference counts write
to each page they touch). So the builder, which ends afterwards, does everything that another process can do.
CLONE_PARENT makes both processes the launcher's own children, so that the launcher sees and reaps their ends.

The launcher receives over the status pipe: ["builder", pid] from the zygote; ["pid", n] and ["built", devices, timings]
from the builder; ["ready", timings] from pid 1; ["failed", step, syscall, errno, path] from any of them. The launcher's
order goes over a separate socket. When the launcher closes it, or dies, the builder ends and then pid 1.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import prctl

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
from .plan import INIT_PLAN, ChildRequest, LaunchSpec, PreparedSpec, plan_builder, plan_prepared
from .steps import Creation, OtherGone, Prepared

_NAMESPACES: Final = (
    CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_NEWTIME
)
#: A LaunchSpec, or what the zygote is sent: names, numbers and two paths.
MAX_ORDER_BYTES: Final = 64 * 1024
#: What a builder and its pid 1 are called until it serves; those that there are for long are the prepared sandbox that
#: is held.
NAME: Final = "sandboxd-create"
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
    ("mount-layers", "ENOENT"): "the rootfs was removed in the meantime",
    ("attach-mounts", "ELOOP"): "/proc, /sys or /dev of the rootfs is a link; it must be a directory",
    ("write-identity", "ELOOP"): "a file in /etc of the rootfs that sandboxd writes is a link",
    ("clone", "ENOSPC"): "a namespace limit is reached; see /proc/sys/user",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Deps:
    """What every creation of a zygote has: the compiled seccomp profiles by name, and init's main function."""

    filters: dict[str, list[bytes]]
    serve: Callable[[int, int], None]


class Fds(NamedTuple):
    """The descriptors that a creation needs, as they are sent to the zygote."""

    listener: int
    builder_cgroup: int
    init_cgroup: int
    status: int
    orders: int
    disk_userns: int
    cgroup_ns: int = -1  # the last one, which a host without controllers has no need of


def listen(sockets_dir: str, sandbox_id: str, owner: tuple[int, int]) -> socket.socket:
    """Return a listening socket at `<sockets_dir>/<id>.sock` that only `owner` (uid, gid) may connect to.

    Bound by a relative name, since sun_path holds 107 bytes and a state directory may be deep.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        old = os.umask(0o177)
        try:
            os.chdir(sockets_dir)
            listener.bind(f"{sandbox_id}.sock")
            os.chown(f"{sandbox_id}.sock", *owner)
        finally:
            os.umask(old)
            os.fchdir(here)
            os.close(here)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise SyscallError(error.errno or 0, "bind", f"{sockets_dir}/{sandbox_id}.sock") from None
    return listener


def spawn(kernel: Kernel, fds: Fds, order: ChildRequest, deps: Deps) -> None:
    """Fork the builder, which forks pid 1, and tell its pid or why there is none. The children never return."""
    try:
        pid, pidfd = kernel.clone3(CLONE_PARENT, cgroup_fd=fds.builder_cgroup, exit_signal=0)
    except OSError as error:
        _tell_failure(fds.status, "clone", error)
        return
    if pid == 0:
        _build(kernel, fds, order, deps)
    os.close(pidfd)
    tell(fds.status, ["builder", pid])


def _build(kernel: Kernel, fds: Fds, order: ChildRequest, deps: Deps) -> None:
    """Be the builder. Nothing that could be left for later is done before pid 1 is forked: it inherits our pages."""
    step = "unshare"
    try:
        if fds.cgroup_ns < 0:
            kernel.unshare(_NAMESPACES)
        else:
            kernel.setns(fds.cgroup_ns, CLONE_NEWCGROUP)
            kernel.unshare(_NAMESPACES & ~CLONE_NEWCGROUP)
        prctl.set_name(NAME)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        step = "clone"
        pid, _ = kernel.clone3(CLONE_PARENT, cgroup_fd=fds.init_cgroup, exit_signal=0)
        if pid == 0:
            ours.close()
            _become_init(kernel, fds, order, theirs, deps)
        theirs.close()
        tell(fds.status, ["pid", pid])
        creation = Creation(init=ours, init_pid=pid, disk_userns=fds.disk_userns)
        timings: dict[str, float] = {}
        for item in plan_prepared(PreparedSpec.unpack(order.spec)):
            step = item.name
            began = time.perf_counter()
            item.run(kernel, creation)
            timings[step] = time.perf_counter() - began
        step = "wait"
        rest = _await_order(fds.orders)
        for item in plan_builder(rest):
            step = item.name
            began = time.perf_counter()
            item.run(kernel, creation)
            timings[step] = time.perf_counter() - began
        tell(fds.status, ["built", creation.devices, timings])
        step = "hand-over"
        socket.send_fds(ours, [b"b"], [creation.root, creation.cgroup])
        os._exit(0)
    except (OtherGone, BrokenPipeError):
        os._exit(1)  # pid 1 has told why, or was killed
    except Exception as error:
        _tell_failure(fds.status, step, error)
    finally:
        os._exit(1)


def _await_order(orders: int) -> LaunchSpec:
    packed = os.read(orders, MAX_ORDER_BYTES)
    if not packed:
        raise OtherGone  # nobody wants us any more
    return LaunchSpec.unpack(packed)


def _become_init(kernel: Kernel, fds: Fds, order: ChildRequest, builder: socket.socket, deps: Deps) -> None:
    """Be pid 1: run the steps, say so, and serve for ever."""
    step = "start"
    timings: dict[str, float] = {}
    cgroup = -1
    try:
        prepared = Prepared(
            builder=builder,
            range_base=order.range_base,
            processes=order.processes,
            filters=deps.filters[order.seccomp],
            keep={fds.status, fds.listener},
        )
        for item in INIT_PLAN:
            step = item.name
            began = time.perf_counter()
            item.run(kernel, prepared)
            timings[step] = time.perf_counter() - began
        cgroup = prepared.cgroup
        tell(fds.status, ["ready", timings])
        os.close(fds.status)
    except OtherGone:
        os._exit(1)  # it has told why, or was killed
    except Exception as error:
        _tell_failure(fds.status, step, error)
        os._exit(1)
    try:
        deps.serve(fds.listener, cgroup)
    finally:
        os._exit(1)


def tell(fd: int, message: list[Any]) -> None:
    """Write one message to the status pipe; below PIPE_BUF, so messages of several processes never mix."""
    os.write(fd, framing.encode(message, limit=framing.MAX_REPLY_FRAME))


def _tell_failure(fd: int, step: str, error: Exception) -> None:
    if isinstance(error, OSError):
        path = error.filename if isinstance(error.filename, str) else ""
        code = errno.errorcode.get(error.errno or 0, str(error.errno))
        tell(fd, ["failed", step, getattr(error, "syscall", ""), code, path])
    else:
        tell(fd, ["failed", step, "", f"{type(error).__name__}: {error}", ""])


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
    """Reads the status pipe of one creation without blocking."""

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
