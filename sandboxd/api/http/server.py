"""Our own accept loops over hypercorn's HTTP: who connected is read at accept, and connections are bounded.

hypercorn's own listener over a unix socket tells nothing of the peer, so each accepted connection gets a
`TCPServer` of its own with the caller's credentials in its state, which go with every request of the connection.

Each listener has a bound and a list of who waits behind it: over TCP connections that have shown no token, over the
unix socket those without a request under way. At the bound the one that has waited longest gives way to the newest,
so strangers lock out nobody but each other. Who has shown no token also has little time for it, and shares one lane of
the loop's time with the other strangers.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import socket
from typing import TYPE_CHECKING, Any, Final

import trio

from ...runtime.strangers import Lane, share_of_descriptors
from ...wire.http_heads import MAX_HEAD_BYTES
from ..access import identify
from .body import LINGER_S
from .exchange import Exchange
from .http1 import ClientGone, Http1, Upgrade
from .hypercorn_parts import (
    Closed,
    Config,
    ConnectionState,
    RawData,
    TaskGroup,
    TCPServer,
    Updated,
    WorkerContext,
    parse_socket_addr,
)

if TYPE_CHECKING:
    import h11
    from werkzeug.datastructures import Headers

    from ..app import Api
    from .body import BoundedBody
    from .hypercorn_parts import Event

_log = logging.getLogger(__name__)

#: Connections of one listener at once. Idle ones leave after the keep-alive time.
MAX_CONNECTIONS: Final = 4096
#: What one listener may have of the descriptors: a quarter, of which there are two listeners, and the previews'.
DESCRIPTOR_PARTS: Final = 4
BACKLOG: Final = 1024
#: A connection that has no request under way (also one that sends its header slowly) is closed after this.
KEEP_ALIVE_S: Final = 60
#: The same for one over TCP that has shown no token yet, also while it asks what is open to all.
STRANGER_S: Final = 10
#: One read of a connection: h11 looks at the bounds of headers and chunks after each.
READ_BYTES: Final = 64 * 1024
#: One read of a large body. A unix socket holds about 208 KiB.
BODY_READ_BYTES: Final = 256 * 1024
#: How long answers under way may take when the daemon stops.
DRAIN_S: Final = 5.0
#: A client over TCP that vanished is noticed after two minutes: a terminal or a silent stream sends nothing by itself.
KEEP_ALIVE_PROBES: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class _Door:
    """One listener: how many connections it has, and those that give way, who has waited longest first."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self.listener = listener
        self.is_unix = listener.socket.family == socket.AF_UNIX
        self.bound = share_of_descriptors(MAX_CONNECTIONS, DESCRIPTOR_PARTS)
        self.connections: set[_Idle] = set()
        self.lane = Lane()
        self._waiting: dict[_Idle, None] = {}
        self._news: trio.Event | None = None  # somebody waits for room

    def __repr__(self) -> str:
        return f"<_Door {len(self.connections)} connections, {len(self._waiting)} waiting>"

    async def room(self) -> None:
        """Return when one more may be accepted: there is room, or somebody who gives way."""
        while len(self.connections) >= self.bound and not self._waiting:
            self._news = trio.Event()
            await self._news.wait()

    def enter(self, connection: _Idle) -> None:
        """Count a connection that was accepted; where that is one too many, another ends."""
        if len(self.connections) >= self.bound and self._waiting:
            oldest = next(iter(self._waiting))
            self.leave(oldest)
            oldest.whole.cancel()
        self.connections.add(connection)

    def leave(self, connection: _Idle) -> None:
        """Count it no more."""
        self.connections.discard(connection)
        self._waiting.pop(connection, None)
        self._tell()

    def waits(self, connection: _Idle) -> None:
        """It gives way from now on, after those who do already."""
        self._waiting.pop(connection, None)
        if connection in self.connections:
            self._waiting[connection] = None
            self._tell()

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()
            self._news = None

    def waits_no_more(self, connection: _Idle) -> None:
        """It stays."""
        self._waiting.pop(connection, None)


