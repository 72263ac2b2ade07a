"""Who runs the parts: root with its capabilities for the launcher, the daemon's own user for the rest."""

from __future__ import annotations

import dataclasses
import grp
import os
import pwd
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from .access import READ, SEARCH, obstacle
from .child import TRIAL_FIRST_ID
from .feature import AS_ROOT, Feature, Status

if TYPE_CHECKING:
    from ..kernel import Kernel

#: What a creation uses of root's powers (include/uapi/linux/capability.h).
NEEDED: Final[Mapping[str, int]] = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "FSETID": 4,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "NET_ADMIN": 12,
    "SYS_ADMIN": 21,
    "MKNOD": 27,
}
_WHOLE_HOST: Final = ["0", "0", "4294967295"]


@dataclasses.dataclass(frozen=True, slots=True)
class Accounts:
    """Who we are and who the daemon would be.

    Attributes:
        uid: our effective user id.
        capabilities: our permitted set.
        maps_host: whether our user namespace is the host's.
        user, group: names that the daemon looks for.
        user_id: None when there is no such user.
        has_group: whether there is such a group.
        interpreter: sys.executable.
        blocked: the first obstacle of the daemon's user on the way to what it runs; None when there is none.
    """

    uid: int
    capabilities: int
    maps_host: bool
    user: str
    group: str
    user_id: int | None
    has_group: bool
    interpreter: str
    blocked: str | None


def gather(kernel: Kernel, user: str, group: str, package: str) -> Accounts:
    """Look them up, and walk the way to the interpreter and all of the directory `package`; needs no root."""
    try:
        entry = pwd.getpwnam(user)
        uid, gids = entry.pw_uid, set(os.getgrouplist(user, entry.pw_gid))
        user_id: int | None = uid
    except KeyError:
        # A user that were to be made would have no rights that others have not.
        uid, gids, user_id = TRIAL_FIRST_ID, set(), None
    try:
        has_group = bool(grp.getgrnam(group))
    except KeyError:
        has_group = False
    with open("/proc/self/uid_map") as file:
        maps_host = file.read().split() == _WHOLE_HOST
    return Accounts(
        os.geteuid(),
        kernel.capget(),
        maps_host,
        user,
        group,
        user_id,
        has_group,
        sys.executable,
        first_obstacle(uid, gids, sys.executable, [os.__file__, *sys.path], package),
    )


def first_obstacle(uid: int, gids: Collection[int], program: str, needed: Iterable[str], package: str) -> str | None:
    """Return what stops that user from running `program` with the modules in `needed` and `package`."""
    blocked = obstacle(program, uid, gids, wanted=READ | SEARCH)
    for path in needed:
        if blocked is None and os.path.isabs(path) and os.path.exists(path):
            blocked = obstacle(path, uid, gids)
    for directory, _, names in os.walk(package):
        for name in ("", *(name for name in names if name.endswith(".py"))):
            if blocked is None:
                blocked = obstacle(os.path.join(directory, name).rstrip("/"), uid, gids)
    return blocked


def evaluate(facts: Accounts) -> list[Feature]:
    """Tell whether the parts can be who they are meant to be."""
    return [_root(facts), _user(facts), _group(facts), _interpreter(facts)]


def _root(facts: Accounts) -> Feature:
    lacking = [name for name, number in NEEDED.items() if not facts.capabilities >> number & 1]
    means, remedy = "the launcher, which creates sandboxes, runs as the host's root", None
    if facts.uid != 0:
        found, remedy = f"uid {facts.uid}", AS_ROOT
        means = "the launcher needs root; much of what follows cannot be tested without it"
    elif not facts.maps_host:
        found, remedy = "root of a user namespace only", "run it as the host's own root"
        means = "no sandbox can have ids of its own"
    elif lacking:
        found = f"root without {', '.join(lacking)}"
        means, remedy = "no sandbox can be created", "run it with all capabilities, outside of a container"
    else:
        return Feature(
            name="root", status=Status.OK, found="root, with all required capabilities", means=means, essential=True
        )
    return Feature(name="root", status=Status.MISSING, found=found, means=means, remedy=remedy, essential=True)


def _user(facts: Accounts) -> Feature:
    if facts.user_id is not None:
        found, means = f"{facts.user}, uid {facts.user_id}", "the daemon runs as this user"
        return Feature(name="user", status=Status.OK, found=found, means=means)
    return Feature(
        name="user",
        status=Status.DEGRADED,
        found=f"there is no user {facts.user}",
        means="the daemon runs as root: a flaw in it would compromise the host",
        remedy=f"useradd --system --user-group --no-create-home --shell /usr/sbin/nologin {facts.user}",
    )


def _group(facts: Accounts) -> Feature:
    if facts.has_group:
        means = "its members may use the daemon's socket"
        return Feature(name="group", status=Status.OK, found=facts.group, means=means)
    found, means = f"there is no group {facts.group}", "only root and the daemon's user may use its socket"
    remedy = f"groupadd --system {facts.group}; then usermod --append --groups {facts.group} NAME"
    return Feature(name="group", status=Status.DEGRADED, found=found, means=means, remedy=remedy)


def _interpreter(facts: Accounts) -> Feature:
    who = f"the user {facts.user}" if facts.user_id is not None else f"a user {facts.user}, once created,"
    if facts.blocked is None:
        found, means = f"{facts.interpreter}: {who} can run it", "the daemon needs no root once it is started"
        return Feature(name="interpreter", status=Status.OK, found=found, means=means, essential=True)
    exists = facts.user_id is not None
    return Feature(
        name="interpreter",
        status=Status.MISSING if exists else Status.DEGRADED,
        found=f"{who} cannot pass {facts.blocked} to reach {facts.interpreter} and its modules",
        means="the daemon cannot start as that user" if exists else "the daemon could not start as that user",
        remedy=f"install sandboxd outside of home directories, readable to all, or: chmod o+rX {facts.blocked}",
        essential=True,
    )
