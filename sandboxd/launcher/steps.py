"""The steps of a birth, in the process that becomes init.

A step is a value with `describe()` (what a person reads in a failure or a plan) and `run(kernel, birth)`. `Birth`
is what steps hand to later ones. Every path inside the sandbox is resolved by `openat2` below the merged root
without following any link, so a rootfs whose /proc, /sys, /dev or /etc is a link is refused, never followed
(CVE-2019-19921, CVE-2025-52881); every mount is made detached and attached by descriptor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import resource
import stat
from typing import Final, Protocol

from ..linux import netns
from ..linux.kernel import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    OPEN_TREE_CLONE,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    SECBIT_NO_SETUID_FIXUP,
    CLONE_NEWUSER,
    Kernel,
    SyscallError,
)
from ..spec import ID_RANGE_WIDTH

_SAFE: Final = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
_STRICT: Final = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS

#: The overlay's own credentials, which act on the upper layer for everybody: enough for trusted xattrs, whiteouts
#: and copy-up; without CAP_SYS_RESOURCE, which would pass by disk quotas. CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH,
#: FOWNER, FSETID, SETUID, SETGID, SYS_ADMIN, MKNOD, SETFCAP.
_OVERLAY_CAPABILITIES: Final = sum(1 << number for number in (0, 1, 2, 3, 4, 6, 7, 21, 27, 31))

#: /proc entries that reach beyond the sandbox's namespaces: the directories are made read-only, the files empty.
PROC_READ_ONLY: Final = ("sys", "irq", "bus", "sysrq-trigger", "fs", "asound", "acpi", "scsi", "mtrr")
PROC_MASKED: Final = (
    "kcore",
    "keys",
    "key-users",
    "kallsyms",
    "config.gz",
    "timer_list",
    "sched_debug",
    "latency_stats",
    "partitions",
    "diskstats",
    "kmsg",
    "kpagecount",
    "kpageflags",
    "kpagecgroup",
    "vmallocinfo",
    "slabinfo",
    "interrupts",
    "iomem",
    "ioports",
    "modules",
)
SYS_MASKED: Final = ("firmware", "power", "kernel/security", "kernel/debug", "kernel/tracing", "devices/virtual/powercap")

#: Device nodes of our own: a bound host node would share flock, leases and inotify with the host (ATTACKS 46).
DEVICES: Final = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
DEV_LINKS: Final = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)


@dataclasses.dataclass(slots=True)
class Birth:
    """What the steps share; every descriptor here is the newborn's own copy.

    Attributes:
        sandbox_userns, disk_userns: the range's namespaces (idranges.py).
        filters: the compiled seccomp profile.
        keep: descriptors that init goes on with.
        root: the merged root, once mounted. cgroup: a writable cgroup2 mount whose root is the sandbox's group.
        proc: the sandbox's /proc; proc_writable: a detached copy of it without the read-only parts.
        empty: a detached, empty, read-only tmpfs. null: the sandbox's own /dev/null.
        devices: st_dev of the filesystems whose files may leave as descriptors.
    """

    sandbox_userns: int
    disk_userns: int
    filters: list[bytes]
    keep: set[int]
    root: int = -1
    cgroup: int = -1
    proc: int = -1
    proc_writable: int = -1
    null: int = -1
    devices: list[int] = dataclasses.field(default_factory=list)


class Step(Protocol):
    """One act of a birth."""

    @property
    def name(self) -> str:
        """A kebab-case name."""
        ...

    def describe(self) -> str:
        """Say what it does, with its values."""
        ...

    def run(self, kernel: Kernel, birth: Birth) -> None:
        """Do it; raises `SyscallError`."""
        ...


class _Named:
    """Gives a step its name from its class: MountProc is mount-proc."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """A kebab-case name."""
        words = "".join(f"-{c.lower()}" if c.isupper() else c for c in type(self).__name__)
        return words.removeprefix("-")


@dataclasses.dataclass(frozen=True, slots=True)
class PrepareProcess(_Named):
    """A session, a keyring and an OOM score that nobody outside shares."""

    def describe(self) -> str:
        """Say what it does."""
        return "new session, new session keyring, oom_score_adj 0, umask 022"

    def run(self, kernel: Kernel, birth: Birth) -> None:  # noqa: ARG002
        """Do it."""
        os.setsid()
        os.umask(0o022)
        kernel.join_session_keyring()
        fd = kernel.open("/proc/self/oom_score_adj", os.O_WRONLY)
        try:
            kernel.write(fd, b"0")
        finally:
            os.close(fd)


@dataclasses.dataclass(frozen=True, slots=True)
class IsolateMounts(_Named):
    """A mount namespace that tells the host nothing, and a tmpfs to build the root on."""

    stage: str

    def describe(self) -> str:
        """Say what it does."""
        return f"make every mount private, mount a tmpfs at {self.stage}"

    def run(self, kernel: Kernel, birth: Birth) -> None:  # noqa: ARG002
        """Do it."""
        kernel.mount("none", "/", None, MS_REC | MS_PRIVATE)
        kernel.mount("stage", self.stage, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=16k,nr_inodes=8,mode=755")
        os.chdir(self.stage)
        for name in ("lower", "disk", "merged"):
            kernel.mkdir(name)


@dataclasses.dataclass(frozen=True, slots=True)
class MountLayers(_Named):
    """The rootfs and the sandbox's own files, both seen through the sandbox's ids."""

    tree: str
    disk: str

    def describe(self) -> str:
        """Say what it does."""
        return f"idmapped copies of {self.tree} (read-only) and {self.disk}"

    def run(self, kernel: Kernel, birth: Birth) -> None:
        """Do it."""
        for source, target, attributes, userns in (
            (self.tree, "lower", MOUNT_ATTR_RDONLY, birth.sandbox_userns),
            (self.disk, "disk", 0, birth.disk_userns),
        ):
            fd = kernel.open_tree(AT_FDCWD, source, OPEN_TREE_CLONE)
            kernel.mount_setattr(fd, attributes | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, userns_fd=userns)
            kernel.move_mount(fd, AT_FDCWD, target)
            os.close(fd)


@dataclasses.dataclass(frozen=True, slots=True)
class ActAsOwner(_Named):
    """Act on files as the sandbox's root, or an idmapped upper answers EOVERFLOW and the overlay turns read-only."""

    owner: int

    def describe(self) -> str:
        """Say what it does."""
        return f"fsuid and fsgid {self.owner}, capabilities kept"

    def run(self, kernel: Kernel, birth: Birth) -> None:  # noqa: ARG002
        """Do it."""
        kernel.set_securebits(SECBIT_NO_SETUID_FIXUP)
        kernel.setfsids(self.owner, self.owner)


