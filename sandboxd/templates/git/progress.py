"""What is told while a clone is under way: at most ten times a second, and once for each phase.

{phase, done, total, received_bytes, text}: `phase` is connecting, counting, compressing, receiving, resolving or
checking-out; `done` and `total` count objects (files, while checking out), total 0 while it is not known; `text` names
the submodule that this is about.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Final

_EVERY_S: Final = 0.1
_SERVER: Final = re.compile(rb"(Counting|Compressing) objects:\s+\d+% \((\d+)/(\d+)\)")
_PHASES: Final = {b"Counting": "counting", b"Compressing": "compressing"}
_MAX_LINE_BYTES: Final = 1024


class Progress:
    """Gives progress to `tell`, not too often."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell
        self._phase = ""
        self._last = 0.0
        self._line = b""
        self._before = 0
        self._received = 0
        #: The submodule that is cloned.
        self.about: str | None = None

    @property
    def received_bytes(self) -> int:
        """Bytes of packs that came, in all."""
        return self._before + self._received

    def phase(self, name: str) -> None:
        """Say that a phase begins."""
        self._give(name, 0, 0)

    def receiving(self, objects: int, total: int, size: int) -> None:
        """Say what came."""
        if size < self._received:  # another pack
            self._before += self._received
        self._received = size
        self._give("receiving", objects, total)

    def resolving(self, done: int, total: int) -> None:
        """Say how many objects have a name."""
        self._give("resolving", done, total)

    def files(self, done: int, total: int) -> None:
        """Say how many files are made."""
        self._give("checking-out", done, total)

    def server(self, data: bytes) -> None:
        """Take what the server says of itself: lines as C git writes them, in pieces."""
        lines = re.split(rb"[\r\n]", self._line + data)
        self._line = lines.pop()[-_MAX_LINE_BYTES:]
        for line in lines:
            found = _SERVER.search(line)
            if found:
                self._give(_PHASES[found[1]], _number(found[2]), _number(found[3]))

    def _give(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if phase == self._phase and now - self._last < _EVERY_S and (not total or done < total):
            return
        self._phase, self._last = phase, now
        told: dict[str, Any] = {"phase": phase, "done": done, "total": total, "received_bytes": self.received_bytes}
        if self.about is not None:
            told["submodule"] = self.about
        self._tell(told)


def _number(text: bytes) -> int:
    return min(int(text[:18]), 2**53)
