"""What a process has printed so far: a snapshot of its log, its last lines, and the characters that it cuts."""

from __future__ import annotations

import codecs
import dataclasses
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..wire.messages import Event
    from .budget import Hold
    from .processes import Processes
    from .run_log import RunEvent

STREAMS: Final = ("stdout", "stderr")
#: How far back the beginning of a character is looked for that a reader's position cuts.
CARRY_EVENTS: Final = 64
#: Bytes in which line ends are looked for one by one.
_SHORT: Final = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """The events of a log from an offset on, as they were at one moment.

    Attributes:
        next_offset: the offset that the next event has.
        dropped_bytes: output between the wanted offset and the first event that is no longer there.
        running: whether more may come.
        modes: a terminal's, as the output left them that is dropped.
    """

    events: tuple[Event, ...]
    next_offset: int
    dropped_bytes: int
    running: bool
    modes: dict[str, str] = dataclasses.field(default_factory=dict)


async def read(
    processes: Processes, process: str, start: int = 0, *, seen_bytes: int = 0, hold: Hold | None = None
) -> Snapshot:
    """Return what the log has from offset `start` on, which `hold` is charged with.

    Raises:
        ProcessNotFound: there is no such process.
        ServerBusy: there is no room for it.
    """
    events: list[Event] = []
    dropped = 0
    async with processes.follow(process, start, snapshot=True, seen_bytes=seen_bytes) as follow:
        while batch := await follow.next_batch():
            if hold is not None:
                hold.take(sum(event.cost for event in batch), f"read the log of process {process}")
            for event in batch:
                if event.type == "truncated" and isinstance(event.data, dict):
                    dropped += event.data["dropped_bytes"]
                events.append(event)
    return Snapshot(tuple(events), follow.next_offset, dropped, follow.running, follow.modes)


def last_lines(events: Sequence[Event], count: int) -> tuple[Event, ...]:
    """Return the end of `events` that holds the last `count` lines of output, both streams counted together.

    The first event may be a part of one, cut at its line's beginning. Lines are counted where they end; what
    follows the last line end is a line too.
    """
    kept: list[Event] = []
    left = count
    is_last = True
    for event in reversed(events):
        if not isinstance(event.data, bytes) or not event.data:
            kept.append(event)
            continue
        if left <= 0:
            break
        data = event.data
        # The line end at the very end of the output ends the last line, and begins none.
        end = len(data) - 1 if is_last and data.endswith(b"\n") else len(data)
        is_last = False
        found = data.count(b"\n", 0, end)
        if found < left:
            left -= found
            kept.append(event)
            continue
        rest = data[_line_end(data, end, left) + 1 :]
        if rest:
            kept.append(dataclasses.replace(event, data=rest))
        break
    return tuple(event for event in reversed(kept))


def _line_end(data: bytes, end: int, count: int) -> int:
    """Return where the `count`th last line end before `end` is; there are as many. Takes halves, not one by one."""
    start = 0
    while end - start > _SHORT:
        middle = (start + end) // 2
        behind = data.count(b"\n", middle, end)
        if behind >= count:
            start = middle
        else:
            count -= behind
            end = middle
    for _ in range(count):
        end = data.rfind(b"\n", start, end)
    return end


class TextDecoder:
    """UTF-8 in pieces for each stream; a character that a piece cuts waits for its rest."""

    def __init__(self) -> None:
        make = codecs.getincrementaldecoder("utf-8")
        self._decoders = {name: make("replace") for name in STREAMS}

    def prime(self, events: Sequence[Event | RunEvent]) -> None:
        """Take note of the characters that the output before a position leaves unfinished."""
        for event in events:
            if isinstance(event.data, bytes):
                self.decode(event.type, event.data)

    def decode(self, stream: str, data: bytes) -> str:
        """Return the text of a piece of output as far as it is whole."""
        return self._decoders[stream].decode(data)

    def rest(self, stream: str) -> str:
        """Return what is left at the end of a stream."""
        return self._decoders[stream].decode(b"", final=True)


async def decoder_at(processes: Processes, process: str, start: int) -> TextDecoder:
    """Return a decoder for a reader who begins at offset `start`, and has read what is before it."""
    decoder = TextDecoder()
    if start > 0:
        before = await read(processes, process, max(0, start - CARRY_EVENTS))
        decoder.prime([event for event in before.events if event.offset < start])
    return decoder
