"""Steps that build what a sandbox sees: its root, /proc, /sys, /dev and the files that name it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
import stat
from collections.abc import Iterable
from typing import Final

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
    MS_REC,
    MS_SLAVE,
    OPEN_TREE_CLONE,
    SECBIT_NO_SETUID_FIXUP,
    Kernel,
    SyscallError,
)
from .steps import STRICT, Creation, Named, OtherGone, Prepared, attach, cover, open_directory

SAFE: Final = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC

#: The overlay's own credentials, which act on the upper layer for everybody: enough for trusted xattrs, whiteouts
#: and copy-up; without CAP_SYS_RESOURCE, which would pass by disk quotas. CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH,
#: FOWNER, FSETID, SETUID, SETGID, SYS_ADMIN, MKNOD, SETFCAP.
_OVERLAY_CAPABILITIES: Final = sum(1 << number for number in (0, 1, 2, 3, 4, 6, 7, 21, 27, 31))

#: /proc entries that reach beyond the sandbox's namespaces: the directories are made read-only, the files empty.
PROC_READ_ONLY: Final = ("sys", "sysrq-trigger", "mtrr")
PROC_MASKED: Final = (
    "kcore",
    "cmdline",
    "swaps",
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
    "mdstat",
)
#: Directories of host-wide facts: pressure tells the host's load, and anyone may arm triggers in it; the others tell of
#: its disks and devices.
PROC_EMPTIED: Final = ("pressure", "fs", "irq", "bus", "asound", "acpi", "scsi", "driver")
#: All that is seen of /sys: the sandbox's own network devices, and what libraries size their threads and pages by. The
#: rest tells of the host and of neighbours: their disks' figures, what the loop devices hold, btrfs' quota groups.
SYS_SHOWN: Final = (
    "class/net",
    "devices/virtual/net",
    "devices/system/cpu",
    "devices/system/node",
    *(f"kernel/mm/transparent_hugepage/{name}" for name in ("enabled", "defrag", "shmem_enabled", "hpage_pmd_size")),
)
#: Where programs look for what there may be (psutil, lspci, lsblk): there is nothing.
SYS_EMPTY: Final = (
    *("block", "bus/pci/devices", "bus/usb/devices", "dev/block", "dev/char", "firmware", "module"),
    *(f"class/{name}" for name in ("block", "drm", "hwmon", "power_supply", "thermal")),
)
_CGROUP: Final = "fs/cgroup"
#: Device nodes of our own: a bound host node would share flock, leases and inotify with the host (tests/README.md, 46).
DEVICES: Final = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
#: Made on the stage, and moved into the root when there is one.
ATTACHED: Final = ("proc", "sys", "dev")
#: The stage's place of the whole sysfs, which goes with the stage.
_WHOLE_SYS: Final = "sysfs"
#: The host's pty.max is one number for all; a sandbox must not take it whole.
MAX_TERMINALS: Final = 256
DEV_LINKS: Final = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class IsolateMounts(Named):
    """A mount namespace that tells the host nothing, and a tmpfs to build the root on.

    Slaves, not private: a prepared sandbox that waits for an order sees what the host mounts and unmounts meanwhile,
    and holds none of it.
    """

    stage: str

    def describe(self) -> str:
        """Say what it does."""
        return f"make every mount a slave of the host's, mount a tmpfs at {self.stage}"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        kernel.mount("none", "/", None, MS_REC | MS_SLAVE)
        kernel.mount("stage", self.stage, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=16k,nr_inodes=16,mode=755")
        os.chdir(self.stage)
        for name in ("lower", "disk", "merged", _WHOLE_SYS, *ATTACHED):
            kernel.mkdir(name)


@dataclasses.dataclass(frozen=True, slots=True)
class MountLayers(Named):
    """The rootfs and the sandbox's own files, both seen through the sandbox's ids."""

    tree: str
    disk: str

    def describe(self) -> str:
        """Say what it does."""
        return f"idmapped copies of {self.tree} (read-only) and {self.disk}"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        for source, target, attributes, userns in (
            (self.tree, "lower", MOUNT_ATTR_RDONLY, creation.sandbox_userns),
            (self.disk, "disk", 0, creation.disk_userns),
        ):
            fd = kernel.open_tree(AT_FDCWD, source, OPEN_TREE_CLONE)
            kernel.mount_setattr(fd, attributes | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, userns_fd=userns)
            kernel.move_mount(fd, AT_FDCWD, target)
            os.close(fd)


@dataclasses.dataclass(frozen=True, slots=True)
class ActAsOwner(Named):
    """Act on files as the sandbox's root, or an idmapped upper answers EOVERFLOW and the overlay turns read-only."""

    owner: int

    def describe(self) -> str:
        """Say what it does."""
        return f"fsuid and fsgid {self.owner}, capabilities kept"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        kernel.set_securebits(SECBIT_NO_SETUID_FIXUP)
        kernel.setfsids(self.owner, self.owner)


