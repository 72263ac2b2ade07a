"""Steps that take away: names, identities, capabilities, system calls, descriptors."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import socket
from typing import Final

from ..linux import netns
from ..linux.kernel import CLONE_NEWUSER, SECBIT_NO_SETUID_FIXUP, Kernel, SyscallError
from ..spec import ID_RANGE_WIDTH
from .idranges import NAMESPACE_RLIMITS, NAMESPACE_SPARE_PROCESSES, set_rlimit, write_maps
from .steps import Creation, Named, OtherGone, Prepared, write_proc

MAX_OPEN_FILES: Final = 1_048_576
#: No core dumps: 1 is the one value with which the kernel starts no piped core_pattern either (that program is the
#: host's, run as root on what the sandbox chose; fs/coredump.c), and less than a dump to a file needs; the profiles
#: keep it at that. No real-time priority and no negative nice, whatever the launcher was started with; of the rest
#: each user may have what the user namespace may have.
FIXED_RLIMITS: Final = (("CORE", 1), ("RTPRIO", 0), ("NICE", 0), *NAMESPACE_RLIMITS)


@dataclasses.dataclass(frozen=True, slots=True)
class PrepareProcess(Named):
    """A session and a keyring that nobody outside shares."""

    def describe(self) -> str:
        """Say what it does."""
        return "new session, new session keyring, umask 022"

    def run(self, kernel: Kernel, prepared: Prepared) -> None:
        """Do it."""
        os.setsid()
        os.umask(0o022)
        kernel.join_session_keyring()


@dataclasses.dataclass(frozen=True, slots=True)
class AdjustOomScore(Named):
    """The launcher may be protected from the OOM killer; a sandbox is not."""

    def describe(self) -> str:
        """Say what it does."""
        return "oom_score_adj of pid 1 to 0"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        fd = kernel.open(f"/proc/{creation.init_pid}/oom_score_adj", os.O_WRONLY)
        try:
            kernel.write(fd, b"0")
        finally:
            os.close(fd)


@dataclasses.dataclass(frozen=True, slots=True)
class ConfigureNetwork(Named):
    """The loopback, two rights that come from a network namespace which is the host's, and what a socket may hold."""

    first_gid: int
    tcp_rmem: str
    tcp_wmem: str

    def describe(self) -> str:
        """Say what it does."""
        last = self.first_gid + ID_RANGE_WIDTH - 1
        sizes = f"tcp_rmem {self.tcp_rmem}, tcp_wmem {self.tcp_wmem}"
        return f"lo up, ip_unprivileged_port_start 0, ping_group_range {self.first_gid} {last}, {sizes}"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        try:
            netns.bring_loopback_up()
        except OSError as error:
            raise SyscallError(error.errno or 0, "ioctl", "SIOCSIFFLAGS lo") from None
        last = self.first_gid + ID_RANGE_WIDTH - 1
        for name, value in (
            ("ip_unprivileged_port_start", "0"),
            ("ping_group_range", f"{self.first_gid} {last}"),
            ("tcp_rmem", self.tcp_rmem),
            ("tcp_wmem", self.tcp_wmem),
        ):
            write_proc(kernel, creation.proc_writable, f"sys/net/ipv4/{name}", value)
        with contextlib.suppress(FileNotFoundError):  # before Linux 6.19
            write_proc(kernel, creation.proc_writable, "sys/net/core/bypass_prot_mem", "1")


@dataclasses.dataclass(frozen=True, slots=True)
class NameHost(Named):
    """The UTS namespace's names."""

    hostname: str

    def describe(self) -> str:
        """Say what it does."""
        return f"host name {self.hostname}"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        kernel.sethostname(self.hostname)


@dataclasses.dataclass(frozen=True, slots=True)
class MakeUserNamespace(Named):
    """A user namespace owned by the sandbox's own first id, with ceilings of its own and none below it."""

    def describe(self) -> str:
        """Say what it does."""
        return "become the range's first host id, make a user namespace; no further user namespaces"

    def run(self, kernel: Kernel, prepared: Prepared) -> None:
        """Do it."""
        for name, value in (*NAMESPACE_RLIMITS, ("NPROC", prepared.processes + NAMESPACE_SPARE_PROCESSES)):
            set_rlimit(name, value)
        kernel.set_securebits(SECBIT_NO_SETUID_FIXUP)
        kernel.setresids(prepared.range_base, prepared.range_base)
        kernel.unshare(CLONE_NEWUSER)
        # The number belongs to the namespace of who opens the file (kernel/ucount.c, set_lookup). This is the host's
        # own /proc still: the builder goes on to change what we see only when it is called.
        fd = kernel.open("/proc/sys/user/max_user_namespaces", os.O_WRONLY)
        try:
            kernel.write(fd, b"0")
        finally:
            os.close(fd)


