"""The end of a command's tree: which processes were signalled, which are left, and the deadline.

Processes that get a signal to end may take their time: they write remaining data and then exit. The main process is
often the first to exit (a shell that waited for one of them), so a command has ended when its tree is empty, not when
its main process has ended. Processes that are left at the deadline are killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Final

from .leaf_cgroups import LeafCgroup

#: Looks at a tree that grows while it is signalled; one that outgrows them is killed in the end.
_PASSES: Final = 16


class Ending:
    """One end under way: of all that is in a leaf, or with `group` of that process group alone."""

    def __init__(self, leaf: LeafCgroup, seconds: float, group: int | None = None, *, is_kill: bool = False) -> None:
        self._is_kill = is_kill
        self._leaf = leaf
        self._group = group
        self._until = time.monotonic() + seconds

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole tree's."""
        return self._group is None

    @property
    def is_late(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self._until

    def has_members(self) -> bool:
        """Whether somebody is still there."""
        if self._group is None:
            return self._leaf.is_populated()
        return any(_group_of(pid) == self._group for pid in self._leaf.pids())

    def leaves_some_to_kill(self) -> bool:
        """Whether the tree was asked, and somebody in it has not heeded it in time."""
        return self.is_late and self.is_whole and not self._is_kill and self.has_members()


def signal_tree(leaf: LeafCgroup, number: int, leader: int | None) -> None:
    """Send a signal to all in a leaf; those that are stopped go on, or they could not heed it.

    The group of `leader`, where that lives, is signalled as one: no child that it just forks is missed, and no shell
    sees its child end before it has been told itself.
    """
    if leader is not None:
        signal_led(leader, number)
    told: set[int] = set()
    for _ in range(_PASSES):
        fresh = [pid for pid in leaf.pids() if pid not in told]
        if not fresh:
            break
        for pid in fresh:
            if leader is None or (pid != leader and _group_of(pid) != leader):
                _send(pid, number)
            if _is_stopped(pid):
                _send(pid, signal.SIGCONT)
        told.update(fresh)


def signal_led(leader: int, number: int) -> None:
    """Send a signal to a process group whose leader has not been waited for."""
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        _send(leader, number)  # not yet the leader: it is between clone3 and setsid


def signal_group(leaf: LeafCgroup, number: int, group: int) -> None:
    """Send a signal to those of a process group whose leader is gone: its number alone may mean another one by now."""
    for pid in leaf.pids():
        if _group_of(pid) == group:
            _send(pid, number)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
        return file.read(4096).rpartition(b")")[2].split()[:1] == [b"T"]
    return False
