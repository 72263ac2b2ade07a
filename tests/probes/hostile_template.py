"""What a rootfs's code may try in a template before it is asked for anything: prints `{name: answer}` to descriptor 3.

An answer is an errno's name, or `allowed`. The launcher's place is taken by the test, which gives three pids: its own
(root's), the launcher's, and that of another template.
"""

import ctypes
import errno
import functools
import json
import os
import signal
import socket
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
FIFREEZE, FITRIM, BTRFS_SEARCH, EXT4_SHUTDOWN = 0xC0045877, 0xC0185879, 0xD0009411, 0x8004587D
NEWNS, NEWUSER, NEWNET = 0x20000, 0x10000000, 0x40000000
link = socket.socket(fileno=3)
pids = json.loads(link.recv(4096))
answers: dict[str, str] = {}


def note(name: str, result: int) -> None:
    answers[name] = "allowed" if result >= 0 else errno.errorcode.get(ctypes.get_errno(), str(ctypes.get_errno()))


def call(name: str, number: int, *arguments: object) -> None:
    note(name, libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)))


def attempt(name: str, act: Callable[[], object]) -> None:
    try:
        act()
        answers[name] = "allowed"
    except OSError as error:
        answers[name] = errno.errorcode.get(error.errno or 0, str(error.errno))


call("mount", 165, b"none", b"/tmp", b"tmpfs", 0, None)
call("open_tree", 428, -100, b"/", 1)
call("move_mount", 429, -1, b"", -1, b"", 0)
call("mount_setattr", 442, -100, b"/", 0, None, 0)
call("pivot_root", 155, b"/", b"/")
call("chroot", 161, b"/tmp")
call("bpf", 321, 5, None, 0)
call("perf_event_open", 298, None, 0, -1, -1, 0)
call("keyctl", 250, 0, -3, 0)
call("add_key", 248, b"user", b"a", b"b", 1, -3)
call("open_by_handle_at", 304, -1, None, 0)
call("process_vm_readv", 310, pids[0], None, 0, None, 0, 0)
call("pidfd_getfd", 438, 3, 0, 0)
call("kcmp", 312, pids[0], pids[0], 0, 0, 0)
call("swapoff", 168, b"/none")
call("sethostname", 170, b"x", 1)
call("syslog", 103, 10, None, 0)
call("init_module", 175, None, 0, b"")
call("kexec_load", 246, 0, 0, None, 0)
call("reboot", 169, 0, 0, 0, None)
call("userfaultfd", 323, 0)
call("io_uring_setup", 425, 1, None)
call("quotactl", 179, 0, None, 0, None)
call("fanotify_init", 300, 0, 0)
call("settimeofday", 164, None, None)
call("unshare user", 272, NEWUSER)
call("unshare mounts", 272, NEWNS)
for name, request in (("freeze", FIFREEZE), ("trim", FITRIM), ("search", BTRFS_SEARCH), ("shutdown", EXT4_SHUTDOWN)):
    fd = os.open("/", os.O_RDONLY)
    call("ioctl " + name, 16, fd, request, ctypes.create_string_buffer(8192))
    os.close(fd)
page = ctypes.create_string_buffer(3 * 4096)
address = (ctypes.addressof(page) + 4095) & ~4095
call("madvise poison", 28, ctypes.c_void_p(address), 4096, 100)
call("madvise offline", 28, ctypes.c_void_p(address), 4096, 101)
for name, pid in zip(("root", "launcher", "template"), pids, strict=True):
    call("ptrace " + name, 101, 16, pid, 0, 0)  # PTRACE_ATTACH
    attempt("kill " + name, functools.partial(os.kill, pid, signal.SIGCONT))

    def join(pid: int = pid) -> None:
        fd = os.pidfd_open(pid)
        try:
            if libc.setns(fd, NEWNS | NEWNET) < 0:
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(fd)

    attempt("setns " + name, join)
attempt("setuid", lambda: os.setresuid(0, 0, 0))
attempt("setgid", lambda: os.setresgid(0, 0, 0))
attempt("setgroups", lambda: os.setgroups([0]))
attempt("shadow", lambda: os.open("/etc/shadow", os.O_RDONLY))
attempt("proc", lambda: os.listdir("/proc/self"))
attempt("core_pattern", lambda: os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))
attempt("mknod", lambda: os.mknod("/tmp/x", 0o60666, os.makedev(8, 0)))
for directory in ("/", "/tmp", "/dev", "/var/tmp", "/root", "/run", "/usr"):
    attempt("write " + directory, functools.partial(os.open, directory + "/x", os.O_CREAT | os.O_WRONLY))
attempt("network", lambda: socket.create_connection(("127.0.0.1", 1), 1))
attempt("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
attempt("nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
link.send(json.dumps(answers).encode())
