"""The kernel: its version, and those of its switches that matter to sandboxes."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
from collections.abc import Mapping
from typing import Final

from .feature import Feature, Status
from .files import read_text

MINIMUM: Final = (6, 1)
#: Ample for what one sandbox's programs watch (an editor's server, a bundler); the kernel's own defaults or less.
INOTIFY: Final[Mapping[str, int]] = {"max_user_instances": 128, "max_user_watches": 8192}
#: Counters of the whole host that no cgroup divides: one sandbox of the default limits can have a million open files in
#: each of a thousand processes, or the pids of a small host's. systemd sets both as high as they go.
COUNTERS: Final[Mapping[str, int]] = {"fs.file-max": 100_000_000, "kernel.pid_max": 4_194_304}
#: Switch: the value from which it shuts users of the host out, and what it guards. Sandboxes are kept from all of
#: these by seccomp already; the switches are the second wall.
HARDENING: Final[Mapping[str, tuple[int, str]]] = {
    "kernel.dmesg_restrict": (1, "the kernel's log"),
    "kernel.unprivileged_bpf_disabled": (1, "bpf"),
    "kernel.perf_event_paranoid": (2, "perf events"),
    "vm.unprivileged_userfaultfd": (0, "userfaultfd"),
}
#: Of these a lower value is the stricter one.
_LOWER_IS_STRICTER: Final = frozenset({"vm.unprivileged_userfaultfd"})
#: What all sockets of the host hold together, in pages: the middle number is where everybody's buffers shrink.
SOCKET_MEMORY: Final = ("net.ipv4.tcp_mem", "net.ipv4.udp_mem")
_BYPASS: Final = "net.core.bypass_prot_mem"
_READ: Final = (
    "kernel.core_pattern",
    *SOCKET_MEMORY,
    _BYPASS,
    *COUNTERS,
    "net.ipv4.ip_forward",
    *(f"fs.inotify.{name}" for name in INOTIFY),
    *HARDENING,
)


@dataclasses.dataclass(frozen=True, slots=True)
class SysctlValues:
    """The kernel's release, its machine, the sysctls that can be read, and the host's memory in pages (0: unknown)."""

    release: str
    machine: str
    values: Mapping[str, str]
    memory_pages: int = 0


def gather() -> SysctlValues:
    """Read them; needs no root."""
    read = {name: read_text("/proc/sys/" + name.replace(".", "/")) for name in _READ}
    values = {name: value for name, value in read.items() if value is not None}
    return SysctlValues(platform.release(), platform.machine(), values, os.sysconf("SC_PHYS_PAGES"))


def evaluate(facts: SysctlValues) -> list[Feature]:
    """Tell what they mean."""
    return [
        _kernel(facts),
        _core_pattern(facts),
        _counters(facts),
        _socket_memory(facts),
        _inotify(facts),
        _hardening(facts),
        _forwarding(facts),
    ]


def version_of(release: str) -> tuple[int, int] | None:
    """Return major and minor of a release such as 6.12.3-cloud; None if it is of another shape."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else None


def _kernel(facts: SysctlValues) -> Feature:
    version, found = version_of(facts.release), f"{facts.release} on {facts.machine}"
    least = ".".join(map(str, MINIMUM))
    if version is not None and version >= MINIMUM and facts.machine in {"x86_64", "aarch64"}:
        return Feature(
            name="kernel", status=Status.OK, found=found, means=f"{least} or newer is needed", essential=True
        )
    return Feature(
        name="kernel",
        status=Status.MISSING if version is not None else Status.UNKNOWN,
        found=found,
        means=f"sandboxd needs Linux {least} or newer on x86_64 or aarch64",
        remedy=f"upgrade the kernel to {least} or newer and reboot, on such a machine",
        essential=True,
    )


def _core_pattern(facts: SysctlValues) -> Feature:
    pattern = facts.values.get("kernel.core_pattern")
    if pattern is None:
        means = "whether a crash in a sandbox starts a program on the host"
        return Feature(name="core-pattern", status=Status.UNKNOWN, found="cannot be read", means=means)
    if not pattern.startswith("@"):
        found = f"piped to {pattern[1:].split(' ')[0]}" if pattern.startswith("|") else f"a file ({pattern!r})"
        means = "a crash in a sandbox starts nothing on the host (RLIMIT_CORE is kept at 1 there)"
        return Feature(name="core-pattern", status=Status.OK, found=found, means=means)
    return Feature(
        name="core-pattern",
        status=Status.DEGRADED,
        found=f"sent to the socket {pattern.lstrip('@')}",
        means="a crash in a sandbox reaches that program of the host, with data that the sandbox chose",
        remedy="sysctl -w kernel.core_pattern=core",
    )


