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
        url: what to open; it holds the token.
        token: what lets a caller in, in the URL or as the header X-Sandboxd-Token; None when it is public.
        name: the caller's own name for it.
        public: whether anybody who reaches the daemon's preview listener may open it.
    """

    port: int
    url: str
    token: str | None
    name: str | None
    public: bool


def expose_port(
    key: str, port: int, *, name: str | None = None, token: str | None = None, public: bool = False
) -> Call[ExposedPort]:
    """Make what listens at a TCP port of the sandbox open in a browser, and return its URL.

    What listens may start later and anew, at the sandbox's 127.0.0.1, ::1 or all addresses.

    Args:
        port: 1 to 65535.
        name: your own name for it, unique in the sandbox.
        token: 1 to 16 of a-z, 0-9 and _; without one a token is made that nobody guesses.
        public: whether no token is needed.

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
    """Take a port back; open connections are cut.

    Raises:
        PortNotFound: it is not exposed.
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
    """Wait until something in the sandbox listens at a TCP port, or answers a GET there; it need not be exposed.

    Args:
        port: 1 to 65535, on any of the sandbox's addresses, IPv4 or IPv6.
        path: where a GET must be answered, such as "/health"; else a listener is enough.
        status: the lowest and the highest status that is a good answer; else 200 to 399.
        process: whose end ends the wait too.
        timeout: seconds, else for ever.

    Raises:
        InvalidRequest: a value is wrong; `field` names it.
        ProcessNotFound: there is none.
    """
    name = None if process is None else process_id(process)
    body = given(process=name, path=path, status=status and list(status), timeout_s=timeout)
    where = sandbox_path(key, f"/ports/{int(port)}/wait")
    return Call("POST", where, body=body, timeout_s=None, what="answer", parse=parse_wait)


def create_preview_link(key: str, port: int) -> Call[str]:
    """Return a link that opens an exposed port once, within five minutes, and leaves a cookie in the browser.

    The token is neither in it nor in the address that the browser then shows.

    Raises:
        PortNotFound: it is not exposed.
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
