"""`Pty`: a terminal in a sandbox, for synchronous code."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

from sandboxd.errors import DaemonUnavailable, SandboxdError

from .failures import CONNECT_TIMEOUT_S, unreachable
from .pty_wire import Gap, PtyWire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from .address import Address
    from .models import ExitStatus

RECEIVE_BYTES: Final = 64 * 1024


class Pty:
    """A terminal, seen and fed: iterate over it for what it shows, `write` what is typed; it is a context manager.

    Made by `Sandbox.open_pty`. Closing it leaves the terminal alone: it goes on without viewers for its `linger`
    time, and `open_pty(process=pty.process_id)` comes back to it and shows its screen again. Reading and writing may
    happen in two threads, one each.

    Attributes:
        on_gap: called with a number of bytes where a slow viewer has missed some; its screen is shown anew.
    """

    def __init__(
        self,
        address: Address,
        sandbox_id: str,
        query: Mapping[str, str],
        on_gap: Callable[[int], object] | None = None,
    ) -> None:
        self._wire = PtyWire(address, sandbox_id, query)
        self._address = address
        self.on_gap = on_gap
        self._socket = connect(address)
        self._sending = threading.Lock()
        self._pending: list[bytes] = []
        try:
            self._socket.sendall(self._wire.hello())
            while not self._wire.process_id:
                self._pending += self._receive()
        except BaseException:
            self._socket.close()
            raise

    def __repr__(self) -> str:
        state = self.result.describe() if self.result else "open" if self._wire.is_open else "closed"
        return f"<Pty {self.process_id} {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def process_id(self) -> str:
        """The id of the terminal's process."""
        return self._wire.process_id

    @property
    def pid(self) -> int | None:
        """The process id of its first program, in the sandbox."""
        return self._wire.pid

    @property
    def result(self) -> ExitStatus | None:
        """How its program ended, once it has."""
        return self._wire.result

    def fileno(self) -> int:
        """Return the descriptor of the connection, to wait for, unless `has_pending`."""
        return self._socket.fileno()

    @property
    def has_pending(self) -> bool:
        """Whether `read` returns at once, with what came together with something else or because it is the end."""
        return bool(self._pending) or self._wire.is_over

    def __iter__(self) -> Iterator[bytes]:
        while data := self.read():
            yield data

    def read(self) -> bytes:
        """Return what the terminal shows next, waiting for it; no bytes are its end.

        Raises:
            DaemonUnavailable: the connection broke before.
        """
        while not self._pending:
            if self._wire.is_over:
                return b""
            self._pending += self._receive()
        data, self._pending = b"".join(self._pending), []
        return data

    def wait(self) -> ExitStatus:
        """Read to the end, and return how the program ended.

        Raises:
            DaemonUnavailable: the connection broke before, or was closed.
        """
        for _ in self:
            pass
        if self.result is None:
            raise DaemonUnavailable("cannot say how the terminal's program ended: the connection was closed before")
        return self.result

    def write(self, data: bytes | str) -> None:
        """Type into the terminal; control characters are signals there: 3 is Ctrl-C, 4 an end of file.

        Raises:
            LocalProtocolError: it has ended, or was closed.
        """
        with self._sending:
            self._send(self._wire.send(data.encode() if isinstance(data, str) else data))

    def resize(self, cols: int, rows: int) -> None:
        """Give the terminal another size, 1 to 2000 each."""
        with self._sending:
            self._send(self._wire.resize(cols, rows))

    def close(self) -> None:
        """Leave the terminal; it goes on for its linger time."""
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

    def _receive(self) -> list[bytes]:
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except OSError as error:
            raise unreachable(self._address, error) from error
        shown = self._wire.feed(data)
        if answers := self._wire.take_answers():
            with self._sending, contextlib.suppress(OSError):
                self._socket.sendall(answers)
        return list(only_bytes(shown, self.on_gap))


def only_bytes(shown: list[bytes | Gap], on_gap: Callable[[int], object] | None) -> Iterator[bytes]:
    """Yield what is to be shown, and tell of gaps."""
    for item in shown:
        if isinstance(item, Gap):
            if on_gap is not None:
                on_gap(item.dropped_bytes)
        else:
            yield item


def connect(address: Address) -> socket.socket:
    """Return a connection to the daemon.

    Raises:
        DaemonUnavailable: nobody answers there.
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
