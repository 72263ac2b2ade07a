"""What a caller asks of many files at once, checked: patterns, searches, replacements."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from ..errors import InvalidRequest
from ..spec import check_text, name_bytes

#: Patterns of one request, and the length of one; `guest/globs.py` takes none that is longer.
MAX_PATTERNS: Final = 256
MAX_PATTERN_CHARS: Final = 1000
#: Matches, or files that are rewritten.
MAX_FOUND: Final = 10_000
MAX_TIMEOUT_S: Final = 300.0
#: An expression is compiled in the sandbox, in its own time; longer ones are no expressions.
MAX_EXPRESSION_BYTES: Final = 10_000
MAX_REPLACEMENT_BYTES: Final = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Picked:
    """Which files below a directory are meant.

    Attributes:
        include: patterns as in gitignore(5); none means all.
        exclude: patterns of what is left out, with all below it.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the patterns."""
        for field, patterns in (("include", self.include), ("exclude", self.exclude)):
            if len(patterns) > MAX_PATTERNS:
                raise InvalidRequest(f"cannot accept {field}: there are over {MAX_PATTERNS} patterns", field=field)
            if not all(0 < len(text) <= MAX_PATTERN_CHARS and "\0" not in text for text in patterns):
                raise InvalidRequest(
                    f"cannot accept {field}: a pattern has 1 to {MAX_PATTERN_CHARS} characters", field=field
                )

    def params(self) -> dict[str, Any]:
        """Return the file jobs' parameters."""
        return {"include": list(self.include), "exclude": list(self.exclude)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Query:
    """Where to look, and for how much.

    Attributes:
        path: a directory, or one file.
        name: a pattern as in gitignore(5) of the files that are looked at.
        limit: how many matches, or files that are rewritten, at most.
    """

    path: str
    name: str | None = None
    ignore_case: bool = False
    gitignore: bool = False
    hidden: bool = False
    limit: int = 1000
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        """Check the bounds."""
        if not 1 <= self.limit <= MAX_FOUND:
            raise InvalidRequest(f"cannot accept limit: it must be 1 to {MAX_FOUND}", field="limit")
        if not 0 < self.timeout_s <= MAX_TIMEOUT_S:
            raise InvalidRequest(
                f"cannot accept timeout_s: it must be above 0 and at most {MAX_TIMEOUT_S:g}", field="timeout_s"
            )
        if self.name is not None:
            check_text(self.name, "name", limit=MAX_PATTERN_CHARS)

    def params(self) -> dict[str, Any]:
        """Return the file job's parameters."""
        fields = dataclasses.fields(self)
        return {**{field.name: getattr(self, field.name) for field in fields}, "path": name_bytes(self.path)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Search(_Query):
    """What to look for: names alone, or with `content`, one of Python's regular expressions, lines in files."""

    content: str | None = None

    def __post_init__(self) -> None:
        """Check what to look for, and the bounds."""
        if self.content is not None:
            check_text(self.content, "content", limit=MAX_EXPRESSION_BYTES)
        elif self.name is None:
            raise InvalidRequest("cannot search: give name, content or both", field="content")
        _Query.__post_init__(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Replacement(_Query):
    """What to replace in files: `pattern` as it stands, or with `regex` as one of Python's regular expressions."""

    pattern: str
    replacement: str
    regex: bool = False

    def __post_init__(self) -> None:
        """Check what to replace, and the bounds."""
        if not self.pattern:
            raise InvalidRequest("cannot accept pattern: it is empty", field="pattern")
        _Query.__post_init__(self)
        check_text(self.pattern, "pattern", limit=MAX_EXPRESSION_BYTES)
        check_text(self.replacement, "replacement", limit=MAX_REPLACEMENT_BYTES)
