"""The states of a sandbox and the moves between them: one table, no I/O.

    creating --> running --> failed --> destroying --> destroyed
        |         ^   |        ^            |
        |         v   +--------|------------+
        +-----> frozen --------+------------+   (a destruction that broke off can be asked for again)

`creating` leads to `frozen` where a daemon that starts finds a sandbox so, and to each other end too.

`destroying` and `destroyed` are never shown: a sandbox in them is answered as not found.
"""

from __future__ import annotations

import enum
from typing import Final


class State(enum.StrEnum):
    """Where a sandbox stands."""

    CREATING = "creating"
    RUNNING = "running"
    FROZEN = "frozen"
    FAILED = "failed"
    DESTROYING = "destroying"
    DESTROYED = "destroyed"


TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    State.CREATING: frozenset({State.RUNNING, State.FROZEN, State.FAILED, State.DESTROYING}),
    State.RUNNING: frozenset({State.FROZEN, State.FAILED, State.DESTROYING}),
    State.FROZEN: frozenset({State.RUNNING, State.FAILED, State.DESTROYING}),
    State.FAILED: frozenset({State.DESTROYING}),
    State.DESTROYING: frozenset({State.DESTROYED, State.FAILED}),
    State.DESTROYED: frozenset(),
}

#: What a caller may see.
SHOWN: Final = frozenset({State.CREATING, State.RUNNING, State.FROZEN, State.FAILED})
#: Its init lives and its link holds.
ALIVE: Final = frozenset({State.RUNNING, State.FROZEN})


def may_move(old: State, new: State) -> bool:
    """Return whether a sandbox may go from `old` to `new`."""
    return new in TRANSITIONS[old]