class _Idle:
    """How long a connection may wait: a deadline where hypercorn starts a task per request.

    It has the two methods of hypercorn's `TrioSingleTask` that `TCPServer` calls.

    Attributes:
        scope: cancelled when it has waited too long; what it asked for is answered.
        whole: cancelled when it gives way to another.
        is_known: whether it is a caller who was let in.
    """

    def __init__(self, context: WorkerContext, door: _Door, *, is_known: bool) -> None:
        self.scope = trio.CancelScope()
        self.whole = trio.CancelScope()
        self.is_known = is_known
        self._context = context
        self._door = door
        self._idle = False

    @property
    def lane(self) -> Lane | None:
        """Where it takes turns."""
        return None if self.is_known else self._door.lane

    async def restart(self, *_: object) -> None:
        """Begin to count."""
        self._idle = True
        self.scope.deadline = trio.current_time() + (KEEP_ALIVE_S if self.is_known else STRANGER_S)
        if self._door.is_unix or not self.is_known:
            self._door.waits(self)
        if self._context.terminated.is_set():
            self.scope.cancel()

    async def stop(self) -> None:
        """A request is under way. A stranger's is over soon: it is refused, or one that is open to all."""
        self._idle = False
        if self.is_known:
            self.stay()
        else:
            self.scope.deadline = trio.current_time() + STRANGER_S

    def stay(self) -> None:
        """It was let in: it takes the time that it needs, and gives way to nobody."""
        self.is_known = True
        self.scope.deadline = math.inf
        self._door.waits_no_more(self)

    def end(self) -> None:
        """Close the connection if nothing is under way on it."""
        if self._idle:
            self.scope.cancel()


class Wire(TCPServer):
    """hypercorn's connection, with writes that can be held back and joined, and that a stop can cancel."""

    api: Api
    _holds = False
    #: The body of the request under way, once its handler's side is there to take it.
    body: BoundedBody | None = None
    _buffer: bytearray | None = None

    async def serve(self, idle: _Idle) -> None:
        """Serve the connection to its end."""
        self._unsent: list[bytes] = []
        self._idle = idle
        self.idle_task = idle  # type: ignore[assignment]
        try:
            async with TaskGroup() as tasks:
                await self._converse(idle, tasks)
        except OSError:
            pass  # the socket is gone
        finally:
            await self._close()

    async def _read_data(self) -> None:
        """Read to the end of the connection: hypercorn's loop, with a short way for large bodies."""
        while True:
            try:
                if await self._take_body():
                    continue
                data = bytes(await self.stream.receive_some(READ_BYTES))
            except (trio.ClosedResourceError, trio.BrokenResourceError, OSError):
                break
            await self.protocol.handle(RawData(data))
            if not data:
                break
        await self.protocol.handle(Closed())

    async def _take_body(self) -> bool:
        """Read bytes of a body straight into it, if that is what comes; False for what HTTP's own code must see.

        A byte through h11 and hypercorn's queue costs three copies and as many task switches; an upload is nothing
        but such bytes, and how many of them come the header has said.
        """
        body: BoundedBody | None = self.body
        if body is None or (left := self.protocol.direct_bytes(body)) < READ_BYTES:
            self._buffer = None
            return False
        if self._buffer is None:  # fresh memory for each read would cost more than the copy
            self._buffer = bytearray(BODY_READ_BYTES)
        with memoryview(self._buffer) as whole, whole[:left] as room:
            size = await self.stream.socket.recv_into(room)
            if not size:
                return False  # the next read says so again, to h11
            self.protocol.skip(size)
            await body.put(room[:size])
        return True

    async def _converse(self, idle: _Idle, tasks: TaskGroup) -> None:
        sock = self.stream.socket
        self._task_group = tasks
        self.protocol: Any = Http1(
            self.stream,  # type: ignore[arg-type]  # hypercorn's annotation knows TLS only
            self._begin,
            idle.lane,
            app=self.app,
            config=self.config,
            context=self.context,
            task_group=tasks,
            connection_state=ConnectionState(self.state),
            ssl=False,
            client=parse_socket_addr(sock.family, sock.getpeername()),
            server=parse_socket_addr(sock.family, sock.getsockname()),
            send=self.protocol_send,
        )
        await idle.restart()
        try:
            with idle.scope, contextlib.suppress(ClientGone):
                await self._read_data()
        except Upgrade as upgrade:
            caller = self.state["caller"]
            await self.api.serve_socket(self.protocol, upgrade, caller, self.stream, idle.stay)  # type: ignore[arg-type]
            return
        if idle.scope.cancelled_caught and self.protocol.is_half_asked and not self.context.terminated.is_set():
            await self.protocol.time_out()
        await self.protocol.handle(Closed())
        if idle.scope.cancelled_caught and not idle.is_known:
            idle.whole.cancel()  # an answer under way, too: a stranger may never read it

    def _begin(self, protocol: Http1, request: h11.Request, headers: Headers) -> Exchange:
        exchange = Exchange(self.api, self, protocol, self.state["caller"], request, headers)
        self.body = exchange.call.body
        if exchange.admission.is_known and not self._idle.is_known:
            self._idle.stay()
            protocol.turn.lane = None
        return exchange

    def hold(self) -> None:
        """Join what is sent, until `release` or the end of this answer, into one write."""
        self._holds = True

    async def release(self) -> None:
        """Write what was held back, and hold no more; returns when no write is under way."""
        self._holds = False
        if self._unsent or self.send_lock.locked():
            await self._flush()

    async def release_after(self, seconds: float) -> None:
        """Do that in a while; whoever cancels it must call `release` at the end, which waits for a write under way."""
        await trio.sleep(seconds)
        await self.release()

    async def protocol_send(self, event: Event) -> None:
        """Write, or hold back."""
        if isinstance(event, RawData):
            if event.data:
                # At once, and to be taken once a write may begin: what is sent in the meantime comes behind it.
                self._unsent.append(event.data)
            if not self._holds:
                await self._flush()
            return
        if isinstance(event, Updated):
            await self.release()
            if event.idle and self.protocol.stream is not None:
                return  # the client's next request came while this answer went out
        elif self._unsent:
            await self.release()
        else:
            with trio.move_on_after(LINGER_S):  # of an end, the other's write may be the last; its reader may be stuck
                await self.release()
        await super().protocol_send(event)

    async def _flush(self) -> None:
        async with self.send_lock:
            data, self._unsent = b"".join(self._unsent), []
            if not data:
                return
            try:
                await self.stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                # Gone, or being closed at this moment by the task that reads.
                await self.protocol.handle(Closed())


