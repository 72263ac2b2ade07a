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

#: The overlay accesses the upper layer with its mounter's credentials, for every caller. These suffice for trusted
#: xattrs, whiteouts and copy-up, and lack CAP_SYS_RESOURCE, which would bypass disk quotas. CHOWN, DAC_OVERRIDE,
#: DAC_READ_SEARCH, FOWNER, FSETID, SETUID, SETGID, SYS_ADMIN, MKNOD, SETFCAP.
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
#: Directories of host-wide facts: pressure reveals the host's load, and anyone may arm triggers in it; the others
#: reveal its disks and devices.
PROC_EMPTIED: Final = ("pressure", "fs", "irq", "bus", "asound", "acpi", "scsi", "driver")
#: The only visible parts of /sys: the sandbox's own network devices, and what libraries read to size their threads and
#: pages. The rest reveals the host and neighbours: disk statistics, the files behind loop devices, btrfs quota groups.
SYS_SHOWN: Final = (
    "class/net",
    "devices/virtual/net",
    "devices/system/cpu",
    "devices/system/node",
    *(f"kernel/mm/transparent_hugepage/{name}" for name in ("enabled", "defrag", "shmem_enabled", "hpage_pmd_size")),
)
#: Empty directories, where programs look for devices (psutil, lspci, lsblk).
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
#: Mounts that are made on the stage, and moved into the root once it exists.
ATTACHED: Final = ("proc", "sys", "dev")
#: The whole sysfs on the stage, which disappears with the stage.
_WHOLE_SYS: Final = "sysfs"
#: The host's pty.max is shared by all; a sandbox must not use all of it.
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
    """Stops mounts from propagating to the host, and mounts a tmpfs (the stage) on which the root is built.

    The mounts are slaves, not private: a prepared sandbox may wait for long, and must follow the host's unmounts
    instead of keeping file systems busy.
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
            # Set the id map and the attributes on a detached copy: the mount never exists without them.
            fd = kernel.open_tree(AT_FDCWD, source, OPEN_TREE_CLONE)
            kernel.mount_setattr(fd, attributes | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, userns_fd=userns)
            kernel.move_mount(fd, AT_FDCWD, target)
            os.close(fd)


@dataclasses.dataclass(frozen=True, slots=True)
class ActAsOwner(Named):
    """Acts on files as the sandbox's root; else an idmapped upper gives EOVERFLOW, and the overlay is read-only."""

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
    """Mounts the merged root. Layer names are relative, because programs inside can see the mount options.

    redirect_dir: without it, renaming a directory of the rootfs fails with EXDEV, which pip and npm do not expect.
    xino: rootfs and upper may be two filesystems; programs still see one (`tar --one-file-system`).
    volatile: without it, the end of every sandbox writes out everything its neighbours have on the same filesystem (0.2
    to 0.4 s, measured with 300 MB), and every fsync inside writes out the filesystem's journal. Nothing is lost: an
    upper never outlives its sandbox, and a sandbox never outlives its host.
    """

    options: str = (
        "lowerdir=lower,upperdir=disk/upper,workdir=disk/work,redirect_dir=on,index=off,metacopy=off,xino=on,volatile"
    )

    def describe(self) -> str:
        """Say what it does."""
        return f"overlay with {self.options}, its credentials cut to what the upper layer needs"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        # The overlay keeps the credentials of this moment; the builder takes its capabilities back afterwards.
        own = kernel.capget()
        kernel.capset(_OVERLAY_CAPABILITIES & own, own, 0)
        try:
            kernel.mount("overlay", "merged", "overlay", MS_NOSUID | MS_NODEV, self.options)
        finally:
            kernel.capset(own, own, 0)
        creation.root = kernel.open("merged", os.O_RDONLY | os.O_DIRECTORY)
        # The kernel mounts the overlay read-only, without an error, if it cannot use the upper layer.
        if os.fstatvfs(creation.root).f_flag & os.ST_RDONLY:
            raise SyscallError(errno.EROFS, "mount", "overlay (the kernel refused the upper layer: see its log)")
        creation.devices.append(os.fstat(creation.root).st_dev)


@dataclasses.dataclass(frozen=True, slots=True)
class MountProc(Named):
    """Mounts /proc of the sandbox's pid namespace on the stage."""

    def describe(self) -> str:
        """Say what it does."""
        return "pid 1's proc, on the stage"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        kernel.move_mount(creation.proc, AT_FDCWD, "proc")
        # Attach first: before Linux 6.15, a detached mount cannot be copied.
        creation.proc_writable = kernel.open_tree(creation.proc, "", OPEN_TREE_CLONE | AT_EMPTY_PATH)


