"""What a terminal showed, for somebody who comes to it: its own last output again, made safe to repeat.

Theory of operation. A terminal's output is a program for whatever terminal shows it; no other program gives exactly its
screen. So what is replayed is that output itself, after a full reset: the viewer's terminal is the emulator, and its
scrollback is there too. No emulator of ours runs beside each terminal, and nothing is kept in the daemon: the journal
in init holds it, also over a restart of the daemon. What repeating needs beside:

- Questions are left out (where is the cursor, what are you, which colours): the viewer's terminal would answer them
  again, and the program would read the answers as keys. Writes to the viewer's clipboard are left out too.
- Where the journal no longer holds the beginning, or it is long, its end is taken from a line's beginning on, and the
  modes that were set before (another screen, mouse reports, bracketed paste …; init keeps those that its journal has
  dropped) are set first. Then the programs in the
  foreground are asked to paint anew (SIGWINCH), for what they painted before is lost.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Final

from ..wire.modes import Modes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..wire.messages import Event

#: What is replayed at most: several hundred full screens of a shell, some tens of a full-screen program.
MAX_REPLAY_BYTES: Final = 256 * 1024
#: Full reset (RIS).
RESET: Final = b"\x1bc"
#: A line's beginning is looked for as far as this behind the cut.
_SEEK_BYTES: Final = 8192
_QUESTIONS: Final = re.compile(
    rb"\x05"  # ENQ
    rb"|\x1bZ"  # DECID
    rb"|\x1b\[[?>=]?[0-9;]*[cnx]"  # DA, DSR, DECREQTPARM
    rb"|\x1b\[>[0-9;]*q"  # XTVERSION
    rb"|\x1b\[\??[0-9;]*\$p"  # DECRQM
    rb"|\x1b\[[0-9;]*t"  # XTWINOPS
    rb"|\x1b\[\?u"  # keyboard protocol
    rb"|\x1bP[+$]q[^\x1b]*\x1b\\"  # XTGETTCAP, DECRQSS
    rb"|\x1b\]52;[^\x07\x1b]*(?:\x07|\x1b\\)"  # the clipboard
    rb"|\x1b\][0-9;]*;\?[^\x07\x1b]*(?:\x07|\x1b\\)"  # colours
)


@dataclasses.dataclass(frozen=True, slots=True)
class Replay:
    """Bytes for the viewer's terminal; `is_whole` is false where something before them is lost."""

    data: bytes
    is_whole: bool


def build(
    events: Iterable[Event], *, dropped_bytes: int, known: dict[str, str] | None = None, limit: int = MAX_REPLAY_BYTES
) -> Replay:
    """Return what to show first to somebody who comes to a terminal with that log.

    `known` are the modes that the output before it left (`wire/modes.py`).
    """
    output = output_of(events)
    if not output and not dropped_bytes:
        return Replay(b"", True)
    if len(output) <= limit and not dropped_bytes:
        return Replay(RESET + _QUESTIONS.sub(b"", output), True)
    tail = output[-limit:]
    start = _line_start(tail)
    modes = Modes(known)
    modes.feed(output[: len(output) - len(tail) + start])
    return Replay(RESET + modes.restore() + _QUESTIONS.sub(b"", tail[start:]), False)


def output_of(events: Iterable[Event]) -> bytes:
    """Return all output of a log."""
    return b"".join(event.data for event in events if isinstance(event.data, bytes))


def _line_start(tail: bytes) -> int:
    """Return where a line begins near the beginning of `tail`, so that no character or sequence is cut."""
    newline = tail.find(b"\n", 0, _SEEK_BYTES)
    if newline >= 0:
        return newline + 1
    escape = tail.find(b"\x1b", 0, _SEEK_BYTES)
    return max(0, escape)
