"""Regular expressions of callers against output of sandboxes: both are strangers', so neither may cost much.

RE2 matches in time linear in the text, whatever the pattern (`(a+)+$` is no trap); what is left is the size of the
pattern itself, which is bounded here, and the text, which is looked at in slices, in a thread, without the
interpreter's lock, for a bounded time in all.
"""

from __future__ import annotations

import time
from typing import Final

import re2

from ..errors import InvalidRequest, LimitExceeded
from ..wire import utf8

MAX_PATTERN_CHARS: Final = 1024
#: Instructions of a compiled pattern. RE2's slowest way costs about 15 ns for each and a byte of text.
MAX_PROGRAM: Final = 1000
#: What a pattern's tables may take; RE2 then forgets and makes them again.
_MAX_MEMORY_BYTES: Final = 1024 * 1024
#: One call of RE2: 1000 instructions over 16 KiB are a quarter of a second at worst.
SLICE_BYTES: Final = 16 * 1024
#: A line is looked at as far as this.
MAX_LINE_BYTES: Final = SLICE_BYTES
#: What one wait may spend in RE2; output at 100 MB/s against an ordinary pattern takes hours to come to it.
MAX_SECONDS: Final = 10.0
#: What is shown of a line.
MAX_SHOWN_BYTES: Final = 4096


def _options() -> re2.Options:
    options = re2.Options()
    options.max_mem = _MAX_MEMORY_BYTES
    options.log_errors = False
    options.never_nl = True  # a match lies within one line
    options.never_capture = True
    return options


class LineSearch:
    """Looks for the first line of some streams that matches; `feed` it their output in order.

    Not for two threads at once.

    Raises:
        InvalidRequest: the pattern is no regular expression of RE2's, or a very large one.
    """

    def __init__(self, pattern: str) -> None:
        if not 0 < len(pattern) <= MAX_PATTERN_CHARS:
            raise _refused(f"it must have 1 to {MAX_PATTERN_CHARS} characters")
        try:
            wanted = pattern.encode()
            size = re2.compile(wanted, _options()).programsize  # alone: it must be whole by itself
            self._expression = re2.compile(b"(?m:" + wanted + b")", _options())
        except (re2.error, UnicodeEncodeError) as error:
            raise _refused(str(error)[:200]) from None
        finally:
            re2.purge()  # its cache would hold a hundred strangers' patterns
        if size > MAX_PROGRAM:
            raise _refused("it is too large")
        self._tails: dict[str, bytes] = {}
        self._skipping: set[str] = set()
        self._spent = 0.0

    def feed(self, stream: str, data: bytes) -> str | None:
        """Take a piece of output; return the first line that was ended in it and matches.

        Raises:
            LimitExceeded: matching took too long altogether.
        """
        if stream in self._skipping:
            _, newline, data = data.partition(b"\n")
            if not newline:
                return None
            self._skipping.discard(stream)
        data = self._tails.pop(stream, b"") + data
        position = 0
        while position < len(data):
            end = data.rfind(b"\n", position, position + SLICE_BYTES)
            if end < 0:
                if len(data) - position < MAX_LINE_BYTES:
                    self._tails[stream] = data[position:]
                    return None
                # A very long line: its beginning counts, the rest is passed over.
                found = self._search(data[position : position + MAX_LINE_BYTES])
                end = data.find(b"\n", position + MAX_LINE_BYTES)
                if end < 0:
                    self._skipping.add(stream)
                    return found
            else:
                found = self._search(data[position:end])
            if found is not None:
                return found
            position = end + 1
        return None

    def pending(self) -> str | None:
        """Return a line that has not ended yet and matches as far as it goes: a prompt has no line end."""
        for tail in self._tails.values():
            found = self._search(tail)
            if found is not None:
                return found
        return None

    def _search(self, text: bytes) -> str | None:
        began = time.monotonic()
        match = self._expression.search(text)
        self._spent += time.monotonic() - began
        if match is not None:
            start = text.rfind(b"\n", 0, match.start()) + 1
            end = text.find(b"\n", match.end())
            line = text[start : end if end >= 0 else len(text)]
            return utf8.head(line.removesuffix(b"\r"), MAX_SHOWN_BYTES).decode("utf-8", "replace")
        if self._spent > MAX_SECONDS:
            raise LimitExceeded(f"cannot continue the search: the pattern has taken {MAX_SECONDS:g} s", field="pattern")
        return None


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest(f"cannot accept pattern: {why}", field="pattern")