@dataclasses.dataclass(frozen=True, slots=True)
class MountOverlay(_Named):
    """The merged root. Layer names are relative: the options are shown inside."""

    #: redirect_dir: else renaming a directory of the rootfs is EXDEV, which pip and npm do not expect.
    options: str = "lowerdir=lower,upperdir=disk/upper,workdir=disk/work,redirect_dir=on,index=off,metacopy=off"

    def describe(self) -> str:
        """Say what it does."""
        return f"overlay with {self.options}, its credentials cut to what the upper layer needs"

    def run(self, kernel: Kernel, birth: Birth) -> None:
        """Do it."""
        own = kernel.capget()
        kernel.capset(_OVERLAY_CAPABILITIES & own, own, 0)
        try:
            kernel.mount("overlay", "merged", "overlay", MS_NOSUID | MS_NODEV, self.options)
        finally:
            kernel.capset(own, own, 0)
        birth.root = kernel.open("merged", os.O_RDONLY | os.O_DIRECTORY)
        if os.fstatvfs(birth.root).f_flag & os.ST_RDONLY:
            raise SyscallError(errno.EROFS, "mount", "overlay (the kernel refused the upper layer: see its log)")
        birth.devices.append(os.fstat(birth.root).st_dev)


@dataclasses.dataclass(frozen=True, slots=True)
class MountProc(_Named):
    """/proc of the sandbox's pid namespace."""

    def describe(self) -> str:
        """Say what it does."""
        return "proc at /proc"

    def run(self, kernel: Kernel, birth: Birth) -> None:
        """Do it."""
        birth.proc = kernel.fsmount("proc", {}, _SAFE)
        birth.proc_writable = kernel.open_tree(birth.proc, "", OPEN_TREE_CLONE | AT_EMPTY_PATH)
        _attach(kernel, birth, birth.proc, "proc")