@dataclasses.dataclass(frozen=True, slots=True)
class MountOverlay(Named):
    """The merged root. Layer names are relative: the options are shown inside.

    redirect_dir: else renaming a directory of the rootfs is EXDEV, which pip and npm do not expect.
    xino: rootfs and upper may be two filesystems; programs then still see one (`tar --one-file-system`).
    volatile: else the end of every sandbox writes out all that its neighbours have on the same filesystem (0.2 to
    0.4 s, measured with 300 MB), and every fsync inside its journal. Nothing is lost by it: an upper never outlives
    its sandbox, and a sandbox never outlives its host.
    """

    options: str = (
        "lowerdir=lower,upperdir=disk/upper,workdir=disk/work,redirect_dir=on,index=off,metacopy=off,xino=on,volatile"
    )

    def describe(self) -> str:
        """Say what it does."""
        return f"overlay with {self.options}, its credentials cut to what the upper layer needs"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        own = kernel.capget()
        kernel.capset(_OVERLAY_CAPABILITIES & own, own, 0)
        try:
            kernel.mount("overlay", "merged", "overlay", MS_NOSUID | MS_NODEV, self.options)
        finally:
            kernel.capset(own, own, 0)
        creation.root = kernel.open("merged", os.O_RDONLY | os.O_DIRECTORY)
        if os.fstatvfs(creation.root).f_flag & os.ST_RDONLY:
            raise SyscallError(errno.EROFS, "mount", "overlay (the kernel refused the upper layer: see its log)")
        creation.devices.append(os.fstat(creation.root).st_dev)


@dataclasses.dataclass(frozen=True, slots=True)
class MountProc(Named):
    """/proc of the sandbox's pid namespace."""

    def describe(self) -> str:
        """Say what it does."""
        return "pid 1's proc, on the stage"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        kernel.move_mount(creation.proc, AT_FDCWD, "proc")
        # Attached first: a mount that is nowhere yet cannot be copied before Linux 6.15.
        creation.proc_writable = kernel.open_tree(creation.proc, "", OPEN_TREE_CLONE | AT_EMPTY_PATH)


@dataclasses.dataclass(frozen=True, slots=True)
class MountSys(Named):
    """A /sys of stated parts, read-only: the network namespace's own, and the sandbox's own cgroup.

    A list of what is hidden would never be whole: every module and device of the host adds to sysfs.
    """

    def describe(self) -> str:
        """Say what it does."""
        return f"tmpfs at /sys with {', '.join(SYS_SHOWN)} of sysfs; cgroup2 at /sys/{_CGROUP}; all read-only"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        whole = kernel.fsmount("sysfs", {}, SAFE | MOUNT_ATTR_RDONLY)
        kernel.move_mount(whole, AT_FDCWD, _WHOLE_SYS)  # before Linux 6.15 only what is attached can be copied
        view = creation.sys = kernel.fsmount("tmpfs", {"size": "64k", "nr_inodes": "128", "mode": "0755"}, SAFE)
        kernel.move_mount(view, AT_FDCWD, "sys")
        _make_directories(kernel, view, (*SYS_EMPTY, _CGROUP, *(os.path.dirname(path) for path in SYS_SHOWN)))
        for path in SYS_SHOWN:
            with contextlib.suppress(FileNotFoundError):  # a kernel without NUMA or huge pages
                _show(kernel, whole, path, view)
        os.close(whole)
        creation.cgroup = kernel.fsmount("cgroup2", {}, SAFE)
        own = kernel.fsmount("cgroup2", {}, SAFE | MOUNT_ATTR_RDONLY)
        kernel.move_mount(own, view, _CGROUP)
        os.close(own)
        kernel.mount_setattr(view, MOUNT_ATTR_RDONLY | SAFE)


