"""Exposed ports of one sandbox: what was asked for, who may come in, what has passed, and how each is cut. No I/O.

A port is kept in `sandbox.json`, so that its URL outlives the daemon. Tokens are compared in constant time. Beside
the token, which travels in the host name or a header, a browser may carry a cookie: an HMAC with the token as its key,
so that it is worth nothing for another port and nothing has to be kept for it. It is set by a one-time link.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import hashlib
import hmac
import re
import secrets
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..errors import InvalidRequest, LimitExceeded, NameTaken, PortExposed, PortNotFound
from ..spec import check_name
from .strangers import Lane

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Exposed ports of one sandbox.
MAX_PORTS: Final = 64
#: Links that were made and not used yet, of one port.
MAX_SHARE_LINKS: Final = 16
SHARE_LINK_S: Final = 300.0
#: 16 letters of 5 random bits: 80 bits that nobody guesses over a network.
TOKEN_CHARS: Final = 16
_TOKEN = re.compile(r"[a-z0-9_]{1,16}\Z")
_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz234567"


def new_token() -> str:
    """Return a token that nobody guesses."""
    return "".join(_ALPHABET[byte & 31] for byte in secrets.token_bytes(TOKEN_CHARS))


def check_port(value: int, field: str = "port") -> int:
    """Return `value` if a TCP port has that number.

    Raises:
        InvalidRequest: it is not 1 to 65535.
    """
    if not 1 <= value <= 65535:
        raise InvalidRequest(f"cannot accept {field}: it must be 1 to 65535", field=field)
    return value


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PortSpec:
    """What was asked for; without a token the port is public.

    Raises:
        InvalidRequest: a value is wrong; `field` names it.
    """

    port: int
    token: str | None
    name: str | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        check_port(self.port)
        if self.token is not None and not _TOKEN.match(self.token):
            raise InvalidRequest("cannot accept token: it must be 1 to 16 characters of a-z, 0-9 and _", field="token")
        if self.name is not None:
            check_name(self.name)

    @property
    def public(self) -> bool:
        """Whether anybody may come in."""
        return self.token is None

    def admits_token(self, token: str | None) -> bool:
        """Whether that is the token; a public port admits whoever shows none."""
        if self.token is None or token is None:
            return self.token is token
        return hmac.compare_digest(self.token.encode(), token.encode())

    def cookie(self, sandbox_id: str) -> str:
        """Return what a browser's cookie holds instead of the token; empty for a public port."""
        if self.token is None:
            return ""
        what = f"sandboxd preview of {sandbox_id} {self.port}".encode()
        mac = hmac.new(self.token.encode(), what, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(mac).decode().rstrip("=")


class Closable(Protocol):
    """A connection that nobody uses at the moment."""

    def close(self) -> None:
        """Close it."""


class Cancellable(Protocol):
    """A request or tunnel under way: a trio.CancelScope."""

    def cancel(self) -> None:
        """End it."""


class Port:
    """An exposed port.

    Attributes:
        requests, bytes_in, bytes_out: how many requests came and how many bytes of bodies and tunnels passed, towards
            the sandbox and from it, since it was exposed or the daemon started.
        dialled: how many connections were made to the service, and `connected` how many are open.
        users: requests and tunnels under way.
        idle: connections to the service that wait for another request, the last used at the end.
        family: the IP version that the service was last found at.
        lane: where what its visitors and its service send takes turns, with that of the sandbox's other ports.
    """

    def __init__(self, sandbox_id: str, spec: PortSpec, lane: Lane | None = None) -> None:
        self.sandbox_id = sandbox_id
        self.spec = spec
        self.requests = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.dialled = 0
        self.connected = 0
        self.users: set[Cancellable] = set()
        self.idle: collections.deque[Any] = collections.deque()
        self.family = 4
        self.lane = lane or Lane()
        self.closed = False
        self._cookie = spec.cookie(sandbox_id).encode()
        self._share_links: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<Port {self.spec.port} of {self.sandbox_id}, {len(self.users)} active>"

    def statistics(self) -> dict[str, int]:
        """Return its figures."""
        return {
            "port": self.spec.port,
            "requests": self.requests,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "active": len(self.users),
            "connections": self.connected,
        }

    def admits_cookie(self, value: bytes) -> bool:
        """Whether that is what `redeem` has set."""
        return bool(self._cookie) and hmac.compare_digest(self._cookie, value)

    def new_link(self) -> tuple[str, float]:
        """Return the code of a link that can be used once, and when it ends; the oldest goes when there are many."""
        while len(self._share_links) >= MAX_SHARE_LINKS:
            del self._share_links[next(iter(self._share_links))]
        code = secrets.token_urlsafe(24)
        self._share_links[code] = ends = time.time() + SHARE_LINK_S
        return code, ends

    def redeem(self, code: str) -> str | None:
        """Use a link up and return the cookie's value, or None."""
        ends = self._share_links.pop(code, 0.0)
        return self._cookie.decode() if ends > time.time() else None

    def close(self) -> None:
        """Cut what is under way and let nothing begin."""
        self.closed = True
        for user in tuple(self.users):
            user.cancel()
        while self.idle:
            self.idle.pop().close()


class Ports:
    """The exposed ports of a sandbox."""

    def __init__(self, sandbox_id: str) -> None:
        self._sandbox_id = sandbox_id
        self._ports: dict[int, Port] = {}
        self._lane = Lane()

    def __repr__(self) -> str:
        return f"<Ports {sorted(self._ports)}>"

    def __len__(self) -> int:
        return len(self._ports)

    def __iter__(self) -> Iterator[Port]:
        return iter([self._ports[number] for number in sorted(self._ports)])

    def get(self, number: int) -> Port | None:
        """Return an exposed port, or None."""
        return self._ports.get(number)

    def find(self, number: int) -> Port:
        """Return an exposed port.

        Raises:
            InvalidRequest: there can be no such port.
            PortNotFound: it is not exposed.
        """
        found = self._ports.get(check_port(number))
        if found is None:
            raise PortNotFound(f"cannot find port {number}: it is not exposed", port=number)
        return found

    def add(self, spec: PortSpec) -> Port:
        """Expose a port.

        Raises:
            PortExposed: it is exposed already.
            NameTaken: another one has its name.
            LimitExceeded: there are as many as there may be.
        """
        if spec.port in self._ports:
            raise PortExposed(f"cannot expose port {spec.port}: it is exposed already", port=spec.port)
        if spec.name is not None and any(spec.name == port.spec.name for port in self):
            raise NameTaken(f"cannot name a port {spec.name!r}: another port has that name", name=spec.name)
        if len(self._ports) >= MAX_PORTS:
            raise LimitExceeded(f"cannot expose another port: {MAX_PORTS} are exposed already", bound=MAX_PORTS)
        port = self._ports[spec.port] = Port(self._sandbox_id, spec, self._lane)
        return port

    def remove(self, number: int) -> Port:
        """Take a port back and cut what is under way on it; raises as `find`."""
        port = self.find(number)
        del self._ports[number]
        port.close()
        return port

    def cut(self) -> None:
        """Cut what is under way on every port: the sandbox has ended."""
        for port in self:
            port.close()

    def specs(self) -> tuple[PortSpec, ...]:
        """Return what to keep."""
        return tuple(port.spec for port in self)
