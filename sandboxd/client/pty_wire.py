"""A terminal's WebSocket without I/O: the handshake, what to send, and what came (wsproto underneath)."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import urlencode

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError as WsLocalProtocolError
from wsproto.utilities import RemoteProtocolError as WsRemoteProtocolError

from sandboxd.errors import DaemonUnavailable, LocalProtocolError, RemoteProtocolError

from .calls import sandbox_path
from .failures import from_problem, problem_error
from .models import ExitStatus, parse_exit, read

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .address import Address

#: One message to the daemon, which takes a MiB.
SEND_BYTES: Final = 256 * 1024
#: The body of a refusal, and one message of the daemon's, are far below.
MAX_HELD_BYTES: Final = 4 * 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Gap:
    """The viewer was too slow: it missed this many bytes of the terminal's output, and the screen is redrawn."""

    dropped_bytes: int


Shown: TypeAlias = bytes | Gap


class PtyWire:
    """One connection to a terminal. The caller feeds received bytes, and sends the bytes that the methods return.

    Attributes:
        process_id: the terminal's process, once it is open.
        pid: its main process's id in the sandbox.
        result: how the process ended, once it has.
        is_open: whether the handshake is complete and neither side has closed.
    """

    def __init__(self, address: Address, sandbox_id: str, query: Mapping[str, str]) -> None:
        self._address = address
        self._connection = WSConnection(ConnectionType.CLIENT)
        self._target = sandbox_path(sandbox_id, "/pty") + ("?" + urlencode(query) if query else "")
        self._refusal: RejectConnection | None = None
        self._parts: list[Any] = []
        self._held = 0
        self._out = bytearray()
        self.process_id = ""
        self.pid: int | None = None
        self.result: ExitStatus | None = None
        self.is_accepted = False
        self.is_over = False

    @property
    def is_open(self) -> bool:
        """Whether it was started and has not ended."""
        return bool(self.process_id) and not self.is_over

    def hello(self) -> bytes:
        """Return the handshake."""
        headers = [(b"User-Agent", b"sandboxd-sdk")]
        if self._address.token is not None:
            headers.append((b"Authorization", f"Bearer {self._address.token}".encode("ascii")))
        host = self._address.base_url.partition("://")[2]
        return self._connection.send(Request(host=host, target=self._target, extra_headers=headers))

    def send(self, data: bytes) -> bytes:
        """Return the bytes that carry input.

        Raises:
            LocalProtocolError: the terminal has ended, or the connection has.
        """
        pieces = (data[start : start + SEND_BYTES] for start in range(0, len(data), SEND_BYTES))
        return b"".join(self._send(BytesMessage(data=piece)) for piece in pieces)

    def resize(self, cols: int, rows: int) -> bytes:
        """Return the bytes that give the terminal another size."""
        return self._send(TextMessage(data=json.dumps({"type": "resize", "cols": cols, "rows": rows})))

    def goodbye(self) -> bytes:
        """Return the bytes that close the connection; the terminal keeps running for its `linger` time."""
        if self.is_over or not self.is_accepted:
            return b""
        self.is_over = True
        try:
            return self._connection.send(CloseConnection(code=1000))
        except WsLocalProtocolError:
            return b""

    def _send(self, event: Event) -> bytes:
        try:
            if not self.is_open:
                raise WsLocalProtocolError
            return self._connection.send(event)
        except WsLocalProtocolError:
            raise LocalProtocolError("cannot write to the terminal: it is closed") from None

    def take_answers(self) -> bytes:
        """Return the bytes to send in reply to what was received: answers to pings and close messages."""
        answers, self._out = bytes(self._out), bytearray()
        return answers

    def feed(self, data: bytes) -> list[Shown]:
        """Take received bytes (empty: the connection ended) and return the terminal's output.

        Raises:
            SandboxdError: the error with which the daemon refused or ended the terminal.
            DaemonUnavailable: the connection ended before the terminal did.
        """
        shown: list[Shown] = []
        if not data and self.is_accepted:
            if self.is_over:
                return []
            raise self._cut()
        try:
            self._connection.receive_data(data or None)
            for event in self._connection.events():
                shown += self._take_event(event)
        except WsRemoteProtocolError as error:
            raise RemoteProtocolError(f"cannot understand the daemon's WebSocket: {error}") from error
        except WsLocalProtocolError:
            self.is_over = True  # something came after the goodbyes
        if not data:
            raise self._cut()
        return shown

    def _cut(self) -> DaemonUnavailable:
        self.is_over = True
        url = self._address.url
        return DaemonUnavailable(
            f"cannot continue in the terminal: the connection to the daemon at {url} ended", address=url
        )

    def _take_event(self, event: Event) -> list[Shown]:
        if isinstance(event, Message):
            return self._join(event)
        if isinstance(event, AcceptConnection):
            self.is_accepted = True
        elif isinstance(event, Ping):
            self._out += self._connection.send(event.response())
        elif isinstance(event, CloseConnection):
            self._close(event)
        elif isinstance(event, RejectConnection):
            self._refusal = event
            if not event.has_body:
                raise self._refused()
        elif isinstance(event, RejectData):
            self._hold(bytes(event.data))
            if event.body_finished:
                raise self._refused()
        return []

    def _refused(self) -> Exception:
        self.is_over = True
        assert self._refusal is not None  # noqa: S101 - it came before its body
        headers = {name.lower(): value.decode("latin-1") for name, value in self._refusal.headers}
        return problem_error(self._refusal.status_code, headers.get(b"content-type", ""), b"".join(self._parts))

    def _close(self, event: CloseConnection) -> None:
        if not self.is_over:
            self._out += self._connection.send(event.response())
            self.is_over = True
            if self.result is None:
                raise DaemonUnavailable(
                    f"cannot continue in the terminal: {event.reason or 'the daemon closed the connection'}",
                    address=self._address.url,
                )

    def _hold(self, piece: Any) -> None:  # noqa: ANN401 - text or bytes
        self._held += len(piece)
        if self._held > MAX_HELD_BYTES:
            raise RemoteProtocolError(f"cannot accept a message of over {MAX_HELD_BYTES} bytes")
        self._parts.append(piece)

    def _join(self, event: Message[Any]) -> list[Shown]:
        if isinstance(event, BytesMessage):
            return [bytes(event.data)]  # a terminal's bytes need no whole messages
        self._hold(event.data)
        if not event.message_finished:
            return []
        text = "".join(self._parts)
        self._parts, self._held = [], 0
        try:
            value = json.loads(text)
        except ValueError:
            raise RemoteProtocolError("cannot understand the daemon's message: it is not JSON") from None
        if isinstance(value, dict) and value.get("type") == "error":
            raise from_problem(value.get("problem"))
        return read("message", self._told, value)

    def _told(self, value: Any) -> list[Shown]:  # noqa: ANN401 - JSON
        kind = value["type"]
        if kind == "start":
            self.process_id, self.pid = str(value["id"]), value.get("pid")
        elif kind == "exit":
            self.result = parse_exit(self.process_id, value)
        elif kind == "truncated":
            return [Gap(int(value["dropped_bytes"]))]
        return []


