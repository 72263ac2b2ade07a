"""Disjoint ranges of 65,536 ids, and the user namespaces that map them.

Every running sandbox has a range of host ids that nothing else has, so that a process that got out would be
nobody, and so that kernel counters kept per user (inotify, mqueues, pipes, keys) are its own. Ranges come from
ids that systemd's UIDS-GIDS.md leaves unused (0x70000000 up); the constant range that owns the files on disk
lies above them and is never handed out.

A claim is a file in a host-wide directory, so that daemons with other state directories take other ranges. It
names what proves it alive: the launcher that holds it (pid and start time), or a populated cgroup. A claim whose
proofs are gone may be taken over, so whoever gives one back looks first whether it is still the same; a launcher
that starts takes over the claims of the sandboxes it found, and removes what a crash left.

Two user namespaces belong to a range. The sandbox's own maps 0.. to it and is the map of its rootfs too; pid 1 makes it
at its creation, as the range's first id, so its kernel counters are charged there. The other one maps the constant
on-disk range to it; nothing ever runs in it, so the map of a range that is given back is kept for the next sandbox that
takes it. Making one costs a fork, so the launcher keeps one range prepared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import resource
import socket
from collections.abc import Iterator
from typing import Any, Final

import msgpack

from ..errors import LimitExceeded
from ..linux import cgroupfs, procfs
from ..linux.kernel import CLONE_NEWUSER, Kernel, SyscallError
from ..spec import ID_RANGE_WIDTH

FIRST_ID: Final = 0x70000000  # 1,879,048,192
#: Owner on disk of what a sandbox's root writes; nobody's id on the host. The ranges end below it.
DISK_FIRST_ID: Final = 2_000_000_000
RANGES: Final = (DISK_FIRST_ID - FIRST_ID) // ID_RANGE_WIDTH
#: Maps of ranges kept open; each is one descriptor and some 0.5 KiB of the kernel's.
MAX_MAPS: Final = 256
CLAIMS_DIR: Final = "/run/sandboxd-ids"
#: What all users of one sandbox may have together. The kernel takes a user namespace's ceilings from the rlimits of
#: whoever makes it (kernel/user_namespace.c, set_userns_rlimit_max) and counts every id of it against them: a root
#: that spreads a fork bomb over its 65,536 users meets NPROC even where no pids controller is. Bytes of locked
#: memory and of message queues are the kernel's own defaults; signals are enough for what a shell and a test runner
#: leave pending.
NAMESPACE_RLIMITS: Final = (("MEMLOCK", 8 << 20), ("SIGPENDING", 4096), ("MSGQUEUE", 819_200))
#: init and its helpers, above the processes that a sandbox may have.
NAMESPACE_SPARE_PROCESSES: Final = 16


@dataclasses.dataclass(slots=True)
class IdRange:
    """A claimed range; `disk_userns`, its map, is the allocator's and is there until the next `take`."""

    index: int
    disk_userns: int

    @property
    def base(self) -> int:
        """The host id of the sandbox's root."""
        return base_of(self.index)


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
        self._maps: dict[int, int] = {}  # range -> descriptor, the longest unused first
        os.makedirs(claims_dir, mode=0o700, exist_ok=True)
        self._identity = [os.getpid(), procfs.start_time(os.getpid())]

    def prepare(self) -> None:
        """Have one range ready for the next `take`."""
        if not self._prepared:
            self._prepared.append(self._make())

    def rest(self) -> None:
        """Keep the maps of what is prepared only: a burst of sandboxes is over."""
        kept = {range_.index for range_ in self._prepared}
        for index in [index for index in self._maps if index not in kept]:
            os.close(self._maps.pop(index))

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

    def take_over(self, index: int, cgroup: str) -> None:
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
        """Release what is prepared, and the maps."""
        while self._prepared:
            self.release(self._prepared.pop().index)
        while self._maps:
            os.close(self._maps.popitem()[1])

    # --- claims ---

    def _make(self) -> IdRange:
        index = self._claim()
        try:
            disk_userns = self._maps.pop(index, None) or self._make_map(base_of(index))
        except OSError:
            self.release(index)
            raise
        self._maps[index] = disk_userns
        if len(self._maps) > MAX_MAPS:
            os.close(self._maps.pop(next(iter(self._maps))))
        return IdRange(index, disk_userns)

    def _claim(self) -> int:
        with self._locked():
            start = int.from_bytes(os.urandom(4)) % RANGES  # spreads the search
            for index in (*self._maps, *((start + offset) % RANGES for offset in range(RANGES))):
                if self._is_free(index):
                    self._write(index, "")
                    return index
        raise LimitExceeded(f"cannot allocate a range of ids: all {RANGES} are in use", ranges=RANGES)

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

    def _make_map(self, base: int) -> int:
        """Return a user namespace that maps the on-disk ids to the range at `base`."""
        ours, theirs = socket.socketpair()
        pid = 0
        try:
            with theirs:
                pid, pidfd = self._kernel.clone3(0)
                if pid == 0:
                    ours.close()
                    self._hold_userns(theirs)
            os.close(pidfd)
            answer = ours.recv(64)
            if answer != b"ok":
                raise SyscallError(int(answer or b"5"), "unshare", "CLONE_NEWUSER")
            write_maps(self._kernel, pid, DISK_FIRST_ID, base)
            return self._kernel.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
        finally:
            ours.close()
            if pid:
                os.waitpid(pid, 0)

    def _hold_userns(self, parent: socket.socket) -> None:
        """Be a short child that makes a namespace and keeps it until its parent has taken it."""
        try:
            self._kernel.unshare(CLONE_NEWUSER)
            parent.send(b"ok")
            parent.recv(1)
            os._exit(0)
        except OSError as error:
            parent.send(str(error.errno).encode())
        finally:
            os._exit(1)


def write_maps(kernel: Kernel, pid: int, inside: int, outside: int) -> None:
    """Map the ids from `inside` on in the user namespace of process `pid` to the host's from `outside` on.

    Raises:
        SyscallError: the kernel refused.
    """
    for name in ("uid_map", "gid_map"):
        fd = kernel.open(f"/proc/{pid}/{name}", os.O_WRONLY)
        try:
            kernel.write(fd, f"{inside} {outside} {ID_RANGE_WIDTH}".encode())
        finally:
            os.close(fd)