@dataclasses.dataclass(frozen=True, slots=True)
class MountSys(_Named):
    """/sys of the sandbox's network namespace, read-only, with the sandbox's own cgroup in it."""

    def describe(self) -> str:
        """Say what it does."""
        return f"sysfs at /sys, read-only; {', '.join(SYS_MASKED)} masked; cgroup2 at /sys/fs/cgroup, read-only"

    def run(self, kernel: Kernel, birth: Birth) -> None:
        """Do it."""
        sysfs = kernel.fsmount("sysfs", {}, _SAFE | MOUNT_ATTR_RDONLY)
        _attach(kernel, birth, sysfs, "sys")
        empty = kernel.fsmount("tmpfs", {"size": "4k", "mode": "0555"}, _SAFE | MOUNT_ATTR_RDONLY)
        for path in SYS_MASKED:
            _cover(kernel, sysfs, path, empty)
        birth.cgroup = kernel.fsmount("cgroup2", {}, _SAFE)
        birth.keep.add(birth.cgroup)
        view = kernel.open_tree(birth.cgroup, "", OPEN_TREE_CLONE | AT_EMPTY_PATH)
        kernel.mount_setattr(view, MOUNT_ATTR_RDONLY)
        with contextlib.suppress(FileNotFoundError):
            at = kernel.openat2(sysfs, "fs/cgroup", os.O_PATH | os.O_DIRECTORY, _STRICT)
            kernel.move_mount(view, at)
            os.close(at)
        for fd in (view, empty, sysfs):
            os.close(fd)


@dataclasses.dataclass(frozen=True, slots=True)
class MountDev(_Named):
    """/dev with nodes of our own, and a devpts, shm and mqueue of the sandbox's."""

    shm_bytes: int
    tty_gid: int

    def describe(self) -> str:
        """Say what it does."""
        names = ", ".join(name for name, _, _ in DEVICES)
        return f"tmpfs at /dev with {names}; devpts, shm ({self.shm_bytes} bytes) and mqueue of its own"

    def run(self, kernel: Kernel, birth: Birth) -> None:
        """Do it."""
        dev = kernel.fsmount("tmpfs", {"size": "64k", "nr_inodes": "64", "mode": "0755"}, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)
        _attach(kernel, birth, dev, "dev")
        old = os.umask(0)
        for name, major, minor in DEVICES:
            kernel.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dirfd=dev)
        os.umask(old)
        for name, target in DEV_LINKS:
            kernel.symlink(target, name, dirfd=dev)
        # A device node's descriptor for later masks, taken without opening the device.
        birth.null = kernel.open_tree(dev, "null", OPEN_TREE_CLONE)
        terminals = {"ptmxmode": "0666", "mode": "0620", "gid": str(self.tty_gid)}
        shm = {"mode": "1777", "size": str(self.shm_bytes)}
        for name, fstype, options, attributes in (
            ("pts", "devpts", terminals, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC),
            ("shm", "tmpfs", shm, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV),
            ("mqueue", "mqueue", {}, _SAFE),
        ):
            kernel.mkdir(name, dirfd=dev)
            fd = kernel.fsmount(fstype, options, attributes)
            kernel.move_mount(fd, dev, name)
            if name == "shm":
                birth.devices.append(os.fstat(fd).st_dev)
            os.close(fd)
        os.close(dev)


@dataclasses.dataclass(frozen=True, slots=True)
class WriteIdentity(_Named):
    """Files that tell a program who and where it is: written anew at each birth, never inherited from an image."""

    hostname: str
    machine_id: str

    def describe(self) -> str:
        """Say what it does."""
        return "write /etc/hostname, hosts, resolv.conf and machine-id; make /workspace and /tmp"

    def run(self, kernel: Kernel, birth: Birth) -> None:
        """Do it."""
        hosts = f"127.0.0.1 localhost {self.hostname}\n::1 localhost ip6-localhost ip6-loopback {self.hostname}\n"
        etc = _directory(kernel, birth, "etc", 0o755)
        for name, text in (
            ("hostname", f"{self.hostname}\n"),
            ("hosts", hosts),
            ("resolv.conf", ""),
            ("machine-id", f"{self.machine_id}\n"),
        ):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            # O_NONBLOCK: a FIFO that a rootfs left here must not hang the birth.
            fd = kernel.openat2(etc, name, flags | os.O_NONBLOCK, _STRICT, 0o644)
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise SyscallError(errno.EINVAL, "openat2", f"/etc/{name} (not a regular file)")
                if text:
                    kernel.write(fd, text.encode())
            finally:
                os.close(fd)
        os.close(etc)
        for name, mode in (("workspace", 0o755), ("tmp", 0o1777)):
            os.close(_directory(kernel, birth, name, mode))


