"""Configuration files of git (git-config(1), "Syntax"), read as C git reads a stranger's: nothing else is opened.

The rules are those of C git's config.c, which `git config --no-includes -f FILE --list` shows: `[include]` is a section
like any other, names of sections and variables have no case and those of subsections do, and one line that is none
makes the whole file no configuration. One thing is stricter: a value with a NUL is refused, where C git cuts it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ...errors import GitRefused

#: Of one file: what the largest known projects declare is below 1 MiB.
MAX_BYTES: Final = 16 * 1024 * 1024
_OPEN: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
#: What C git takes for white space, line ends among it.
_SPACE: Final = rb"[ \t\n\r]"
_BLANK: Final = re.compile(rb"(?:[ \t\n\r]+|[#;][^\n]*(?:\n|\Z))+")
_SECTION: Final = re.compile(rb'\[([A-Za-z0-9.-]+)(?:\]|[ \t\r]+"((?:[^"\\\n]|\\[^\n])*)"\])')
_NAME: Final = re.compile(rb"([A-Za-z][A-Za-z0-9-]*)[ \t]*")
#: Up to what needs a look: a quote, a comment, an escape, white space, the line's end.
_PLAIN: Final = re.compile(rb'[^"\\#; \t\n\r]+')
_QUOTED: Final = re.compile(rb'[^"\\\n]+')
_COMMENT: Final = re.compile(rb"[^\n]*")
_GAP: Final = re.compile(rb"[ \t\r]+")
_ESCAPES: Final = {b"t": b"\t", b"b": b"\b", b"n": b"\n", b"\\": b"\\", b'"': b'"'}

#: Section, subsection (None where there is none), variable, value (None: the name stands alone).
Entry = tuple[bytes, bytes | None, bytes, bytes | None]


def read(path: Path, shown: str, *, follow: bool = False) -> bytes | None:
    """Return a regular file's bytes, also behind a link where `follow` says so; None where there is no such name.

    Raises:
        GitRefused: it is not a file, or too long; `shown` is what it is called.
    """
    try:
        fd = os.open(path, _OPEN if follow else _OPEN | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError:
        raise _refused(shown, "it is not a file") from None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _refused(shown, "it is not a file")
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise _refused(shown, f"it is over {MAX_BYTES} bytes")
    return data


def parse(data: bytes, shown: str) -> Iterator[Entry]:
    """Give the entries of a file in their order.

    Raises:
        GitRefused: a line is none of a configuration; `shown` is what the file is called.
    """
    return _Parser(data, shown).entries()


def _refused(shown: str, why: str) -> GitRefused:
    return GitRefused(f"cannot read {shown}: {why}", reason="configuration", file=shown)


class _Parser:
    def __init__(self, data: bytes, shown: str) -> None:
        self._data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
        self._shown = shown
        self._at = 0

    def entries(self) -> Iterator[Entry]:
        section = b""  # C git takes what stands before the first one
        sub: bytes | None = None
        while True:
            self._take_match(_BLANK)
            if self._at >= len(self._data):
                return
            if found := self._take_match(_SECTION):
                section, sub = self._section(found)
            elif found := self._take_match(_NAME):
                yield section, sub, found[1].lower(), self._value()
            else:
                raise self._bad()

    def _section(self, found: re.Match[bytes]) -> tuple[bytes, bytes | None]:
        name = found[1].lower()
        if found[2] is not None:
            return name, re.sub(rb"\\(.)", rb"\1", found[2], flags=re.DOTALL)
        # The old way: [section.subsection], which has no case.
        section, dot, sub = name.partition(b".")
        return (section, sub) if section and dot else (name, None)

    def _value(self) -> bytes | None:
        """Return what stands behind a name, to the end of its line."""
        if self._next() in (b"", b"\n"):
            return None
        if self._next() != b"=":
            raise self._bad()
        self._at += 1
        value = bytearray()
        gap, is_quoted = 0, False  # white space counts once something follows it
        while self._at < len(self._data):
            if not is_quoted and (found := self._take_match(_GAP)):
                gap += len(found[0]) if value else 0
                continue
            if found := self._take_match(_QUOTED if is_quoted else _PLAIN):
                value += b" " * gap + found[0]
                gap = 0
                continue
            char = self._next()
            if char == b"\n" and not is_quoted:
                break
            if char in b"#;":
                self._take_match(_COMMENT)
                continue
            if char == b"\n":
                raise self._bad()
            value += b" " * gap
            gap = 0
            if char == b"\\":
                value += self._escaped()
            else:
                is_quoted = not is_quoted
            self._at += 1
        if is_quoted or b"\0" in value:
            raise self._bad()
        return bytes(value)

    def _escaped(self) -> bytes:
        """Return what a backslash and the next character mean; a line's end behind it is none."""
        self._at += 1
        char = self._next()
        if char in (b"\n", b""):
            return b""
        if char not in _ESCAPES:
            raise self._bad()
        return _ESCAPES[char]

    def _next(self) -> bytes:
        return self._data[self._at : self._at + 1]

    def _take_match(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        found = pattern.match(self._data, self._at)
        if found:
            self._at = found.end()
        return found

    def _bad(self) -> GitRefused:
        line = self._data.count(b"\n", 0, self._at) + 1
        return _refused(self._shown, f"bad line {line}")
