"""Facts out of /proc: mounts and processes. Pure parsers with one reader each."""

from __future__ import annotations

import dataclasses
import re
from typing import Final

_OCTAL: Final = re.compile(r"\\([0-7]{3})")


@dataclasses.dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo (proc_pid_mountinfo(5)); `device` is its st_dev as "major:minor"."""

    root: str
    target: str
    fstype: str
    options: tuple[str, ...]
    source: str = ""
    device: str = ""


def parse_mountinfo(text: str) -> list[Mount]:
    """Return the mounts of a mountinfo file, in mount order."""
    found = []
    for line in text.splitlines():
        fields = line.split(" ")
        separator = fields.index("-", 6)
        root, target, source = (_OCTAL.sub(lambda m: chr(int(m[1], 8)), fields[i]) for i in (3, 4, separator + 2))
        found.append(Mount(root, target, fields[separator + 1], tuple(fields[5].split(",")), source, fields[2]))
    return found


def mounts() -> list[Mount]:
    """Return this process's mounts."""
    with open("/proc/self/mountinfo") as file:
        return parse_mountinfo(file.read())


def parse_stat(stat: str) -> tuple[str, int]:
    """Return fields 3 and 22 of a /proc/<pid>/stat: the state, and the start in clock ticks since boot.

    The name, field 2, may hold anything, spaces and parentheses included.
    """
    fields = stat[stat.rindex(")") + 2 :].split(" ")
    return fields[0], int(fields[19])


def start_time(pid: int) -> int | None:
    """Return when `pid` started (clock ticks since boot), or None if there is no such process or it is dead.

    Together with the pid it names a process for the life of the host. A zombie is dead: whoever adopted it may
    never reap it.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, started = parse_stat(file.read())
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else started
