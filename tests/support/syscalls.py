"""What each profile answers to each family of system calls (x86-64), as data for tests.

A row is `name, number, arguments, default's answer, strict's answer`. The arguments are ones that the kernel refuses
without doing anything (a pointer to nowhere, a descriptor that is not open, an undefined flag), with another answer
than the profile's. `KERNEL` means that the call gets through, so the answer is the unfiltered kernel's own.
"""

from __future__ import annotations

from typing import Final, NamedTuple

KERNEL: Final = "kernel"
BAD: Final = 1  # no address, no descriptor
HIGH: Final = 1 << 40  # a bit that the kernel does not look at where the argument is 32 bits wide
_TYPE: Final = 0x101  # SOCK_STREAM with an undefined flag: EINVAL before the kernel looks at the family
_THREAD: Final = 0x10000  # CLONE_THREAD without CLONE_SIGHAND: EINVAL


class Row(NamedTuple):
    """One call and its answers."""

    name: str
    number: int
    arguments: tuple[int, ...]
    default: str
    strict: str


def _same(answer: str, *calls: tuple[str, int, tuple[int, ...]]) -> tuple[Row, ...]:
    return tuple(Row(name, number, arguments, answer, answer) for name, number, arguments in calls)


_NAMESPACES: Final = {
    "NEWNS": 0x20000, "NEWCGROUP": 0x2000000, "NEWUTS": 0x4000000, "NEWIPC": 0x8000000, "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000, "NEWNET": 0x40000000,
}  # fmt: skip
_SOCKETS: Final = {
    "ALG": 38, "VSOCK": 40, "PACKET": 17, "KEY": 15, "BLUETOOTH": 31, "TIPC": 30, "CAN": 29, "XDP": 44, "RDS": 21,
    "SMC": 43, "QIPCRTR": 42, "X25": 9, "AX25": 3, "APPLETALK": 5, "PPPOX": 24, "KCM": 41, "NFC": 39, "IB": 27,
    "MCTP": 45, "LLC": 26, "PHONET": 35, "unspecified": 0, "above all": 46,
}  # fmt: skip

#: FS_IOC_… and BTRFS_IOC_…: compression, and verifying on each read
_LABOURS: Final = {
    "SETFLAGS": 0x40086602, "SETFLAGS 32": 0x40046602, "FSSETXATTR": 0x401C5820, "ENABLE_VERITY": 0x40806685,
    "DEFRAG": 0x50009402, "DEFRAG_RANGE": 0x40309410, "ENCODED_WRITE": 0x40809440, "ENCODED_WRITE 32": 0x40689440,
}  # fmt: skip
#: Protocols of the internet families that programs have: any, ICMP, TCP, UDP, ICMPv6.
_PROTOCOLS: Final = frozenset({0, 1, 6, 17, 58})
#: (family, type, protocol) that the kernel has; for another one of these it runs modprobe, twice.
_KINDS: Final = frozenset({
    *((family, kind, protocol) for family in (2, 10) for kind, protocol in ((1, 0), (1, 6), (2, 0), (2, 17))),
    (2, 2, 1), (10, 2, 58), *((family, 3, protocol) for family in (2, 10) for protocol in _PROTOCOLS),
})  # fmt: skip
#: SIOC…: bridge, 8021q and dlci, which the kernel loads for anybody's socket.
_LOADING: Final = {
    "GIFBR": 0x8940, "SIFBR": 0x8941, "BRADDBR": 0x89A0, "BRDELBR": 0x89A1, "GIFVLAN": 0x8982, "SIFVLAN": 0x8983,
    "ADDDLCI": 0x8980, "DELDLCI": 0x8981,
}  # fmt: skip
_TERMINALS: Final = {"STI": 0x5412, "LINUX": 0x541C, "CONS": 0x541D, "SETD": 0x5423}

