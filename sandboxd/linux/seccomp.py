"""seccomp profiles in the OCI runtime format, compiled by libseccomp.

A profile becomes one or two filters. Kernel filters stack and the strictest answer wins (of two errnos that of the
filter installed last), so the rules that deny *by argument* (which an allow list cannot say) get a filter of their
own that allows everything else and is installed last. Such rules
must compare the 32 bits that the kernel will use (`SCMP_CMP_MASKED_EQ`): an equality on the whole register is
passed by with a bit set above them (CVE-2019-10063). `SCMP_CMP_GT` is safe there, since such a bit makes the
register greater.

libseccomp is loaded by `compile_profile` alone, in a short child of the launcher; what only that child needs is
imported there, since what the launcher has loaded at its start is in the memory of every init.
"""

from __future__ import annotations

import errno
import os
import struct
from types import ModuleType
from typing import Any, Final

_SYS_CLONE3: Final = 435  # the same on every architecture
#: Calls that an older libseccomp has no name for; since Linux 5.0 a new call's number is the same everywhere
#: (up to Linux 6.18: Documentation/process/adding-syscalls.rst, scripts/syscall.tbl).
_NEWER: Final = {
    name: number
    for number, name in enumerate(
        (
            *("futex_waitv", "set_mempolicy_home_node", "cachestat", "fchmodat2", "map_shadow_stack", "futex_wake"),
            *("futex_wait", "futex_requeue", "statmount", "listmount", "lsm_get_self_attr", "lsm_set_self_attr"),
            *("lsm_list_modules", "mseal", "setxattrat", "getxattrat", "listxattrat", "removexattrat"),
            *("open_tree_attr", "file_getattr", "file_setattr"),
        ),
        start=449,
    )
}
_BPF_LD_W_ABS: Final = 0x20
_BPF_JEQ: Final = 0x15
_BPF_RET: Final = 0x06
_RET_ALLOW: Final = 0x7FFF0000
_RET_ERRNO: Final = 0x00050000
_DATA_NUMBER: Final = 0  # offsets in struct seccomp_data; the low half of an argument comes first
_DATA_ARGUMENTS: Final = 16
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_SECCOMP_SET_MODE_FILTER: Final = 1
_AF_NETLINK: Final = 16
_NETLINK_SOCK_DIAG: Final = 4
_SYS_PRCTL, _SYS_SECCOMP, _SYS_SOCKET = (167, 277, 198) if os.uname().machine == "aarch64" else (157, 317, 41)


def _instruction(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, k)


#: On top of the profile for every command, just before it is executed; init keeps these calls for itself:
#: - clone3 (CLONE_INTO_CGROUP spares each command an RCU grace period): ENOSYS, since no filter sees its flags;
#: - installing further filters: EINVAL, as a kernel without CONFIG_SECCOMP_FILTER answers. They are compiled into a
#:   budget of the whole host (net.core.bpf_jit_limit) that no cgroup counts: 7 filters of 4,096 instructions, 0.55 MB
#:   of machine code for each process, so the processes of one sandbox could use it up, and then no sandbox on the
#:   host is born and none starts a command.
#: - sock_diag, which tells init of ports: EPROTONOSUPPORT. The kernel loads a module for each family that anybody asks
#:   it about, those that the profile denies too (sctp, vsock, tipc …); `ss` then reads /proc/net.
COMMAND_FILTER: Final = b"".join(
    (
        _instruction(_BPF_LD_W_ABS, _DATA_NUMBER),
        _instruction(_BPF_JEQ, _SYS_CLONE3, if_true=15),
        _instruction(_BPF_JEQ, _SYS_SECCOMP, if_true=3),
        _instruction(_BPF_JEQ, _SYS_PRCTL, if_true=4),
        _instruction(_BPF_JEQ, _SYS_SOCKET, if_true=7),
        _instruction(_BPF_RET, _RET_ALLOW),
        _instruction(_BPF_LD_W_ABS, _DATA_ARGUMENTS),
        _instruction(_BPF_JEQ, _SECCOMP_SET_MODE_FILTER, if_true=10, if_false=8),
        _instruction(_BPF_LD_W_ABS, _DATA_ARGUMENTS),
        _instruction(_BPF_JEQ, _PR_SET_SECCOMP, if_false=6),
        _instruction(_BPF_LD_W_ABS, _DATA_ARGUMENTS + 8),
        _instruction(_BPF_JEQ, _SECCOMP_MODE_FILTER, if_true=6, if_false=4),
        _instruction(_BPF_LD_W_ABS, _DATA_ARGUMENTS),
        _instruction(_BPF_JEQ, _AF_NETLINK, if_false=2),
        _instruction(_BPF_LD_W_ABS, _DATA_ARGUMENTS + 16),
        _instruction(_BPF_JEQ, _NETLINK_SOCK_DIAG, if_true=3),
        _instruction(_BPF_RET, _RET_ALLOW),
        _instruction(_BPF_RET, _RET_ERRNO | errno.ENOSYS),
        _instruction(_BPF_RET, _RET_ERRNO | errno.EINVAL),
        _instruction(_BPF_RET, _RET_ERRNO | errno.EPROTONOSUPPORT),
    )
)
#: What a profile must leave to init, which the filter above then takes from every command.
FOR_INIT: Final = ("clone3", "seccomp")


