"""The unpacking process: what its parent gives it, and the cell it locks itself into before it reads a byte.

Theory of operation. The parent (`unpack_process`, root) starts `unpack_child` with the source as stdin, and a socket:

    child    imports all that it will use (nothing of the image's is ever loaded: there is no /usr in its cell)
    child    leaves every namespace at once: user, mount, net, ipc, uts, cgroup; says so
    parent   maps its ids 0..65535 onto a range of the host's that is nobody's, and sends descriptors: the target
             directory as a detached mount (nosuid, nodev, noexec; idmapped, so that on disk it writes 0..65535) and a
             nameless file to copy a stream to; a file of an image's directory comes when asked for, if its name fits
    child    makes that mount its root and detaches the host's tree: there is nothing else to write to, by any path
    child    takes its own uid 0, keeps four capabilities over files of its own ids (CHOWN, DAC_OVERRIDE, FOWNER,
             FSETID), no_new_privs, not dumpable, rlimits (no fork, bounded memory and file size), a system call list
    child    reads the archive

It ends with its parent: whatever it waits for, it also watches the socket, and it speaks ten times a second.

On the host it is at no time after that root, nor any user that owns a file. What it reports is bounded and checked
by the parent like a stranger's words. Where a cell cannot be made, nothing is unpacked.
"""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Final

from sandboxd.linux import seccomp
from sandboxd.linux.kernel import (
    AT_FDCWD,
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MS_PRIVATE,
    MS_REC,
    OPEN_TREE_CLONE,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    Kernel,
)
from sandboxd.spec import ID_RANGE_WIDTH

__all__ = ["CAPABILITIES", "FIRST_ID", "MAX_PACKET", "STRICT"]
__all__ += ["compile_filter", "lock_in", "map_ids", "mount_of", "unshare"]

#: How a name is looked up below a directory: following no link, leaving it by no way.
STRICT: Final = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
#: A packet of either side; less than a socket's buffer, which it must fit into.
MAX_PACKET: Final = 128 * 1024
#: Above the range that owns sandboxes' files on disk (launcher/idranges.py): no file and no other process has these.
FIRST_ID: Final = 2_000_065_536
#: CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID: over files of the mapped ids, in its own user namespace.
CAPABILITIES: Final = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4
#: An xz dictionary may want 1.5 GiB; usual ones 64 MiB.
_MEMORY: Final = 1024 * 1024 * 1024
#: A walk of the tree holds one a level (members.MAX_DEPTH), an image's directory one a blob.
_DESCRIPTORS: Final = 2048

#: What Python and the unpacking use. No mknod, mount, clone, exec, socket, setns, kill, ptrace, open_by_handle_at.
_SYSTEM_CALLS: Final = """
    read readv pread64 write writev pwrite64 lseek close fstat newfstatat stat lstat statx getdents64 openat openat2
    open mkdirat mkdir unlinkat unlink rmdir symlinkat linkat fchown fchownat lchown fchmod fchmodat fchmodat2
    utimensat fsetxattr fcntl ioctl dup recvmsg sendmsg sendto recvfrom
    mmap munmap mremap mprotect madvise brk futex futex_wait futex_wake getrandom clock_gettime gettimeofday
    rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall getpid gettid tgkill exit exit_group
    sched_yield poll ppoll rseq sysinfo getuid geteuid getgid getegid
"""


def compile_filter() -> list[bytes]:
    """Return the system call filter; loads libseccomp, so before `lock_in`; raises ValueError."""
    rule = {"names": _SYSTEM_CALLS.split(), "action": "SCMP_ACT_ALLOW"}
    return seccomp.compile_profile({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": [rule]})


# --- the parent's part ---------------------------------------------------------------------------------------


def map_ids(pid: int) -> int:
    """Map the ids of the process `pid`, which has left its user namespace; return a descriptor of the new one.

    Raises:
        OSError: the kernel refused, or the process is gone.
    """
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{name}").write_text(f"0 {FIRST_ID} {ID_RANGE_WIDTH}\n", encoding="ascii")
    return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def mount_of(directory: Path, userns: int, kernel: Kernel) -> int:
    """Return a detached mount of `directory` as the user namespace sees it; raises OSError."""
    fd = kernel.open_tree(AT_FDCWD, str(directory), OPEN_TREE_CLONE)
    try:
        kernel.mount_setattr(fd, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, userns_fd=userns)
    except OSError:
        os.close(fd)
        raise
    return fd


# --- the child's part ----------------------------------------------------------------------------------------


def unshare(kernel: Kernel) -> None:
    """Leave every namespace of the host but its pids (which it may not signal); raises OSError."""
    kernel.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)


def lock_in(kernel: Kernel, mount: int, keep: list[int], filters: list[bytes], max_bytes: int) -> None:
    """Make `mount` the root, and give up all that unpacking does not need; raises OSError.

    `keep` are the descriptors that stay open beside stderr.
    """
    kernel.mount("none", "/", None, MS_REC | MS_PRIVATE)
    kernel.move_mount(mount, AT_FDCWD, "/proc")  # any directory does: it becomes the root next
    os.fchdir(mount)
    kernel.pivot_root(".", ".")
    kernel.umount2(".", MNT_DETACH)
    os.chdir("/")
    first = 3
    for fd in sorted(keep):
        if fd > first:
            kernel.close_range(first, fd - 1)
        first = fd + 1
    kernel.close_range(first, 2**32 - 1)
    kernel.setresids(0, 0)
    os.umask(0)
    for limit, wanted in (
        (resource.RLIMIT_CORE, 1),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, _DESCRIPTORS),
        (resource.RLIMIT_FSIZE, max_bytes),
        (resource.RLIMIT_AS, _MEMORY),
    ):
        hard = resource.getrlimit(limit)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(limit, (value, value))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    kernel.cut_bounding_set(CAPABILITIES)
    kernel.capset(CAPABILITIES, CAPABILITIES, 0)
    kernel.forbid_dump()
    kernel.set_no_new_privs()
    for program in filters:
        kernel.seccomp(program)
