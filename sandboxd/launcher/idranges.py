"""Disjoint ranges of 65,536 ids, and the user namespaces that map them.

Every running sandbox has a range of host ids that nothing else has, so that a process that got out would be
nobody, and so that kernel counters kept per user (inotify, mqueues, pipes, keys) are its own. Ranges come from
ids that systemd's UIDS-GIDS.md leaves unused (0x70000000 up); the constant range that owns the files on disk
lies above them and is never handed out.

A claim is a file in a host-wide directory, so that daemons with other state directories take other ranges. It
names what proves it alive: the launcher that holds it (pid and start time), or a populated cgroup. A claim whose
proofs are gone may be taken over, so whoever gives one back looks first whether it is still the same; a launcher
that starts takes over the claims of the sandboxes it found, and removes what a crash left.

Two user namespaces belong to a range. `sandbox` maps 0.. to it and is both the sandbox's own namespace and the
map of its rootfs; its owner is the range's first id, so its kernel counters are charged there; no further user
namespace can be made in it. `disk` maps the constant on-disk range to it. Making one costs a fork, so the launcher
keeps one range prepared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import random
import resource
import socket
from collections.abc import Iterator
from typing import Any, Final

import msgpack

from ..errors import LimitExceeded
from ..linux import cgroupfs, procfs
from ..linux.kernel import CLONE_NEWUSER, SECBIT_NO_SETUID_FIXUP, Kernel, SyscallError
from ..spec import ID_RANGE_WIDTH, MAX_PIDS

FIRST_ID: Final = 0x70000000  # 1,879,048,192
#: Owner on disk of what a sandbox's root writes; nobody's id on the host. The ranges end below it.
DISK_FIRST_ID: Final = 2_000_000_000
RANGES: Final = (DISK_FIRST_ID - FIRST_ID) // ID_RANGE_WIDTH
CLAIMS_DIR: Final = "/run/sandboxd-ids"
#: What all users of one sandbox may have together. The kernel takes a user namespace's ceilings from the rlimits of
#: whoever makes it (kernel/user_namespace.c, set_userns_rlimit_max) and counts every id of it against them: a root
#: that spreads a fork bomb over its 65,536 users meets NPROC even where no pids controller is. Bytes of locked
#: memory and of message queues are the kernel's own defaults; signals are enough for what a shell and a test runner
#: leave pending.
NAMESPACE_RLIMITS: Final = (("MEMLOCK", 8 << 20), ("SIGPENDING", 4096), ("MSGQUEUE", 819_200))
NAMESPACE_PROCESSES: Final = MAX_PIDS + 16


@dataclasses.dataclass(slots=True)
class IdRange:
    """A claimed range; owns its claim and its two namespace descriptors until `close`."""

    index: int
    sandbox_userns: int
    disk_userns: int

    @property
    def base(self) -> int:
        """The host id of the sandbox's root."""
        return base_of(self.index)

    def close_namespaces(self) -> None:
        """Close the descriptors; the sandbox keeps its namespaces by living in them."""
        for name in ("sandbox_userns", "disk_userns"):
            fd = getattr(self, name)
            if fd >= 0:
                setattr(self, name, -1)
                os.close(fd)


@dataclasses.dataclass(frozen=True, slots=True)
class _Holder:
    """A short child that keeps a user namespace until its parent has taken it."""

    pid: int
    connection: socket.socket


def base_of(index: int) -> int:
    """Return the first host id of range `index`."""
    return FIRST_ID + index * ID_RANGE_WIDTH


def set_rlimit(name: str, value: int) -> None:
    """Set a soft and hard rlimit; what a container denies to its root (no CAP_SYS_RESOURCE) stays lower."""
    number = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(number)[1]
    try:
        resource.setrlimit(number, (value, value))
    except (ValueError, OSError):
        resource.setrlimit(number, (min(value, hard), hard))


