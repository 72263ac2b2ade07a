"""What a sandbox uses, read from its cgroups. A number that this host does not count is None, never 0."""

from __future__ import annotations

from typing import Any, Final

#: Major number of loop devices (Documentation/admin-guide/devices.txt).
_LOOP: Final = "7:"
#: The device that a sandbox with a network sees.
_LINK: Final = "eth0"
#: Our names for io.stat's (Documentation/admin-guide/cgroup-v2.rst).
_IO: Final = {"rbytes": "read_bytes", "wbytes": "write_bytes", "rios": "reads", "wios": "writes"}


def collect(group: str) -> dict[str, Any]:
    """Return the use of the sandbox at `group`.

    Keys: `cpu_s`, `cpu_user_s`, `cpu_system_s`, `cpu_throttled_s`; `memory_bytes` and `memory_peak_bytes` of what
    counts against the limit; `oom_kills`; `pids` (threads too); `io` with `read_bytes`, `write_bytes`, `reads`,
    `writes`, or None.
    """
    cpu = table(_read(f"{group}/cpu.stat"))
    events = table(_read(f"{group}/work/memory.events"))
    return {
        "cpu_s": _seconds(cpu.get("usage_usec")),
        "cpu_user_s": _seconds(cpu.get("user_usec")),
        "cpu_system_s": _seconds(cpu.get("system_usec")),
        "cpu_throttled_s": _seconds(table(_read(f"{group}/work/cpu.stat")).get("throttled_usec")),
        "memory_bytes": number(f"{group}/work/memory.current"),
        "memory_peak_bytes": number(f"{group}/work/memory.peak"),
        "oom_kills": events.get("oom_kill"),
        "pids": number(f"{group}/work/pids.current"),
        "io": traffic(_read(f"{group}/io.stat")),
    }


def veth(pid: int) -> dict[str, int] | None:
    """Return what went over the veth of the sandbox whose init that is; None where it has none.

    Keys: `received_bytes`, `sent_bytes`, `received_packets`, `sent_packets`, as the sandbox sees it (proc_net(5)).
    """
    for line in (_read(f"/proc/{pid}/net/dev") or "").splitlines():
        name, _, rest = line.partition(":")
        if name.strip() == _LINK:
            values = [int(value) for value in rest.split()]
            return {
                "received_bytes": values[0],
                "sent_bytes": values[8],
                "received_packets": values[1],
                "sent_packets": values[9],
            }
    return None


def table(text: str | None) -> dict[str, int]:
    """Return a flat keyed file's numbers ("name 1" a line)."""
    found = {}
    for line in (text or "").splitlines():
        name, _, value = line.partition(" ")
        if value.isascii() and value.isdigit():
            found[name] = int(value)
    return found


def traffic(text: str | None) -> dict[str, int] | None:
    """Return the sums of an io.stat; what went through a loop device is counted once, at the disk below it."""
    if text is None:
        return None
    rows = {}
    for line in text.splitlines():
        device, *pairs = line.split(" ")
        values = dict(pair.partition("=")[::2] for pair in pairs)
        rows[device] = {ours: int(values.get(theirs, "0")) for theirs, ours in _IO.items()}
    disks = [row for device, row in rows.items() if not device.startswith(_LOOP)] or list(rows.values())
    return {name: sum(row[name] for row in disks) for name in _IO.values()}


def number(path: str) -> int | None:
    """Return the number in a file; None where there is no such file or it says "max"."""
    text = (_read(path) or "").strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _seconds(usec: int | None) -> float | None:
    return None if usec is None else round(usec / 1e6, 6)


def _read(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return None