def _counters(facts: SysctlValues) -> Feature:
    read = {name: facts.values.get(name, "") for name in COUNTERS}
    known = {name: int(text) for name, text in read.items() if text.isascii() and text.isdigit()}
    found = ", ".join(f"{name}={value}" for name, value in known.items()) or "cannot be read"
    low = {name: enough for name, enough in COUNTERS.items() if known.get(name, enough) < enough}
    if low:
        return Feature(
            name="counters",
            status=Status.DEGRADED,
            found=found,
            means="a sandbox within its limits can use these up for the whole host",
            remedy=f"sysctl -w {' '.join(f'{name}={enough}' for name, enough in low.items())}",
        )
    status = Status.OK if len(known) == len(COUNTERS) else Status.UNKNOWN
    return Feature(name="counters", status=status, found=found, means="the limits on memory and pids are reached first")


def _socket_memory(facts: SysctlValues) -> Feature:
    found, low = [], []
    for name in SOCKET_MEMORY:
        words = facts.values.get(name, "").split()
        if len(words) == 3 and all(word.isascii() and word.isdigit() for word in words):
            found.append(f"{name}={' '.join(words)}")
            if int(words[1]) < facts.memory_pages:
                low.append(f'{name}="{" ".join([str(facts.memory_pages)] * 3)}"')
    text = ", ".join(found) or "cannot be read"
    if _BYPASS in facts.values:
        means = "the memory of a sandbox's sockets counts against its own limit alone"
        return Feature(name="socket-memory", status=Status.OK, found=_BYPASS, means=means)
    if low and facts.memory_pages:
        return Feature(
            name="socket-memory",
            status=Status.DEGRADED,
            found=text,
            means="a sandbox within its memory limit can use up the host's socket budget and slow all connections",
            remedy=f"sysctl -w {' '.join(low)} (all memory: each sandbox has its own limit), or Linux 6.19",
        )
    status = Status.OK if len(found) == len(SOCKET_MEMORY) and facts.memory_pages else Status.UNKNOWN
    return Feature(name="socket-memory", status=status, found=text, means="the limits on memory are reached first")


def _inotify(facts: SysctlValues) -> Feature:
    found, low, unread = [], [], []
    for name, enough in INOTIFY.items():
        text = facts.values.get(f"fs.inotify.{name}", "")
        if not (text.isascii() and text.isdigit()):
            unread.append(name)
            continue
        found.append(f"{name} {text}")
        if int(text) < enough:
            low.append(f"fs.inotify.{name}={enough}")
    if low:
        return Feature(
            name="inotify",
            status=Status.DEGRADED,
            found=", ".join(found),
            means="programs that watch many files will fail (each sandbox has its own allowance of this size)",
            remedy=f"sysctl -w {' '.join(low)}",
        )
    status = Status.UNKNOWN if unread else Status.OK
    found += [f"{name} cannot be read" for name in unread]
    return Feature(
        name="inotify", status=status, found=", ".join(found), means="each sandbox has its own allowance of this size"
    )


def _hardening(facts: SysctlValues) -> Feature:
    found, remedies, open_ = [], [], []
    for name, (strict, what) in HARDENING.items():
        text = facts.values.get(name, "")
        if not (text.isascii() and text.lstrip("-").isdigit()):
            continue
        found.append(f"{name}={text}")
        is_strict = int(text) <= strict if name in _LOWER_IS_STRICTER else int(text) >= strict
        if not is_strict:
            open_.append(what)
            remedies.append(f"{name}={strict}")
    text = ", ".join(found) or "nothing can be read"
    if not remedies:
        status = Status.OK if found else Status.UNKNOWN
        means = "what seccomp denies sandboxes is denied to users of the host too"
        return Feature(name="hardening", status=status, found=text, means=means)
    return Feature(
        name="hardening",
        status=Status.DEGRADED,
        found=text,
        means=f"only seccomp denies sandboxes {', '.join(open_)}; users of the host are not denied it",
        remedy=f"sysctl -w {' '.join(remedies)}",
    )


def _forwarding(facts: SysctlValues) -> Feature:
    on = facts.values.get("net.ipv4.ip_forward") == "1"
    if on:
        means = "sandboxes can have a network; the host also forwards for anyone else who routes through it"
        return Feature(name="ip-forward", status=Status.OK, found="on", means=means)
    return Feature(
        name="ip-forward",
        status=Status.DEGRADED,
        found="off",
        means="the network modes internet and allowlist are refused; sandboxes without a network work",
        remedy="sysctl -w net.ipv4.ip_forward=1, if this host may forward packets (systemd/sysctl.conf)",
    )
