"""One side of a link as a state machine: bytes and descriptors in, messages out, no I/O.

States of a connection (drawn from `_TRANSITIONS`):

    GREETING --Hello--> OPEN --any message of the peer's role--> OPEN
       |                  |
       +------------------+--a protocol error--> ERROR (nothing is read or written any more)

States of a request on the daemon's side: it is *open* from `Request` to the `Reply` or `Failure` that ends it;
an event, a reply or a failure for an id that is not open is the peer's error. A stream may never have more
outstanding than its credit (`window`): a peer that sends past it is broken or hostile.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

from ..errors import LocalProtocolError, RemoteProtocolError
from . import framing, messages
from .messages import Cancel, Credit, Event, Failure, Hello, Message, Reply, Request

#: Credit of one stream: enough to keep the pipe busy over a round trip, small enough for hundreds of slow readers.
DEFAULT_WINDOW: Final = 2 * 1024 * 1024
#: What one event may overdraw: a stream sends while its credit is positive, then waits.
MAX_OVERDRAFT: Final = 512 * 1024


class Role(enum.Enum):
    """Who we are on the connection."""

    ASKER = "asker"  # the daemon
    ANSWERER = "answerer"  # init, the launcher


class State(enum.Enum):
    """Where the connection stands, as seen from the peer's frames."""

    GREETING = "greeting"
    OPEN = "open"
    ERROR = "error"


#: What the peer of each role may send in each state.
_TRANSITIONS: Final[dict[tuple[Role, State], frozenset[type[Message]]]] = {
    (Role.ASKER, State.GREETING): frozenset({Hello}),
    (Role.ANSWERER, State.GREETING): frozenset({Hello}),
    (Role.ASKER, State.OPEN): frozenset({Reply, Failure, Event}),
    (Role.ANSWERER, State.OPEN): frozenset({Request, Credit, Cancel}),
    (Role.ASKER, State.ERROR): frozenset(),
    (Role.ANSWERER, State.ERROR): frozenset(),
}


class LinkConnection:
    """The protocol state of one side.

    `receive` takes what came and returns messages; `send` returns the bytes to write. Descriptors that came with
    a `Reply` are taken by `take_fds(reply.fds)` before the next `receive`.
    """

    def __init__(self, role: Role) -> None:
        self._role = role
        self._state = State.GREETING
        asker = role is Role.ASKER
        self._send_limit = framing.MAX_REQUEST_FRAME if asker else framing.MAX_REPLY_FRAME
        self._decoder = framing.FrameDecoder(limit=framing.MAX_REPLY_FRAME if asker else framing.MAX_REQUEST_FRAME)
        #: id -> credit left; only the asker keeps it.
        self._open: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"<LinkConnection {self._role.value} {self._state.value}, {len(self._open)} open>"

    @property
    def state(self) -> State:
        """Where the connection stands."""
        return self._state

    def greet(self) -> bytes:
        """Return our first frame."""
        return framing.encode(messages.to_array(Hello(messages.VERSION)), limit=self._send_limit)

    def send(self, message: Message) -> bytes:
        """Return the bytes that carry `message`.

        Raises:
            LocalProtocolError: the connection is in ERROR, the message is not ours to send, or it is too large.
        """
        if self._state is State.ERROR:
            raise LocalProtocolError(f"cannot send a {type(message).__name__}: the connection is in error")
        frame = framing.encode(messages.to_array(message), limit=self._send_limit)
        if self._role is Role.ASKER:
            self._note_sent(message)
        return frame

    def _note_sent(self, message: Message) -> None:
        if isinstance(message, Request):
            if message.id in self._open:
                raise LocalProtocolError(f"cannot send request {message.id}: that id is open")
            credit = message.params.get("credit", 0)
            self._open[message.id] = credit
        elif isinstance(message, Credit):
            if message.id in self._open:
                self._open[message.id] += message.bytes
        elif not isinstance(message, Cancel):
            raise LocalProtocolError(f"cannot send a {type(message).__name__} as the asker")

    def receive(self, data: bytes | memoryview, fds: Iterable[int] = ()) -> list[Message]:
        """Take what one recvmsg gave and return the messages that are now whole.

        Raises:
            RemoteProtocolError: the peer broke the protocol; the connection is in ERROR.
        """
        self.feed(data, fds)
        found: list[Message] = []
        while (message := self.next_message()) is not None:
            found.append(message)
        return found

    def feed(self, data: bytes | memoryview, fds: Iterable[int] = ()) -> None:
        """Take what one recvmsg gave; `next_message` returns what is whole, one at a time.

        Raises:
            RemoteProtocolError: the peer broke the protocol; the connection is in ERROR.
        """
        if self._state is State.ERROR:
            raise LocalProtocolError("cannot receive: the connection is in error")
        try:
            self._decoder.feed(data, fds)
        except RemoteProtocolError:
            self._state = State.ERROR
            raise

    def next_message(self) -> Message | None:
        """Return the next message of what was fed, or None: more must come.

        Raises:
            RemoteProtocolError: the peer broke the protocol; the connection is in ERROR.
        """
        try:
            while (array := self._decoder.next_message()) is not None:
                message = messages.from_array(array)
                self._check_received(message)
                if not isinstance(message, Hello):
                    return message
        except RemoteProtocolError:
            self._state = State.ERROR
            raise
        return None

    def _check_received(self, message: Message) -> None:
        if type(message) not in _TRANSITIONS[self._role, self._state]:
            raise RemoteProtocolError(f"cannot accept a {type(message).__name__} while {self._state.value}")
        if isinstance(message, Hello):
            if message.version != messages.VERSION:
                raise RemoteProtocolError(
                    f"cannot speak version {message.version}: this side speaks {messages.VERSION}",
                    version=message.version,
                )
            self._state = State.OPEN
        elif isinstance(message, (Reply, Failure)):
            if self._open.pop(message.id, None) is None:
                raise RemoteProtocolError(f"cannot accept an end of request {message.id}: it is not open")
        elif isinstance(message, Event):
            left = self._open.get(message.id)
            if left is None:
                raise RemoteProtocolError(f"cannot accept an event of request {message.id}: it is not open")
            self._open[message.id] = left = left - message.cost
            if left < -MAX_OVERDRAFT:
                raise RemoteProtocolError(f"cannot accept more of stream {message.id}: its credit is spent")

    def take_fds(self, count: int) -> list[int]:
        """Hand over the descriptors that a reply announced; the caller owns them.

        Raises:
            RemoteProtocolError: fewer came; the connection is in ERROR.
        """
        try:
            return self._decoder.take_fds(count)
        except RemoteProtocolError:
            self._state = State.ERROR
            raise

    def close(self) -> None:
        """Close descriptors that nobody took; nothing is received after it."""
        self._state = State.ERROR
        self._decoder.close()