def load_profile(path: str) -> dict[str, Any]:
    """Read a profile.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no JSON object, lacks `defaultAction`, or has rules that hold only sometimes.
    """
    import json  # noqa: PLC0415 - see above

    with open(path) as file:
        profile = json.load(file)
    if not isinstance(profile, dict) or "defaultAction" not in profile:
        raise ValueError(f"{path} is not a seccomp profile: it has no defaultAction")
    for rule in profile.get("syscalls", []):
        # Docker's and Podman's own files have rules "only with CAP_SYS_ADMIN": read without that, they allow all.
        if rule.get("includes") or rule.get("excludes"):
            raise ValueError(
                f"{path} has rules with 'includes' or 'excludes', which the OCI runtime format does not have"
            )
    return profile


def compile_profile(profile: dict[str, Any], *, also_allow: tuple[str, ...] = ()) -> list[bytes]:
    """Return the filters of `profile`, each an array of struct sock_filter, in the order to install them.

    `also_allow` are system calls allowed on top. Names that this libseccomp does not know are left to the default
    action (a profile may name calls that are newer than the library).

    Raises:
        ValueError: a rule that cannot be compiled.
    """
    import pyseccomp  # noqa: PLC0415 - only the short compiling child loads libseccomp

    default = _action(pyseccomp, profile["defaultAction"], profile.get("defaultErrnoRet"))
    allow_list = pyseccomp.SyscallFilter(default)
    deny_list = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    denies = False
    for rule in profile.get("syscalls", []):
        action = _action(pyseccomp, rule["action"], rule.get("errnoRet"))
        arguments = [_argument(pyseccomp, item) for item in rule.get("args") or []]
        by_argument = bool(arguments) and rule["action"] != "SCMP_ACT_ALLOW"
        denies |= by_argument
        for name in rule["names"]:
            number = _number(pyseccomp, name)
            if number >= 0 and action != default and name not in also_allow:
                (deny_list if by_argument else allow_list).add_rule(action, number, *arguments)
    for name in also_allow:
        if default != pyseccomp.ALLOW:
            allow_list.add_rule(pyseccomp.ALLOW, name)
    programs = []
    for item in [allow_list] + ([deny_list] if denies else []):
        item.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
        item.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)  # a binary tree: the filter is run for each of its calls at load
        programs.append(_export(item))
    return programs


def _number(pyseccomp: ModuleType, name: str) -> int:
    """Return a call's number, or a negative one where neither libseccomp nor we know the name."""
    number = int(pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name))
    return number if number >= 0 else _NEWER.get(name, number)


def _action(pyseccomp: ModuleType, name: str, errno: int | None) -> int:
    if name == "SCMP_ACT_ERRNO":
        return int(pyseccomp.ERRNO(1 if errno is None else errno))
    actions = {
        "SCMP_ACT_ALLOW": pyseccomp.ALLOW,
        "SCMP_ACT_KILL_PROCESS": pyseccomp.KILL_PROCESS,
        "SCMP_ACT_KILL": pyseccomp.KILL,
    }
    if name not in actions:
        raise ValueError(f"cannot compile action {name!r}")
    return int(actions[name])


def _argument(pyseccomp: ModuleType, item: dict[str, Any]) -> object:
    operators = {
        "SCMP_CMP_EQ": pyseccomp.EQ,
        "SCMP_CMP_NE": pyseccomp.NE,
        "SCMP_CMP_MASKED_EQ": pyseccomp.MASKED_EQ,
        "SCMP_CMP_GT": pyseccomp.GT,
        "SCMP_CMP_GE": pyseccomp.GE,
        "SCMP_CMP_LT": pyseccomp.LT,
        "SCMP_CMP_LE": pyseccomp.LE,
    }
    if item["op"] not in operators:
        raise ValueError(f"cannot compile comparison {item['op']!r}")
    return pyseccomp.Arg(item["index"], operators[item["op"]], item["value"], item.get("valueTwo", 0))


def _export(filter_: Any) -> bytes:  # noqa: ANN401 - untyped library
    with open(os.memfd_create("filter"), "w+b") as file:
        filter_.export_bpf(file)
        size = os.fstat(file.fileno()).st_size
        return os.pread(file.fileno(), size, 0)
