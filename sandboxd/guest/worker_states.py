"""The states of an interpreter's process, as init sees it, and the moves between them: one table, no I/O.

    starting, arrived --begin--> running
    starting --expect--> expecting
    starting, running --exit--> exited
    expecting --arrive--> arrived
    expecting, arrived, lost --absent--> starting
    expecting, lost --cancel--> exited
    arrived --cancel--> running
    arrived --exit--> lost
    lost --begin--> exited
    exited --drain--> draining
    exited, draining --end--> ended

A template's child is told of by two voices, its socket and the reaper, in either order: one that says that it has
begun, and has exited by then (`lost`), has exited.
"""

from __future__ import annotations

import enum
from typing import Final


class State(enum.StrEnum):
    """Where an interpreter's process is in its life."""

    #: There is none yet.
    STARTING = "starting"
    #: A template's child may come to be it.
    EXPECTING = "expecting"
    #: That child has come, and has its job.
    ARRIVED = "arrived"
    #: That child has exited, and its last word has not been read.
    LOST = "lost"
    RUNNING = "running"
    #: It has exited; what it started may still hold its pipes for a moment.
    EXITED = "exited"
    #: What is left in its pipes is read, and no more waited for.
    DRAINING = "draining"
    ENDED = "ended"


class Event(enum.StrEnum):
    """What happens to it."""

    EXPECT = "expect"
    ARRIVE = "arrive"
    #: The process is there and has all it needs.
    BEGIN = "begin"
    #: No child of a template will be it.
    ABSENT = "absent"
    #: It is killed before it has said that it begins.
    CANCEL = "cancel"
    EXIT = "exit"
    #: The time for its pipes to close by themselves is up.
    DRAIN = "drain"
    #: Its pipes are closed.
    END = "end"


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.STARTING: {Event.BEGIN: State.RUNNING, Event.EXPECT: State.EXPECTING, Event.EXIT: State.EXITED},
    State.EXPECTING: {Event.ARRIVE: State.ARRIVED, Event.ABSENT: State.STARTING, Event.CANCEL: State.EXITED},
    State.ARRIVED: {
        Event.BEGIN: State.RUNNING,
        Event.ABSENT: State.STARTING,
        Event.CANCEL: State.RUNNING,
        Event.EXIT: State.LOST,
    },
    State.LOST: {Event.BEGIN: State.EXITED, Event.ABSENT: State.STARTING, Event.CANCEL: State.EXITED},
    State.RUNNING: {Event.EXIT: State.EXITED},
    State.EXITED: {Event.DRAIN: State.DRAINING, Event.END: State.ENDED},
    State.DRAINING: {Event.END: State.ENDED},
    State.ENDED: {},
}

#: Whether a template's child will be it is not known yet.
COMING: Final = frozenset({State.EXPECTING, State.ARRIVED, State.LOST})
#: There is a process that may be signalled.
ALIVE: Final = frozenset({State.ARRIVED, State.RUNNING})
