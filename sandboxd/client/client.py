"""`Client`: the connections to one daemon, for synchronous code."""

from __future__ import annotations

from typing import Any, TypeVar

import httpx

from sandboxd.errors import LocalProtocolError

from . import calls, event_calls
from .address import Address
from .events import EventStream
from .failures import CONNECT_TIMEOUT_S, mapped, problem_error
from .stream import Closing
from .verbs import stream_verb, sync_verb

T = TypeVar("T")

#: Idle connections are closed before a daemon would: a request on one that just closes would fail for no reason.
KEEP_ALIVE_S = 2.0
#: No bound on connections (a stream holds one as long as its command runs); few are kept idle.
_POOL = httpx.Limits(max_connections=None, max_keepalive_connections=16, keepalive_expiry=KEEP_ALIVE_S)


def http_options(address: Address) -> dict[str, Any]:
    """Return what both httpx clients are made with."""
    headers = {"User-Agent": "sandboxd-sdk", "Accept-Encoding": "identity"}
    if address.token is not None:
        headers["Authorization"] = f"Bearer {address.token}"
    # No environment: a proxy for the internet is no way to a daemon, and .netrc is not its password.
    return {"base_url": address.base_url, "headers": headers, "trust_env": False, "follow_redirects": False}


def transport_options(address: Address) -> dict[str, Any]:
    """Return what both of httpx' transports are made with."""
    # Loading the host's certificates takes longer than a sandbox does; only https needs them.
    return {"uds": address.socket_path, "limits": _POOL, "verify": address.base_url.startswith("https://")}


def request_options(call: calls.StreamCall) -> dict[str, Any]:
    """Return what `build_request` needs beside method and path."""
    timeout = httpx.Timeout(call.timeout_s, connect=CONNECT_TIMEOUT_S, pool=None)
    return {"params": call.params, "content": call.payload(), "headers": call.headers(), "timeout": timeout}


def check_open(http: httpx.Client | httpx.AsyncClient) -> None:
    """Raise `LocalProtocolError` if the client is closed."""
    if http.is_closed:
        raise LocalProtocolError("cannot send the request: the client is closed")


class Client(Closing):
    """Connections to one daemon. Share it among sandboxes and threads, and close it when done.

    Without arguments the address is SANDBOXD_URL (else `unix:///run/sandboxd/sandboxd.sock`) and the token is
    SANDBOXD_TOKEN. No connection is made before the first request.

    Raises:
        ConfigError: the address is malformed.
    """

    def __init__(
        self, url: str | None = None, token: str | None = None, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.address = Address.find(url, token)
        transport = transport or httpx.HTTPTransport(**transport_options(self.address))
        self._http = httpx.Client(transport=transport, **http_options(self.address))

    def __repr__(self) -> str:
        return f"<Client {self.address.url}{' closed' if self._http.is_closed else ''}>"

    def close(self) -> None:
        """Close every connection; open streams break."""
        self._http.close()

    @property
    def _target(self) -> tuple[Client, None]:
        return self, None

    health = sync_verb(calls.health)
    info = sync_verb(calls.info)
    metrics = sync_verb(calls.metrics)
    events = stream_verb(event_calls.events, EventStream)

    def send(self, call: calls.Call[T]) -> T:
        """Send one request and return its answer, already read. Raises the daemon's error."""
        response = self.open(call)
        try:
            with mapped(self.address):
                return call.read(response.read())
        finally:
            response.close()

    def open(self, call: calls.StreamCall) -> httpx.Response:
        """Send one request and return its answer unread; the caller closes it. Raises the daemon's error."""
        check_open(self._http)
        request = self._http.build_request(call.method, call.path, **request_options(call))
        with mapped(self.address):
            response = self._http.send(request, stream=True)
            if response.is_success:
                return response
            try:
                body = response.read()
            finally:
                response.close()
        raise problem_error(response.status_code, response.headers.get("content-type", ""), body)
