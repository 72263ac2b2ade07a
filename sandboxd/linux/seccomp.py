"""seccomp profiles in the OCI runtime format, compiled by libseccomp.

A profile becomes one or two filters. Kernel filters stack and the strictest answer wins (of two errnos that of the
filter installed last), so the rules that deny *by argument* (which an allow list cannot say) get a filter of their
own that allows everything else and is installed last. Such rules
must compare the 32 bits that the kernel will use (`SCMP_CMP_MASKED_EQ`): an equality on the whole register is
passed by with a bit set above them (CVE-2019-10063).

libseccomp is loaded by `compile_profile` alone, in a short child of the launcher.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from types import ModuleType
from typing import Any, Final

_SYS_CLONE3: Final = 435  # the same on every architecture
_BPF_LD_W_ABS: Final = 0x20
_BPF_JEQ: Final = 0x15
_BPF_RET: Final = 0x06
_RET_ALLOW: Final = 0x7FFF0000
_RET_ERRNO: Final = 0x00050000
_ENOSYS: Final = 38

#: Denies clone3 alone. init keeps clone3 for itself (CLONE_INTO_CGROUP spares each command an RCU grace period);
#: every command gets this filter on top before it is executed, since a filter cannot look at clone3's flags.
DENY_CLONE3: Final = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (_BPF_LD_W_ABS, 0, 0, 0),  # seccomp_data.nr
        (_BPF_JEQ, 0, 1, _SYS_CLONE3),
        (_BPF_RET, 0, 0, _RET_ERRNO | _ENOSYS),
        (_BPF_RET, 0, 0, _RET_ALLOW),
    )
)


def load_profile(path: str) -> dict[str, Any]:
    """Read a profile.

    Raises:
        ValueError: it is no JSON object, or lacks `defaultAction`.
    """
    with open(path) as file:
        profile = json.load(file)
    if not isinstance(profile, dict) or "defaultAction" not in profile:
        raise ValueError(f"{path} is no seccomp profile: it has no defaultAction")
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
            number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
            if number >= 0 and action != default:
                (deny_list if by_argument else allow_list).add_rule(action, number, *arguments)
    for name in also_allow:
        allow_list.add_rule(pyseccomp.ALLOW, name)
    programs = []
    for item in [allow_list] + ([deny_list] if denies else []):
        item.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
        item.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)  # a binary tree: the filter is run for each of its calls at load
        programs.append(_export(item))
    return programs


def _action(pyseccomp: ModuleType, name: str, errno: int | None) -> int:
    if name == "SCMP_ACT_ERRNO":
        return int(pyseccomp.ERRNO(errno or 1))
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
    }
    if item["op"] not in operators:
        raise ValueError(f"cannot compile comparison {item['op']!r}")
    return pyseccomp.Arg(item["index"], operators[item["op"]], item["value"], item.get("valueTwo", 0))


def _export(filter_: Any) -> bytes:  # noqa: ANN401 - untyped library
    with tempfile.TemporaryFile() as file:
        filter_.export_bpf(file)
        size = os.fstat(file.fileno()).st_size
        return os.pread(file.fileno(), size, 0)
