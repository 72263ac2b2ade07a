"""Children that init did not fork: a template's, which enter the sandbox from outside (sandboxd/templates/base.py).

The daemon gives init one end of a socket pair and the launcher the other, which goes on to the child. The child sends
one byte once it has no more privilege than any child of init; with that byte, the kernel reports its pid. From then on
init reaps and kills it like the others. Init sends the child its job (user, directory, variables, descriptors), and the
child answers that it begins or declines. Any failure on the way shows as end of file on the socket, since nobody else
holds its other end.

    WAITING --a byte--> ARRIVED --"begun"--> over, well
       |                   |
       +---- its end, "declined", too late: over, and whoever expected it does without
"""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgpack

from ..linux.eventloop import READ, WRITE, EventLoop, Timer
from ..wire.sendqueue import rights
from .users import User

#: How long a child may take to come; a template that has to be loaded first says so to the launcher, not here.
ARRIVAL_TIMEOUT_S: Final = 20.0
_CREDENTIALS: Final = struct.Struct("3i")
_ANSWER_BYTES: Final = 2048
#: What a process has of init's own.
_RLIMITS: Final = tuple(
    f"RLIMIT_{name}"
    for name in (
        *("CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "SIGPENDING"),
        *("MSGQUEUE", "NICE", "RTPRIO"),
    )
)


class IncomingChildren:
    """All that are expected; the reaper asks for those that came before it takes a status for a stranger's."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._expected: list[IncomingChild] = []

    def expect(
        self,
        fd: int,
        on_arrived: Callable[[int], None],
        on_begun: Callable[[], None],
        on_failed: Callable[[str, bool], None],
        *,
        timeout_s: float = ARRIVAL_TIMEOUT_S,
    ) -> IncomingChild:
        """Expect a child at the socket `fd`, which is the incoming child's from now on.

        `on_arrived(pid)` has to register the pid with the reaper and to call `send`; one of `on_begun` and
        `on_failed(why, declined)` is called at the end, unless it is cancelled.
        """
        incoming = IncomingChild(self._loop, fd, on_arrived, on_begun, on_failed, self._expected, timeout_s)
        self._expected.append(incoming)
        return incoming

    def drain(self) -> None:
        """Hear of those that have arrived just now."""
        for incoming in list(self._expected):
            incoming.read()


class IncomingChild:
    """One child on its way."""

    def __init__(
        self,
        loop: EventLoop,
        fd: int,
        on_arrived: Callable[[int], None],
        on_begun: Callable[[], None],
        on_failed: Callable[[str, bool], None],
        expected: list[IncomingChild],
        timeout_s: float,
    ) -> None:
        self._loop = loop
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._on_arrived = on_arrived
        self._on_begun = on_begun
        self._on_failed = on_failed
        self._expected = expected
        # Not a SendQueue: there is one message, whose descriptors stay their owners'.
        self._out = memoryview(b"")
        self._fds: list[int] = []
        self._answer = b""
        self.pid = 0
        self._timer: Timer | None = loop.call_later(timeout_s, lambda: self._fail("it did not arrive in time"))
        loop.watch(fd, READ, self.read)

    @property
    def is_open(self) -> bool:
        """Whether it is still on its way."""
        return self._timer is not None

    def cancel(self) -> None:
        """Expect it no longer: a child that comes finds nobody, and ends."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        self._expected.remove(self)
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()
        self._fds = []

    def send(
        self,
        user: User,
        cwd: str,
        env: Mapping[str, str],
        fds: list[int],
        given: Any,  # noqa: ANN401 - the job's own
    ) -> None:
        """Give the child that arrived its job. `fds` become its descriptors from 0 on, and stay ours."""
        job = {
            "uid": user.uid,
            "gid": user.gid,
            "groups": list(user.groups),
            "home": user.home,
            "cwd": cwd,
            "env": dict(env),
            "rlimits": {name: resource.getrlimit(getattr(resource, name)) for name in _RLIMITS},
            "with": given,
        }
        body = msgpack.packb(job)
        self._out = memoryview(struct.pack(">I", len(body)) + body)
        self._fds = fds
        self._write()

    def read(self) -> None:
        """Take what it says."""
        while self._timer is not None:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(_ANSWER_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                if self._out:
                    self._write()
                return
            except OSError:
                data, ancillary = b"", []
            if not data:
                self._fail("it ended before it arrived")
            elif data.startswith(b"failed "):
                self._fail(data[7:].decode("utf-8", "replace"))
            elif not self.pid:
                self._arrived(ancillary)
            else:
                self._on_answer(data)

    def _arrived(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                self.pid = _CREDENTIALS.unpack_from(data)[0]
        if self.pid <= 0:
            self._fail("it has no pid in this sandbox")
        else:
            self._on_arrived(self.pid)

    def _on_answer(self, data: bytes) -> None:
        self._answer += data
        if self._answer.startswith(b"begun"):
            self.cancel()
            self._on_begun()
        elif self._answer.startswith(b"declined "):
            self._fail(self._answer[9:300].decode("utf-8", "replace"), declined=True)
        elif len(self._answer) > 9:
            self._fail("its answer is malformed")

    def _write(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._out:
                try:
                    sent = self._socket.sendmsg([self._out], [rights(self._fds)] if self._fds else [])
                except BlockingIOError:
                    raise
                except OSError:
                    break  # its end will be read
                self._fds = []
                self._out = self._out[sent:]
        if self._timer is not None:
            self._loop.watch(self._socket.fileno(), READ | (WRITE if self._out else 0), self.read)

    def _fail(self, why: str, *, declined: bool = False) -> None:
        if self._timer is not None:
            self.cancel()
            self._on_failed(why, declined)
