"""nftables: the program, and a kernel that takes the rules that sandboxes with a network will need."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import struct
from typing import Final

from ..kernel import CLONE_NEWNET, CLONE_NEWPID, Kernel
from .child import MAX_ANSWER, Outcome, attempt
from .feature import Feature, Status, untried

#: Of every kind that the network modes use: sets by device, of addresses and ports, and with time-outs; chains that
#: drop, connection tracking and counting, the log, refusals, NAT.
RULES: Final = """
table inet sandboxd_doctor {
    set sources { type ifname . ether_addr . ipv4_addr; }
    set allowed { type ipv4_addr . inet_service; flags interval; elements = { 198.51.100.0/24 . 80-443 }; }
    set told { type ipv4_addr . inet_service; flags dynamic,timeout; timeout 10s; }
    set counted { type ipv4_addr; size 16; flags dynamic; }
    chain first {
        type filter hook prerouting priority raw; policy drop
        iifname . ether saddr . ip saddr @sources accept
    }
    chain forward {
        type filter hook forward priority 0; policy drop
        ct state established,related ct mark 1 accept
        add @counted { ip saddr ct count over 16 } reject with icmpx type admin-prohibited
        ip daddr . th dport @allowed ct mark set 1 accept
        add @told { ip daddr . th dport } log group 7 snaplen 64 reject with icmpx type admin-prohibited
    }
    chain outgoing { type nat hook postrouting priority 100; masquerade fully-random; }
}
"""
_SEARCH: Final = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin"
_MODES: Final = "the network modes internet and allowlist"
# include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h, netlink.h
_NETLINK_NETFILTER: Final = 12
_NFT_MSG_GETGEN: Final = 10 << 8 | 16
_NLM_F_REQUEST: Final = 1
_NLMSG_ERROR: Final = 2


@dataclasses.dataclass(frozen=True, slots=True)
class NetworkTrials:
    """The program, if any; whether the kernel answers nftables' protocol, and takes the rules (None: not tried)."""

    program: str | None
    kernel: Outcome | None = None
    rules: Outcome | None = None


def gather(kernel: Kernel, *, root: bool) -> NetworkTrials:
    """As root, ask in network namespaces that go with their one process."""
    program = shutil.which("nft", path=f"{os.environ.get('PATH', '')}:{_SEARCH}")
    if not root:
        return NetworkTrials(program)
    answered = attempt(kernel, _ask_generation, flags=CLONE_NEWNET)
    rules = None
    if program and answered.ok:
        # Pid 1 of a namespace takes the program with it, should it hang.
        rules = attempt(kernel, lambda: _load(program), flags=CLONE_NEWNET | CLONE_NEWPID)
    return NetworkTrials(program, answered, rules)


def evaluate(facts: NetworkTrials) -> list[Feature]:
    """Tell whether sandboxes could be given a network."""
    features = []
    if facts.program:
        found, means = facts.program, f"{_MODES} write their rules with it"
        features.append(Feature(name="nft", status=Status.OK, found=found, means=means))
    else:
        features.append(
            Feature(
                name="nft",
                status=Status.MISSING,
                found="the program nft is not installed",
                means=f"{_MODES} cannot work; sandboxes without a network do",
                remedy="apt-get install nftables",
            )
        )
    features.append(_kernel(facts))
    return features


def _kernel(facts: NetworkTrials) -> Feature:
    name = "nftables"
    if facts.kernel is None:
        return untried(name, f"{_MODES} need it")
    failed = facts.kernel if not facts.kernel.ok else facts.rules
    if failed is not None and not failed.ok:
        return Feature(
            name=name,
            status=Status.MISSING,
            found=" ".join(str(failed.error).split()),
            means=f"{_MODES} cannot work; sandboxes without a network do",
            remedy="use a kernel with nf_tables, nft_ct, nft_nat and nft_masq (modprobe nf_tables)",
        )
    found = "the kernel answers" if facts.rules is None else "sets, filters, connection tracking and NAT work"
    return Feature(name=name, status=Status.OK, found=found, means=f"{_MODES} are available")


def _ask_generation() -> bool:
    """Ask for the ruleset's generation: the least that nftables answers."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as link:
        link.settimeout(5)
        link.sendto(struct.pack("=IHHIIBBH", 20, _NFT_MSG_GETGEN, _NLM_F_REQUEST, 1, 0, 0, 0, 0), (0, 0))
        answer = link.recv(4096)
    kind = struct.unpack_from("=H", answer, 4)[0]
    if kind == _NLMSG_ERROR:
        number = -struct.unpack_from("=i", answer, 16)[0]
        raise OSError(number, os.strerror(number), "NFT_MSG_GETGEN")
    return True


def _load(program: str) -> bool:
    """Give the rules to nft in the namespace that this process is alone in."""
    given, answers = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    os.write(given[1], RULES.encode())
    os.close(given[1])
    actions = [
        (os.POSIX_SPAWN_DUP2, given[0], 0),
        (os.POSIX_SPAWN_DUP2, answers[1], 1),
        (os.POSIX_SPAWN_DUP2, answers[1], 2),
    ]
    pid = os.posix_spawn(program, [program, "-f", "-"], {"PATH": _SEARCH, "LC_ALL": "C"}, file_actions=actions)
    os.close(answers[1])
    with open(answers[0], "rb") as pipe:
        said = pipe.read(MAX_ANSWER // 4).decode(errors="replace").strip()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0:
        raise RuntimeError(said.splitlines()[0] if said else f"nft ended with {status}")
    return True
