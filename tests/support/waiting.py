"""How tests wait: for a condition, with a bound that no slow machine comes near."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Final

#: Far above what anything takes here, and well below the limit of a test (pytest-timeout).
SOON_S: Final = 100.0
#: How long nobody looks. What tests wait for has no descriptor of ours: files, cgroups, other processes.
_EVERY_S: Final = 0.005


def wait_until(met: Callable[[], object], what: str = "it", *, seconds: float = SOON_S) -> None:
    """Return once `met` returns something true.

    Raises:
        AssertionError: `what` did not come about in that time.
    """
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds:g} s"
        select.select((), (), (), _EVERY_S)
