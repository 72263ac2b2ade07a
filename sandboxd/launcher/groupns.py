"""A cgroup namespace made in advance, so that a sandbox is limited before any of its processes run.

The kernel roots a new cgroup namespace at the group of the process that makes it, so some process must be in `<id>`.
But a group with processes cannot pass controllers on, and passing them on once pid 1 is in `<id>/init` moves it between
the controllers' groups, which waits for an RCU grace period with the lock that each command's leaf needs (16 ms against
3 ms, measured). So a short-lived child is created in `<id>`, makes the namespace, and ends once the launcher has a
descriptor of it. The launcher then sets controllers and limits while the tree is empty; the builder and pid 1 are
created in `<id>/init` and join the namespace. On hosts without controllers, all this would only cost a fork; there, the
builder is created in `<id>`.
"""

from __future__ import annotations

import os
import socket

from ..linux.kernel import CLONE_NEWCGROUP, Kernel, SyscallError


def make(kernel: Kernel, group: str) -> int:
    """Return a descriptor of a cgroup namespace whose root is `group`.

    Raises:
        SyscallError: the kernel refused it.
    """
    ours, theirs = socket.socketpair()
    pid = 0
    try:
        top = kernel.open(group, os.O_RDONLY | os.O_DIRECTORY)
        try:
            pid, pidfd = kernel.clone3(0, cgroup_fd=top)
        finally:
            os.close(top)
        if pid == 0:
            ours.close()
            _hold(kernel, theirs)
        os.close(pidfd)
        theirs.close()
        answer = ours.recv(16)
        if answer != b"ok":
            raise SyscallError(int(answer or b"5"), "unshare", "a cgroup namespace")
        return kernel.open(f"/proc/{pid}/ns/cgroup", os.O_RDONLY)
    finally:
        theirs.close()
        ours.close()  # lets the child end
        if pid:
            os.waitpid(pid, 0)


def _hold(kernel: Kernel, parent: socket.socket) -> None:
    try:
        kernel.unshare(CLONE_NEWCGROUP)
        parent.sendall(b"ok")
        parent.recv(1)
    except OSError as error:
        parent.sendall(str(error.errno).encode())
    finally:
        os._exit(0)