class RangeAllocator:
    """Hands out ranges; one is kept prepared when `prepare` is called between requests."""

    def __init__(self, kernel: Kernel, claims_dir: str = CLAIMS_DIR) -> None:
        self._kernel = kernel
        self._dir = claims_dir
        self._prepared: list[IdRange] = []
        os.makedirs(claims_dir, mode=0o700, exist_ok=True)
        self._identity = [os.getpid(), procfs.start_time(os.getpid())]

    def prepare(self) -> None:
        """Have one range ready for the next `take`."""
        if not self._prepared:
            self._prepared.append(self._make())

    def take(self) -> IdRange:
        """Return a claimed range with its namespaces.

        Raises:
            LimitExceeded: every range is taken.
            SyscallError: the kernel refused a namespace.
        """
        return self._prepared.pop() if self._prepared else self._make()

    def bind(self, range_: IdRange, cgroup: str) -> None:
        """Let the claim live as long as `cgroup` is populated, beyond this launcher."""
        with self._locked():
            self._write(range_.index, cgroup)

    def adopt(self, index: int, cgroup: str) -> None:
        """Make an earlier launcher's claim ours: it then outlives its sandbox's init, until `release`."""
        with self._locked():
            self._write(index, cgroup)

    def release(self, index: int, cgroup: str = "") -> None:
        """Give back a range that `cgroup` has (none: that is only prepared); not one that another took over."""
        with self._locked():
            claim = self._read(index)
            if claim and (claim[2] == cgroup or (claim[:2] == self._identity and not claim[2])):
                os.unlink(f"{self._dir}/{index}")

    def sweep(self) -> None:
        """Remove the claims of every launcher and sandbox that are gone."""
        with self._locked():
            for name in os.listdir(self._dir):
                index = name.removeprefix(".").partition(".")[0]
                if not index.isdigit():
                    continue
                # What begins with a dot is half a claim: with the lock held nobody is writing one.
                if name.startswith(".") or self._is_free(int(index)):
                    os.unlink(f"{self._dir}/{name}")

    def close(self) -> None:
        """Release what is prepared."""
        while self._prepared:
            range_ = self._prepared.pop()
            range_.close_namespaces()
            self.release(range_.index)

    # --- claims ---

    def _make(self) -> IdRange:
        index = self._claim()
        try:
            return IdRange(index, *self._make_namespaces(base_of(index)))
        except OSError:
            self.release(index)
            raise

    def _claim(self) -> int:
        with self._locked():
            start = random.randrange(RANGES)  # noqa: S311 - spreads the search, nothing secret
            for offset in range(RANGES):
                index = (start + offset) % RANGES
                if self._is_free(index):
                    self._write(index, "")
                    return index
        raise LimitExceeded(f"cannot give a range of ids: all {RANGES} are in use", ranges=RANGES)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(self._dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _read(self, index: int) -> list[Any] | None:
        """Return a claim: pid, start time, cgroup; None where there is none, or one that a crash of the host tore."""
        try:
            with open(f"{self._dir}/{index}", "rb") as file:
                claim = msgpack.unpackb(file.read())
        except (FileNotFoundError, ValueError):
            return None
        return claim if isinstance(claim, list) and len(claim) == 3 else None

    def _is_free(self, index: int) -> bool:
        claim = self._read(index)
        if claim is None:
            return True
        pid, started, cgroup = claim
        return procfs.start_time(pid) != started and not (cgroup and cgroupfs.is_populated(cgroup))

    def _write(self, index: int, cgroup: str) -> None:
        temporary = f"{self._dir}/.{index}.{os.getpid()}"
        with open(temporary, "wb") as file:
            file.write(msgpack.packb([*self._identity, cgroup]))
        os.rename(temporary, f"{self._dir}/{index}")

    # --- namespaces ---

    def _make_namespaces(self, base: int) -> list[int]:
        """Return the two namespaces of the range at `base`; their short children work side by side."""
        holders: list[_Holder] = []
        made: list[int] = []
        try:
            for owner in (base, 0):
                holders.append(self._start_holder(owner))
            for holder, inside in zip(holders, (0, DISK_FIRST_ID), strict=True):
                made.append(self._map_userns(holder, f"{inside} {base} {ID_RANGE_WIDTH}".encode()))
        except OSError:
            for fd in made:
                os.close(fd)
            raise
        finally:
            # All, then wait: a later child has a copy of an earlier one's connection.
            for holder in holders:
                holder.connection.close()
            for holder in holders:
                os.waitpid(holder.pid, 0)
        return made

    def _start_holder(self, owner: int) -> _Holder:
        """Fork a child that makes a user namespace as host id `owner`."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                pid, pidfd = self._kernel.clone3(0)
            except OSError:
                ours.close()
                raise
            if pid == 0:
                ours.close()
                self._hold_userns(owner, theirs)
            os.close(pidfd)
        return _Holder(pid, ours)

    def _map_userns(self, holder: _Holder, mapping: bytes) -> int:
        """Wait until the child has its namespace, map it, and take it."""
        answer = holder.connection.recv(64)
        if answer != b"ok":
            number, _, call = answer.partition(b" ")
            raise SyscallError(int(number or b"5"), call.decode() or "unshare", "a user namespace")
        for name in ("uid_map", "gid_map"):
            fd = self._kernel.open(f"/proc/{holder.pid}/{name}", os.O_WRONLY)
            try:
                self._kernel.write(fd, mapping)
            finally:
                os.close(fd)
        return self._kernel.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY)

    def _hold_userns(self, owner: int, parent: socket.socket) -> None:
        """Be a short child that makes the namespace and keeps it until its parent has taken it."""
        try:
            if owner:
                for name, value in (*NAMESPACE_RLIMITS, ("NPROC", NAMESPACE_PROCESSES)):
                    set_rlimit(name, value)
                self._kernel.set_securebits(SECBIT_NO_SETUID_FIXUP)
                self._kernel.setresids(owner, owner)
            self._kernel.unshare(CLONE_NEWUSER)
            # The number belongs to the namespace of who opens the file (kernel/ucount.c, set_lookup).
            fd = self._kernel.open("/proc/sys/user/max_user_namespaces", os.O_WRONLY)
            self._kernel.write(fd, b"0")
            parent.send(b"ok")
            parent.recv(1)
            os._exit(0)
        except OSError as error:
            parent.send(f"{error.errno} {getattr(error, 'syscall', '')}".encode())
        finally:
            os._exit(1)
