"""Whom a caller means: its own id is the sandbox's unique name, and the sandbox comes to be at its first use.

Cloudflare's clients never create a sandbox: they name one and use it. One that sleeps wakes, one that died is begun
anew, empty. Only what was made here is begun anew; a sandbox of /v1 that failed answers why.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

import trio

from ...errors import Conflict, NameTaken, SandboxNotFound
from ...runtime.lifecycle import State
from ...spec import SandboxSpec
from .problems import Refusal

if TYPE_CHECKING:
    from ...runtime.manager import Manager
    from ...runtime.sandbox import Sandbox

#: Marks what was made here.
LABEL: Final = "made-by"
LABEL_VALUE: Final = "cloudflare"
#: A creation and a destruction take milliseconds; a caller that meets one in progress waits for its end this long.
SETTLE_TIMEOUT_S: Final = 60.0
#: Base32's letters, of which the bridge's ids are.
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"
_NEW_ID_LENGTH: Final = 26
_BRIDGE_ID: Final = re.compile(r"[a-z2-7]{1,63}\Z")
_CONTAINER_ID: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_RESERVED: Final = frozenset({"www", "api", "admin", "root", "system", "cloudflare", "workers"})


def new_bridge_id() -> str:
    """Return a fresh id as the bridge gives them: 26 letters, 130 bits."""
    return "".join(_LETTERS[byte & 31] for byte in os.urandom(_NEW_ID_LENGTH))


def check_bridge_id(value: str) -> str:
    """Return `value` if the bridge may call a sandbox so; theirs may be longer, a name here is a DNS label.

    Raises:
        Refusal: it may not.
    """
    if not _BRIDGE_ID.match(value):
        raise Refusal("invalid_request", "the sandbox id must be 1 to 63 characters of a-z and 2-7")
    return value


def check_container_id(value: str) -> str:
    """Return `value` if a caller of the container's API may call a sandbox so.

    Theirs may have upper case, which they advise against: a preview's host name has none.

    Raises:
        Refusal: it may not.
    """
    if not _CONTAINER_ID.match(value):
        why = "a sandbox id is 1 to 63 characters of a-z, 0-9 and inner dashes"
    elif value in _RESERVED:
        why = f"the sandbox id {value!r} is reserved"
    else:
        return value
    raise Refusal("VALIDATION_FAILED", why, field="id")


def find(manager: Manager, name: str) -> Sandbox | None:
    """Return the sandbox that is called so, in whatever state callers may see; None where there is none."""
    try:
        return manager.registry.find(name)
    except SandboxNotFound:
        return None


async def reach(manager: Manager, name: str) -> Sandbox:
    """Return the sandbox that is called so, running: it is made, thawed or begun anew where it must be.

    Raises:
        SandboxdError: why it cannot.
    """
    with trio.move_on_after(SETTLE_TIMEOUT_S):
        while True:
            sandbox = await _reach_once(manager, name)
            if sandbox is not None:
                return sandbox
    raise Conflict(f"cannot use sandbox {name}: it is being created or destroyed", state="creating")


async def _reach_once(manager: Manager, name: str) -> Sandbox | None:
    """Return the sandbox, running; None when something happened on the way and is to be looked at again."""
    sandbox = manager.registry.get(name) or manager.registry.named(name)
    if sandbox is None:
        try:
            return await manager.create(SandboxSpec(name=name, labels={LABEL: LABEL_VALUE}))
        except NameTaken:
            return None  # another caller was first
    if sandbox.state is State.FROZEN:
        await manager.control.thaw(sandbox.id)
    elif sandbox.state in (State.CREATING, State.DESTROYING):
        moved = sandbox.moved
        with trio.move_on_after(0.1):  # a creation that fails leaves the table without another move
            await moved.wait()
        return None
    elif sandbox.state is State.DESTROYED:
        await trio.lowlevel.checkpoint()
        return None
    elif sandbox.state is State.FAILED and sandbox.spec.labels.get(LABEL) == LABEL_VALUE:
        await remove(manager, name)
        return None
    sandbox.check_usable()
    return sandbox


async def remove(manager: Manager, name: str) -> bool:
    """Destroy the sandbox that is called so, and return whether there was one.

    Raises:
        Conflict, LaunchFailed: it is being created, or cannot be destroyed.
    """
    try:
        await manager.destroy(name)
    except SandboxNotFound:
        return False
    return True
