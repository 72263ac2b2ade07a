"""`AsyncClient`: the connections to one daemon, for code on trio or asyncio."""

from __future__ import annotations

from typing import TypeVar

import anyio
import httpx

from . import calls, event_calls
from .address import Address
from .async_stream import AsyncClosing
from .client import check_open, http_options, request_options, transport_options
from .events import AsyncEventStream
from .failures import mapped, problem_error
from .verbs import async_verb, stream_verb

T = TypeVar("T")


class AsyncClient(AsyncClosing):
    """Connections to one daemon. Share it among the sandboxes of one event loop, and close it when done.

    Without arguments the address is SANDBOXD_URL (else `unix:///run/sandboxd/sandboxd.sock`) and the token is
    SANDBOXD_TOKEN. No connection is made before the first request.

    Raises:
        ConfigError: the address is malformed.
    """

    def __init__(
        self, url: str | None = None, token: str | None = None, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.address = Address.find(url, token)
        transport = transport or httpx.AsyncHTTPTransport(**transport_options(self.address))
        self._http = httpx.AsyncClient(transport=transport, **http_options(self.address))

    def __repr__(self) -> str:
        return f"<AsyncClient {self.address.url}{' closed' if self._http.is_closed else ''}>"

    async def close(self) -> None:
        """Close every connection, even in a cancelled task; open streams break."""
        with anyio.CancelScope(shield=True):  # closing sockets waits for nobody
            await self._http.aclose()

    @property
    def _target(self) -> tuple[AsyncClient, None]:
        return self, None

    health = async_verb(calls.health)
    info = async_verb(calls.info)
    metrics = async_verb(calls.metrics)
    events = stream_verb(event_calls.events, AsyncEventStream)

    async def send(self, call: calls.Call[T]) -> T:
        """Send one request and return its answer, already read. Raises the daemon's error."""
        response = await self.open(call)
        try:
            with mapped(self.address):
                return call.read(await response.aread())
        finally:
            await response.aclose()

    async def open(self, call: calls.StreamCall) -> httpx.Response:
        """Send one request and return its answer unread; the caller closes it. Raises the daemon's error."""
        check_open(self._http)
        request = self._http.build_request(call.method, call.path, **request_options(call))
        with mapped(self.address):
            response = await self._http.send(request, stream=True)
            if response.is_success:
                return response
            try:
                body = await response.aread()
            finally:
                await response.aclose()
        raise problem_error(response.status_code, response.headers.get("content-type", ""), body)
