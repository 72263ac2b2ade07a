"""What a daemon that starts does with each sandbox it finds: a pure decision over two lists."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .launcher import Launched
    from .store import Record


@dataclasses.dataclass(frozen=True, slots=True)
class Recovery:
    """The decision.

    Attributes:
        take_over: alive and registered: connect again.
        destroy: ids that the launcher must give back: dead ones, and live ones that no record knows.
        drop: ids whose record goes: nothing of them is alive.
        notes: why, one sentence each, for the log.
    """

    take_over: tuple[tuple[Record, Launched], ...]
    destroy: tuple[str, ...]
    drop: tuple[str, ...]
    notes: tuple[str, ...]


def decide(launched: Iterable[Launched], records: Iterable[Record], directories: Iterable[str]) -> Recovery:
    """Match what the launcher has with what the registry has; `directories` are the registry's ids, readable or not."""
    known = {record.id: record for record in records}
    take_over, destroy, notes = [], [], []
    for one in launched:
        record = known.pop(one.id, None)
        if one.alive and record is not None:
            take_over.append((record, one))
            continue
        destroy.append(one.id)
        notes.append(f"Sandbox {one.id} goes: {'no record of it' if one.alive else 'its init is dead'}")
    kept = {record.id for record, _ in take_over}
    drop = [name for name in directories if name not in kept]
    notes += [f"Sandbox {name} goes: the launcher does not know it" for name in known]
    return Recovery(tuple(take_over), tuple(destroy), tuple(drop), tuple(notes))
