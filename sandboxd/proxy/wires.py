"""Connections as bytes: plain sockets under trio without a stream's overhead, TLS, and splice(2) between two sockets.

A read or write that the kernel can do at once costs no checkpoint, but when the connection's turn is over: two busy
peers must not keep the loop.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from typing import TYPE_CHECKING, Final

import trio

from ..runtime.strangers import Turn

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    from ..runtime.strangers import Lane

#: One read: what a socket on loopback usually holds at once.
READ_BYTES: Final = 64 * 1024
#: A pipe between two sockets; a larger one was no faster, and the kernel bounds what one user's pipes may hold.
PIPE_BYTES: Final = 256 * 1024
_FREE_PIPES: Final = 16
_SPLICE: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_free: list[tuple[int, int]] = []


class WireBroken(Exception):
    """The connection is gone."""


class Wire:
    """A TCP connection; owns the socket. `turn` is the time of whoever is at its other end."""

    is_plain = True

    def __init__(self, sock: socket.socket, lane: Lane) -> None:
        self.sock = sock
        self.turn = Turn(lane)

    async def receive(self, size: int = READ_BYTES, *, soon: bool = True) -> bytes:
        """Return what has come, empty at the end. Not `soon` is for who knows that nothing can be here yet.

        Raises:
            WireBroken: the connection is gone.
        """
        if not soon:
            await self._wait_readable()
        await self.turn.rest()
        while True:
            try:
                return self.sock.recv(size)
            except BlockingIOError:
                pass
            except OSError as error:
                raise WireBroken(str(error)) from None
            await self._wait_readable()

    async def _wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self.sock)
        self.turn.begin()

    async def send(self, data: bytes) -> None:
        """Send all of `data`.

        Raises:
            WireBroken: the connection is gone.
        """
        view: bytes | memoryview = data
        while True:
            try:
                sent = self.sock.send(view)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise WireBroken(str(error)) from None
            if sent == len(view):
                return
            view = memoryview(view)[sent:]
            await trio.lowlevel.wait_writable(self.sock)

    def send_now(self, data: bytes) -> None:
        """Send what the kernel takes at once: last words to somebody who may not read."""
        with contextlib.suppress(OSError):
            self.sock.send(data)

    async def end(self) -> None:
        """Let the peer see the end of what was sent."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    @property
    def is_fresh(self) -> bool:
        """Whether an idle connection still waits for a request: neither closed nor spoken on."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        """Close it, without a wait."""
        self.sock.close()


class TlsWire(Wire):
    """A connection under TLS."""

    is_plain = False

    def __init__(self, sock: socket.socket, lane: Lane, context: ssl.SSLContext) -> None:
        super().__init__(sock, lane)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._stream = trio.SSLStream(stream, context, server_side=True, https_compatible=True)

    async def receive(self, size: int = READ_BYTES, *, soon: bool = True) -> bytes:
        """See `Wire`."""
        await self.turn.rest()
        try:
            return bytes(await self._stream.receive_some(size))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise WireBroken(str(error)) from None
        finally:
            self.turn.begin()

    async def send(self, data: bytes) -> None:
        """See `Wire`."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise WireBroken(str(error)) from None

    def send_now(self, data: bytes) -> None:
        """Say nothing: a TLS record needs the stream's own order."""

    async def end(self) -> None:
        """See `Wire`; TLS ends both ways at once."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            await self._stream.aclose()


async def connect(sock: socket.socket, address: tuple[str, int]) -> None:
    """Connect a non-blocking socket.

    Raises:
        OSError: nothing listens there; the socket is closed.
    """
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            sock.connect(address)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                raise OSError(number, os.strerror(number)) from None
    except BaseException:
        sock.close()
        raise


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """Lend a pipe; one that was left with bytes in it is not lent again."""
    if _free:
        ends = _free.pop()
    else:
        ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.suppress(OSError):  # over the user's share it stays at what it is
            fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    clean = False
    try:
        yield ends
        clean = True
    finally:
        if clean and len(_free) < _FREE_PIPES:
            _free.append(ends)
        else:
            os.close(ends[0])
            os.close(ends[1])


async def splice(source: Wire, target: Wire, count: int, passed: Callable[[int], None]) -> int:
    """Move up to `count` bytes from one plain connection to another, without their passing through us.

    `passed` is told of every piece. Returns how many went; fewer mean that the source has ended.

    Raises:
        WireBroken: one of the two is gone.
    """
    left, turn = count, source.turn
    with _pipe() as (read_end, write_end):
        while left:
            try:
                size = os.splice(source.sock.fileno(), write_end, min(left, PIPE_BYTES), flags=_SPLICE)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(source.sock)
                turn.begin()
                continue
            except OSError as error:
                raise WireBroken(str(error)) from None
            if not size:
                break
            left -= size
            await _drain(read_end, target, size)
            passed(size)
            await turn.rest()
    return count - left


async def _drain(read_end: int, target: Wire, size: int) -> None:
    while size:
        try:
            size -= os.splice(read_end, target.sock.fileno(), size, flags=_SPLICE)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(target.sock)
        except OSError as error:
            raise WireBroken(str(error)) from None
