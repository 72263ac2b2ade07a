"""The zygote: a process that does nothing but fork creations, so that the memory inits share stays shared.

A forked init shares every page with its parent until one of them writes to it. The launcher writes all the time (each
request changes reference counts all over its heap), and the unchanged copies of those pages would be left to the last
init alone. So creations are forked from a process that is idle in between and has loaded only what an init needs. It is
forked once, when the launcher starts, before the launcher loads the rest of itself.

One message requests a creation (`plan.ChildRequest`, with the descriptors of `create_child.Fds`); everything about that
creation is then reported over its own status pipe. When the launcher's end closes, the zygote ends. When the zygote
ends, so do the launcher and the daemon; the service manager restarts all of them, and sandboxes keep running.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from typing import Final

import msgpack
import prctl

from ..guest.warm_up import warm_up
from ..linux.kernel import CLONE_NEWNS, MS_REC, MS_SLAVE, Kernel
from . import create_child
from .plan import ChildRequest

_FDS: Final = len(create_child.Fds._fields)


class Zygote:
    """The launcher's handle of it. `pidfd` is readable once it has ended.

    `hosts_mounts` is a descriptor of the mount namespace that the launcher was started in, and has left.
    """

    def __init__(self, kernel: Kernel, deps: create_child.Deps) -> None:
        self.hosts_mounts = kernel.open("/proc/self/ns/mnt", os.O_RDONLY)
        leave_the_hosts_mounts(kernel)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid, self.pidfd = kernel.clone3(0)
        if pid == 0:
            try:
                # The one connection, and 0, 1 and 2; the launcher's own must not be held open by us.
                kernel.close_range(3, theirs.fileno() - 1)
                kernel.close_range(theirs.fileno() + 1, 2**32 - 1)
                _serve_launcher(kernel, theirs, deps)
            finally:
                os._exit(1)
        theirs.close()

    def close(self) -> None:
        """Let it end."""
        self._socket.close()
        os.close(self.pidfd)

    def fork(self, order: bytes, fds: create_child.Fds) -> None:
        """Have a creation forked; `fds` stay the caller's.

        Raises:
            OSError: the zygote is gone.
        """
        socket.send_fds(self._socket, [order], [fd for fd in fds if fd >= 0])


def leave_the_hosts_mounts(kernel: Kernel) -> None:
    """Take a mount namespace of our own, in which the launcher mounts the pool for itself and for creations.

    A slave of the host's, not private: what the host mounts or unmounts later is to be seen here too.
    """
    kernel.unshare(CLONE_NEWNS)
    kernel.mount("none", "/", None, MS_REC | MS_SLAVE)


def _serve_launcher(kernel: Kernel, connection: socket.socket, deps: create_child.Deps) -> None:
    prctl.set_proctitle("sandboxd: zygote")
    prctl.set_name("sandboxd-zygote")
    os.setsid()  # a terminal's Ctrl-C is the daemon's business
    # The defaults, so that no init and no command has to reset them: a pid namespace's init gets no signal that it
    # has not asked for, SIGPIPE of its own writes included (kernel/signal.c, SIGNAL_UNKILLABLE).
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, _ignore)
    warm_up()
    gc.collect()
    gc.freeze()  # a child's collector then leaves the pages that it shares with us alone
    while True:
        message, fds, _, _ = socket.recv_fds(connection, create_child.MAX_ORDER_BYTES, _FDS)
        if not message:
            os._exit(0)
        create_child.spawn(kernel, create_child.Fds(*fds), ChildRequest(*msgpack.unpackb(message)), deps)
        for fd in fds:
            os.close(fd)


def _ignore(number: int, frame: object) -> None:
    """Init's wake-up pipe does the work."""
