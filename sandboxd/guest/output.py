"""What a command prints: its pipes (or its terminal) into its journal, the journal to its followers.

While a *lossless* follower (an exec's client) is attached, the pipes are read only as far as that follower has
room: the program waits. A terminal is read only a little ahead of the viewer who is furthest, as a real one would be:
whoever looks at all of it loses nothing and sees Ctrl-C at work, and a slow viewer beside holds back nobody. Otherwise
the journal drops its oldest events and the program never waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from typing import Any, Final

from ..linux.eventloop import READ, EventLoop
from ..wire.journal import Entry, Journal
from ..wire.modes import Modes
from . import users
from .followers import Follower
from .users import User

#: One read, and so one event, at most: it fits a frame, and is large enough for 1 GB/s.
READ_BYTES: Final = 256 * 1024
#: What a terminal may be ahead of its furthest viewer: less than the smallest share of room that a journal gets.
VIEW_AHEAD_BYTES: Final = 64 * 1024
_PIPE_BYTES: Final = 256 * 1024
_F_SETPIPE_SZ: Final = 1031


class Output:
    """The sources, the journal and the followers of one process; `on_drained` is called whenever a source is gone."""

    def __init__(self, loop: EventLoop, on_drained: Callable[[], None], *, is_terminal: bool = False) -> None:
        #: A terminal's modes as the output left them that is no longer in the journal.
        self._modes = Modes() if is_terminal else None
        self.journal = Journal(on_drop=None if self._modes is None else _feeder(self._modes))
        self.followers: list[Follower] = []
        self._loop = loop
        self._on_drained = on_drained
        self._sources: dict[int, str] = {}
        self._paused: set[int] = set()
        self._discarding: set[int] = set()
        self._rest_only = False
        self._keep_reading = False
        self._over = False

    @property
    def is_open(self) -> bool:
        """Whether more may come from what is attached."""
        return bool(self._sources)

    def append(self, type_: str, data: bytes | dict[str, Any]) -> None:
        """Log an event."""
        self.journal.append(type_, data, time.time())

    # --- sources ---

    def pipe(self, name: str, owner: User) -> int:
        """Attach a new pipe as `name` and return the program's end; the caller closes it."""
        ours, theirs = users.pipe_of(owner)
        with contextlib.suppress(OSError):  # over the user's pipe budget: the default size serves too
            fcntl.fcntl(ours, _F_SETPIPE_SZ, _PIPE_BYTES)
        self.attach(ours, name)
        return theirs

    def attach(self, fd: int, name: str) -> None:
        """Take `fd` as a source; reading begins with `start`."""
        os.set_blocking(fd, False)
        self._sources[fd] = name
        self._rest_only = False

    def start(self) -> None:
        """Begin to read."""
        for fd in self._sources:
            self._watch(fd)

    def _watch(self, fd: int) -> None:
        self._loop.watch(fd, READ, lambda: self._on_readable(fd))

    def _on_readable(self, fd: int) -> None:
        """Read until the source is empty, at its end, or the follower has no room."""
        room = self._room()
        while fd in self._sources:
            if room <= 0:
                self._paused.add(fd)
                self._loop.unwatch(fd)
                break
            try:
                data = os.read(fd, min(READ_BYTES, room))
            except BlockingIOError:
                if self._rest_only:
                    self._drop(fd)
                break
            except OSError:  # EIO: the last one on a terminal's other side has gone
                data = b""
            if not data:
                self._drop(fd)
                break
            self.append(self._sources[fd], data)
            if len(data) < min(READ_BYTES, room) and not self._rest_only:
                break  # very likely empty now; the loop says when there is more
            self.pump()
            room = self._room()
        self.pump()
        self._on_drained()

    def _room(self) -> int:
        """Return how much may be read: anything for a background command, else what the followers have room for."""
        if not self.followers:
            return READ_BYTES
        floors = [follower.position for follower in self.followers if follower.lossless]
        if floors:
            return self.journal.room(min(floors))
        seen = [follower.seen_bytes for follower in self.followers if follower.viewer]
        return VIEW_AHEAD_BYTES - (self.journal.total_bytes - max(seen)) if seen else READ_BYTES

    def read_what_is_there(self) -> None:
        """Read without waiting for the loop: the program has ended."""
        for fd in list(self._sources):
            self._on_readable(fd)

    def end_sources(self, *, keep_reading: bool) -> None:
        """Take what is there and let go; with `keep_reading`, what comes later is read and dropped."""
        self._rest_only = True
        self._keep_reading = keep_reading
        for fd in list(self._sources):
            if fd not in self._paused:
                self._on_readable(fd)

    def _drop(self, fd: int) -> None:
        del self._sources[fd]
        self._paused.discard(fd)
        if self._rest_only and self._keep_reading:
            # An orphan may go on writing: its output has no reader any more, but must not kill it by SIGPIPE.
            self._discarding.add(fd)
            self._loop.watch(fd, READ, lambda: self._discard(fd))
            return
        self._loop.unwatch(fd)
        os.close(fd)

    def _discard(self, fd: int) -> None:
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.unwatch(fd)
            self._discarding.discard(fd)
            os.close(fd)

    # --- followers ---

    def follow(self, follower: Follower) -> None:
        """Attach a stream; it is answered at its end."""
        self.followers.append(follower)
        self.wake()

    def unfollow(self, follower: Follower) -> None:
        """Detach a stream."""
        with contextlib.suppress(ValueError):
            self.followers.remove(follower)
        self.wake()

    def wake(self) -> None:
        """Go on after credit or room came: send, and read what was held back."""
        self.pump()
        if self._paused and self._room() > 0:
            paused, self._paused = self._paused, set()
            for fd in paused:
                self._watch(fd)
                if self._rest_only:
                    self._on_readable(fd)

    def pump(self) -> None:
        """Send followers what they may have; answer those that are at their end."""
        for follower in list(self.followers):
            if follower.pump(self.journal, over=self._over):
                self.followers.remove(follower)
                facts = {} if self._modes is None else {"modes": self._modes.to_dict()}
                follower.finish({"next": self.journal.next, "running": not self._over, **facts})

    def finish(self) -> None:
        """Say that nothing will be appended any more."""
        self._over = True
        self._on_drained = _nothing  # no cycle: an ended process goes when it is dropped, not when somebody collects
        self.pump()


def _feeder(modes: Modes) -> Callable[[Entry], None]:
    def feed(entry: Entry) -> None:
        if isinstance(entry.data, bytes):
            modes.feed(entry.data)

    return feed


def _nothing() -> None:
    pass
