"""What an init does first, done once in the zygote: what it costs to do it for the first time is then shared.

An interpreter writes when it runs something new: bytecode is adapted to what it meets, counters on the way there are
kept in the code, caches of types and of attributes fill. Each such write in an init is a page of its own, for good. So
the zygote has an init greeted and configured a few times, over a socket pair that nobody else can reach, and throws it
away: 0.2 MiB less for each sandbox, and the first turns of an init are not its slowest. No command is started, but a
journal is written and read, as the first command will do.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterator
from typing import Any, Final

from ..wire.journal import Journal
from ..wire.link import LinkConnection, Role
from ..wire.messages import Request
from .init import Init

#: CPython 3.11 adapts a function at its eighth call, and an instruction in it after some more.
ROUNDS: Final = 12
_ASKED: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("configure", {"env": {}, "cwd": "/", "user": "root"}),
    ("ping", {}),
)


def warm_up() -> None:
    """Live the first moments of an init, several times, in this process; leaves nothing open."""
    for _ in range(ROUNDS):
        ours, theirs = socket.socketpair()
        with ours:
            link = LinkConnection(Role.ASKER)
            frames = [link.greet()]
            frames += [link.send(Request(number, op, params)) for number, (op, params) in enumerate(_ASKED, 1)]
            Init().warm_up(theirs, functools.partial(_send_next, ours, iter(frames)))
        journal = Journal()
        journal.append("stdout", b"", 0.0)
        journal.read(0)


def _send_next(ours: socket.socket, frames: Iterator[bytes]) -> bool:
    frame = next(frames, None)
    if frame is not None:
        ours.sendall(frame)
    return frame is not None
