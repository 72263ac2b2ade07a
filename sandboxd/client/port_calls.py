"""…/ports: what to send, and how to read the answer (see `calls`)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from .calls import Call, given, listed, nothing, sandbox_path
from .process_calls import parse_wait, process_id

if TYPE_CHECKING:
    from .models import Json
    from .process_calls import ProcessInfo, WaitResult

__all__ = ["ExposedPort"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExposedPort:
    """A port of a sandbox that browsers can open.

    Attributes:
        port: its number inside the sandbox.
        url: the URL to open, which contains the token.
        token: the access token, in the URL or in the header X-Sandboxd-Token; None if the port is public.
        name: its name, or None.
        public: whether anyone who can reach the daemon's preview listener may open it.
    """

    port: int
    url: str
    token: str | None
    name: str | None
    public: bool


def expose_port(
    key: str, port: int, *, name: str | None = None, token: str | None = None, public: bool = False
) -> Call[ExposedPort]:
    """Expose a TCP port of the sandbox to browsers, and return its URL.

    The server may start later or restart. It may listen on the sandbox's 127.0.0.1, ::1 or all addresses.

    Args:
        port: 1 to 65535.
        name: a name for the port, unique in the sandbox.
        token: 1 to 16 characters of a-z, 0-9 and _; default: a random token that cannot be guessed.
        public: whether to allow access without a token.

    Raises:
        InvalidRequest: a value is wrong; `field` names it.
        PortExposed: the port is exposed already.
    """
    body = given(port=port, name=name, token=token, public=public or None)
    return Call("POST", sandbox_path(key, "/ports"), body=body, what="port", parse=parse_port)


def get_exposed_ports(key: str) -> Call[list[ExposedPort]]:
    """Return the exposed ports, by number."""
    return Call("GET", sandbox_path(key, "/ports"), what="ports", parse=listed(parse_port))


def unexpose_port(key: str, port: int) -> Call[None]:
    """Stop exposing a port, and close its open connections.

    Raises:
        PortNotFound: the port is not exposed.
    """
    return Call("DELETE", sandbox_path(key, f"/ports/{int(port)}"), what="port", parse=nothing)


def watch_port(
    key: str,
    port: int,
    *,
    path: str | None = None,
    status: tuple[int, int] | None = None,
    process: str | ProcessInfo | None = None,
    timeout: float | None = None,
) -> Call[WaitResult]:
    """Wait until something in the sandbox listens on a TCP port, or answers a GET; the port need not be exposed.

    Args:
        port: 1 to 65535, on any of the sandbox's addresses, IPv4 or IPv6.
        path: the path of the GET, such as "/health"; default: only a listener is required.
        status: the lowest and highest status that count as success; default: 200 to 399.
        process: a process whose exit also ends the wait.
        timeout: seconds; default: forever.

    Raises:
        InvalidRequest: a value is wrong; `field` names it.
        ProcessNotFound: the sandbox has no such process.
    """
    name = None if process is None else process_id(process)
    body = given(process=name, path=path, status=status and list(status), timeout_s=timeout)
    where = sandbox_path(key, f"/ports/{int(port)}/wait")
    return Call("POST", where, body=body, timeout_s=None, what="answer", parse=parse_wait)


def create_preview_link(key: str, port: int) -> Call[str]:
    """Return a link that opens an exposed port once, within five minutes, and sets a cookie in the browser.

    The link does not contain the token, nor does the address that the browser then shows.

    Raises:
        PortNotFound: the port is not exposed.
    """
    return Call(
        "POST", sandbox_path(key, f"/ports/{int(port)}/link"), what="link", parse=lambda value: str(value["url"])
    )


def parse_port(value: Json) -> ExposedPort:
    """Read an exposed port."""
    return ExposedPort(
        port=int(value["port"]),
        url=str(value["url"]),
        token=value.get("token"),
        name=value.get("name"),
        public=bool(value["public"]),
    )
