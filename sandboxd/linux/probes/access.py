"""Whether a user can reach a path, worked out from the modes on the way, so that the answer names the obstacle."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable, Collection
from typing import Final

#: As the kernel has it (ELOOP).
MAX_LINKS: Final = 40
READ: Final = 4
SEARCH: Final = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A file as lstat(2) tells of it, and where it points if it is a link."""

    mode: int
    uid: int
    gid: int
    target: str | None = None


def look(path: str) -> Node | None:
    """Return the real file at `path`, or None when there is none or it cannot be seen."""
    try:
        found = os.lstat(path)
        target = os.readlink(path) if stat.S_ISLNK(found.st_mode) else None
    except OSError:
        return None
    return Node(found.st_mode, found.st_uid, found.st_gid, target)


def permits(node: Node, uid: int, gids: Collection[int], wanted: int) -> bool:
    """Tell whether the permission bits let that user do `wanted`; access lists are not looked at."""
    if uid == 0:
        return True
    shift = 6 if node.uid == uid else 3 if node.gid in gids else 0
    return node.mode >> shift & wanted == wanted


def obstacle(
    path: str, uid: int, gids: Collection[int], *, wanted: int = READ, see: Callable[[str], Node | None] = look
) -> str | None:
    """Return the first file on the way to the absolute `path` that stops that user, or None.

    Every link on the way is followed; a file that is not there or cannot be seen is an obstacle too. The last file
    must permit `wanted`; a directory also to be searched.
    """
    pending = [part for part in path.split("/") if part][::-1]
    here, links = "/", 0
    while True:
        node = see(here)
        if node is None:
            return here
        if node.target is not None:
            links += 1
            if links > MAX_LINKS:
                return here
            pending += [part for part in node.target.split("/") if part][::-1]
            here = "/" if node.target.startswith("/") else os.path.dirname(here)
            continue
        is_folder = stat.S_ISDIR(node.mode)
        needed = SEARCH if pending else wanted | (SEARCH if is_folder else 0)
        if (pending and not is_folder) or not permits(node, uid, gids, needed):
            return here
        if not pending:
            return None
        part = pending.pop()
        if part == "..":
            here = os.path.dirname(here)
        elif part != ".":
            here = os.path.join(here, part)