@dataclasses.dataclass(frozen=True, slots=True)
class ConfigureNetwork(_Named):
    """The loopback, and two rights that come from a network namespace which is the host's, not the sandbox's."""

    first_gid: int

    def describe(self) -> str:
        """Say what it does."""
        last = self.first_gid + ID_RANGE_WIDTH - 1
        return f"lo up, ip_unprivileged_port_start 0, ping_group_range {self.first_gid} {last}"

    def run(self, kernel: Kernel, birth: Birth) -> None:
        """Do it."""
        try:
            netns.bring_loopback_up()
        except OSError as error:
            raise SyscallError(error.errno or 0, "ioctl", "SIOCSIFFLAGS lo") from None
        last = self.first_gid + ID_RANGE_WIDTH - 1
        for name, value in (("ip_unprivileged_port_start", "0"), ("ping_group_range", f"{self.first_gid} {last}")):
            _write_proc(kernel, birth.proc_writable, f"sys/net/ipv4/{name}", value)


@dataclasses.dataclass(frozen=True, slots=True)
class RestrictProc(_Named):
    """What of /proc is the host's is read-only or empty."""

    def describe(self) -> str:
        """Say what it does."""
        return f"/proc: {', '.join(PROC_READ_ONLY)} read-only; {', '.join(PROC_MASKED)} masked"

    def run(self, kernel: Kernel, birth: Birth) -> None:
        """Do it."""
        for path in PROC_READ_ONLY:
            with contextlib.suppress(FileNotFoundError):
                at = kernel.openat2(birth.proc, path, os.O_PATH, _STRICT)
                view = kernel.open_tree(at, "", OPEN_TREE_CLONE | AT_EMPTY_PATH)
                kernel.mount_setattr(view, MOUNT_ATTR_RDONLY | _SAFE)
                kernel.move_mount(view, at)
                os.close(view)
                os.close(at)
        kernel.mount_setattr(birth.null, MOUNT_ATTR_RDONLY)
        for path in PROC_MASKED:
            _cover(kernel, birth.proc, path, birth.null)


@dataclasses.dataclass(frozen=True, slots=True)
class NameHost(_Named):
    """The UTS namespace's names."""

    hostname: str

    def describe(self) -> str:
        """Say what it does."""
        return f"host name {self.hostname}"

    def run(self, kernel: Kernel, birth: Birth) -> None:  # noqa: ARG002
        """Do it."""
        kernel.sethostname(self.hostname)


@dataclasses.dataclass(frozen=True, slots=True)
class PivotRoot(_Named):
    """The merged root becomes /, the host's tree goes."""

    def describe(self) -> str:
        """Say what it does."""
        return "pivot_root to the merged root, detach the old one, /dev/null at 0, 1 and 2"

    def run(self, kernel: Kernel, birth: Birth) -> None:
        """Do it."""
        os.fchdir(birth.root)
        kernel.pivot_root(".", ".")
        kernel.umount2(".", MNT_DETACH)
        os.chdir("/")
        null = kernel.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)


@dataclasses.dataclass(frozen=True, slots=True)
class EnterUserNamespace(_Named):
    """Become the sandbox's root, in its own user namespace, owned by its own id."""

    owner: int

    def describe(self) -> str:
        """Say what it does."""
        return f"become host id {self.owner}, join the user namespace, become 0 there; no further user namespaces"

    def run(self, kernel: Kernel, birth: Birth) -> None:
        """Do it."""
        kernel.setresids(self.owner, self.owner)
        kernel.setns(birth.sandbox_userns, CLONE_NEWUSER)
        _write_proc(kernel, birth.proc_writable, "sys/user/max_user_namespaces", "0")
        kernel.setresids(0, 0)