def _make_directories(kernel: Kernel, root: int, paths: Iterable[str]) -> None:
    """Make each of `paths` and what is above it in a filesystem of our own."""
    made: set[str] = set()
    for path in paths:
        parts = path.split("/")
        for directory in ("/".join(parts[: count + 1]) for count in range(len(parts))):
            if directory not in made:
                kernel.mkdir(directory, dirfd=root)
                made.add(directory)


def _show(kernel: Kernel, source: int, path: str, target: int) -> None:
    """Attach a copy of what is at `path` of the mount `source` at the same path of `target`, where its directory is."""
    at = kernel.openat2(source, path, os.O_PATH, STRICT)
    try:
        copy = kernel.open_tree(at, "", OPEN_TREE_CLONE | AT_EMPTY_PATH)
        if stat.S_ISDIR(os.fstat(at).st_mode):
            kernel.mkdir(path, dirfd=target)
        else:
            os.close(kernel.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444, dirfd=target))
        kernel.move_mount(copy, target, path)
        os.close(copy)
    finally:
        os.close(at)


@dataclasses.dataclass(frozen=True, slots=True)
class MountDev(Named):
    """/dev with nodes of our own, and a devpts and mqueue of the sandbox's."""

    tty_gid: int

    def describe(self) -> str:
        """Say what it does."""
        names = ", ".join(name for name, _, _ in DEVICES)
        return f"tmpfs at /dev with {names}; devpts and mqueue of its own"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        dev = creation.dev = kernel.fsmount(
            "tmpfs", {"size": "64k", "nr_inodes": "64", "mode": "0755"}, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC
        )
        kernel.move_mount(dev, AT_FDCWD, "dev")
        old = os.umask(0)
        for name, major, minor in DEVICES:
            kernel.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dirfd=dev)
        os.umask(old)
        for name, target in DEV_LINKS:
            kernel.symlink(target, name, dirfd=dev)
        # A device node's descriptor for later masks, taken without opening the device.
        creation.null = kernel.open_tree(dev, "null", OPEN_TREE_CLONE)
        terminals = {"max": str(MAX_TERMINALS), "ptmxmode": "0666", "mode": "0620", "gid": str(self.tty_gid)}
        for name, fstype, options, attributes in (
            ("pts", "devpts", terminals, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC),
            ("mqueue", "mqueue", {}, SAFE),
        ):
            kernel.mkdir(name, dirfd=dev)
            fd = kernel.fsmount(fstype, options, attributes)
            kernel.move_mount(fd, dev, name)
            os.close(fd)
        kernel.mkdir("shm", dirfd=dev)


