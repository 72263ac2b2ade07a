"""The tables of states: drawn in their modules' docstrings, closed, and without a state that leads nowhere."""

from __future__ import annotations

import itertools
from types import ModuleType

import pytest

from sandboxd.errors import InternalError
from sandboxd.guest import process_states, worker_states
from sandboxd.launcher import creation_states
from sandboxd.runtime import context_states, turn_states
from sandboxd.runtime import worker_states as followed_states
from sandboxd.transitions import next_state
from tests.support import drawing

#: The modules, with the state in which a thing begins and those in which it ends.
TABLES: list[tuple[ModuleType, str, set[str]]] = [
    (context_states, "starting", {"gone"}),
    (turn_states, "sending", {"over"}),
    (followed_states, "asked", {"gone"}),
    (process_states, "starting", {"ended"}),
    (worker_states, "starting", {"ended"}),
    (creation_states, "begun", {"created", "failed"}),
]
each = pytest.mark.parametrize(
    ("module", "first", "final"), TABLES, ids=[module.__name__.removeprefix("sandboxd.") for module, *_ in TABLES]
)


@each
def test_the_docstring_draws_the_table(module: ModuleType, first: str, final: set[str]) -> None:
    table = module.TRANSITIONS
    assert drawing.drawn(module) == drawing.draw(table), f"paste this:\n{drawing.to_paste(table)}"


@each
def test_each_event_in_each_state_moves_or_is_refused(module: ModuleType, first: str, final: set[str]) -> None:
    table = module.TRANSITIONS
    moves = {(state, event): new for state, row in table.items() for event, new in row.items()}
    assert set(moves.values()) <= set(module.State)
    for state, event in itertools.product(module.State, module.Event):
        if (state, event) in moves:
            assert next_state(table, state, event) is moves[state, event]
        else:
            with pytest.raises(InternalError, match=f"cannot handle event {event} in state {state}"):
                next_state(table, state, event)
    assert {event for _, event in moves} == set(module.Event), "an event that no state takes"


@each
def test_every_state_is_reached_and_only_final_ones_have_no_way_out(
    module: ModuleType, first: str, final: set[str]
) -> None:
    table = module.TRANSITIONS
    assert set(table) == set(module.State) == drawing.reachable(table, first)
    assert {state for state, row in table.items() if not row} == final
    for state in table:
        assert drawing.reachable(table, state) & final, f"{state} leads to no end"
