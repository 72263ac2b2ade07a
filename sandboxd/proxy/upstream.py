"""Connections to a service inside a sandbox: taken from those that wait, or made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from ..errors import LimitExceeded, PortClosed, PreviewGone, SandboxNotFound, ServerBusy
from .wires import Wire, connect

if TYPE_CHECKING:
    import socket

    from ..runtime.ports import Port
    from ..runtime.previews import Previews
    from ..runtime.sandbox import Sandbox

#: Connections to one service that wait for another request, and how long they do. Not longer: a service that serves one
#: connection at a time is held by one that waits.
MAX_IDLE: Final = 64
IDLE_S: Final = 5.0
#: Loopback refuses at once; a full backlog of a service that does not accept makes it wait.
CONNECT_S: Final = 10.0
_LOOPBACK: Final = {4: "127.0.0.1", 6: "::1"}


class ServiceWire(Wire):
    """A connection to a service, which its port counts while it is open."""

    def __init__(self, sock: socket.socket, port: Port) -> None:
        super().__init__(sock, port.lane)
        self._port: Port | None = port
        port.dialled += 1
        port.connected += 1

    def close(self) -> None:
        """See `Wire`."""
        port, self._port = self._port, None
        if port is not None:
            port.connected -= 1
        super().close()


class IdleWire:
    """A connection that waits, since when."""

    __slots__ = ("since", "wire")

    def __init__(self, wire: Wire, since: float) -> None:
        self.wire = wire
        self.since = since

    def close(self) -> None:
        """Close it."""
        self.wire.close()


def take(port: Port) -> Wire | None:
    """Return a connection that waits, or None; those that the service has closed meanwhile are dropped."""
    while port.idle:
        wire: Wire = port.idle.pop().wire
        if wire.is_fresh:
            return wire
        wire.close()
    return None


def give_back(port: Port, wire: Wire) -> None:
    """Keep a connection for another request, or close it."""
    if port.closed or len(port.idle) >= MAX_IDLE:
        wire.close()
    else:
        port.idle.append(IdleWire(wire, trio.current_time()))


def sweep(port: Port, now: float) -> None:
    """Close what has waited too long."""
    while port.idle and port.idle[0].since + IDLE_S < now:
        port.idle.popleft().close()


async def make(previews: Previews, sandbox: Sandbox, port: Port) -> Wire:
    """Connect to the service at 127.0.0.1 or ::1 of the sandbox, where it was found last first.

    Raises:
        PortClosed: nobody listens.
        ServerBusy: the service does not accept connections, or the host has no sockets left.
        PreviewGone: the sandbox has ended.
    """
    for family in (port.family, 10 - port.family):
        try:
            sock = await previews.socket(sandbox, family)
        except SandboxNotFound:
            raise PreviewGone(f"cannot reach sandbox {port.sandbox_id}: it has ended") from None
        except LimitExceeded as error:
            if family == 6:
                break  # a host without IPv6
            raise ServerBusy(error.message) from None
        try:
            with trio.fail_after(CONNECT_S):
                await connect(sock, (_LOOPBACK[family], port.spec.port))
        except trio.TooSlowError:
            raise ServerBusy(f"cannot connect to port {port.spec.port}: it does not accept connections") from None
        except OSError:
            continue
        port.family = family
        return ServiceWire(sock, port)
    raise PortClosed(f"cannot connect to port {port.spec.port}: nothing listens there", port=port.spec.port)
