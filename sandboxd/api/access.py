"""Who may call: a token over TCP, the peer's own credentials over the unix socket."""

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
    """What a route asks of its caller."""

    PUBLIC = "public"
    CALLER = "caller"


@dataclasses.dataclass(frozen=True, slots=True)
class Caller:
    """The other end of a connection; `uid` is None over TCP."""

    uid: int | None = None
    gid: int | None = None
    groups: frozenset[int] = frozenset()


def identify(sock: socket.socket) -> Caller:
    """Return who connected, as the kernel noted it at connect(2)."""
    if sock.family != socket.AF_UNIX:
        return Caller()
    _, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Caller(uid, gid, peer_groups(sock.fileno()))


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """Who is let in.

    Attributes:
        token: what TCP callers must show; None lets none in.
        uids: unix users who are let in beside root.
        gid: the group whose members are let in, where it exists.
    """

    token: str | None
    uids: frozenset[int]
    gid: int | None

    def admits(self, caller: Caller) -> bool:
        """Whether the caller needs to show nothing: the kernel has told who it is, over the unix socket."""
        return caller.uid is not None and (caller.uid == 0 or caller.uid in self.uids or self._in_group(caller))

    def check(self, caller: Caller, token: str | None, form: str) -> None:
        """Let a caller pass who is known to the kernel, or shows the token.

        Args:
            caller: who is at the other end of the connection.
            token: what the request shows.
            form: how a request shows the token, for who does not.

        Raises:
            Unauthenticated: over TCP without the token.
            AccessDenied: over the unix socket as somebody who is not on the list.
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
    """Where the callers of a face show the daemon's token.

    Attributes:
        form: how, in words that an error tells.
        of_request: returns the token of an HTTP request; None where it shows none.
        of_handshake: the same for a WebSocket's handshake, with which a browser cannot send headers of its own.
    """

    form: str
    of_request: Callable[[Request], str | None]
    of_handshake: Callable[[Request], str | None]


def bearer(request: Request) -> str | None:
    """Return the token of `Authorization: Bearer <token>`."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else None


def in_header(name: str) -> TokenPlace:
    """Return the place of a token that is all of a header, such as X-API-Key."""

    def read(request: Request) -> str | None:
        return request.headers.get(name)

    return TokenPlace(f"'{name}: <token>'", read, read)


BEARER: Final = TokenPlace("'Authorization: Bearer <token>'", bearer, bearer)
