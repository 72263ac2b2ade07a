"""Every kernel call that a sandbox's creation stands on, behind one class.

One method is one system call under the kernel's own name; a failure is an `OSError` with the call in `syscall`
(`SyscallError`). The launcher's steps are given a `Kernel`; tests give them one that fails at a chosen call.

This is the only user of ctypes. Symbols come from the running libc (`PyDLL`: the interpreter lock is kept, so
that a raw clone3 cannot return in a child that does not hold it); the new calls have the same numbers on every
architecture (include/uapi/asm-generic/unistd.h).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import struct
from collections.abc import Mapping
from typing import Any, Final

import prctl

# Flags: include/uapi/linux/{sched,mount,openat2,fcntl}.h
CLONE_NEWTIME: Final = 0x00000080
CLONE_NEWNS: Final = 0x00020000
CLONE_PARENT: Final = 0x00008000
CLONE_PIDFD: Final = 0x00001000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
CLONE_INTO_CGROUP: Final = 0x200000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_NOATIME: Final = 1024
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 2

OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_SYMLINK_NOFOLLOW: Final = 0x100
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR_IDMAP: Final = 0x00100000
FSOPEN_CLOEXEC: Final = 1
FSMOUNT_CLOEXEC: Final = 1
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_CMD_CREATE: Final = 6
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10
RENAME_NOREPLACE: Final = 1
KEYCTL_JOIN_SESSION_KEYRING: Final = 1

# include/uapi/linux/securebits.h
SECBIT_NO_SETUID_FIXUP: Final = 1 << 2

_NUMBERS: Final = {
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
    **(
        {"pivot_root": 41, "keyctl": 219, "seccomp": 277, "renameat2": 276}
        if os.uname().machine == "aarch64"
        else {"pivot_root": 155, "keyctl": 250, "seccomp": 317, "renameat2": 316}
    ),
}
_CAPABILITY_VERSION_3: Final = 0x20080522
_SECCOMP_SET_MODE_FILTER: Final = 1

_libc = ctypes.PyDLL(None, use_errno=True)
#: Where clone3 leaves a pidfd.
_pidfd = ctypes.c_int(-1)


def _types(function: Any, *arguments: type[Any], result: type[Any] = ctypes.c_int) -> Any:  # noqa: ANN401 - ctypes' own
    function.argtypes, function.restype = arguments, result
    return function


def _function(arguments: str) -> Any:  # noqa: ANN401 - ctypes' own
    """Return syscall(2) as a function of its own for one call: a number, then `l` for integers and `p` for bytes.

    Told the types once, ctypes converts without making an object for each argument. That takes a third of the time,
    and in a fresh fork each object is a page that is its own from then on.
    """
    kinds = [{"l": ctypes.c_long, "p": ctypes.c_char_p}[kind] for kind in arguments]
    return _types(_libc["syscall"], ctypes.c_long, *kinds, result=ctypes.c_long)


_FUNCTIONS: Final = {
    "open_tree": _function("lpl"),
    "move_mount": _function("lplpl"),
    "fsopen": _function("pl"),
    "fsconfig": _function("llppl"),
    "fsmount": _function("lll"),
    "clone3": _function("pl"),
    "close_range": _function("lll"),
    "openat2": _function("lppl"),
    "mount_setattr": _function("lplpl"),
    "pivot_root": _function("pp"),
    "keyctl": _function("lp"),
    "seccomp": _function("llp"),
    "renameat2": _function("lplpl"),
}
_unshare = _types(_libc["unshare"], ctypes.c_int)
_setns = _types(_libc["setns"], ctypes.c_int, ctypes.c_int)
_mount = _types(_libc["mount"], *(ctypes.c_char_p,) * 3, ctypes.c_ulong, ctypes.c_char_p)
_umount2 = _types(_libc["umount2"], ctypes.c_char_p, ctypes.c_int)
_capset = _types(_libc["capset"], ctypes.c_char_p, ctypes.c_char_p)


class SyscallError(OSError):
    """A system call failed: `syscall` is its kernel name beside the usual errno and filename.

    ENOENT makes a `SyscallNotFoundError`, which is a FileNotFoundError too.
    """

    def __new__(cls, number: int, syscall: str, path: str | None = None) -> SyscallError:
        """Choose the class by the errno, as OSError itself does."""
        chosen = SyscallNotFoundError if number == errno.ENOENT and cls is SyscallError else cls
        return super().__new__(chosen, number, os.strerror(number), path)

    def __init__(self, number: int, syscall: str, path: str | None = None) -> None:
        super().__init__(number, os.strerror(number), path)
        self.syscall = syscall

    def __str__(self) -> str:
        where = f" {self.filename}" if self.filename else ""
        return f"{self.syscall}{where}: {errno.errorcode.get(self.errno or 0, self.errno)}"


class SyscallNotFoundError(SyscallError, FileNotFoundError):
    """A system call found no such file."""


def _check(result: int, syscall: str, path: str | None = None) -> int:
    if result < 0:
        raise SyscallError(ctypes.get_errno(), syscall, path)
    return result


def _call(name: str, *arguments: int | bytes | None, path: str | None = None) -> int:
    result: int = _FUNCTIONS[name](_NUMBERS[name], *arguments)
    return _check(result, name, path)


class Kernel:
    """The real kernel. Every method raises `SyscallError`."""

    # --- processes and namespaces ---

    def clone3(self, flags: int, *, cgroup_fd: int | None = None, exit_signal: int = signal.SIGCHLD) -> tuple[int, int]:
        """Fork with `flags`, the child born in the cgroup of `cgroup_fd`; return (pid, pidfd), pid 0 in the child.

        Born there, the child needs no write to cgroup.procs, which waits for an RCU grace period (about 10 ms
        after an idle gap). The child has not run Python's own after-fork hooks: it must be the only thread, and
        either exec soon or stay single-threaded.
        """
        if cgroup_fd is not None:
            flags |= CLONE_INTO_CGROUP
        args = struct.pack(
            "=11Q", flags | CLONE_PIDFD, ctypes.addressof(_pidfd), 0, 0, exit_signal, 0, 0, 0, 0, 0, cgroup_fd or 0
        )
        pid = _call("clone3", args, 88)
        return pid, _pidfd.value

    def unshare(self, flags: int) -> None:
        """Leave the namespaces named by `flags`."""
        _check(_unshare(flags), "unshare")

    def setns(self, fd: int, flags: int) -> None:
        """Join the namespace behind `fd`."""
        _check(_setns(fd, flags), "setns")

    def close_range(self, first: int, last: int) -> None:
        """Close every descriptor from `first` to `last`."""
        _call("close_range", first, last, 0)

    def join_session_keyring(self) -> None:
        """Take a fresh, anonymous session keyring."""
        _call("keyctl", KEYCTL_JOIN_SESSION_KEYRING, None, path="JOIN_SESSION_KEYRING")

    def sethostname(self, name: str) -> None:
        """Name the host of this UTS namespace."""
        raw = name.encode()
        _check(_libc.sethostname(raw, ctypes.c_size_t(len(raw))), "sethostname")

    def run(self, argv: list[str]) -> int:
        """Run a program to its end (posix_spawn, waitpid) and return its status; its stderr is ours."""
        null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1)]
        try:
            pid = os.posix_spawn(argv[0], argv, {"LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin"}, file_actions=null)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except OSError as error:
            raise SyscallError(error.errno or 0, "posix_spawn", argv[0]) from None

    # --- mounts ---

    def mount(self, source: str, target: str, fstype: str | None, flags: int, options: str = "") -> None:
        """Mount a filesystem, or change how a mount propagates."""
        kind = fstype.encode() if fstype else None
        done = _mount(source.encode(), target.encode(), kind, flags, options.encode() or None)
        _check(done, "mount", target)

    def umount2(self, target: str, flags: int) -> None:
        """Detach a mount."""
        _check(_umount2(target.encode(), flags), "umount2", target)

    def open_tree(self, dirfd: int, path: str, flags: int) -> int:
        """Return a descriptor of a mount (a detached copy with OPEN_TREE_CLONE)."""
        return _call("open_tree", dirfd, path.encode(), flags | OPEN_TREE_CLOEXEC, path=path)

    def move_mount(self, from_fd: int, to_fd: int, to_path: str = "") -> None:
        """Attach the detached mount `from_fd` at `to_path` below `to_fd`, or on `to_fd` itself."""
        flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if to_path else MOVE_MOUNT_T_EMPTY_PATH)
        _call("move_mount", from_fd, b"", to_fd, to_path.encode(), flags, path=to_path or f"fd {to_fd}")

    def mount_setattr(self, fd: int, attributes: int, *, userns_fd: int | None = None) -> None:
        """Set attributes on the mount behind `fd`; with `userns_fd` map its ids through that user namespace."""
        if userns_fd is not None:
            attributes |= MOUNT_ATTR_IDMAP
        _call("mount_setattr", fd, b"", AT_EMPTY_PATH, struct.pack("=4Q", attributes, 0, 0, userns_fd or 0), 32)

    def fsmount(self, fstype: str, options: Mapping[str, str | None], attributes: int) -> int:
        """Make a new filesystem and return the descriptor of its detached mount (fsopen, fsconfig, fsmount)."""
        context = _call("fsopen", fstype.encode(), FSOPEN_CLOEXEC, path=fstype)
        try:
            for key, value in options.items():
                command = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
                raw = None if value is None else value.encode()
                _call("fsconfig", context, command, key.encode(), raw, 0, path=f"{fstype} {key}")
            _call("fsconfig", context, FSCONFIG_CMD_CREATE, None, None, 0, path=fstype)
            return _call("fsmount", context, FSMOUNT_CLOEXEC, attributes, path=fstype)
        finally:
            os.close(context)

    def pivot_root(self, new_root: str, put_old: str) -> None:
        """Make `new_root` the root mount and put the old one at `put_old`."""
        _call("pivot_root", new_root.encode(), put_old.encode(), path=new_root)

    def fchroot(self, fd: int) -> None:
        """Make the directory `fd` the root and the working directory."""
        try:
            os.fchdir(fd)
            os.chroot(".")
        except OSError as error:
            raise SyscallError(error.errno or 0, "chroot", f"fd {fd}") from None

    # --- files ---

    def openat2(self, dirfd: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
        """Open `path` below `dirfd` under the RESOLVE_* rules."""
        how = struct.pack("=3Q", flags | os.O_CLOEXEC, mode, resolve)
        return _call("openat2", dirfd, os.fsencode(path), how, 24, path=path)

    def rename_new(self, old: str, new: str, old_dirfd: int, new_dirfd: int) -> None:
        """Rename to a name that must not exist (renameat2 with RENAME_NOREPLACE)."""
        _call("renameat2", old_dirfd, os.fsencode(old), new_dirfd, os.fsencode(new), RENAME_NOREPLACE, path=new)

    def open(self, path: str, flags: int, mode: int = 0, *, dirfd: int | None = None) -> int:
        """Open a file, close-on-exec."""
        try:
            return os.open(path, flags | os.O_CLOEXEC, mode, dir_fd=dirfd)
        except OSError as error:
            raise SyscallError(error.errno or 0, "open", path) from None

    def write(self, fd: int, data: bytes) -> None:
        """Write all of `data` at once."""
        try:
            os.write(fd, data)
        except OSError as error:
            raise SyscallError(error.errno or 0, "write", f"fd {fd}") from None

    def ftruncate(self, fd: int, size: int) -> None:
        """Set a file's size; what is new is a hole."""
        try:
            os.ftruncate(fd, size)
        except OSError as error:
            raise SyscallError(error.errno or 0, "ftruncate", f"fd {fd} to {size}") from None

    def rename(self, old: str, new: str) -> None:
        """Rename a file over another."""
        try:
            os.rename(old, new)
        except OSError as error:
            raise SyscallError(error.errno or 0, "rename", old) from None

    def ioctl(self, fd: int, request: int, argument: bytearray | int, name: str) -> int:
        """Ask the driver behind `fd`; `name` is the request's own, and `argument` a buffer that it may write to."""
        try:
            return fcntl.ioctl(fd, request, argument)
        except OSError as error:
            raise SyscallError(error.errno or 0, "ioctl", name) from None

    def mkdir(self, path: str, mode: int = 0o755, *, dirfd: int | None = None) -> None:
        """Make a directory."""
        try:
            os.mkdir(path, mode, dir_fd=dirfd)
        except OSError as error:
            raise SyscallError(error.errno or 0, "mkdir", path) from None

    def chown(self, path: str, uid: int, gid: int, *, dirfd: int | None = None) -> None:
        """Change the owner (fchownat), never following a link."""
        try:
            os.chown(path, uid, gid, dir_fd=dirfd, follow_symlinks=False)
        except OSError as error:
            raise SyscallError(error.errno or 0, "fchownat", path) from None

    def mknod(self, path: str, mode: int, device: int, *, dirfd: int | None = None) -> None:
        """Make a node (mknodat)."""
        try:
            os.mknod(path, mode, device, dir_fd=dirfd)
        except OSError as error:
            raise SyscallError(error.errno or 0, "mknodat", path) from None

    def symlink(self, target: str, path: str, *, dirfd: int | None = None) -> None:
        """Make a symbolic link (symlinkat)."""
        try:
            os.symlink(target, path, dir_fd=dirfd)
        except OSError as error:
            raise SyscallError(error.errno or 0, "symlinkat", path) from None

    # --- privilege ---

    def setfsids(self, uid: int, gid: int) -> None:
        """Act on files as `uid` and `gid`."""
        _libc.setfsgid(ctypes.c_uint(gid))
        _libc.setfsuid(ctypes.c_uint(uid))
        # Neither call reports failure; asking with an invalid id tells the present one (setfsuid(2)).
        if (_libc.setfsgid(ctypes.c_uint(2**32 - 1)), _libc.setfsuid(ctypes.c_uint(2**32 - 1))) != (gid, uid):
            raise SyscallError(errno.EPERM, "setfsuid")

    def setresids(self, uid: int, gid: int) -> None:
        """Become `uid` and `gid` entirely, without supplementary groups."""
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        except OSError as error:
            raise SyscallError(error.errno or 0, "setresuid") from None

    def set_securebits(self, bits: int) -> None:
        """prctl(PR_SET_SECUREBITS)."""
        try:
            prctl.set_securebits(bits)
        except OSError as error:
            raise SyscallError(error.errno or 0, "prctl", "PR_SET_SECUREBITS") from None

    def capset(self, effective: int, permitted: int, inheritable: int) -> None:
        """Set the three capability sets of this thread, each a bit mask."""
        header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
        low, high = 0xFFFFFFFF, 32
        sets = (effective, permitted, inheritable)
        data = struct.pack("=6I", *(value & low for value in sets), *(value >> high for value in sets))
        _check(_capset(header, data), "capset")

    def capget(self) -> int:
        """Return the permitted set of this thread; a container's root may lack some."""
        header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
        data = ctypes.create_string_buffer(24)
        _check(_libc.capget(header, data), "capget")
        words = struct.unpack("=6I", data.raw)
        return int(words[1] | words[4] << 32)

    def cut_bounding_set(self, keep: int) -> None:
        """Drop every capability that is not in the mask `keep` from the bounding set."""
        for capability in range(_LAST_CAPABILITY + 1):
            if not keep >> capability & 1:
                try:
                    prctl.capbset_drop(capability)
                except OSError as error:
                    raise SyscallError(error.errno or 0, "prctl", f"PR_CAPBSET_DROP {capability}") from None

    def raise_ambient(self, capability: int) -> None:
        """Let a permitted and inheritable capability outlive the exec of a user that is not root."""
        prctl_, raise_ = 47, 2  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE
        arguments = (ctypes.c_ulong(value) for value in (raise_, capability, 0, 0))
        _check(_libc.prctl(ctypes.c_int(prctl_), *arguments), "prctl", f"PR_CAP_AMBIENT {capability}")

    def forbid_dump(self) -> None:
        """Be neither dumpable nor ptraceable: prctl(PR_SET_DUMPABLE, 0)."""
        prctl.set_dumpable(0)

    def set_no_new_privs(self) -> None:
        """Let no exec raise privilege again: prctl(PR_SET_NO_NEW_PRIVS)."""
        prctl.set_no_new_privs(1)

    def seccomp(self, program: bytes) -> None:
        """Install a compiled filter (an array of struct sock_filter)."""
        # Where the instructions are: a copy would be pages of the sandbox's own.
        address = ctypes.c_void_p.from_buffer(ctypes.c_char_p(program)).value
        _call("seccomp", _SECCOMP_SET_MODE_FILTER, 0, struct.pack("@HP", len(program) // 8, address))


def last_capability() -> int:
    """Return the highest capability that this kernel knows."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read())


#: Read once: a sandbox's /proc is another one by the time the bounding set is cut.
_LAST_CAPABILITY: Final = last_capability()
