"""The life of a template: load, wait for orders, fork children that enter a sandbox, give everything up, and work.

Theory of operation. The launcher starts a template confined (launcher/templates.py): a user of its own that owns
nothing, CAP_SYS_ADMIN and CAP_SYS_CHROOT, no new privileges, a system call filter, a read-only root, no /proc, an
empty network, and one descriptor, the socket to the launcher. It stays in the host's pid namespace, since only an
ancestor's member can join a sandbox's.

    launcher ── order: profile; leaf, handoff, namespaces ──▶ template
    template: setns(the sandbox's pids, for children), clone3(into the leaf) ──▶ B;  setns(back)
    B       : fork ──▶ C;  ends at once, so that C's parent is the sandbox's init, which waits for it and kills it
    C       : joins every other namespace, the user's last; becomes the sandbox's root with what its init has left:
              capabilities, bounding set, no new privileges, the sandbox's own filters, not dumpable
    C ── one byte, its pid told by the kernel ──▶ init (guest/incoming.py)
    init ── the job: user, directory, variables, descriptors ──▶ C: takes all of that on, and works

Nothing that a sandbox has made is opened or read before C is as powerless as any child of its init: the launcher opens
the leaf and the namespaces, the handoff is the daemon's, and what init says comes after.

This file stands alone (Python 3.9 or newer, the standard library): a template of a rootfs is that rootfs's own Python,
which is handed this text. Hence ctypes, and the numbers of system calls.
"""

import array
import ctypes
import fcntl
import gc
import io
import json
import os
import resource
import select
import signal
import socket
import struct
import sys

#: The socket to the launcher, and the program where there is one.
SOCKET, PROGRAM = 3, 7
#: An order is a few names; the first message holds the filters.
MAX_ORDER_BYTES = 256 * 1024
#: A job holds at most what an execve takes: variables of 128 KiB, and their number.
MAX_JOB_BYTES = 8 * 1024 * 1024
MAX_JOB_FDS = 16

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000
#: Which namespaces an order brings, in the order of their descriptors, which is that of joining them: the user's takes
#: away what the others need. That of the pids, for children alone, comes first and is the template's own business.
NAMESPACES = (
    ("pid", CLONE_NEWPID),
    ("cgroup", CLONE_NEWCGROUP),
    ("ipc", CLONE_NEWIPC),
    ("uts", CLONE_NEWUTS),
    ("net", CLONE_NEWNET),
    ("time", CLONE_NEWTIME),
    ("mnt", CLONE_NEWNS),
    ("user", CLONE_NEWUSER),
)
_SYS_CLONE3, _SYS_CLOSE_RANGE = 435, 436
_SYS_SECCOMP, _SYS_CAPSET, _SYS_PRCTL = (277, 91, 167) if os.uname().machine == "aarch64" else (317, 126, 157)
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT = 4, 24, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522

# PyDLL: the interpreter's lock is kept over the call, so that a raw clone3 does not return without it.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(number, *arguments):
    result = _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _setns(fd, flag):
    if _libc.setns(ctypes.c_int(fd), ctypes.c_int(flag)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, "setns: " + os.strerror(code))


def _clone_into(cgroup):
    args = struct.pack("=11Q", CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, cgroup)
    return _call(_SYS_CLONE3, ctypes.create_string_buffer(args, len(args)), 88)


def _prctl(option, *arguments):
    _call(_SYS_PRCTL, option, *(arguments + (0,) * (4 - len(arguments))))


def _capset(mask):
    """Leave the effective and permitted sets with `mask`, the inheritable one empty."""
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    data = ctypes.create_string_buffer(struct.pack("=6I", low, low, 0, high, high, 0))
    _call(_SYS_CAPSET, header, data)


def install_filter(program):
    """Install a compiled filter (an array of struct sock_filter)."""
    instructions = ctypes.create_string_buffer(program, len(program))
    prog = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions)))
    _call(_SYS_SECCOMP, 1, 0, prog)


def close_others(keep):
    """Close every descriptor from 3 on that is not in `keep`."""
    first = 3
    for fd in sorted(set(keep)):
        if fd > first:
            _call(_SYS_CLOSE_RANGE, first, fd - 1, 0)
        first = max(first, fd + 1)
    _call(_SYS_CLOSE_RANGE, first, 2**32 - 1, 0)


def _descriptors(ancillary):
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


class Declined(Exception):
    """The child would not do here what an interpreter of the sandbox's own does; init starts one."""


