"""The listener: accepts, bounds, and sweeps."""

from __future__ import annotations

import collections
import errno
import ipaddress
import logging
import select
import socket
from typing import TYPE_CHECKING, Any, Final

import trio

from ..runtime.strangers import Lane, share_of_descriptors
from . import upstream
from .connection import Connection
from .heads import Front
from .wires import TlsWire, Wire

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from ..runtime.preview_urls import PreviewUrls
    from ..runtime.previews import Previews

_log = logging.getLogger(__name__)

#: Connections at once. Beyond, the one that has waited longest without a request under way gives way to a new one.
MAX_CONNECTIONS: Final = 8192
#: Its part of the descriptors: an eighth, since each may have another to a service.
DESCRIPTOR_PARTS: Final = 8
BACKLOG: Final = 4096
SWEEP_S: Final = 1.0
#: Nothing moved for this long: a client that has closed its side is taken for gone.
GONE_S: Final = 2.0
#: How long requests under way may take when the daemon stops.
DRAIN_S: Final = 2.0
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ACCEPTS_A_TURN: Final = 64
_GONE: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class Proxy:
    """Serves previews. Its owner runs `run` and ends it with `stop`.

    Args:
        listeners: listening TCP sockets.
        secret: the API's own token: a header that holds it never reaches a sandbox.
        trusted: networks of front proxies whose X-Forwarded-* are believed.
    """

    def __init__(
        self,
        previews: Previews,
        urls: PreviewUrls,
        listeners: Sequence[socket.socket],
        *,
        tls: ssl.SSLContext | None = None,
        secret: str | None = None,
        trusted: Sequence[str] = (),
    ) -> None:
        self.previews = previews
        self.urls = urls
        self.active: collections.Counter[str] = collections.Counter()
        self.is_stopping = False
        self._listeners = list(listeners)
        self._tls = tls
        self._secret = secret.encode() if secret else None
        self._trusted = [ipaddress.ip_network(network) for network in trusted]
        self.lane = Lane()
        self._bound = share_of_descriptors(MAX_CONNECTIONS, DESCRIPTOR_PARTS)
        self._connections: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}
        self._accepting = trio.CancelScope()
        self.drained = trio.Event()

    def __repr__(self) -> str:
        return f"<Proxy of {self.urls!r}, {len(self._connections)} connections>"

    def statistics(self) -> dict[str, int]:
        """Return how many connections are open, and how many of them wait for a request."""
        return {"connections": len(self._connections), "waiting": len(self._waiting)}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept and serve until `stop`, then let requests under way end, for `DRAIN_S` at most; sets `drained`."""
        try:
            async with trio.open_nursery() as connections:
                with self._accepting:
                    async with trio.open_nursery() as loops:
                        for listener in self._listeners:
                            loops.start_soon(self._accept, listener, connections)
                        loops.start_soon(self._sweep)
                        task_status.started()
                for connection in tuple(self._waiting):
                    connection.scope.cancel()
                connections.cancel_scope.deadline = trio.current_time() + DRAIN_S
        finally:
            self.drained.set()

    def stop(self) -> None:
        """Accept no more."""
        self.is_stopping = True
        self._accepting.cancel()

    # --- connections, for themselves --------------------------------------------------------------------

    def waits(self, connection: Connection) -> None:
        """A connection begins to wait for a request."""
        self._waiting.pop(connection, None)
        self._waiting[connection] = None

    def waits_no_more(self, connection: Connection) -> None:
        """It has one that was let in."""
        self._waiting.pop(connection, None)

    def unlist(self, connection: Connection) -> None:
        """It ends."""
        self._waiting.pop(connection, None)
        self._connections.discard(connection)

    # --- accepting --------------------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        with listener:
            while True:
                await trio.lowlevel.wait_readable(listener)
                try:
                    for _ in range(_ACCEPTS_A_TURN):
                        self._take_connection(*listener.accept(), nursery)
                except BlockingIOError:
                    continue
                except OSError as error:
                    if error.errno not in _OUT_OF_RESOURCES:
                        continue  # a client that has left again (accept(2))
                    _log.warning("Cannot accept a connection: %s", error.strerror)
                    await trio.sleep(0.1)

    def _take_connection(self, sock: socket.socket, address: Any, nursery: trio.Nursery) -> None:  # noqa: ANN401 - a family's own
        if len(self._connections) >= self._bound:
            victim = next(iter(self._waiting), None)
            if victim is None:
                sock.close()
                return
            self.unlist(victim)
            victim.scope.cancel()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        peer = ipaddress.ip_address(address[0].partition("%")[0])
        if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped is not None:
            peer = peer.ipv4_mapped
        front = Front(
            address=str(peer).encode(),
            scheme=b"http" if self._tls is None else b"https",
            trusted=any(peer in network for network in self._trusted),
            secret=self._secret,
        )
        wire = Wire(sock, self.lane) if self._tls is None else TlsWire(sock, self.lane, self._tls)
        connection = Connection(self, wire, front)
        self._connections.add(connection)
        nursery.start_soon(self._serve, connection)

    @staticmethod
    async def _serve(connection: Connection) -> None:
        try:
            await connection.run()
        except Exception:
            _log.exception("A preview connection failed")

    # --- sweeping ---------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        """End what is past its deadline, and requests whose client has left; close services' idle connections."""
        while True:
            await trio.sleep(SWEEP_S)
            now = trio.current_time()
            waiting: list[Connection] = []
            for connection in tuple(self._connections):
                if connection.deadline < now:
                    connection.time_out()
                elif connection.waits_for_service and connection.still_since < now - GONE_S:
                    waiting.append(connection)
            self._drop_gone(waiting)
            for port in self.previews.ports():
                upstream.sweep(port, now)

    @staticmethod
    def _drop_gone(waiting: list[Connection]) -> None:
        poll = select.poll()
        by_fd = {connection.wire.sock.fileno(): connection for connection in waiting}
        for fd in by_fd:
            if fd >= 0:
                poll.register(fd, select.POLLRDHUP)
        for fd, events in poll.poll(0) if by_fd else ():
            if events & _GONE:
                by_fd[fd].scope.cancel()