@dataclasses.dataclass(frozen=True, slots=True)
class MountSys(Named):
    """Mounts a read-only /sys with listed parts only: the network namespace's devices and the sandbox's own cgroup.

    A list of parts to hide could never be complete: every module and device of the host adds to sysfs.
    """

    def describe(self) -> str:
        """Say what it does."""
        return f"tmpfs at /sys with {', '.join(SYS_SHOWN)} of sysfs; cgroup2 at /sys/{_CGROUP}; all read-only"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        whole = kernel.fsmount("sysfs", {}, SAFE | MOUNT_ATTR_RDONLY)
        kernel.move_mount(whole, AT_FDCWD, _WHOLE_SYS)  # before Linux 6.15, only attached mounts can be copied
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
        # Only now read-only: the directories above had to be made first.
        kernel.mount_setattr(view, MOUNT_ATTR_RDONLY | SAFE)


def _make_directories(kernel: Kernel, root: int, paths: Iterable[str]) -> None:
    """Create each of `paths`, with its parents, in a filesystem that we made."""
    made: set[str] = set()
    for path in paths:
        parts = path.split("/")
        for directory in ("/".join(parts[: count + 1]) for count in range(len(parts))):
            if directory not in made:
                kernel.mkdir(directory, dirfd=root)
                made.add(directory)


def _show(kernel: Kernel, source: int, path: str, target: int) -> None:
    """Attach a copy of `path` in the mount `source` at the same path of `target`, where its parent exists."""
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
    """Mounts a /dev with new device nodes, and a new devpts and mqueue."""

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
        # RestrictProc covers files of /proc with this copy of /dev/null; open_tree does not open the device.
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
    """Mounts /dev/shm with the sandbox's limit."""

    size: int

    def describe(self) -> str:
        """Say what it does."""
        return f"tmpfs of {self.size} bytes at /dev/shm"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        # Empty files take memory too, so allow as many files as pages.
        options = {"mode": "1777", "size": str(self.size), "nr_inodes": str(self.size // 4096)}
        fd = kernel.fsmount("tmpfs", options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
        kernel.move_mount(fd, creation.dev, "shm")
        creation.devices.append(os.fstat(fd).st_dev)
        os.close(fd)


@dataclasses.dataclass(frozen=True, slots=True)
class AttachMounts(Named):
    """Moves /proc, /sys and /dev from the stage into the root, with everything mounted in them."""

    def describe(self) -> str:
        """Say what it does."""
        return f"move {', '.join(ATTACHED)} from the stage into the root"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        for mount, path in zip((creation.proc, creation.sys, creation.dev), ATTACHED, strict=True):
            attach(kernel, creation, mount, path)


#: The address on the sandbox's loopback at which the daemon answers DNS queries.
RESOLVER: Final = "127.0.0.53"


@dataclasses.dataclass(frozen=True, slots=True)
class WriteIdentity(Named):
    """Writes the files that tell programs the sandbox's name and resolver; they are never inherited from an image."""

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
        # If the layers are two filesystems and one cannot take part in xino, each file has a device number of its
        # layer, which no other mount has. Find the rootfs's number here, from any one file, since all of them have the
        # same; find the upper's from the files written below.
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
            # O_NONBLOCK: a FIFO that the rootfs has here must not block the creation.
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
    """Makes the host's parts of /proc read-only or empty."""

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
    """Makes the merged root /, and detaches the host's tree."""

    def describe(self) -> str:
        """Say what it does."""
        return "pivot_root to the merged root, for pid 1 too, and detach the old one"

    def run(self, kernel: Kernel, creation: Creation) -> None:
        """Do it."""
        # Old and new root stacked at one place (pivot_root(2), ".", "."): no directory is needed for the old one.
        os.fchdir(creation.root)
        kernel.pivot_root(".", ".")
        kernel.umount2(".", MNT_DETACH)


@dataclasses.dataclass(frozen=True, slots=True)
class MakeProc(Named):
    """Makes the proc filesystem in pid 1, because it shows the pid namespace of the process that makes it."""

    def describe(self) -> str:
        """Say what it does."""
        return "make proc, for the builder to mount"

    def run(self, kernel: Kernel, prepared: Prepared) -> None:
        """Do it."""
        prepared.proc = kernel.fsmount("proc", {}, SAFE)


@dataclasses.dataclass(frozen=True, slots=True)
class EnterRoot(Named):
    """Waits for the builder, and enters the root that it built.

    The builder's pivot_root has already moved this process's root (it changes every process in the mount namespace
    whose root was the old one, pivot_root(2)); the chroot makes sure.
    """

    def describe(self) -> str:
        """Say what it does."""
        return "wait for the builder, enter its root, /dev/null at 0, 1 and 2"

    def run(self, kernel: Kernel, prepared: Prepared) -> None:
        """Do it."""
        # The builder sends its root and the sandbox's cgroup once it is done; end of file means that it failed.
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
