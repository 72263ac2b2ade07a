"""The host's memory: what is left, and whether another sandbox may come."""

from __future__ import annotations

from typing import Any, Final

import psutil

from ..errors import ServerBusy

#: What stays for the host and for the sandboxes that there are. A creation needs a few MiB; the reserve is there so
#: that a host that runs out says so to the next caller, and does not choose among the present ones whom to kill.
RESERVE_BYTES: Final = 256 * 1024 * 1024
#: Of a small host, no more than this part.
RESERVE_SHARE: Final = 0.05


def reserve(total: int) -> int:
    """Return how many bytes of `total` must be available for a creation."""
    return min(RESERVE_BYTES, int(total * RESERVE_SHARE))


def check_room() -> None:
    """Refuse a creation where the host has hardly any memory left.

    Raises:
        ServerBusy: `available_bytes` is below `reserve_bytes`.
    """
    memory = psutil.virtual_memory()
    bound = reserve(memory.total)
    if memory.available < bound:
        raise ServerBusy(
            f"cannot create a sandbox: the host has {memory.available >> 20} MiB of memory left, "
            f"{bound >> 20} MiB are kept free",
            available_bytes=memory.available,
            reserve_bytes=bound,
        )


def facts() -> dict[str, Any]:
    """Return what `GET /info` tells of the host: bytes of memory, processors, load averages."""
    memory = psutil.virtual_memory()
    return {
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "cpus": psutil.cpu_count(),
        "load": [round(value, 2) for value in psutil.getloadavg()],
    }
