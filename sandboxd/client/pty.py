"""`Pty`: a terminal in a sandbox, for synchronous code."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from sandboxd.errors import SandboxdError

from .calls import Call
from .failures import CONNECT_TIMEOUT_S, unreachable
from .pty_wire import PtyState, PtyWire
from .stream import Closing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .address import Address
    from .client import Client
    from .models import ExitStatus
    from .process_calls import TerminalRequest

RECEIVE_BYTES: Final = 64 * 1024


class Pty(PtyState, Closing):
    """A terminal: iterate over it for its output, and `write` input to it. It is a context manager.

    Get one from `Sandbox.open_pty`. Closing it leaves the terminal running without viewers for its `linger` time;
    `open_pty(process=pty.process_id)` reconnects and shows its screen again. One thread may read while another writes.

    Attributes:
        on_gap: called with the number of bytes that a slow viewer missed, before the screen is redrawn.
    """

    def __init__(self, client: Client, request: TerminalRequest) -> None:
        process = request.process
        if isinstance(process, Call):
            process = client.send(process)
        wire = PtyWire(client.address, request.sandbox, request.query(process))
        super().__init__(wire, client.address, request.on_gap)
        self._socket = connect(client.address)
        self._sending = threading.Lock()
        try:
            self._socket.sendall(self._wire.hello())
            while not self._wire.process_id:
                self._receive()
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the file descriptor of the connection, for use with select; check `has_pending` first."""
        return self._socket.fileno()

    @property
    def has_pending(self) -> bool:
        """Whether `read` would return at once, because data is already buffered or the terminal has ended."""
        return bool(self._pending) or self._wire.is_over

    def __iter__(self) -> Iterator[bytes]:
        while data := self.read():
            yield data

    def read(self) -> bytes:
        """Wait for the terminal's next output and return it; empty bytes mean that it has ended.

        Raises:
            DaemonUnavailable: the connection broke first.
        """
        while not self._pending:
            if self._wire.is_over:
                return b""
            self._receive()
        return self._take_output()

    def wait(self) -> ExitStatus:
        """Read to the end, and return how the program ended.

        Raises:
            DaemonUnavailable: the connection broke or was closed first.
        """
        for _ in self:
            pass
        return self._ended()

    def write(self, data: bytes | str) -> None:
        """Send input to the terminal. Control characters act as usual: byte 3 is Ctrl-C, 4 is end of file.

        Raises:
            LocalProtocolError: the terminal has ended or was closed.
        """
        with self._sending:
            self._send(self._wire.send(data.encode() if isinstance(data, str) else data))

    def resize(self, cols: int, rows: int) -> None:
        """Resize the terminal; each side is 1 to 2000."""
        with self._sending:
            self._send(self._wire.resize(cols, rows))

    def close(self) -> None:
        """Disconnect from the terminal, which keeps running for its `linger` time."""
        # Not where another thread is writing, and waits for the daemon: the end of the connection says it all.
        if self._sending.acquire(blocking=False):
            with contextlib.suppress(OSError, SandboxdError):
                self._socket.sendall(self._wire.goodbye())
            self._sending.release()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # who waits in another thread hears of it
        self._socket.close()

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise unreachable(self._address, error) from error

    def _receive(self) -> None:
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except OSError as error:
            raise unreachable(self._address, error) from error
        shown = self._wire.feed(data)
        if answers := self._wire.take_answers():
            with self._sending, contextlib.suppress(OSError):
                self._socket.sendall(answers)
        self._hold(shown)


def connect(address: Address) -> socket.socket:
    """Return a connection to the daemon.

    Raises:
        DaemonUnavailable: no daemon answers.
    """
    made: socket.socket | None = None
    try:
        if address.socket_path is not None:
            made = socket.socket(socket.AF_UNIX)
            made.settimeout(CONNECT_TIMEOUT_S)
            made.connect(address.socket_path)
        else:
            parts = urlsplit(address.base_url)
            made = socket.create_connection(endpoint(address), CONNECT_TIMEOUT_S)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if parts.scheme == "https":
                made = ssl.create_default_context().wrap_socket(made, server_hostname=parts.hostname)
        made.settimeout(None)
    except OSError as error:
        if made is not None:
            made.close()
        raise unreachable(address, error) from error
    return made


def endpoint(address: Address) -> tuple[str, int]:
    """Return the host and port of an address over TCP."""
    parts: Any = urlsplit(address.base_url)
    return str(parts.hostname), int(parts.port or (443 if parts.scheme == "https" else 80))
