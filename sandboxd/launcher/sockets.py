"""The operations `sockets` and `resolver`: sockets of a sandbox's network namespace, for the daemon.

Previews get unconnected ones of TCP; whoever answers the sandbox's questions about names gets two that are bound.

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
from .filesystem import RESOLVER

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
        return {"sockets": self._sockets, "resolver": self._resolver}

    def _sockets(self, request: int, params: dict[str, Any]) -> None:
        """Answer with `count` sockets of IP version `family`."""
        if set(params) - {"id", "family", "count"}:
            raise InvalidRequest("cannot create sockets: unknown parameters", field="params")
        sandbox_id, family, count = id_of(params), params.get("family"), params.get("count")
        if type(family) is not int or family not in _FAMILIES:
            raise InvalidRequest("cannot create sockets: family must be 4 or 6", field="family")
        if type(count) is not int or not 1 <= count <= MAX_SOCKETS:
            raise InvalidRequest(f"cannot create sockets: count must be 1 to {MAX_SOCKETS}", field="count")
        kind = _FAMILIES[family]

        def make() -> list[socket.socket]:
            return [socket.socket(kind, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) for _ in range(count)]

        self._reply(request, {}, self._make(self._find(sandbox_id), make))

    def _resolver(self, request: int, params: dict[str, Any]) -> None:
        """Answer with two sockets on which the daemon answers questions about names: UDP, and TCP that listens."""
        if set(params) - {"id"}:
            raise InvalidRequest("cannot create sockets: unknown parameters", field="params")
        self._reply(request, {}, self._make(self._find(id_of(params)), _bind_resolver))

    def _find(self, sandbox_id: str) -> Running:
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.ended is not None:
            raise SandboxNotFound(f"cannot create sockets in sandbox {sandbox_id}: it is not running", id=sandbox_id)
        return sandbox

    def _make(self, sandbox: Running, make: Callable[[], list[socket.socket]]) -> list[int]:
        try:
            self._kernel.setns(sandbox.pidfd, CLONE_NEWNET)
        except ProcessLookupError:
            raise SandboxNotFound(f"cannot create sockets in {sandbox.record.id}: it has ended") from None
        except OSError as error:
            raise InternalError(f"cannot enter the network of sandbox {sandbox.record.id}: {error}") from None
        try:
            return [made.detach() for made in make()]
        except OSError as error:
            raise LimitExceeded(f"cannot create sockets in sandbox {sandbox.record.id}: {error.strerror}") from None
        finally:
            self._leave()

    def _leave(self) -> None:
        try:
            self._kernel.setns(self._own, CLONE_NEWNET)
        except OSError:
            os.abort()


def _bind_resolver() -> list[socket.socket]:
    kind = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | kind)
    stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM | kind)
    try:
        # What an earlier daemon's connections left must not be in the way.
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for made in (datagrams, stream):
            made.bind((RESOLVER, 53))
        stream.listen(16)
    except OSError:
        datagrams.close()
        stream.close()
        raise
    return [datagrams, stream]