FAMILIES: Final[dict[str, tuple[Row, ...]]] = {
    "namespaces by clone": (
        *_same("EPERM", *((name, 56, (flag | _THREAD,)) for name, flag in _NAMESPACES.items())),
        *_same("EPERM", *((f"{name} high", 56, (flag | _THREAD | HIGH,)) for name, flag in _NAMESPACES.items())),
        *_same("EPERM", ("all", 56, (sum(_NAMESPACES.values()) | _THREAD,))),
        *_same(KERNEL, ("none", 56, (_THREAD,))),
    ),
    "namespaces by clone3": _same("ENOSYS", ("clone3", 435, (BAD, 0)), ("clone3 with a size", 435, (BAD, 88))),
    "namespaces by unshare": (
        # 1 is no flag of unshare: EINVAL
        *_same("EPERM", *((name, 272, (flag | 1,)) for name, flag in _NAMESPACES.items())),
        *_same("EPERM", *((f"{name} high", 272, (flag | 1 | HIGH,)) for name, flag in _NAMESPACES.items())),
        *_same("EPERM", ("NEWTIME", 272, (0x80 | 1,))),
        Row("files", 272, (0x400,), KERNEL, "EPERM"),
    ),
    "namespaces by setns": _same("EPERM", ("setns", 308, (-1, 0)), ("setns high", 308, (HIGH - 1, HIGH))),
    "mounts": _same(
        "EPERM",
        ("mount", 165, (BAD, BAD, BAD, 0, 0)), ("umount2", 166, (BAD, 0)), ("pivot_root", 155, (BAD, BAD)),
        ("chroot", 161, (BAD,)), ("open_tree", 428, (-1, BAD, 0)), ("open_tree clone", 428, (-1, BAD, 1)),
        ("move_mount", 429, (-1, BAD, -1, BAD, 0)), ("fsopen", 430, (BAD, 0)), ("fsconfig", 431, (-1, 99, 0, 0, 0)),
        ("fsmount", 432, (-1, 0, 0)), ("fspick", 433, (-1, BAD, 0)), ("mount_setattr", 442, (-1, BAD, 0, BAD, 32)),
        ("open_by_handle_at", 304, (-1, BAD, 0)), ("swapon", 167, (BAD, 0)), ("swapoff", 168, (BAD,)),
        ("quotactl", 179, (-1, BAD, 0, 0)), ("quotactl_fd", 443, (-1, 0, 0, 0)), ("acct", 163, (BAD,)),
    ),
    "newer ways to mounts": _same(
        "ENOSYS",
        ("open_tree_attr", 467, (-1, BAD, 0, BAD, 32)), ("statmount", 457, (BAD, BAD, 0, 0)),
        ("listmount", 458, (BAD, BAD, 0, 0)), ("file_getattr", 468, (-1, BAD, BAD, 0, 0)),
        ("file_setattr", 469, (-1, BAD, BAD, 0, 0)),
    ),
    "kernel code and tracing": _same(
        "EPERM",
        ("bpf", 321, (9999, BAD, 8)), ("perf_event_open", 298, (BAD, 0, -1, -1, 0)), ("userfaultfd", 323, (0x10,)),
        ("fanotify_init", 300, (-1, 0)), ("fanotify_mark", 301, (-1, 0, 0, -1, 0)), ("init_module", 175, (BAD, 8, BAD)),
        ("finit_module", 313, (-1, BAD, 0)), ("delete_module", 176, (BAD, 0)), ("kexec_load", 246, (0, 99, BAD, -1)),
        ("kexec_file_load", 320, (-1, -1, 0, BAD, -1)), ("reboot", 169, (0, 0, 0, 0)), ("ioperm", 173, (1 << 30, 1, 1)),
        ("iopl", 172, (9,)),
    ),
    "io_uring and aio": _same(
        "ENOSYS",
        ("io_uring_setup", 425, (0, BAD)), ("io_uring_enter", 426, (-1, 0, 0, 0, 0, 0)),
        ("io_uring_register", 427, (-1, 0, 0, 0)), ("io_setup", 206, (1, BAD)), ("io_submit", 209, (BAD, 1, BAD)),
        ("io_destroy", 207, (BAD,)),
    ),
    "keyrings": _same(
        "EPERM", ("keyctl", 250, (9999,)), ("add_key", 248, (BAD, BAD, 0, 0, 0)),
        ("request_key", 249, (BAD, BAD, 0, 0)),
    ),
    "other processes": (
        *_same(
            "EPERM",
            ("process_vm_readv", 310, (0, 0, 0, 0, 0, 1)), ("process_vm_writev", 311, (0, 0, 0, 0, 0, 1)),
            ("process_madvise", 440, (-1, BAD, 1, 0, 0)), ("pidfd_getfd", 438, (-1, 0, 0)), ("kcmp", 312, (-1, -1, 99)),
        ),
        Row("ptrace attach", 101, (16, -1, 0, 0), KERNEL, "EPERM"),
        Row("ptrace traceme high", 101, (HIGH + 16, -1, 0, 0), KERNEL, "EPERM"),
        Row("process_mrelease", 448, (-1, 0), KERNEL, "EPERM"),
    ),
    "time and names of the host": (
        *_same(
            "EPERM",
            ("settimeofday", 164, (BAD, 0)), ("clock_settime", 227, (9999, BAD)), ("clock_adjtime", 305, (9999, BAD)),
            ("syslog", 103, (99, 0, 0)), ("sethostname", 170, (BAD, -1)), ("setdomainname", 171, (BAD, -1)),
        ),
        Row("adjtimex", 159, (BAD,), KERNEL, "EPERM"),
    ),
    "sockets of other families": (
        *_same("EAFNOSUPPORT", *((name, 41, (family, _TYPE, 0)) for name, family in _SOCKETS.items())),
        *_same("EAFNOSUPPORT", *((f"{name} high", 41, (family | HIGH, _TYPE, 0)) for name, family in _SOCKETS.items())),
        *_same("EAFNOSUPPORT", *((f"{name} pair", 53, (family, _TYPE, 0, BAD)) for name, family in _SOCKETS.items())),
        *_same("EAFNOSUPPORT", ("INET pair", 53, (2, _TYPE, 0, BAD)), ("INET6 pair", 53, (10, _TYPE, 0, BAD)),
               ("NETLINK pair", 53, (16, _TYPE, 0, BAD)), ("INET pair high", 53, (2 | HIGH, _TYPE, 0, BAD))),
        *_same(KERNEL, ("UNIX", 41, (1, _TYPE, 0)), ("INET", 41, (2, _TYPE, 0)), ("INET6", 41, (10, _TYPE, 0)),
               ("UNIX pair", 53, (1, _TYPE, 0, BAD))),
    ),
    "netlink": (
        *(Row(name, 41, (16, _TYPE, protocol), "EPROTONOSUPPORT", "EAFNOSUPPORT")
          for name, protocol in (("netfilter", 12), ("audit", 9), ("xfrm", 6), ("uevent", 15), ("generic", 16),
                                 ("connector", 11), ("rdma", 20), ("crypto", 21), ("selinux", 7))),
        Row("netfilter high", 41, (16 | HIGH, _TYPE, 12 | HIGH), "EPROTONOSUPPORT", "EPROTONOSUPPORT"),
        Row("route", 41, (16, _TYPE, 0), KERNEL, "EAFNOSUPPORT"),
        *_same("EPROTONOSUPPORT", ("sock_diag", 41, (16, _TYPE, 4)), ("sock_diag high", 41, (16, _TYPE, 4 | HIGH))),
    ),
    "protocols that load modules": _same(
        "EPROTONOSUPPORT",
        *((f"{name} over {family}", 41, (family, _TYPE, protocol)) for family in (2, 10) for name, protocol in
          (("SCTP", 132), ("DCCP", 33), ("L2TP", 115), ("UDP-Lite", 136), ("SMC", 256), ("MPTCP", 262), ("raw", 255))),
        ("SCTP high", 41, (2, _TYPE, 132 | HIGH)),
        *((f"{protocol} over {family}", 41, (family, _TYPE, protocol)) for family in (2, 10)
          for protocol in sorted({*range(59)} - _PROTOCOLS)),
        *((f"{protocol} over {family}, type {kind}", 41, (family, 0x100 | kind, protocol)) for family in (2, 10)
          for protocol in sorted(_PROTOCOLS) for kind in (1, 2, 3) if (family, kind, protocol) not in _KINDS),
        ("UDP of STREAM high", 41, (2, 0x101 | HIGH, 17 | HIGH)),
    ) + _same(
        "ESOCKTNOSUPPORT",
        *((f"type {kind} over {family}", 41, (family, 0x100 | kind, 0)) for family in (2, 10)
          for kind in (0, *range(4, 16))),
        ("SEQPACKET with high bits", 41, (2, 0x105 | HIGH, 0)), ("PACKET of UNIX", 41, (1, 0x10A, 0)),
    ) + _same(
        KERNEL,
        *((f"{protocol} over {family}, type {kind}", 41, (family, 0x100 | kind, protocol)) for family in (2, 10)
          for protocol in sorted(_PROTOCOLS) for kind in (1, 2, 3) if (family, kind, protocol) in _KINDS),
        *((f"type {kind} of UNIX", 41, (1, 0x100 | kind, 0)) for kind in (1, 2, 3, 5)),
    ),
    "socket options and ioctls that load modules": _same(
        "ENOPROTOOPT",
        *((name, 54, (-1, 6, option, BAD, 0)) for name, option in
          (("TCP_MD5SIG", 14), ("TCP_MD5SIG_EXT", 32), ("TCP_AO_ADD_KEY", 38))),
        ("TCP_AO_ADD_KEY high", 54, (-1, 6 | HIGH, 38 | HIGH, BAD, 0)),
    ) + _same(
        "ENOTTY",
        *((f"{name}{high}", 16, (-1, bits | request, BAD)) for high, bits in (("", 0), (" high", HIGH))
          for name, request in _LOADING.items()),
    ) + _same(
        KERNEL, ("TCP_NODELAY", 54, (-1, 6, 1, BAD, 0)), ("GIFCONF", 16, (-1, 0x8912, BAD)),
        ("GIFFLAGS", 16, (-1, 0x8913, BAD)), ("INQ", 16, (-1, 0x541B, BAD)),
    ),
    "socket filters": _same(
        "EPERM",
        *((name, 54, (-1, 1, option, BAD, 0)) for name, option in
          (("ATTACH_FILTER", 26), ("ATTACH_BPF", 50), ("REUSEPORT_CBPF", 51), ("REUSEPORT_EBPF", 52))),
        ("ATTACH_FILTER high", 54, (-1, 1 | HIGH, 26 | HIGH, BAD, 0)),
    ) + _same("ENOENT", ("TCP_ULP", 54, (-1, 6, 31, BAD, 0)), ("TCP_ULP high", 54, (-1, 6 | HIGH, 31 | HIGH, BAD, 0)))
    + _same(KERNEL, ("SO_REUSEADDR", 54, (-1, 1, 2, BAD, 0))),
    "filters of a program's own": (
        *_same("EINVAL", ("seccomp", 317, (1, 0, 0)), ("seccomp high", 317, (1 | HIGH, 0, 0)),
               ("seccomp with a listener", 317, (1, 8, 0)),
               ("prctl", 157, (22, 2, 0)), ("prctl high", 157, (22 | HIGH, 2, 0))),
        *_same(KERNEL, ("which actions", 317, (2, 0, BAD)), ("another prctl", 157, (15, BAD))),
    ),
    "terminals": _same(
        "EPERM",
        *((name, 16, (-1, request, BAD)) for name, request in _TERMINALS.items()),
        *((f"{n} high", 16, (-1, HIGH | r, BAD)) for n, r in _TERMINALS.items()),
    ) + _same(KERNEL, ("GWINSZ", 16, (-1, 0x5413, BAD))),
    "what the kernel's own threads work for": _same(
        "ENOTSUP",  # the other name of EOPNOTSUPP
        *((f"{name}{high}", 16, (-1, bits | request, BAD)) for high, bits in (("", 0), (" high", HIGH))
          for name, request in _LABOURS.items()),
    ) + _same(KERNEL, ("GETFLAGS", 16, (-1, 0x80086601, BAD)), ("FICLONE", 16, (-1, 0x40049409, -1)),
              ("FIEMAP", 16, (-1, 0xC020660B, BAD))),
    "core dumps": _same(
        "allowed",  # told so, and not done
        ("setrlimit", 160, (4, BAD)), ("setrlimit high", 160, (4 | HIGH, BAD)), ("prlimit64", 302, (0, 4, BAD, 0)),
        ("prlimit64 high", 302, (0, 4 | HIGH, BAD, 0)), ("prlimit64 of another", 302, (1, 4, BAD, 0)),
    ) + _same(
        KERNEL,
        ("reading it", 302, (0, 4, 0, BAD)), ("another limit", 302, (0, 7, BAD, 0)), ("getrlimit", 97, (4, BAD)),
        ("another setrlimit", 160, (7, BAD)),
    ),
    "huge pages of the host": _same(
        "ENOMEM",
        ("mmap", 9, (0, 4096, 0, 0x40002, -1, 0)), ("mmap of 1 GiB pages", 9, (0, 4096, 0, 0x40002 | 30 << 26, -1, 0)),
        ("mmap high", 9, (0, 4096, 0, 0x40002 | HIGH, -1, 0)),
    ) + _same("EINVAL", ("memfd_create", 319, (BAD, 4)), ("memfd_create high", 319, (BAD, 4 | HIGH))) + _same(
        KERNEL, ("another mmap", 9, (0, 4096, 0, 2, -1, 0)), ("another memfd_create", 319, (BAD, 1)),
    ),
    "what acts on neighbours": _same(
        "EINVAL", ("MADV_MERGEABLE", 28, (0, 0, 12)), ("MADV_MERGEABLE high", 28, (0, 0, 12 | HIGH)),
    ),
    "what is in the page cache": (
        Row("mincore", 27, (BAD, 1, BAD), KERNEL, "ENOSYS"),
        Row("cachestat", 451, (-1, BAD, BAD, 0), KERNEL, "ENOSYS"),
        Row("RWF_NOWAIT", 327, (-1, BAD, 1, 0, 0, 8), KERNEL, "ENOTSUP"),
        Row("RWF_NOWAIT high", 327, (-1, BAD, 1, 0, 0, 8 | HIGH), KERNEL, "ENOTSUP"),
        *_same(KERNEL, ("another preadv2", 327, (-1, BAD, 1, 0, 0, 1)), ("readahead", 187, (-1, 0, 1))),
    ),
    "personalities": (
        *_same("ENOSYS", ("READ_IMPLIES_EXEC", 135, (0x400000,)), ("MMAP_PAGE_ZERO", 135, (0x100000,)),
               ("READ_IMPLIES_EXEC high", 135, (0x400000 | HIGH,)), ("UNAME26 and more", 135, (0x420000,))),
        *_same(KERNEL, ("none", 135, (0,)), ("question", 135, (0xFFFFFFFF,))),
        Row("ADDR_NO_RANDOMIZE", 135, (0x40000,), KERNEL, "ENOSYS"),
    ),
    "SysV and message queues": tuple(
        Row(name, number, arguments, KERNEL, "ENOSYS")
        for name, number, arguments in (
            ("shmget", 29, (1, 0, 0)), ("semget", 64, (1, -1, 0)), ("msgget", 68, (99, 0)),
            ("mq_open", 240, (BAD, 0, 0, 0)),
            ("msgsnd", 69, (-1, BAD, 0, 0)), ("shmat", 30, (-1, 0, 0)), ("memfd_secret", 447, (99,)),
        )
    ) + (
        Row("vmsplice", 278, (-1, BAD, 0, 99), KERNEL, "EPERM"),
        Row("handles", 303, (-1, BAD, BAD, BAD, 0), KERNEL, "EPERM"),
    ),
    "memory policy and LSM": _same(
        "ENOSYS",
        ("mbind", 237, (1, 1, 99, 0, 0, 0)), ("set_mempolicy", 238, (99, 0, 0)),
        ("move_pages", 279, (-1, 1, BAD, 0, 0, 99)),
        ("migrate_pages", 256, (-1, 1, BAD, BAD)), ("modify_ldt", 154, (0, BAD, 16)),
        ("lsm_get_self_attr", 459, (0, 0, 0, 1)), ("lsm_set_self_attr", 460, (0, 0, 0, 1)),
        ("lsm_list_modules", 461, (0, 0, 1)),
    ),
    "calls newer than the library that compiles": _same(
        KERNEL,
        ("fchmodat2", 452, (-1, BAD, 0, 0)), ("mseal", 462, (BAD, 0, 99)),
        ("setxattrat", 463, (-1, BAD, 0, BAD, BAD, 99)),
        ("getxattrat", 464, (-1, BAD, 0, BAD, BAD, 99)), ("listxattrat", 465, (-1, BAD, 0, BAD, 0)),
        ("removexattrat", 466, (-1, BAD, 0, BAD)), ("landlock_create_ruleset", 444, (BAD, 0, 99)),
    ),
}  # fmt: skip