@dataclasses.dataclass(frozen=True, slots=True)
class MountShm(Named):
    """Shared memory, of the sandbox's own size."""

    size: int

    def describe(self) -> str:
        """Say what it does."""
        return f"tmpfs of {self.size} bytes at /dev/shm"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        # Empty files take memory too: as many as pages.
        options = {"mode": "1777", "size": str(self.size), "nr_inodes": str(self.size // 4096)}
        fd = kernel.fsmount("tmpfs", options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
        kernel.move_mount(fd, creation.dev, "shm")
        creation.devices.append(os.fstat(fd).st_dev)
        os.close(fd)


@dataclasses.dataclass(frozen=True, slots=True)
class AttachMounts(Named):
    """What was made on the stage goes into the root, with all that is mounted in it."""

    def describe(self) -> str:
        """Say what it does."""
        return f"move {', '.join(ATTACHED)} from the stage into the root"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        for mount, path in zip((creation.proc, creation.sys, creation.dev), ATTACHED, strict=True):
            attach(kernel, creation, mount, path)


#: Where the daemon answers a sandbox's questions about names, on the sandbox's own loopback.
RESOLVER: Final = "127.0.0.53"


@dataclasses.dataclass(frozen=True, slots=True)
class WriteIdentity(Named):
    """Files that tell a program who and where it is: written anew at each creation, never inherited from an image."""

    hostname: str
    machine_id: str
    has_resolver: bool = False

    def describe(self) -> str:
        """Say what it does."""
        return "write /etc/hostname, hosts, resolv.conf and machine-id; make /workspace and /tmp"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        hosts = f"127.0.0.1 localhost {self.hostname}\n::1 localhost ip6-localhost ip6-loopback {self.hostname}\n"
        etc = open_directory(kernel, creation, "etc", 0o755)
        # Where the layers are two filesystems, and one cannot take part in xino, a file has a device number of its
        # layer's (which no other mount has): the rootfs's is found here, the upper's by what is written.
        # All of the rootfs's have the same: one tells.
        with os.scandir(etc) as entries:
            first = next((entry for entry in entries if not entry.is_dir(follow_symlinks=False)), None)
        devices = {first.stat(follow_symlinks=False).st_dev} if first else set()
        for name, text in (
            ("hostname", f"{self.hostname}\n"),
            ("hosts", hosts),
            ("resolv.conf", f"nameserver {RESOLVER}\n" if self.has_resolver else ""),
            ("machine-id", f"{self.machine_id}\n"),
        ):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            # O_NONBLOCK: a FIFO that a rootfs left here must not hang the creation.
            fd = kernel.openat2(etc, name, flags | os.O_NONBLOCK, STRICT, 0o644)
            try:
                facts = os.fstat(fd)
                devices.add(facts.st_dev)
                if not stat.S_ISREG(facts.st_mode):
                    raise SyscallError(errno.EINVAL, "openat2", f"/etc/{name} (not a regular file)")
                if text:
                    kernel.write(fd, text.encode())
            finally:
                os.close(fd)
        os.close(etc)
        creation.devices += sorted(devices - set(creation.devices))
        for name, mode in (("workspace", 0o755), ("tmp", 0o1777)):
            os.close(open_directory(kernel, creation, name, mode))


@dataclasses.dataclass(frozen=True, slots=True)
class RestrictProc(Named):
    """What of /proc is the host's is read-only or empty."""

    def describe(self) -> str:
        """Say what it does."""
        return f"/proc: {', '.join(PROC_READ_ONLY)} read-only; {', '.join(PROC_MASKED)} masked"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        for path in PROC_READ_ONLY:
            with contextlib.suppress(FileNotFoundError):
                at = kernel.openat2(creation.proc, path, os.O_PATH, STRICT)
                view = kernel.open_tree(at, "", OPEN_TREE_CLONE | AT_EMPTY_PATH)
                kernel.mount_setattr(view, MOUNT_ATTR_RDONLY | SAFE)
                kernel.move_mount(view, at)
                os.close(view)
                os.close(at)
        kernel.mount_setattr(creation.null, MOUNT_ATTR_RDONLY)
        cover(kernel, creation.proc, PROC_MASKED, creation.null)
        empty = kernel.fsmount("tmpfs", {"size": "4k", "mode": "0555"}, SAFE | MOUNT_ATTR_RDONLY)
        cover(kernel, creation.proc, PROC_EMPTIED, empty)
        os.close(empty)


@dataclasses.dataclass(frozen=True, slots=True)
class PivotRoot(Named):
    """The merged root becomes /, the host's tree goes."""

    def describe(self) -> str:
        """Say what it does."""
        return "pivot_root to the merged root, for pid 1 too, and detach the old one"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        os.fchdir(creation.root)
        kernel.pivot_root(".", ".")
        kernel.umount2(".", MNT_DETACH)


@dataclasses.dataclass(frozen=True, slots=True)
class MakeProc(Named):
    """A proc filesystem shows the pid namespace of who mounts it, and the builder is in the host's."""

    def describe(self) -> str:
        """Say what it does."""
        return "make proc, for the builder to mount"

    def run(self, kernel: Kernel, prepared: Prepared) -> None:
        """Do it."""
        prepared.proc = kernel.fsmount("proc", {}, SAFE)


@dataclasses.dataclass(frozen=True, slots=True)
class EnterRoot(Named):
    """Wait until the builder is done, and stand in what it built.

    Its pivot_root has moved our root as well (it changes every process of the mount namespace whose root was the old
    one, pivot_root(2)); the chroot makes sure of it.
    """

    def describe(self) -> str:
        """Say what it does."""
        return "wait for the builder, enter its root, /dev/null at 0, 1 and 2"

    def run(self, kernel: Kernel, prepared: Prepared) -> None:
        """Do it."""
        _, received, _, _ = socket.recv_fds(prepared.builder, 1, 2)
        if len(received) != 2:
            raise OtherGone
        root, prepared.cgroup = received
        prepared.keep.add(prepared.cgroup)
        kernel.fchroot(root)
        null = kernel.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
