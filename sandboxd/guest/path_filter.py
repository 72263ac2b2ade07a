"""Which entries of a walk are meant: patterns to keep, patterns to leave out, and .gitignore files as they are met.

Patterns are gitignore's (`globs.py`). What is left out takes all below it along; what is to be kept is asked of each
name alone, so a walk looks into directories whose own name is not kept.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Any, Final

from . import globs
from .tree import Entry

#: A .gitignore over this is not read.
_MAX_IGNORE_BYTES: Final = 1024 * 1024
_OPEN: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class PathFilter:
    """Patterns of a request: `include` (none is everything) and `exclude`."""

    def __init__(self, params: dict[str, Any]) -> None:
        self._include = [globs.Pattern(text) for text in params.get("include") or ()]
        self._exclude = [globs.Pattern(text) for text in params.get("exclude") or ()]

    def leaves_out(self, path: str, *, is_folder: bool) -> bool:
        """Tell whether a path, relative to the root, or a directory above it is left out."""
        if not self._exclude:
            return False
        parts = path.split("/")
        above = ("/".join(parts[:count]) for count in range(1, len(parts)))
        return self._is_excluded(path, is_folder) or any(self._is_excluded(directory, True) for directory in above)

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
    """The rules of git above the present place of a walk of `root`, which is in order.

    They are those of every .gitignore from there up to the directory with `.git`, and of that one's info/exclude. Where
    no directory above has a `.git` they begin at `root`. Paths here count from where the rules begin.
    """

    def __init__(self, root: int) -> None:
        self._rules: globs.Rules = []
        parts = _parts_below_repository(root)
        self._base = "".join(part + "/" for part in parts)
        self._is_all_ignored = False
        prefix, directory = "", os.open("/".join([".."] * len(parts)) or ".", _DIRECTORY, dir_fd=root)
        try:
            self._enter(directory, prefix)
            for part in parts:
                if part == ".git" or globs.is_ignored(self._rules, prefix + part, is_folder=True):
                    self._is_all_ignored = True
                    break
                prefix += part + "/"
                above, directory = directory, os.open(part, _DIRECTORY, dir_fd=directory)
                os.close(above)
                self._enter(directory, prefix)
        except OSError:
            return  # it is being moved: what was found so far holds
        finally:
            os.close(directory)

    def pick(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """Give what is not ignored of a walk; nor is `.git` itself."""
        for entry in entries:
            if self.passes(entry):
                yield entry
            else:
                entry.descend = False

    def passes(self, entry: Entry) -> bool:
        """Tell whether the walk's next entry is not ignored; a directory's own files are read."""
        path = self._base + entry.path
        while self._rules and not path.startswith(self._rules[-1][0]):
            self._rules.pop()
        if self._is_all_ignored or entry.name == ".git":
            return False
        if globs.is_ignored(self._rules, path, is_folder=entry.is_folder):
            return False
        if entry.is_folder:
            with contextlib.suppress(OSError):
                fd = os.open(entry.name, _DIRECTORY, dir_fd=entry.directory)
                try:
                    self._enter(fd, path + "/")
                finally:
                    os.close(fd)
        return True

    def _enter(self, directory: int, prefix: str) -> None:
        """Take the rules that a directory adds; they go with it, since all of them have its prefix."""
        if _is_there(".git", directory):
            self._rules.append((prefix, None))
            with contextlib.suppress(OSError):
                self._read(f"{_git_directory(directory)}/info/exclude", directory, prefix)
        with contextlib.suppress(OSError):
            self._read(".gitignore", directory, prefix, os.O_NOFOLLOW)

    def _read(self, name: str, directory: int, prefix: str, flags: int = 0) -> None:
        self._rules.append((prefix, globs.parse_ignore(_text(name, directory, flags))))


def _parts_below_repository(root: int) -> list[str]:
    """Return the names of the directories from the repository's that `root` is in (without it) down to `root`."""
    parts = [part for part in os.readlink(f"/proc/self/fd/{root}").split("/") if part]
    for count in range(len(parts) + 1):
        if _is_there("/".join([*[".."] * count, ".git"]), root):
            return parts[len(parts) - count :]
    return []


def _is_there(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return True


def _git_directory(directory: int) -> str:
    """Return where a repository's own files are: `.git`, or what that file names (gitrepository-layout(5))."""
    if stat.S_ISDIR(os.stat(".git", dir_fd=directory).st_mode):
        return ".git"
    named = _text(".git", directory).removeprefix("gitdir:").strip()
    with contextlib.suppress(OSError):
        return os.path.join(named, _text(f"{named}/commondir", directory).strip())  # of a worktree
    return named


def _text(name: str, directory: int, flags: int = 0) -> str:
    """Return what is in a small file.

    Raises:
        OSError: there is none.
    """
    fd = os.open(name, _OPEN | flags, dir_fd=directory)
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _MAX_IGNORE_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return os.read(fd, _MAX_IGNORE_BYTES).decode("utf-8", "surrogateescape")
    finally:
        os.close(fd)
