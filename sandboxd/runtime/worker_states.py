"""The states of an interpreter, as its daemon follows it, and the moves between them: one table, no I/O.

    asked --start--> started
    asked, started, ready --ready--> ready
    asked, started, ready --violate--> broken
    asked, started, ready, broken --exit--> exited
    asked, started, ready, broken, exited --end--> gone
    ready --start--> ready

All but `end` is what init or the interpreter says: what the table refuses breaks the protocol.
"""

from __future__ import annotations

import enum
from typing import Final


class State(enum.StrEnum):
    """Where an interpreter is in its life."""

    #: Init was asked for it.
    ASKED = "asked"
    #: Init has said which process it is.
    STARTED = "started"
    #: It takes code.
    READY = "ready"
    #: It broke the rules of frames and is killed: nothing that it says counts any more.
    BROKEN = "broken"
    #: Init has said how it ended.
    EXITED = "exited"
    #: Nobody will say anything more of it.
    GONE = "gone"


class Event(enum.StrEnum):
    """What happens to an interpreter."""

    START = "start"
    #: It says that it takes code; of one that an earlier daemon had, that is known.
    READY = "ready"
    VIOLATE = "violate"
    EXIT = "exit"
    END = "end"


_ANY_TIME: Final = {Event.VIOLATE: State.BROKEN, Event.EXIT: State.EXITED, Event.END: State.GONE}

TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.ASKED: {Event.START: State.STARTED, Event.READY: State.READY, **_ANY_TIME},
    State.STARTED: {Event.READY: State.READY, **_ANY_TIME},
    State.READY: {Event.START: State.READY, Event.READY: State.READY, **_ANY_TIME},
    State.BROKEN: {Event.EXIT: State.EXITED, Event.END: State.GONE},
    State.EXITED: {Event.END: State.GONE},
    State.GONE: {},
}
