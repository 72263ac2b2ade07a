"""The states of an item's turn with its interpreter and the moves between them: one table, no I/O.

    sending --take--> running
    sending --expire--> unsent
    sending, running, unsent, overdue --end--> over
    running --expire--> overdue

Whether the interpreter took the message outlives the time limit: what it never took may be given to the next one.
"""

from __future__ import annotations

import enum
from typing import Final


class State(enum.StrEnum):
    """Where a turn stands."""

    #: The message is on its way, or nobody took it.
    SENDING = "sending"
    #: The interpreter has taken it.
    RUNNING = "running"
    #: Its time is over, and nobody took it.
    UNSENT = "unsent"
    #: Its time is over, and it is interrupted.
    OVERDUE = "overdue"
    OVER = "over"


class Event(enum.StrEnum):
    """What happens to a turn."""

    TAKE = "take"
    #: The run's time is over.
    EXPIRE = "expire"
    #: Nobody waits for it any more: it has ended, or its interpreter has.
    END = "end"


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.SENDING: {Event.TAKE: State.RUNNING, Event.EXPIRE: State.UNSENT, Event.END: State.OVER},
    State.RUNNING: {Event.EXPIRE: State.OVERDUE, Event.END: State.OVER},
    State.UNSENT: {Event.END: State.OVER},
    State.OVERDUE: {Event.END: State.OVER},
    State.OVER: {},
}

#: Its interpreter has taken the message.
TAKEN: Final = frozenset({State.RUNNING, State.OVERDUE})
#: Its time is over.
EXPIRED: Final = frozenset({State.UNSENT, State.OVERDUE})
