"""Patterns of names as gitignore(5) has them: pure code, text in, yes or no out.

`*` and `?` do not match a slash, `**` between slashes matches any directories, `[…]` a class; a pattern without a slash
(but for one at its end) matches the last part of a path, another one the path from its start.

Patterns become regular expressions that cannot run away, whoever wrote them: what follows a star is looked for from
the left, and once found it stays (an atomic group) where another star comes after it, since a later place could only
leave less for that one. Only the last star of a part, and the last `**` of a pattern, try more than one place.
"""

from __future__ import annotations

import re
from typing import Final

#: A pattern over this matches nothing; names are at most 255 bytes, and a .gitignore comes from a stranger.
MAX_PATTERN: Final = 1000
MAX_PATTERNS: Final = 10_000


def translate(pattern: str) -> str | None:
    """Return the regular expression (for `fullmatch`) of a glob; None for what git takes for no pattern."""
    if len(pattern) > MAX_PATTERN:
        return None
    pattern = re.sub(r"\\([\\/])", lambda found: "/" if found[1] == "/" else found[0], pattern)
    #: Runs of parts between one `**` and the next.
    runs: list[list[str]] = [[]]
    for part in pattern.split("/"):
        if part == "**":
            if runs[-1] or len(runs) == 1:
                runs.append([])
            continue
        translated = _part(part)
        if translated is None:
            return None
        runs[-1].append(translated)
    first, *middle = ["/".join(run) for run in runs]
    if not middle:
        return first
    *middle, last = middle
    start = first + "/" if first else ""
    inner = "".join(f"(?>(?:[^/]+/)*?{run}/)" for run in middle)
    return start + inner + (f"(?:[^/]+/)*{last}" if last else ".+")


def _part(part: str) -> str | None:
    """Translate what lies between two slashes."""
    chunks: list[list[str]] = [[]]  # what lies between two stars
    at = 0
    while at < len(part):
        char = part[at]
        at += 1
        if char == "*":
            if chunks[-1] or len(chunks) == 1:
                chunks.append([])
        elif char == "?":
            chunks[-1].append("[^/]")
        elif char == "\\":
            if at >= len(part):
                return None
            chunks[-1].append(re.escape(part[at]))
            at += 1
        elif char == "[":
            translated = _class(part, at)
            if translated is None:
                return None
            text, at = translated
            chunks[-1].append(text)
        else:
            chunks[-1].append(re.escape(char))
    first, *middle = ["".join(chunk) for chunk in chunks]
    if not middle:
        return first
    *middle, last = middle
    return first + "".join(f"(?>[^/]*?{chunk})" for chunk in middle) + "[^/]*" + last


def _class(part: str, at: int) -> tuple[str, int] | None:
    """Translate a `[…]` whose inside begins at `at`; returns it and where it ends, or None if it has no end."""
    negated = part[at : at + 1] in ("!", "^")
    at += negated
    begin = at
    ranges: list[str] = []
    while at < len(part) and (part[at] != "]" or at == begin):
        if part.startswith("[:", at):
            end = part.find(":]", at)
            name = part[at + 2 : end] if end > 0 else ""
            if name in _NAMED:
                ranges.append(_NAMED[name])
                at = end + 2
                continue
        low, at = _char(part, at)
        if part[at : at + 1] == "-" and part[at + 1 : at + 2] not in ("", "]"):
            high, at = _char(part, at + 1)
            if low <= high:
                ranges.append(f"{re.escape(low)}-{re.escape(high)}")
        else:
            ranges.append(re.escape(low))
    if at >= len(part):
        return None
    inside = "".join(ranges)
    if negated:
        return f"[^/{inside}]", at + 1
    return (f"(?!/)[{inside}]" if inside else "(?!)"), at + 1


def _char(part: str, at: int) -> tuple[str, int]:
    if part[at] == "\\" and at + 1 < len(part):
        at += 1
    return part[at], at + 1


_NAMED: Final = {
    "alpha": "A-Za-z",
    "digit": "0-9",
    "alnum": "A-Za-z0-9",
    "upper": "A-Z",
    "lower": "a-z",
    "space": r"\s",
    "blank": r" \t",
    "punct": r"!-/:-@\[-`{-~",
    "xdigit": "0-9A-Fa-f",
    "cntrl": r"\x00-\x1f\x7f",
    "print": r"\x20-\x7e",
    "graph": r"\x21-\x7e",
}


def _as_git(text: str, *, anchored: bool) -> str | None:
    """Translate a pattern as git does, which compares what is plain before the first wildcard by itself.

    So `a**/b` has its `**` at the beginning of what is left, and means any directories there (dir.c, match_pathname).
    """
    plain = re.match(r"[^*?\[\\]*", text)
    head = plain[0] if anchored and plain is not None else ""
    if not head or head.endswith("/") or not text.startswith("**", len(head)):
        return translate(text)
    rest = translate(text[len(head) :])
    if rest == ".+":
        rest = ".*"
    return None if rest is None else f"{re.escape(head)}/?{rest}"  # what is left of `a/b` begins with a slash


class Pattern:
    """One pattern: whether it takes back (`!`), is for directories only (`…/`), and what it matches."""

    __slots__ = ("_anchored", "_regex", "directories_only", "negated")

    def __init__(self, text: str) -> None:
        self.negated = text.startswith("!")
        if self.negated:
            text = text[1:]
        self.directories_only = text.endswith("/")
        text = text.rstrip("/") if self.directories_only else text
        self._anchored = "/" in text
        regex = _as_git(text.lstrip("/"), anchored=self._anchored) if text else None
        self._regex = None if regex is None else re.compile(regex, re.DOTALL)

    def matches(self, path: str, *, is_folder: bool) -> bool:
        """Tell whether it matches `path`, which is relative to where the pattern was written."""
        if self._regex is None or (self.directories_only and not is_folder):
            return False
        return self._regex.fullmatch(path if self._anchored else path.rpartition("/")[2]) is not None


def parse_ignore(text: str) -> list[Pattern]:
    """Return the patterns of a .gitignore file, in their order."""
    found: list[Pattern] = []
    for raw in text.removeprefix("\ufeff").split("\n"):
        line = raw.removesuffix("\r")
        stripped = line.rstrip(" ")
        if stripped.endswith("\\") and len(stripped) < len(line):
            stripped += " "  # an escaped space at the end stays
        if not stripped or stripped.startswith("#"):
            continue
        found.append(Pattern(stripped))
        if len(found) >= MAX_PATTERNS:
            break
    return found


#: The rules above a place, outermost first: (directory, its slash included; patterns). None in the place of patterns is
#: where a repository begins: what is said above it does not count.
Rules = list[tuple[str, list[Pattern] | None]]


def is_ignored(stack: Rules, path: str, *, is_folder: bool) -> bool:
    """Tell whether `path` is ignored by the files above it.

    The last pattern that matches decides. What is below an ignored directory is ignored too: walks do not enter it.
    """
    for directory, patterns in reversed(stack):
        if patterns is None:
            return False
        if not path.startswith(directory):
            continue
        below = path[len(directory) :]
        for pattern in reversed(patterns):
            if pattern.matches(below, is_folder=is_folder):
                return not pattern.negated
    return False
