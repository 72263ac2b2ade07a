"""What changes a sandbox that is there, for synchronous code: a part of `Sandbox`."""

from __future__ import annotations

from . import calls, control_calls
from .verbs import Part, sync_info_verb, sync_verb


class ControlPart(Part):
    """Methods of `Sandbox`."""

    refresh = sync_info_verb(calls.refresh)
    update = sync_info_verb(control_calls.update)
    set_env_vars = sync_info_verb(control_calls.set_env_vars)
    freeze = sync_info_verb(control_calls.freeze)
    thaw = sync_info_verb(control_calls.thaw)
    stats = sync_verb(control_calls.stats)
