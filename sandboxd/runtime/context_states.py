"""The states of a code context and the moves between them: one table, no I/O.

    starting, restarting --ready--> idle
    starting, restarting --fail--> exited
    starting, idle, busy, restarting, exited --restart--> restarting
    starting, idle, busy, restarting, exited, deleting --delete--> deleting
    starting, idle, busy, restarting, exited, deleting --end--> gone
    idle --run--> busy
    idle, busy --exit--> exited
    busy --done--> idle
    exited --start-again--> starting

A run that is over by the clock or by wish stays `busy` until it has ended; `restarting` and `deleting` are also states
in which a run may still have to be told its end.
"""

from __future__ import annotations

import enum
from typing import Final


class State(enum.StrEnum):
    """Where a context stands."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    RESTARTING = "restarting"
    EXITED = "exited"
    DELETING = "deleting"
    GONE = "gone"


class Event(enum.StrEnum):
    """What happens to a context."""

    #: Its interpreter takes code.
    READY = "ready"
    #: Its interpreter could not start.
    FAIL = "fail"
    #: A run or a question begins.
    RUN = "run"
    #: The run is over, and the interpreter takes the next one.
    DONE = "done"
    #: Its interpreter has ended by itself.
    EXIT = "exit"
    #: A run came for a default context without an interpreter: the next one starts.
    START_AGAIN = "start-again"
    #: Somebody asked for a new interpreter, or the present one does not heed an interrupt.
    RESTART = "restart"
    #: Somebody asked for its end.
    DELETE = "delete"
    #: Its task is over: it was deleted, could not start at all, or its sandbox is gone.
    END = "end"


#: What may happen at any time: whoever asks for a restart while one is under way waits for that one.
_ASKED: Final = {Event.RESTART: State.RESTARTING, Event.DELETE: State.DELETING, Event.END: State.GONE}

TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.STARTING: {Event.READY: State.IDLE, Event.FAIL: State.EXITED, **_ASKED},
    State.IDLE: {Event.RUN: State.BUSY, Event.EXIT: State.EXITED, **_ASKED},
    State.BUSY: {Event.DONE: State.IDLE, Event.EXIT: State.EXITED, **_ASKED},
    State.RESTARTING: {Event.READY: State.IDLE, Event.FAIL: State.EXITED, **_ASKED},
    State.EXITED: {Event.START_AGAIN: State.STARTING, **_ASKED},
    State.DELETING: {Event.DELETE: State.DELETING, Event.END: State.GONE},
    State.GONE: {},
}

#: What a caller sees of each state.
SHOWN: Final[dict[State, str]] = {state: state.value for state in State} | {State.DELETING: State.GONE.value}
#: The present interpreter is to end, whatever it does.
LEAVING: Final = frozenset({State.RESTARTING, State.DELETING})
