"""The operation `sockets`: unconnected TCP sockets of a sandbox's network namespace, for the daemon's previews.

A socket belongs for ever to the namespace that it was made in, so the daemon, which connects it, stays in the host's.
It is made here and never taken from an init: O_NONBLOCK and SO_LINGER belong to the description that a sender would
still hold. The launcher enters the namespace through its own pidfd of the init and leaves it at once (8 µs there and
back with one socket, 55 µs with 16); a launcher that cannot leave ends, since all that it did next would be done there.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..errors import InternalError, InvalidRequest, LimitExceeded, SandboxNotFound
from ..linux.kernel import CLONE_NEWNET, Kernel
from .control import Running, id_of

#: Sockets of one answer; a connection lets 16 descriptors wait.
MAX_SOCKETS: Final = 8
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


class Sockets:
    """Makes sockets in sandboxes. `reply` sends an answer with descriptors, which are its own from then on."""

    def __init__(
        self,
        sandboxes: Mapping[str, Running],
        kernel: Kernel,
        reply: Callable[[int, dict[str, Any], list[int]], None],
    ) -> None:
        self._sandboxes = sandboxes
        self._kernel = kernel
        self._reply = reply
        self._own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def operations(self) -> dict[str, Callable[[int, dict[str, Any]], dict[str, Any] | None]]:
        """Return the operations by their names."""
        return {"sockets": self._sockets}

    def _sockets(self, request: int, params: dict[str, Any]) -> None:
        """Answer with `count` sockets of IP version `family`."""
        if set(params) - {"id", "family", "count"}:
            raise InvalidRequest("cannot make sockets: unknown parameters", field="params")
        sandbox_id, family, count = id_of(params), params.get("family"), params.get("count")
        if type(family) is not int or family not in _FAMILIES:
            raise InvalidRequest("cannot make sockets: family must be 4 or 6", field="family")
        if type(count) is not int or not 1 <= count <= MAX_SOCKETS:
            raise InvalidRequest(f"cannot make sockets: count must be 1 to {MAX_SOCKETS}", field="count")
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.ended is not None:
            raise SandboxNotFound(f"cannot make sockets in sandbox {sandbox_id}: it does not run", id=sandbox_id)
        self._reply(request, {}, self._make(sandbox, _FAMILIES[family], count))

    def _make(self, sandbox: Running, family: socket.AddressFamily, count: int) -> list[int]:
        made: list[int] = []
        try:
            self._kernel.setns(sandbox.pidfd, CLONE_NEWNET)
        except ProcessLookupError:
            raise SandboxNotFound(f"cannot make sockets in {sandbox.record.id}: it has ended") from None
        except OSError as error:
            raise InternalError(f"cannot enter the network of sandbox {sandbox.record.id}: {error}") from None
        try:
            for _ in range(count):
                made.append(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK).detach())
        except OSError as error:
            for fd in made:
                os.close(fd)
            raise LimitExceeded(f"cannot make sockets in sandbox {sandbox.record.id}: {error.strerror}") from None
        finally:
            self._leave()
        return made

    def _leave(self) -> None:
        try:
            self._kernel.setns(self._own, CLONE_NEWNET)
        except OSError:
            os.abort()
