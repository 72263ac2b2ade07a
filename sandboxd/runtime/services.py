"""What the daemon does for its sandboxes: one value for all of them, which the manager makes and no one changes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .budget import Budget
    from .counters import Counters
    from .link_client import LinkClient
    from .sandbox import Sandbox


@dataclasses.dataclass(frozen=True, slots=True)
class Services:
    """Given to each sandbox when it is made.

    Attributes:
        counters: what the daemon counts about itself.
        budget: of which each sandbox has a share, to hold in memory what its callers ask for.
        open_link: connects to an init that nobody has asked anything yet, and serves the link.
        enter: `(sandbox, template, leaf, handoff, wait)`: has a template's child enter a sandbox (`Launcher.enter`).
        start_soon: starts a task that lives as long as the daemon.
        tell_move: hears of each sandbox that has gone to another state.
        standby_s: how many seconds an init has a process wait for the next command; 0: none waits.
        spare_s: how many seconds an unused Node interpreter waits for the next context; 0: none waits.
    """

    counters: Counters
    budget: Budget
    open_link: Callable[[Sandbox], LinkClient]
    enter: Callable[[str, str, str, int, bool], Awaitable[None]]
    start_soon: Callable[[Callable[[], Awaitable[object]]], None]
    tell_move: Callable[[Sandbox], None]
    standby_s: int
    spare_s: int