@dataclasses.dataclass(frozen=True, slots=True)
class LimitResources(_Named):
    """rlimits: what cgroups do not bound."""

    pids: int

    def describe(self) -> str:
        """Say what it does."""
        return f"rlimits: core 0, nofile 1048576 (soft 1024), nproc {self.pids}"

    def run(self, kernel: Kernel, birth: Birth) -> None:  # noqa: ARG002
        """Do it."""
        hard = min(1_048_576, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        for limit, soft, top in (
            (resource.RLIMIT_CORE, 0, 0),
            (resource.RLIMIT_NOFILE, min(1024, hard), hard),
            (resource.RLIMIT_NPROC, self.pids, self.pids),
        ):
            resource.setrlimit(limit, (soft, top))


@dataclasses.dataclass(frozen=True, slots=True)
class DropPrivileges(_Named):
    """Nothing of the launcher's power is left, for init and for all that it starts."""

    keep: int

    def describe(self) -> str:
        """Say what it does."""
        return f"securebits 0, bounding set and capabilities cut to {self.keep:#x}, not dumpable, no_new_privs"

    def run(self, kernel: Kernel, birth: Birth) -> None:  # noqa: ARG002
        """Do it."""
        kernel.set_securebits(0)
        kernel.cut_bounding_set(self.keep)
        kernel.capset(self.keep, self.keep, 0)
        kernel.forbid_dump()
        kernel.set_no_new_privs()


@dataclasses.dataclass(frozen=True, slots=True)
class ApplySeccomp(_Named):
    """The profile's filters."""

    profile: str

    def describe(self) -> str:
        """Say what it does."""
        return f"seccomp profile {self.profile}"

    def run(self, kernel: Kernel, birth: Birth) -> None:
        """Do it."""
        for program in birth.filters:
            kernel.seccomp(program)


@dataclasses.dataclass(frozen=True, slots=True)
class CloseDescriptors(_Named):
    """No exec happens, so close-on-exec does nothing: everything that init does not need is closed here."""

    def describe(self) -> str:
        """Say what it does."""
        return "close every descriptor but init's own"

    def run(self, kernel: Kernel, birth: Birth) -> None:
        """Do it."""
        first = 3
        for fd in sorted(birth.keep):
            if fd > first:
                kernel.close_range(first, fd - 1)
            first = fd + 1
        kernel.close_range(first, 2**32 - 1)


# --- shared by steps ----------------------------------------------------------------------------------------


def _directory(kernel: Kernel, birth: Birth, path: str, mode: int) -> int:
    """Open a directory of the merged root, making it where the rootfs has none; a link is refused."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    try:
        return kernel.openat2(birth.root, path, flags, _STRICT)
    except FileNotFoundError:
        old = os.umask(0)
        kernel.mkdir(path, mode, dirfd=birth.root)
        os.umask(old)
        return kernel.openat2(birth.root, path, flags, _STRICT)


def _attach(kernel: Kernel, birth: Birth, mount: int, path: str) -> None:
    """Attach a detached mount at a directory of the merged root."""
    at = _directory(kernel, birth, path, 0o755)
    try:
        kernel.move_mount(mount, at)
    finally:
        os.close(at)


def _cover(kernel: Kernel, root: int, path: str, with_: int) -> None:
    """Attach a copy of the detached mount `with_` over `path`, if that exists: a file over files, else a folder."""
    try:
        at = kernel.openat2(root, path, os.O_PATH, _STRICT)
    except FileNotFoundError:
        return
    try:
        copy = kernel.open_tree(with_, "", OPEN_TREE_CLONE | AT_EMPTY_PATH)
        try:
            kernel.move_mount(copy, at)
        finally:
            os.close(copy)
    finally:
        os.close(at)


def _write_proc(kernel: Kernel, proc: int, path: str, value: str) -> None:
    """Write a sysctl through a /proc that we mounted ourselves, never through a path of the rootfs."""
    fd = kernel.openat2(proc, path, os.O_WRONLY, _STRICT)
    try:
        kernel.write(fd, value.encode())
    finally:
        os.close(fd)