def _probe(stream: trio.SocketStream) -> None:
    if stream.socket.family != socket.AF_UNIX:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEP_ALIVE_PROBES:
            stream.setsockopt(socket.IPPROTO_TCP, option, value)


class Server:
    """Serves an application on listening sockets. Its owner runs `run`, and ends it with `stop`."""

    def __init__(self, app: Api, sockets: list[socket.socket]) -> None:
        self._api = app
        self._doors = [_Door(trio.SocketListener(trio.socket.from_stdlib_socket(sock))) for sock in sockets]
        self._context = WorkerContext(None)
        self._accepting = trio.CancelScope()
        self.drained = trio.Event()
        self._config = Config()
        self._config.h11_max_incomplete_size = MAX_HEAD_BYTES
        self._config.keep_alive_timeout = KEEP_ALIVE_S
        self._config.keep_alive_max_requests = 1 << 30
        self._config.include_server_header = False
        self._config.include_date_header = False
        self._config.errorlog = logging.getLogger("sandboxd.http")

    def __repr__(self) -> str:
        return f"<Server {len(self._doors)} listeners, {self.statistics()['connections']} connections>"

    def statistics(self) -> dict[str, int]:
        """Return how many connections are open."""
        return {"connections": sum(len(door.connections) for door in self._doors)}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept and serve until `stop`; then let what is under way end, for `DRAIN_S` at most; sets `drained`."""
        async with trio.open_nursery() as connections:
            with self._accepting:
                async with trio.open_nursery() as loops:
                    for door in self._doors:
                        loops.start_soon(self._accept, door, connections)
                    task_status.started()
            await self._context.terminated.set()
            for idle in [idle for door in self._doors for idle in door.connections]:
                idle.end()
            connections.cancel_scope.deadline = trio.current_time() + DRAIN_S
        self.drained.set()

    def stop(self) -> None:
        """Accept no more."""
        self._accepting.cancel()

    async def _accept(self, door: _Door, connections: trio.Nursery) -> None:
        async with door.listener:
            while True:
                await door.room()
                try:
                    stream = await door.listener.accept()
                except OSError as error:
                    if error.errno not in _OUT_OF_RESOURCES:
                        raise
                    _log.warning("Cannot accept a connection: %s", error.strerror)
                    await trio.sleep(0.1)
                    continue
                self._take_connection(stream, door, connections)

    def _take_connection(self, stream: trio.SocketStream, door: _Door, connections: trio.Nursery) -> None:
        try:
            _probe(stream)
            caller = identify(stream.socket)  # type: ignore[arg-type]  # trio's socket has getsockopt and family
        except OSError as error:
            _log.warning("Cannot tell who connected: %s", error)
            stream.socket.close()
            return
        state: dict[str, Any] = {"caller": caller}
        wire = Wire(self._api, self._config, self._context, ConnectionState(state), stream)  # type: ignore[arg-type]
        wire.api = self._api
        idle = _Idle(self._context, door, is_known=self._api.policy.admits(caller))
        door.enter(idle)
        connections.start_soon(self._serve, wire, idle, door)

    @staticmethod
    async def _serve(wire: Wire, idle: _Idle, door: _Door) -> None:
        try:
            with idle.whole:
                await wire.serve(idle)
        except Exception:
            _log.exception("A connection failed")
        finally:
            wire.stream.socket.close()  # hypercorn's own close gives up when it is cancelled
            door.leave(idle)
