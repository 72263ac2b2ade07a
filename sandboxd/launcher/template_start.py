"""From a fork of the launcher to a template's interpreter: everything that confines it, in order, then exec.

The child has left the host's mounts, network, System V objects and host name when the interpreter starts. It stays in
the host's pid namespace (a namespace of pids can be joined from an ancestor only), without any /proc, and in the host's
cgroup namespace (a child is born in another group only where the namespace shows both). Its user is one that nobody
else has: the number is made of its own pid. It keeps two capabilities, by the ambient set, since it is not root when it
executes: SYS_ADMIN, to join namespaces (by descriptors that the launcher opened, so that no SYS_PTRACE is needed), and
SYS_CHROOT, which the mount namespace asks for besides.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import resource
import signal
import stat
import sys
from collections.abc import Callable
from typing import Final

from ..linux.kernel import (
    AT_FDCWD,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_PRIVATE,
    MS_REC,
    OPEN_TREE_CLONE,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    SECBIT_NO_SETUID_FIXUP,
    Kernel,
    SyscallError,
)
from .idranges import set_rlimit
from .privilege import FIXED_RLIMITS, MAX_OPEN_FILES

#: CAP_SYS_CHROOT and CAP_SYS_ADMIN.
CAPABILITIES: Final = 1 << 18 | 1 << 21
#: The group of every template: it may put children into the leaves of sandboxes. Above the ids of images that are
#: unpacked (images/confine.py); nobody's else.
GROUP_ID: Final = 2_000_131_072
#: A template's user is this and its pid (which is below 2**22), so that no two that live have the same.
FIRST_USER_ID: Final = GROUP_ID + 1
#: Descriptors of the interpreter (templates/base.py).
SOCKET_FD: Final = 3
PROGRAM_FD: Final = 7
#: Processes of its user: its imports may run a few programs.
MAX_PROCESSES: Final = 64
_STRICT: Final = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_READ_ONLY: Final = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
_NODES: Final = (("null", 1, 3), ("zero", 1, 5), ("random", 1, 8), ("urandom", 1, 9))
#: The host's own, with what sandboxd depends on.
INTERPRETER: Final = f"{sys.prefix}/bin/python3"
#: What numeric libraries and Python read when they are loaded. Threads would not live on in a child.
ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a template is started with.

    Attributes:
        argv: the interpreter (looked up along PATH, in the template's own root) and its arguments.
        tree: the rootfs that is to be its root; None makes one of the host's `directories`.
        directories: directories of the host, read-only, for a root of its own.
        stage: an empty directory to mount at, in a mount namespace that nobody else sees.
        filters: the system call filters.
        program: what it finds at PROGRAM_FD; a descriptor, or -1.
        capabilities: what it keeps, as a mask.
        namespaces: what it leaves of the host.
        network: a descriptor of the network namespace that it joins; -1 is none.
    """

    argv: tuple[str, ...]
    tree: str | None
    directories: tuple[str, ...] = ()
    stage: str
    filters: tuple[bytes, ...]
    program: int = -1
    capabilities: int = CAPABILITIES
    namespaces: int = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    network: int = -1


def run(kernel: Kernel, start: Start, connection: int, failed: Callable[[str, OSError], None]) -> None:
    """Become the template; never returns. `failed` is told the step that failed."""
    step = "begin"
    steps: tuple[tuple[str, Callable[[], None]], ...]
    try:
        steps = (
            ("leave-namespaces", lambda: _leave(kernel, start)),
            ("prepare-process", lambda: _prepare(kernel)),
            ("make-root", lambda: _make_root(kernel, start)),
            ("limit-resources", _limit),
            ("take-descriptors", lambda: _take_descriptors(kernel, connection, start.program)),
            ("drop-privileges", lambda: _drop(kernel, start.capabilities)),
            ("apply-seccomp", lambda: _filter(kernel, start.filters)),
            ("execute", lambda: _execute(start.argv)),
        )
        for name, act in steps:
            step = name
            act()
    except OSError as error:
        failed(step, error)
    finally:
        os._exit(127)


def _leave(kernel: Kernel, start: Start) -> None:
    if start.network >= 0:
        kernel.setns(start.network, CLONE_NEWNET)
    kernel.unshare(start.namespaces)


