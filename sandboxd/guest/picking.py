"""Which entries of a walk are meant: patterns to keep, patterns to leave out, and .gitignore files as they are met.

Patterns are gitignore's (`globs.py`). What is left out takes all below it along; what is to be kept is asked of each
name alone, so a walk looks into folders whose own name is not kept.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Any, Final

from . import globs
from .tree import Entry

#: A .gitignore over this is not read.
_MAX_IGNORE_BYTES: Final = 1024 * 1024
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Picker:
    """Patterns of a request: `include` (none is everything) and `exclude`."""

    def __init__(self, params: dict[str, Any]) -> None:
        self._include = [globs.Pattern(text) for text in params.get("include") or ()]
        self._exclude = [globs.Pattern(text) for text in params.get("exclude") or ()]

    def leaves_out(self, path: str, *, is_folder: bool) -> bool:
        """Tell whether a path, relative to the root, or a folder above it is left out."""
        if not self._exclude:
            return False
        parts = path.split("/")
        above = ("/".join(parts[:count]) for count in range(1, len(parts)))
        return self._is_excluded(path, is_folder) or any(self._is_excluded(folder, True) for folder in above)

    def _is_excluded(self, path: str, is_folder: bool) -> bool:
        return any(pattern.matches(path, is_folder=is_folder) for pattern in self._exclude)

    def keeps(self, path: str, *, is_folder: bool) -> bool:
        """Tell whether a path that is not left out is meant."""
        return not self._include or any(pattern.matches(path, is_folder=is_folder) for pattern in self._include)

    def pick(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """Give what is meant of a walk; what is left out is not walked into."""
        for entry in entries:
            if self._is_excluded(entry.path, entry.is_folder):
                entry.descend = False
            elif self.keeps(entry.path, is_folder=entry.is_folder):
                yield entry


class Ignores:
    """The .gitignore files above the present place of a walk of `root`, which is in order."""

    def __init__(self, root: int) -> None:
        self._stack: list[tuple[str, list[globs.Pattern]]] = []
        self._read(root, "")

    def pick(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """Give what is not ignored of a walk; nor is `.git` itself."""
        for entry in entries:
            if self.passes(entry):
                yield entry
            else:
                entry.descend = False

    def passes(self, entry: Entry) -> bool:
        """Tell whether the walk's next entry is not ignored; a folder's own file is read."""
        while self._stack and not entry.path.startswith(self._stack[-1][0]):
            self._stack.pop()
        if entry.name == ".git" or globs.is_ignored(self._stack, entry.path, is_folder=entry.is_folder):
            return False
        if entry.is_folder:
            with contextlib.suppress(OSError):
                fd = os.open(entry.name, _FOLDER, dir_fd=entry.folder)
                try:
                    self._read(fd, entry.path + "/")
                finally:
                    os.close(fd)
        return True

    def _read(self, folder: int, prefix: str) -> None:
        with contextlib.suppress(OSError):
            fd = os.open(".gitignore", _OPEN, dir_fd=folder)
            try:
                facts = os.fstat(fd)
                if stat.S_ISREG(facts.st_mode) and facts.st_size <= _MAX_IGNORE_BYTES:
                    text = os.read(fd, _MAX_IGNORE_BYTES).decode("utf-8", "surrogateescape")
                    self._stack.append((prefix, globs.parse_ignore(text)))
            finally:
                os.close(fd)
