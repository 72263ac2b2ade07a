"""The real proxy in the test's own loop, before a service on this host: no sandbox, no daemon."""

from __future__ import annotations

import collections
import contextlib
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import trio

from sandboxd.proxy.server import Proxy
from sandboxd.runtime.ports import Port, PortSpec
from sandboxd.runtime.preview_urls import PreviewUrls

ID = "abcdefghij0123456789"


class FakePreviews:
    """One exposed port, on this host's own loopback."""

    def __init__(self, number: int, token: str | None) -> None:
        self.port = Port(ID, PortSpec(port=number, token=token))
        self.counters = SimpleNamespace(refusals=collections.Counter[str]())

    def ports(self) -> list[Port]:
        return [self.port]

    def find(self, sandbox_id: str, number: int) -> tuple[PortSpec, Port] | None:
        return (self.port.spec, self.port) if (sandbox_id, number) == (ID, self.port.spec.port) else None

    async def sandbox_of(self, port: Port) -> Any:
        return SimpleNamespace(id=ID, spec=SimpleNamespace(name=None))

    async def socket(self, sandbox: Any, family: int) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        return sock


@contextlib.asynccontextmanager
async def previews(
    said: bytes, *, token: str | None = None, url: tuple[str, str, int] | None = None, **options: Any
) -> AsyncIterator[tuple[tuple[str, int], bytes]]:
    """Run the proxy before a service that says that at the end of a request; yield its address and the Host row.

    `url` is scheme, domain and port of the previews' URL, where that is not the proxy's own address.
    """

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            head = b""
            with contextlib.suppress(trio.BrokenResourceError):
                while b"\r\n\r\n" not in head:
                    head += await stream.receive_some(65536) or b"\r\n\r\n"
                while b"chunked" in head.lower() and not head.endswith(b"0\r\n\r\n"):
                    piece = await stream.receive_some(65536)
                    if not piece:
                        return
                    head = (head + piece)[-100:] if b"chunked" not in piece.lower() else head + piece
                    head = b"chunked" + head
                await stream.send_all(said)

    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    listener.setblocking(False)
    address = listener.getsockname()
    async with trio.open_nursery() as nursery:
        services = await trio.open_tcp_listeners(0, host="127.0.0.1")
        number = services[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, serve, services)
        urls = url or ("http", "localhost", address[1])
        service: Any = FakePreviews(number, token)
        proxy = Proxy(service, PreviewUrls(*urls), [listener], **options)
        await nursery.start(proxy.run)
        yield address, f"Host: {number}-{ID}.{urls[1]}\r\n".encode()
        nursery.cancel_scope.cancel()
    service.port.close()
