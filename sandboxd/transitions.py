"""Moves through a transition table: `{state: {event: next state}}`, pure data in a module of its own.

A table says all that can happen to one thing. Its module's docstring lists the moves as `tests/support/drawing.py`
draws them, and a test compares the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from .errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Mapping

State = TypeVar("State")
Event = TypeVar("Event")


def next_state(table: Mapping[State, Mapping[Event, State]], state: State, event: Event) -> State:
    """Return the state that `event` leads to.

    Raises:
        InternalError: no such transition, so this is a bug.
    """
    new = table[state].get(event)
    if new is None:
        raise InternalError(f"cannot handle event {event} in state {state}: no such transition")
    return new
