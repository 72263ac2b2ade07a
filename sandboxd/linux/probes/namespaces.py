"""Each kind of namespace, really made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from ..kernel import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUTS,
    Kernel,
)
from .child import TRIAL_FIRST_ID, Outcome, attempt, user_namespace
from .feature import Feature, Status, untried
from .files import read_number

#: Kind: the flag to make it (a user namespace needs more than a flag), its name in user.max_<name>_namespaces.
KINDS: Final[Mapping[str, tuple[int, str]]] = {
    "mount": (CLONE_NEWNS, "mnt"),
    "pid": (CLONE_NEWPID, "pid"),
    "net": (CLONE_NEWNET, "net"),
    "ipc": (CLONE_NEWIPC, "ipc"),
    "uts": (CLONE_NEWUTS, "uts"),
    "cgroup": (CLONE_NEWCGROUP, "cgroup"),
    "user": (0, "user"),
    "time": (CLONE_NEWTIME, "time"),
}
#: Each sandbox takes one of each kind from root's share: fewer than this is a wall that a busy host meets.
ENOUGH: Final = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class NamespaceTrials:
    """Per kind, what making one gave (None: not tried), and the sysctl that limits their number (None: not there)."""

    outcomes: Mapping[str, Outcome | None]
    limits: Mapping[str, int | None]


def gather(kernel: Kernel, *, root: bool) -> NamespaceTrials:
    """Try each kind and read its limit."""
    limits = {kind: read_number(f"/proc/sys/user/max_{name}_namespaces") for kind, (_, name) in KINDS.items()}
    return NamespaceTrials({kind: _try(kernel, kind) if root else None for kind in KINDS}, limits)


def evaluate(facts: NamespaceTrials) -> list[Feature]:
    """Tell of each kind whether sandboxes can have it."""
    return [_feature(kind, facts.outcomes[kind], facts.limits[kind]) for kind in KINDS]


def _try(kernel: Kernel, kind: str) -> Outcome:
    if kind != "user":
        return attempt(kernel, lambda: True, flags=KINDS[kind][0])
    try:
        with user_namespace(kernel, 0, TRIAL_FIRST_ID, owner=TRIAL_FIRST_ID):
            return Outcome(True)
    except OSError as error:
        return Outcome.of(error)


def _feature(kind: str, outcome: Outcome | None, limit: int | None) -> Feature:
    name, sysctl = f"namespace:{kind}", f"user.max_{KINDS[kind][1]}_namespaces"
    means = f"a sandbox has its own {kind} namespace"
    raise_it = f"sysctl -w {sysctl}=65536"
    if outcome is None and limit != 0:
        return untried(name, means, essential=True)
    if outcome is None or not outcome.ok:
        full = limit == 0 or (outcome is not None and outcome.code in {"ENOSPC", "EUSERS"})
        why = outcome.error if outcome is not None else "not tried"
        return Feature(
            name=name,
            status=Status.MISSING,
            found=f"{why}; {sysctl} is {'missing' if limit is None else limit}",
            means="no sandbox can be created",
            remedy=raise_it if full else _remedy(kind, outcome),
            essential=True,
        )
    if limit is not None and limit < ENOUGH:
        found = f"works; {sysctl} is {limit}"
        means = f"at most about {limit} sandboxes at once"
        status = Status.DEGRADED
        return Feature(name=name, status=status, found=found, means=means, remedy=raise_it, essential=True)
    found = "works" if limit is None else f"works, up to {limit}"
    return Feature(name=name, status=Status.OK, found=found, means=means, essential=True)


def _remedy(kind: str, outcome: Outcome | None) -> str:
    if outcome is not None and outcome.code == "EINVAL":
        return f"use a kernel with CONFIG_{'UTS' if kind == 'uts' else kind.upper()}_NS=y"
    return f"run it as the host's own root: a container or a security module refuses a new {kind} namespace"
