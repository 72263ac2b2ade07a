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
    from werkzeug.datastructures import Headers

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

    def check(self, level: Level, caller: Caller, headers: Headers) -> None:
        """Let the caller pass.

        Raises:
            Unauthenticated: over TCP without the token.
            AccessDenied: over the unix socket as somebody who is not on the list.
        """
        if level is Level.PUBLIC:
            return
        if caller.uid is None:
            self._check_token(headers)
        elif not self.admits(caller):
            raise AccessDenied(
                f"cannot let user {caller.uid} in: only root, the daemon's user and the group 'sandboxd' are allowed",
                uid=caller.uid,
            )

    def _in_group(self, caller: Caller) -> bool:
        return self.gid is not None and (caller.gid == self.gid or self.gid in caller.groups)

    def _check_token(self, headers: Headers) -> None:
        scheme, _, shown = headers.get("Authorization", "").partition(" ")
        wanted = self.token
        # compare_digest takes the same time wherever the difference is; it wants bytes for non-ASCII text.
        if wanted is None or scheme.lower() != "bearer" or not hmac.compare_digest(shown.encode(), wanted.encode()):
            raise Unauthenticated("cannot let the request in: it needs 'Authorization: Bearer <token>'")
