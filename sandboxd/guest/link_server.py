"""One connection of the daemon, as init sees it: frames in, frames and descriptors out, never blocking."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any, Final

from ..errors import InvalidRequest, LocalProtocolError, RemoteProtocolError, SandboxdError
from ..linux.eventloop import READ, WRITE, EventLoop
from ..wire.link import LinkConnection, Role
from ..wire.messages import Failure, Message, Reply
from ..wire.sendqueue import SendQueue, descriptors

_RECV_BYTES: Final = 64 * 1024
#: One for all, since what is received is copied on: made in the zygote, it costs an init only the pages it fills.
_SCRATCH: Final = bytearray(_RECV_BYTES)
#: Room for the descriptors of one request; the daemon, which we trust, passes two at most.
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(4 * 4)
#: Above this, streams wait until the daemon has read: it keeps init's memory bounded when the daemon does not read.
HIGH_WATER: Final = 1024 * 1024


class LinkServer:
    """A connected daemon; owns the socket."""

    def __init__(
        self,
        loop: EventLoop,
        connection: socket.socket,
        on_message: Callable[[LinkServer, Message], None],
        on_room: Callable[[LinkServer], None],
        on_gone: Callable[[LinkServer], None],
    ) -> None:
        self._loop = loop
        self._socket = connection
        self._on_message = on_message
        self._on_room = on_room
        self._on_gone = on_gone
        self._link = LinkConnection(Role.ANSWERER)
        self._out = SendQueue(HIGH_WATER)
        self._flushing = False
        self.is_open = True
        connection.setblocking(False)
        loop.watch(connection.fileno(), READ, self._on_ready)
        self._queue(self._link.greet())

    @property
    def has_room(self) -> bool:
        """Whether streams may send."""
        return self.is_open and self._out.has_room

    def send(self, message: Message) -> None:
        """Queue a message; on a closed connection it is dropped."""
        if self.is_open:
            self._queue(self._link.send(message))

    def reply(self, request: int, result: dict[str, Any], fd: int | None = None) -> None:
        """End a request well; `fd` goes with it and is closed here."""
        if not self.is_open:
            if fd is not None:
                os.close(fd)
            return
        fds = () if fd is None else (fd,)
        self._queue(self._link.send(Reply(request, result, len(fds))), fds)

    def fail(self, request: int, error: SandboxdError) -> None:
        """End a request with an error."""
        self.send(Failure(request, error.kind, error.message, error.facts))

    def take_fds(self, count: int) -> list[int]:
        """Hand over the descriptors that came with the request being handled; the caller owns them.

        Raises:
            InvalidRequest: fewer came.
        """
        try:
            return self._link.take_fds(count)
        except RemoteProtocolError as error:
            self.close()
            raise InvalidRequest(f"cannot accept {count} descriptors: {error}", field="fds") from error

    def close(self) -> None:
        """Close the connection and the descriptors that did not leave."""
        if not self.is_open:
            return
        self.is_open = False
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()
        self._link.close()
        self._out.close()
        self._on_gone(self)

    # --- in ---

    def _on_ready(self) -> None:
        self._read()
        if self.is_open and self._out.size:
            self._flush()

    def _read(self) -> None:
        try:
            size, ancillary, _, _ = self._socket.recvmsg_into([_SCRATCH], _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            size, ancillary = 0, []
        fds = descriptors(ancillary) if ancillary else ()
        if not size:
            self.close()
            return
        try:
            messages = self._link.receive(memoryview(_SCRATCH)[:size], fds)
        except RemoteProtocolError:
            self.close()
            return
        for message in messages:
            if self.is_open:
                self._on_message(self, message)

    # --- out ---

    def _queue(self, frame: bytes, fds: tuple[int, ...] = ()) -> None:
        self._out.put(frame, fds)
        if not self._flushing:
            # One send for all that a turn of the loop queues.
            self._flushing = True
            self._loop.defer(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if not self.is_open:
            return
        was_full = not self.has_room
        try:
            self._out.flush(self._socket)
        except (OSError, LocalProtocolError):
            self.close()
            return
        self._loop.watch(self._socket.fileno(), READ | (WRITE if self._out.size else 0), self._on_ready)
        if was_full and self.has_room:
            self._on_room(self)
