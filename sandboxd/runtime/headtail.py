"""The beginning and the end of what a command prints, within a bound: of a long build one wants both."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final, Protocol

from ..wire import utf8
from .logs import STREAMS

if TYPE_CHECKING:
    from ..wire.messages import Event
    from .budget import Hold
    from .execution import Exit

#: How much over its bound an end grows before its beginning is cut off: each cut moves what is left.
_SLACK: Final = 64 * 1024


class HeadTail:
    """One stream. Half of the bound is for its beginning, half for its end; what lies between is dropped.

    Where the hold has less room than the bound asks for, what it has is the bound. Neither side of a gap cuts a
    UTF-8 character.

    Attributes (after `finish`):
        parts: what is kept: all of it, or the beginning and the end.
        dropped_bytes: what lies between.
    """

    def __init__(self, bound: int, hold: Hold) -> None:
        self.dropped_bytes = 0
        self._bound = bound
        self._hold = hold
        self._head = bytearray()
        self._tail: bytearray | None = None
        self._tail_bound = 0

    def __repr__(self) -> str:
        return f"<HeadTail {sum(map(len, self.parts))} bytes kept, {self.dropped_bytes} dropped>"

    @property
    def parts(self) -> list[bytearray]:
        """What is kept."""
        return [self._head] if self._tail is None else [self._head, self._tail]

    @property
    def size(self) -> int:
        """Bytes kept."""
        return sum(map(len, self.parts))

    def add(self, data: bytes) -> None:
        """Take what comes next."""
        if self._tail is None:
            room = self._hold.grow_some(min(len(data), self._bound - len(self._head)))
            self._head += data if room == len(data) else data[:room]
            if room == len(data):
                return
            data = data[room:]
            half = len(self._head) // 2
            self._tail_bound = len(self._head) - half
            self._tail = self._head[half:]
            del self._head[half:]
        self._tail += data
        if len(self._tail) > self._tail_bound + _SLACK:
            self._cut()

    def _cut(self) -> None:
        assert self._tail is not None  # noqa: S101 - what calls looked
        over = len(self._tail) - self._tail_bound
        if over > 0:
            del self._tail[:over]
            self.dropped_bytes += over

    def finish(self) -> HeadTail:
        """Say that nothing more comes, and return itself."""
        if self._tail is not None:
            self._cut()
            head, first = len(self._head) - utf8.unfinished(self._head), _first_whole(self._tail)
            self.dropped_bytes += len(self._head) - head + first
            del self._head[head:]
            del self._tail[:first]
        return self


def _first_whole(data: bytearray) -> int:
    """Return where the first character begins that `data` does not cut; 0 where that is no UTF-8."""
    for index, byte in enumerate(data[:4]):
        if byte & 0xC0 != 0x80:
            return index
    return 0


class Source(Protocol):
    """What is collected: a command (`Execution`)."""

    @property
    def exit(self) -> Exit | None:
        """How it ended, once that event has come."""

    async def next_batch(self) -> list[Event]:
        """Return the events that are here, waiting for the first; an empty list is the end."""


@dataclasses.dataclass(frozen=True, slots=True)
class Collected:
    """A command's output by stream, how it ended, and how many bytes of all that it printed are not here."""

    output: dict[str, HeadTail]
    exit: Exit
    dropped_bytes: int

    @property
    def size(self) -> int:
        """Bytes kept."""
        return sum(stream.size for stream in self.output.values())


async def collect(source: Source, bound: int, hold: Hold) -> Collected:
    """Read a command to its end, and keep up to `bound` bytes of each stream.

    Raises:
        SandboxFailed, SandboxGone: the sandbox ended under the command.
    """
    output = {name: HeadTail(bound, hold) for name in STREAMS}
    lost = 0
    while batch := await source.next_batch():
        for event in batch:
            if isinstance(event.data, bytes):
                output[event.type].add(event.data)
            elif event.type == "truncated":
                lost += event.data["dropped_bytes"]
    ended = source.exit
    assert ended is not None  # noqa: S101 - next_batch ends only after the exit event
    dropped = sum(stream.finish().dropped_bytes for stream in output.values())
    return Collected(output, ended, lost + dropped)
