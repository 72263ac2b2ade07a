"""The states of a command and the moves between them: one table, no I/O.

    starting --start--> running
    starting --fail--> ended
    running, stopping --stop--> stopping
    running --exit--> lingering
    stopping --exit--> ending
    lingering, ending --stop--> ending
    lingering --rest--> resting
    lingering, ending --end--> ended
    resting --restart--> starting
    resting --stop--> ended

`lingering` and `ending` last until its output and those who were told to end are gone (`processes.py`, `endings.py`).
"""

from __future__ import annotations

import enum
from typing import Final


class State(enum.StrEnum):
    """Where a command is in its life."""

    #: A run begins; there is no main process yet.
    STARTING = "starting"
    RUNNING = "running"
    #: Its main process runs and was told to end: it is not restarted.
    STOPPING = "stopping"
    #: Its main process has exited; what it started may go on for a moment.
    LINGERING = "lingering"
    #: As `LINGERING`, of one that was told to end.
    ENDING = "ending"
    #: Between two runs of one that is restarted on failure.
    RESTING = "resting"
    ENDED = "ended"


class Event(enum.StrEnum):
    """What happens to a command."""

    START = "start"
    #: Its main process could not be started.
    FAIL = "fail"
    #: Somebody told it to end, or its time is up.
    STOP = "stop"
    #: Its main process has exited.
    EXIT = "exit"
    #: Nothing of the run is left, and there is to be another one.
    REST = "rest"
    #: The delay before the next run is over.
    RESTART = "restart"
    #: Nothing of the last run is left.
    END = "end"


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.STARTING: {Event.START: State.RUNNING, Event.FAIL: State.ENDED},
    State.RUNNING: {Event.STOP: State.STOPPING, Event.EXIT: State.LINGERING},
    State.STOPPING: {Event.STOP: State.STOPPING, Event.EXIT: State.ENDING},
    State.LINGERING: {Event.STOP: State.ENDING, Event.REST: State.RESTING, Event.END: State.ENDED},
    State.ENDING: {Event.STOP: State.ENDING, Event.END: State.ENDED},
    State.RESTING: {Event.RESTART: State.STARTING, Event.STOP: State.ENDED},
    State.ENDED: {},
}

#: Its main process is there.
ALIVE: Final = frozenset({State.RUNNING, State.STOPPING})
#: Its main process has exited, and the run is not over yet.
EXITED: Final = frozenset({State.LINGERING, State.ENDING})
