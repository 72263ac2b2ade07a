"""Users and groups of the rootfs, parsed from its own files.

Never `pwd` or `grp`: they go through nss, which loads libraries that the rootfs brings (CVE-2019-14271).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
from typing import Final

from ..errors import InvalidRequest
from ..spec import ID_RANGE_WIDTH

#: A passwd or group file over this is not read: it comes from a stranger.
_MAX_BYTES: Final = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class User:
    """Who a command runs as."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str

    @property
    def ids(self) -> tuple[int, int, tuple[int, ...]]:
        """What a process of this user has: uid, gid, groups."""
        return self.uid, self.gid, self.groups


def parse_passwd(text: str) -> list[User]:
    """Return the users of a passwd(5) file, broken lines passed over; groups are not filled in."""
    users = []
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) == 7:
            uid, gid = _id(fields[2]), _id(fields[3])
            if uid is not None and gid is not None:
                users.append(User(fields[0], uid, gid, (), fields[5] or "/", fields[6]))
    return users


def parse_groups(text: str, member: str) -> tuple[int, ...]:
    """Return the ids of the groups that list `member` in a group(5) file."""
    found = []
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) == 4 and member in fields[3].split(","):
            gid = _id(fields[2])
            if gid is not None:
                found.append(gid)
    return tuple(found)


def _id(text: str) -> int | None:
    """Return an id that the sandbox has, or None: 4294967295 is -1, which setresuid(2) takes for "leave it"."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5) or int(text) >= ID_RANGE_WIDTH:
        return None
    return int(text)


def find_user(wanted: str | int) -> User:
    """Return the user with that name or uid; a uid without a name is allowed, as in every container runtime.

    Raises:
        InvalidRequest: no user has that name.
    """
    users = parse_passwd(_read("/etc/passwd"))
    for user in users:
        if wanted in (user.name, user.uid):
            groups = parse_groups(_read("/etc/group"), user.name)
            return dataclasses.replace(user, groups=(user.gid, *(g for g in groups if g != user.gid)))
    if isinstance(wanted, int):
        return User(str(wanted), wanted, wanted, (wanted,), "/", "/bin/sh")
    if wanted == "root":
        # An image without /etc/passwd still has a root.
        return User("root", 0, 0, (0,), "/root", "/bin/sh")
    raise InvalidRequest(f"cannot run as {wanted!r}: no such user in the sandbox", field="user")


def find_group(wanted: str | int) -> int:
    """Return the id of the group with that name; an id stands for itself.

    Raises:
        InvalidRequest: no group has that name.
    """
    if isinstance(wanted, int):
        return wanted
    for line in _read("/etc/group").splitlines():
        fields = line.split(":")
        if len(fields) == 4 and fields[0] == wanted:
            gid = _id(fields[2])
            if gid is not None:
                return gid
    raise InvalidRequest(f"cannot use group {wanted!r}: no such group in the sandbox", field="group")


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return os.read(fd, _MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def pipe_of(user: User) -> tuple[int, int]:
    """Return the two ends of a pipe that a user's program may open by name too, as `> /dev/stdout` does.

    That name leads to the descriptor's own file, and the kernel asks whose that is. It opens it for nobody new: a
    process finds only its own descriptors there, and those of whom it may trace.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    if user.uid:
        with contextlib.suppress(OSError):  # a profile of the operator's own may deny it: all else works without
            os.fchown(write_end, user.uid, user.gid)
    return read_end, write_end