class Template:
    """One template; `unpack` reads a job (msgpack)."""

    def __init__(self, unpack):
        self._unpack = unpack
        self._work = self._accept = None
        self._socket = socket.socket(fileno=SOCKET)
        self._settings = {}
        self._own_pids = -1

    def receive_settings(self):
        """Take the launcher's first message, and be ready for nothing but that; before any foreign code runs.

        What a program that the imports run would inherit goes here: the ambient capabilities are cleared.
        """
        data, _ = self._receive()
        self._settings = json.loads(data)
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        _prctl(_PR_SET_DUMPABLE, 0)
        self._own_pids = os.pidfd_open(os.getpid())

    def _receive(self):
        data, ancillary, flags, _ = self._socket.recvmsg(MAX_ORDER_BYTES, socket.CMSG_SPACE(4 * 16))
        if not data or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            os._exit(0)  # the launcher is gone, or wants us gone
        return data, _descriptors(ancillary)

    def fail(self, why):
        """Say why there will be no template, and end."""
        try:
            self._socket.send(b"failed " + why.encode("utf-8", "replace")[:1000])
        finally:
            os._exit(1)

    def serve(self, work, accept=None):
        """Say that it is loaded, and fork children until the launcher is gone.

        In a child `work(given)` does the job, after `accept(job)`, which may raise `Declined`.
        """
        self._work, self._accept = work, accept
        # Nobody waits for B, who ends at once: a zombie of it would keep its sandbox's pid namespace from ending.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        gc.collect()
        gc.freeze()  # a child's collector leaves the pages that it shares alone
        self._socket.send(b"ready")
        while True:
            data, fds = self._receive()
            try:
                self._fork(json.loads(data), fds)
                answer = b"entered"
            except OSError as error:
                answer = b"refused " + str(error).encode("utf-8", "replace")[:200]
            for fd in fds:
                os.close(fd)
            self._socket.send(answer)

    def _fork(self, order, fds):
        handoff, leaf, pids = fds[:3]
        _setns(pids, CLONE_NEWPID)
        try:
            if _clone_into(leaf) == 0:
                self._be_b(order, handoff, fds[3:])
        finally:
            try:
                _setns(self._own_pids, CLONE_NEWPID)
            except OSError:
                os._exit(1)  # the next child would be born in this sandbox

    def _be_b(self, order, handoff, namespaces):
        """Be B, and in its child C; never returns."""
        try:
            parent = os.pidfd_open(os.getpid())
            if os.fork():
                os._exit(0)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._enter(order, handoff, parent, namespaces)
        except BaseException as error:
            # Words for a log; init sees the end of the handoff in any case.
            why = ("failed %s: %s" % (type(error).__name__, error)).encode("utf-8", "replace")
            try:
                socket.socket(fileno=handoff).send(why[:1000])
            except OSError:
                os.write(2, why[:1000])  # it had begun
        finally:
            os._exit(1)

    def _enter(self, order, handoff, parent, namespaces):
        """Be C: enter, give everything up, and only then speak."""
        self._socket.detach()
        close_others([handoff, parent, *namespaces])
        for (_, flag), fd in zip(NAMESPACES[1:], namespaces):
            _setns(fd, flag)
        os.umask(0o022)
        os.chdir("/")
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        keep = self._settings["capabilities"]
        for capability in range(self._settings["last_capability"] + 1):
            if not keep >> capability & 1:
                _prctl(_PR_CAPBSET_DROP, capability)
        _capset(keep)
        _prctl(_PR_SET_DUMPABLE, 0)
        close_others([handoff, parent])
        for program in self._settings["filters"][order["profile"]]:
            install_filter(bytes.fromhex(program))
        link = socket.socket(fileno=handoff)
        link.sendall(b"h")
        job, fds = receive_job(link)
        self._do(link, parent, self._unpack(job), fds)

    def _do(self, link, parent, job, fds):
        # While init can still do without us: these may fail.
        for name, (soft, hard) in job["rlimits"].items():
            resource.setrlimit(getattr(resource, name), (soft, hard))
        if self._accept is not None:
            try:
                self._accept(job)
            except Declined as why:
                link.sendall(b"declined " + str(why).encode("utf-8", "replace")[:1000])
                os._exit(0)
        select.select([parent], [], [])  # B may still be ending, and would be the parent that a program sees
        link.sendall(b"begun")
        os.setsid()
        take_descriptors(fds)  # the link's and B's are closed with the rest
        link.detach()
        os.setgroups(job["groups"])
        os.setresgid(job["gid"], job["gid"], job["gid"])
        os.setresuid(job["uid"], job["uid"], job["uid"])
        try:
            os.chdir(job["cwd"])
        except OSError as error:
            os.write(2, ("sandboxd: cannot enter %r: %s\n" % (job["cwd"], error.strerror)).encode())
            os._exit(126)
        os.environ.clear()
        os.environ.update(job["env"])
        install_filter(bytes.fromhex(self._settings["command_filter"]))
        _open_streams()
        status = 1
        try:
            self._work(job["with"])
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except Exception:
                    continue
            os._exit(status)


def receive_job(link):
    """Return the bytes of a job and its descriptors; ends the process where none comes."""
    header, fds = b"", []
    while len(header) < 4:
        data, ancillary, _, _ = link.recvmsg(4 - len(header), socket.CMSG_SPACE(4 * MAX_JOB_FDS))
        if not data:
            os._exit(1)
        header += data
        fds += _descriptors(ancillary)
    (left,) = struct.unpack(">I", header)
    if left > MAX_JOB_BYTES:
        os._exit(1)
    parts = []
    while left:
        data = link.recv(min(left, 1 << 20))
        if not data:
            os._exit(1)
        parts.append(data)
        left -= len(data)
    return b"".join(parts), fds


def _open_streams():
    """Make sys.stdin, stdout and stderr as a starting interpreter does; those that there are remember /dev/null."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        old = getattr(sys, "__%s__" % name)
        raw = io.FileIO(fd, mode, closefd=False)
        raw.name = "<%s>" % name
        buffer = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
        stream = io.TextIOWrapper(
            buffer, encoding=old.encoding, errors=old.errors, newline="\n", line_buffering=name == "stderr"
        )
        stream.mode = mode
        setattr(sys, name, stream)
        setattr(sys, "__%s__" % name, stream)


def take_descriptors(fds):
    """Make `fds` the descriptors from 0 on, and close all others."""
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, MAX_JOB_FDS) for fd in fds]  # out of the way: a number may be a target
    for target, fd in enumerate(moved):
        os.dup2(fd, target)
    _call(_SYS_CLOSE_RANGE, max(3, len(moved)), 2**32 - 1, 0)
