"""Connects a template's child with a sandbox's init by a socket pair, and sends one end to each.

The daemon makes the pair, so that nothing made by an init reaches the launcher or a template. Init gets one end with
the request for a child. The launcher gets the other, once init has named the leaf in which the child is to be created.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING, Final

import trio

from ..errors import SandboxdError
from .link_client import discard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    #: `(template, leaf, handoff, wait)`: `Launcher.enter` of one sandbox.
    Enter = Callable[[str, str, int, bool], Awaitable[None]]

_log = logging.getLogger(__name__)

#: The longest name of a leaf: an id and a number.
MAX_LEAF_CHARS: Final = 85


class Handoff:
    """One pair. `for_init` is to be passed with a request and is the peer's then; the other end is ours."""

    def __init__(self, enter: Enter) -> None:
        self._enter = enter
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.for_init = ours.detach()
        self._for_child = theirs.detach()

    def __repr__(self) -> str:
        return f"<Handoff {'open' if self._for_child >= 0 else 'closed'}>"

    async def bring(self, template: str, leaf: str, *, wait: bool = False) -> str | None:
        """Have a child come; return why none does, or None. init hears of it by the end of its socket."""
        try:
            if self._for_child >= 0:
                await self._enter(template, leaf, self._for_child, wait)
                await self._leave_to_child()
        except SandboxdError as error:
            _log.debug("No child of template %s: %s", template, error)
            return error.message
        finally:
            self.close()
        return None

    async def _leave_to_child(self) -> None:
        """Close our descriptor of the child's end, and nothing more: the child has it too.

        In a thread: should the child be gone already, this is the last close, which lasts as long as what init may have
        put into the queue says (a TCP socket that lingers).
        """
        fd, self._for_child = self._for_child, -1
        await trio.to_thread.run_sync(os.close, fd, abandon_on_cancel=True)

    def close(self) -> None:
        """Shut the child's end, where no child has it."""
        fd, self._for_child = self._for_child, -1
        if fd >= 0:
            discard([fd])
