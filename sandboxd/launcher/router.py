"""The router: a network namespace that every sandbox's veth ends in, and that outlives whoever made it.

It is nobody's network but ours, so its rules may drop whatever they do not name, and what is done to the rules of the
host's own network (`nft flush ruleset`, a firewall that is restarted) does not reach them. It is kept as `ip netns`
keeps one, by a file of the runtime directory that it is mounted on, among the host's mounts: the veths of sandboxes
that run, and the rules for them, stay when the daemon, the launcher and its processes end, whichever way. The mount
goes with the last sandbox that has a network.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from typing import Final

from ..linux.kernel import CLONE_NEWNET, CLONE_NEWNS, MNT_DETACH, MS_BIND, Kernel, SyscallError

_NETLINK_NETFILTER: Final = 12
_NS_GET_NSTYPE: Final = 0xB703  # include/uapi/linux/nsfs.h
_SWITCHES: Final = ("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding")


class Router:
    """Makes, finds and keeps the namespace.

    `namespace` is a descriptor of it, or -1; `is_kept` says whether it outlives that.
    """

    def __init__(self, kernel: Kernel, path: str, mounts: int) -> None:
        """Keep it at `path`, in the mount namespace behind the descriptor `mounts`."""
        self._kernel = kernel
        self._path = path
        self._mounts = mounts
        self._own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.is_kept = False
        self.namespace = -1

    @property
    def exists(self) -> bool:
        """Whether there is one, or the file of one that is gone."""
        return os.path.lexists(self._path)

    def open(self) -> int:
        """Return a descriptor of it: an earlier launcher's, or a new one.

        Raises:
            OSError: the kernel refused one.
        """
        if self.namespace < 0:
            self.namespace = self._find()
            self.is_kept = self.namespace >= 0
        if self.namespace < 0:
            self.namespace = self._make()
        if not self.is_kept:
            self._keep()
        return self.namespace

    def sockets(self) -> list[int]:
        """Return descriptors of a socket of rtnetlink and one of netfilter that act in it."""
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        with self.entered(self.namespace):
            made = [
                socket.socket(socket.AF_NETLINK, kind, number) for number in (socket.NETLINK_ROUTE, _NETLINK_NETFILTER)
            ]
        return [one.detach() for one in made]

    def forward(self, on: bool) -> None:
        """Have it forward packets, which it must not before its rules are there."""
        with self.entered(self.namespace):
            for path in _SWITCHES:
                with contextlib.suppress(FileNotFoundError), open(path, "w") as file:  # a host without IPv6
                    file.write("1" if on else "0")

    def forget(self) -> None:
        """Let it go with the last descriptor of it: nothing is in it any more."""
        self.is_kept = False
        if self.exists:
            self._among_mounts(self._release)

    def close(self) -> None:
        """Let go of our descriptor."""
        if self.namespace >= 0:
            os.close(self.namespace)
            self.namespace = -1

    @contextlib.contextmanager
    def entered(self, namespace: int) -> Iterator[None]:
        """Be in a network namespace meanwhile.

        Raises:
            OSError: the kernel refused.
        """
        self._kernel.setns(namespace, CLONE_NEWNET)
        try:
            yield
        finally:
            try:
                self._kernel.setns(self._own, CLONE_NEWNET)
            except OSError:
                os.abort()  # all that we did next would be done there

    # --- its making and keeping ---

    def _find(self) -> int:
        """Return a descriptor of an earlier launcher's; -1 where there is none."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return -1
        with contextlib.suppress(OSError):
            if fcntl.ioctl(fd, _NS_GET_NSTYPE) == CLONE_NEWNET:
                return fd
        os.close(fd)  # a crash before the mount, or a host that was started anew
        return -1

    def _make(self) -> int:
        self._kernel.unshare(CLONE_NEWNET)
        try:
            made = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            try:
                self._kernel.setns(self._own, CLONE_NEWNET)
            except OSError:
                os.abort()
        self.namespace = made
        self.forward(False)
        return made

    def _keep(self) -> None:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        self._among_mounts(lambda: self._kernel.mount(f"/proc/self/fd/{self.namespace}", self._path, None, MS_BIND))
        self.is_kept = True

    def _release(self) -> None:
        with contextlib.suppress(OSError):
            self._kernel.umount2(self._path, MNT_DETACH)
        # That detaches it wherever else it was mounted: in copies of the host's mounts.
        os.unlink(self._path)

    def _among_mounts(self, act: Callable[[], None]) -> None:
        """Act in the host's mount namespace, by a child: ours is a copy of it, that nobody else sees."""
        pid, pidfd = self._kernel.clone3(0)
        if pid == 0:
            status = errno.EIO
            try:
                self._kernel.setns(self._mounts, CLONE_NEWNS)
                act()
                status = 0
            except OSError as error:
                status = error.errno or errno.EIO
            finally:
                os._exit(status)
        os.close(pidfd)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            raise SyscallError(abs(status), "mount", self._path)
