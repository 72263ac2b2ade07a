"""The states of a creation and the moves between them: one table, no I/O.

    begun --known--> held
    begun --order--> ordered
    begun, ordered, failing --fail--> failing
    begun, held, ordered, building, attached, failing --silence--> failed
    held --order--> building
    held, building, ready, attached --fail--> failed
    ordered --known--> building
    building --ready--> ready
    building --attach--> attached
    ready --attach--> created
    ready --silence--> ready
    attached --ready--> created
    failing --known--> failed

What the processes say may come in any order; `create.py` keeps what comes before both are known until they are.
"""

from __future__ import annotations

import enum
from typing import Final


class State(enum.StrEnum):
    """Where a creation stands."""

    #: Forked; its builder and pid 1 are not both known yet.
    BEGUN = "begun"
    #: A prepared sandbox: both are known, and it waits for an order.
    HELD = "held"
    #: There is an order, and the processes are not both known yet.
    ORDERED = "ordered"
    #: The builder works on the order, and the veth is being made.
    BUILDING = "building"
    #: pid 1 serves; the veth is still being made.
    READY = "ready"
    #: The veth is made; pid 1 does not serve yet.
    ATTACHED = "attached"
    #: It failed, and ends as soon as it is known whom to kill.
    FAILING = "failing"
    CREATED = "created"
    FAILED = "failed"


class Event(enum.StrEnum):
    """What happens to a creation."""

    #: Both processes are known.
    KNOWN = "known"
    #: Somebody wants the sandbox.
    ORDER = "order"
    #: pid 1 serves.
    READY = "ready"
    #: The veth is made, or none is wanted.
    ATTACH = "attach"
    #: A step failed, or nobody wants it any more.
    FAIL = "fail"
    #: Nobody can say anything more of it: its processes have ended, or closed what they tell it by.
    SILENCE = "silence"


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.BEGUN: {
        Event.KNOWN: State.HELD,
        Event.ORDER: State.ORDERED,
        Event.FAIL: State.FAILING,
        Event.SILENCE: State.FAILED,
    },
    State.HELD: {Event.ORDER: State.BUILDING, Event.FAIL: State.FAILED, Event.SILENCE: State.FAILED},
    State.ORDERED: {Event.KNOWN: State.BUILDING, Event.FAIL: State.FAILING, Event.SILENCE: State.FAILED},
    State.BUILDING: {
        Event.READY: State.READY,
        Event.ATTACH: State.ATTACHED,
        Event.FAIL: State.FAILED,
        Event.SILENCE: State.FAILED,
    },
    State.READY: {Event.ATTACH: State.CREATED, Event.FAIL: State.FAILED, Event.SILENCE: State.READY},
    State.ATTACHED: {Event.READY: State.CREATED, Event.FAIL: State.FAILED, Event.SILENCE: State.FAILED},
    State.FAILING: {Event.KNOWN: State.FAILED, Event.FAIL: State.FAILING, Event.SILENCE: State.FAILED},
    State.CREATED: {},
    State.FAILED: {},
}

#: Its builder and pid 1 are not both known.
UNKNOWN: Final = frozenset({State.BEGUN, State.ORDERED, State.FAILING})
#: It can still take an order.
ORDERABLE: Final = frozenset({State.BEGUN, State.HELD})
#: Nothing can happen to it any more.
OVER: Final = frozenset({State.CREATED, State.FAILED})