@dataclasses.dataclass(frozen=True, slots=True)
class CallBuilder(Named):
    """Hand over the proc that only we could make, and say that there is a user namespace to map."""

    def describe(self) -> str:
        """Say what it does."""
        return "hand the builder proc"

    def run(self, kernel: Kernel, prepared: Prepared) -> None:
        """Do it."""
        try:
            socket.send_fds(prepared.builder, [b"p"], [prepared.proc])
        except BrokenPipeError:
            raise OtherGone from None


@dataclasses.dataclass(frozen=True, slots=True)
class MapIds(Named):
    """Wait for pid 1's call; map its user namespace, which is the map of the rootfs too."""

    first_id: int

    def describe(self) -> str:
        """Say what it does."""
        return f"map 0 to {self.first_id} in pid 1's user namespace"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        _, received, _, _ = socket.recv_fds(creation.init, 1, 1)
        if not received:
            raise OtherGone
        creation.proc = received[0]
        write_maps(kernel, creation.init_pid, 0, self.first_id)
        creation.sandbox_userns = kernel.open(f"/proc/{creation.init_pid}/ns/user", os.O_RDONLY)


@dataclasses.dataclass(frozen=True, slots=True)
class BecomeRoot(Named):
    """Become the sandbox's root, now that its ids are mapped."""

    def describe(self) -> str:
        """Say what it does."""
        return "become 0 in the user namespace"

    def run(self, kernel: Kernel, prepared: Prepared) -> None:
        """Do it."""
        kernel.setresids(0, 0)


@dataclasses.dataclass(frozen=True, slots=True)
class LimitResources(Named):
    """rlimits: what cgroups do not bound."""

    def describe(self) -> str:
        """Say what it does."""
        return f"rlimits: nproc the sandbox's, {', '.join(f'{name} {value}' for name, value in FIXED_RLIMITS)}"

    def run(self, kernel: Kernel, prepared: Prepared) -> None:
        """Do it."""
        hard = min(MAX_OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
        for name, value in (*FIXED_RLIMITS, ("NPROC", prepared.processes)):
            set_rlimit(name, value)


@dataclasses.dataclass(frozen=True, slots=True)
class DropPrivileges(Named):
    """Nothing of the launcher's power is left, for init and for all that it starts."""

    keep: int

    def describe(self) -> str:
        """Say what it does."""
        return f"securebits 0, bounding set and capabilities cut to {self.keep:#x}, not dumpable, no_new_privs"

    def run(self, kernel: Kernel, prepared: Prepared) -> None:
        """Do it."""
        kernel.set_securebits(0)
        kernel.cut_bounding_set(self.keep)
        kernel.capset(self.keep, self.keep, 0)
        kernel.forbid_dump()
        kernel.set_no_new_privs()


@dataclasses.dataclass(frozen=True, slots=True)
class ApplySeccomp(Named):
    """The profile's filters."""

    def describe(self) -> str:
        """Say what it does."""
        return "the seccomp profile's filters"

    def run(self, kernel: Kernel, prepared: Prepared) -> None:
        """Do it."""
        for program in prepared.filters:
            kernel.seccomp(program)


@dataclasses.dataclass(frozen=True, slots=True)
class CloseDescriptors(Named):
    """No exec happens, so close-on-exec does nothing: everything that init does not need is closed here."""

    def describe(self) -> str:
        """Say what it does."""
        return "close every descriptor but init's own"

    def run(self, kernel: Kernel, prepared: Prepared) -> None:
        """Do it."""
        first = 3
        for fd in sorted(prepared.keep):
            if fd > first:
                kernel.close_range(first, fd - 1)
            first = fd + 1
        kernel.close_range(first, 2**32 - 1)