def _prepare(kernel: Kernel) -> None:
    os.setsid()
    os.umask(0o022)
    kernel.join_session_keyring()
    kernel.sethostname("template")
    # The host's own /proc still. Neither protected as the launcher may be, nor offered before others.
    fd = kernel.open("/proc/self/oom_score_adj", os.O_WRONLY)
    kernel.write(fd, b"0")
    os.close(fd)
    signal.set_wakeup_fd(-1)
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP) and signal.getsignal(number) is not None:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _make_root(kernel: Kernel, start: Start) -> None:
    kernel.mount("none", "/", None, MS_REC | MS_PRIVATE)
    if start.tree is not None:
        root = kernel.open_tree(AT_FDCWD, start.tree, OPEN_TREE_CLONE)
        kernel.mount_setattr(root, _READ_ONLY)
    else:
        root = kernel.fsmount("tmpfs", {"size": "256k", "mode": "0755"}, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
    # First: before Linux 6.15 nothing can be mounted on a mount that is not mounted itself.
    kernel.move_mount(root, AT_FDCWD, start.stage)
    if start.tree is None:
        _fill(kernel, root, start.directories)
    _mount_dev(kernel, root)
    os.fchdir(root)
    kernel.pivot_root(".", ".")
    kernel.umount2(".", MNT_DETACH)
    os.chdir("/")


def _fill(kernel: Kernel, root: int, directories: tuple[str, ...]) -> None:
    """Put read-only views of the host's directories on a small tmpfs, which is read-only then; a link stays a link."""
    os.mkdir("dev", 0o755, dir_fd=root)
    for directory in directories:
        above, _, name = directory.strip("/").rpartition("/")
        at = root
        for part in above.split("/") if above else ():
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=at)
            at = kernel.openat2(at, part, os.O_RDONLY | os.O_DIRECTORY, _STRICT)
        if os.path.islink(directory):
            os.symlink(os.readlink(directory), name, dir_fd=at)
            continue
        view = kernel.open_tree(AT_FDCWD, directory, OPEN_TREE_CLONE)
        kernel.mount_setattr(view, _READ_ONLY)
        os.mkdir(name, 0o755, dir_fd=at)
        kernel.move_mount(view, at, name)
        os.close(view)
    kernel.mount_setattr(root, _READ_ONLY)


def _mount_dev(kernel: Kernel, root: int) -> None:
    """Give it a /dev of a few nodes that are its own, read-only as a directory."""
    mode = stat.S_IFCHR | 0o666
    dev = kernel.fsmount("tmpfs", {"size": "16k", "mode": "0755"}, MOUNT_ATTR_NOSUID)
    old = os.umask(0)
    for name, major, minor in _NODES:
        kernel.mknod(name, mode, os.makedev(major, minor), dirfd=dev)
    os.umask(old)
    kernel.mount_setattr(dev, MOUNT_ATTR_RDONLY)
    at = kernel.openat2(root, "dev", os.O_RDONLY | os.O_DIRECTORY, _STRICT)
    kernel.move_mount(dev, at)
    os.close(at)
    os.close(dev)


def _limit() -> None:
    hard = min(MAX_OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    for name, value in FIXED_RLIMITS:
        set_rlimit(name, value)
    # A child takes its sandbox's, which may be more than the launcher itself has, and cannot raise it then.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NPROC, (MAX_PROCESSES, resource.RLIM_INFINITY))


def _take_descriptors(kernel: Kernel, connection: int, program: int) -> None:
    # Out of the way first: a number among them may be another one's target.
    wanted = ((SOCKET_FD, connection), (PROGRAM_FD, program))
    high = {target: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for target, fd in wanted if fd >= 0}
    null = kernel.open("/dev/null", os.O_RDWR)
    for target in (0, 1, 2):
        os.dup2(null, target)
    os.close(null)
    for target, fd in high.items():
        os.dup2(fd, target)
    if PROGRAM_FD in high:
        kernel.close_range(SOCKET_FD + 1, PROGRAM_FD - 1)
        kernel.close_range(PROGRAM_FD + 1, 2**32 - 1)
    else:
        kernel.close_range(SOCKET_FD + 1, 2**32 - 1)


def _drop(kernel: Kernel, capabilities: int) -> None:
    """Become a user that owns nothing, with capabilities that the exec leaves (those of the ambient set)."""
    user = FIRST_USER_ID + os.getpid()
    kernel.cut_bounding_set(capabilities)
    kernel.set_securebits(SECBIT_NO_SETUID_FIXUP)
    kernel.setresids(user, GROUP_ID)
    kernel.set_securebits(0)
    kernel.capset(capabilities, capabilities, capabilities)
    for capability in range(64):
        if capabilities >> capability & 1:
            kernel.raise_ambient(capability)
    kernel.set_no_new_privs()


def _filter(kernel: Kernel, filters: tuple[bytes, ...]) -> None:
    for program in filters:
        kernel.seccomp(program)


def _execute(argv: tuple[str, ...]) -> None:
    places = [argv[0]] if "/" in argv[0] else [f"{place}/{argv[0]}" for place in ENVIRONMENT["PATH"].split(":")]
    for place in places:
        with contextlib.suppress(FileNotFoundError):
            os.execve(place, argv, ENVIRONMENT)  # noqa: S606 - a template is a program
    raise SyscallError(errno.ENOENT, "execve", argv[0])


def host_directories() -> tuple[str, ...]:
    """Return what the host's own interpreter and sandboxd itself need of the host."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    wanted = [sys.prefix, sys.base_prefix, package, "/usr", "/bin", "/lib", "/lib64", "/etc/ssl"]
    found: list[str] = []
    for path in sorted({path.rstrip("/") for path in wanted if os.path.lexists(path)}, key=len):
        if path and not any(path.startswith(above + "/") or path == above for above in found):
            found.append(path)
    return tuple(found)
