"""The modes of a terminal that its output has set: what a viewer must know who has not seen all of that output.

Sans-I/O: init feeds it what a journal drops, the daemon what it does not replay. Bounded whatever the output is.
"""

from __future__ import annotations

import re
from typing import Any, Final

#: Modes that a later screen or its input depend on (DECSET numbers): cursor keys, reverse video, origin, wrapping,
#: cursor, keypad, the other screens, mouse and focus reports, bracketed paste.
KEPT: Final = frozenset(b"1 5 6 7 12 25 47 66 1000 1002 1003 1004 1005 1006 1015 1047 1049 2004".split())
_KEYPAD: Final = b"keypad"
_OTHER_SCREENS: Final = frozenset({b"47", b"1047", b"1049"})
_CHANGES: Final = re.compile(rb"\x1b\[\?([0-9;]{1,64})([hl])|\x1b([=>c])")
#: A sequence that a piece cuts: its beginning waits for the rest.
_MAX_SEQUENCE: Final = 68


class Modes:
    """What was set and reset; `feed` it output in order."""

    def __init__(self, known: dict[str, str] | None = None) -> None:
        self._states: dict[bytes, bytes] = {name.encode(): state.encode() for name, state in (known or {}).items()}
        self._tail = b""

    def feed(self, output: bytes) -> None:
        """Take the next piece of output."""
        output = self._tail + output
        for match in _CHANGES.finditer(output):
            numbers, state, single = match.groups()
            if single == b"c":
                self._states.clear()  # a full reset
            elif single is not None:
                self._states[_KEYPAD] = single
            else:
                self._states.update({number: state for number in numbers.split(b";") if number in KEPT})
        escape = output.rfind(b"\x1b", max(0, len(output) - _MAX_SEQUENCE))
        self._tail = output[escape:] if escape >= 0 and not _CHANGES.match(output, escape) else b""

    def to_dict(self) -> dict[str, str]:
        """Return the states for the link."""
        return {name.decode(): state.decode() for name, state in self._states.items()}

    def restore(self) -> bytes:
        """Return output that brings a terminal that was reset into these modes."""
        parts = []
        for name, state in self._states.items():
            if name == _KEYPAD:
                parts.append(b"\x1b" + state)
            elif name not in _OTHER_SCREENS or state == b"h":
                parts.append(b"\x1b[?" + name + state)
        return b"".join(parts)


def checked(value: Any) -> dict[str, str] | None:  # noqa: ANN401 - whatever a peer sent
    """Return the states that a peer sent, or None if they are none."""
    if not isinstance(value, dict):
        return None
    for name, state in value.items():
        if not isinstance(name, str) or not isinstance(state, str):
            return None
        if state not in (("=", ">") if name == "keypad" else ("h", "l")):
            return None
        if name != "keypad" and name.encode() not in KEPT:
            return None
    return value
