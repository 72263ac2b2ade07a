"""What changes a sandbox that is there, for code on trio or asyncio: a part of `AsyncSandbox`."""

from __future__ import annotations

from . import calls, control_calls
from .verbs import AsyncPart, async_info_verb, async_verb


class AsyncControlPart(AsyncPart):
    """Methods of `AsyncSandbox`."""

    refresh = async_info_verb(calls.refresh)
    update = async_info_verb(control_calls.update)
    set_env_vars = async_info_verb(control_calls.set_env_vars)
    freeze = async_info_verb(control_calls.freeze)
    thaw = async_info_verb(control_calls.thaw)
    stats = async_verb(control_calls.stats)
