"""Our own accept loops over hypercorn's HTTP: who connected is read at accept, and connections are bounded.

hypercorn's own listener over a unix socket tells nothing of the peer, so each accepted connection gets a
`TCPServer` of its own with the caller's credentials in its state, which go with every request of the connection.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import socket
from typing import TYPE_CHECKING, Any, Final

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, RawData, Updated
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from . import socket_call
from .access import identify
from .body import LINGER_S
from .exchange import Exchange
from .http1 import MAX_HEADER_BYTES, ClientGone, Http1, Upgrade

if TYPE_CHECKING:
    import h11
    from hypercorn.events import Event
    from werkzeug.datastructures import Headers

    from .app import Api
    from .body import BoundedBody

_log = logging.getLogger(__name__)

#: Connections at once; more wait in the kernel's backlog. Idle ones leave after the keep-alive time.
MAX_CONNECTIONS: Final = 4096
BACKLOG: Final = 1024
#: A connection that has no request under way (also one that sends its header slowly) is closed after this.
KEEP_ALIVE_S: Final = 60
#: One read of a connection: h11 looks at the bounds of headers and chunks after each.
READ_BYTES: Final = 64 * 1024
#: One read of a large body. A unix socket holds about 208 KiB.
BODY_READ_BYTES: Final = 256 * 1024
#: How long answers under way may take when the daemon stops.
DRAIN_S: Final = 5.0
#: A client over TCP that vanished is noticed after two minutes: a terminal or a silent stream sends nothing by itself.
KEEP_ALIVE_PROBES: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class _Idle:
    """When a connection without a request is closed: a deadline where hypercorn starts a task per request.

    It has the two methods of hypercorn's `TrioSingleTask` that `TCPServer` calls.
    """

    def __init__(self, context: WorkerContext) -> None:
        self.scope = trio.CancelScope()
        self._context = context
        self._idle = False

    async def restart(self, *_: object) -> None:
        """Begin to count."""
        self._idle = True
        self.scope.deadline = trio.current_time() + KEEP_ALIVE_S
        if self._context.terminated.is_set():
            self.scope.cancel()

    async def stop(self) -> None:
        """A request is under way."""
        self._idle = False
        self.scope.deadline = math.inf

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
            await socket_call.serve(self.api, self.protocol, upgrade, caller, self.stream)  # type: ignore[arg-type]
            return
        if idle.scope.cancelled_caught and self.protocol.is_half_asked and not self.context.terminated.is_set():
            await self.protocol.time_out()
        await self.protocol.handle(Closed())

    def _begin(self, protocol: Http1, request: h11.Request, headers: Headers) -> Exchange:
        exchange = Exchange(self.api, self, protocol, self.state["caller"], request, headers)
        self.body = exchange.call.body
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
        self._listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]
        self._context = WorkerContext(None)
        self._limit = trio.Semaphore(MAX_CONNECTIONS)
        self._open = 0
        self._idles: set[_Idle] = set()
        self._accepting = trio.CancelScope()
        self.drained = trio.Event()
        self._config = HypercornConfig()
        self._config.h11_max_incomplete_size = MAX_HEADER_BYTES
        self._config.keep_alive_timeout = KEEP_ALIVE_S
        self._config.keep_alive_max_requests = 1 << 30
        self._config.include_server_header = False
        self._config.include_date_header = False
        self._config.errorlog = logging.getLogger("sandboxd.http")

    def __repr__(self) -> str:
        return f"<Server {len(self._listeners)} listeners, {self._open} connections>"

    def statistics(self) -> dict[str, int]:
        """Return how many connections are open."""
        return {"connections": self._open}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept and serve until `stop`; then let what is under way end, for `DRAIN_S` at most; sets `drained`."""
        async with trio.open_nursery() as connections:
            with self._accepting:
                async with trio.open_nursery() as loops:
                    for listener in self._listeners:
                        loops.start_soon(self._accept, listener, connections)
                    task_status.started()
            await self._context.terminated.set()
            for idle in tuple(self._idles):
                idle.end()
            connections.cancel_scope.deadline = trio.current_time() + DRAIN_S
        self.drained.set()

    def stop(self) -> None:
        """Accept no more."""
        self._accepting.cancel()

    async def _accept(self, listener: trio.SocketListener, connections: trio.Nursery) -> None:
        async with listener:
            while True:
                await self._limit.acquire()
                try:
                    stream = await listener.accept()
                except OSError as error:
                    self._limit.release()
                    if error.errno not in _OUT_OF_RESOURCES:
                        raise
                    _log.warning("Cannot accept a connection: %s", error.strerror)
                    await trio.sleep(0.1)
                    continue
                except BaseException:
                    self._limit.release()
                    raise
                connections.start_soon(self._serve, stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        self._open += 1
        try:
            try:
                _probe(stream)
                caller = identify(stream.socket)  # type: ignore[arg-type]  # trio's socket has getsockopt and family
            except OSError as error:
                _log.warning("Cannot tell who connected: %s", error)
                await stream.aclose()
                return
            state: dict[str, Any] = {"caller": caller}
            wire = Wire(self._api, self._config, self._context, ConnectionState(state), stream)  # type: ignore[arg-type]
            wire.api = self._api
            idle = _Idle(self._context)
            self._idles.add(idle)
            try:
                await wire.serve(idle)
            finally:
                self._idles.discard(idle)
        except Exception:
            _log.exception("A connection failed")
        finally:
            stream.socket.close()  # hypercorn's own close gives up when it is cancelled
            self._open -= 1
            self._limit.release()
