"""Sandboxes that no manager made, for tests of what keeps them or of their own states."""

from __future__ import annotations

import dataclasses
from typing import Any, Never

from sandboxd.runtime.budget import Budget
from sandboxd.runtime.counters import Counters
from sandboxd.runtime.sandbox import Sandbox
from sandboxd.runtime.services import Services
from sandboxd.spec import SandboxSpec, new_id


def _unexpected(*args: Any, **kwargs: Any) -> Never:
    raise AssertionError("nobody asks this sandbox's init for anything")


#: Of a daemon that has no launcher and no nursery.
SERVICES = Services(
    counters=Counters(),
    budget=Budget(),
    open_link=_unexpected,
    enter=_unexpected,
    start_soon=_unexpected,
    tell_move=lambda _: None,
    standby_s=0,
    spare_s=0,
)


def sandbox_of(spec: SandboxSpec | None = None, created_at: float = 0.0, **services: Any) -> Sandbox:
    """Return a sandbox that is being created; `services` replace those that there are not."""
    return Sandbox(new_id(), spec or SandboxSpec(), created_at, dataclasses.replace(SERVICES, **services))