class PtyState:
    """The attributes that both kinds of terminals share.

    Attributes:
        on_gap: called with the number of bytes that a slow viewer missed, before the screen is redrawn.
    """

    def __init__(self, wire: PtyWire, address: Address, on_gap: Callable[[int], object] | None) -> None:
        self._wire = wire
        self._address = address
        self.on_gap = on_gap
        self._pending: list[bytes] = []

    def __repr__(self) -> str:
        state = self.result.describe() if self.result else "open" if self._wire.is_open else "closed"
        return f"<{type(self).__name__} {self.process_id} {state}>"

    @property
    def process_id(self) -> str:
        """The id of the terminal's process; empty before it is open."""
        return self._wire.process_id

    @property
    def pid(self) -> int | None:
        """The process id of its first program, in the sandbox."""
        return self._wire.pid

    @property
    def result(self) -> ExitStatus | None:
        """How its program ended, once it has."""
        return self._wire.result

    def _take_output(self) -> bytes:
        data, self._pending = b"".join(self._pending), []
        return data

    def _hold(self, shown: list[Shown]) -> None:
        """Keep what is to be shown, and tell of gaps."""
        for item in shown:
            if not isinstance(item, Gap):
                self._pending.append(item)
            elif self.on_gap is not None:
                self.on_gap(item.dropped_bytes)

    def _ended(self) -> ExitStatus:
        if self.result is None:
            raise DaemonUnavailable("cannot tell how the program ended: the connection was closed first")
        return self.result
