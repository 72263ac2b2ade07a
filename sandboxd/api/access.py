"""Access control: a bearer token over TCP, the peer's credentials over the unix socket."""

from __future__ import annotations

import dataclasses
import enum
import hmac
import socket
import struct
from typing import TYPE_CHECKING, Final

from ..errors import AccessDenied, Unauthenticated
from ..linux.peers import peer_groups

if TYPE_CHECKING:
    from collections.abc import Callable

    from werkzeug.sansio.request import Request

_UCRED: Final = struct.Struct("iII")


class Level(enum.Enum):
    """What a route requires of its caller."""

    PUBLIC = "public"
    CALLER = "caller"


@dataclasses.dataclass(frozen=True, slots=True)
class Caller:
    """The other end of a connection; `uid` is None over TCP."""

    uid: int | None = None
    gid: int | None = None
    groups: frozenset[int] = frozenset()


def identify(sock: socket.socket) -> Caller:
    """Return who connected, as the kernel recorded it at connect(2)."""
    if sock.family != socket.AF_UNIX:
        return Caller()
    _, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Caller(uid, gid, peer_groups(sock.fileno()))


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """Which callers are admitted.

    Attributes:
        token: the bearer token required over TCP; None rejects all TCP callers.
        uids: unix users that are admitted besides root.
        gid: the group whose members are admitted, if it exists.
    """

    token: str | None
    uids: frozenset[int]
    gid: int | None

    def admits(self, caller: Caller) -> bool:
        """Return whether the caller needs no token: it came over the unix socket, and the kernel identified it."""
        return caller.uid is not None and (caller.uid == 0 or caller.uid in self.uids or self._in_group(caller))

    def check(self, caller: Caller, token: str | None, form: str) -> None:
        """Admit a caller that the kernel identified as permitted, or that sent the token.

        Args:
            caller: who is at the other end of the connection.
            token: the token that the request carries.
            form: a description of where the token is expected, for the error message.

        Raises:
            Unauthenticated: a TCP caller did not send the token.
            AccessDenied: a caller over the unix socket is not permitted.
        """
        if caller.uid is None:
            self._check_token(token, form)
        elif not self.admits(caller):
            raise AccessDenied(
                f"cannot authorize user {caller.uid}: only root, the daemon's user and members of the group 'sandboxd' "
                "have access",
                uid=caller.uid,
            )

    def _in_group(self, caller: Caller) -> bool:
        return self.gid is not None and (caller.gid == self.gid or self.gid in caller.groups)

    def _check_token(self, token: str | None, form: str) -> None:
        wanted = self.token
        # compare_digest takes the same time wherever the difference is; it wants bytes for non-ASCII text.
        if wanted is None or token is None or not hmac.compare_digest(token.encode(), wanted.encode()):
            raise Unauthenticated(f"cannot authorize the request: it needs {form}")


@dataclasses.dataclass(frozen=True, slots=True)
class TokenPlace:
    """Where the callers of a face send the daemon's token.

    Attributes:
        form: a description for error messages of where the token is expected.
        of_request: returns the token of an HTTP request; None if it has none.
        of_handshake: the same for a WebSocket's handshake, in which a browser cannot set headers.
    """

    form: str
    of_request: Callable[[Request], str | None]
    of_handshake: Callable[[Request], str | None]


def bearer(request: Request) -> str | None:
    """Return the token of `Authorization: Bearer <token>`."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else None


def in_header(name: str) -> TokenPlace:
    """Return the place of a token that is the whole value of a header, such as X-API-Key."""

    def read(request: Request) -> str | None:
        return request.headers.get(name)

    return TokenPlace(f"'{name}: <token>'", read, read)


BEARER: Final = TokenPlace("'Authorization: Bearer <token>'", bearer, bearer)
