"""A repository on disk, which is the sandbox's: read by dulwich, which here opens no file that its words name.

`includes` of its configuration are not followed, nor is anybody else's configuration read. What is no regular file
would keep a reader waiting (a FIFO) or never end (/dev/zero behind a link): it is refused before it is opened.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Any, Final

from dulwich.config import ConfigFile, StackedConfig
from dulwich.repo import Repo

from ...errors import GitRefused
from . import configfile

#: What dulwich reads whole, but for references and packs, which are bounded by the objects that they name.
_SMALL: Final = ("config", "config.worktree", "HEAD", "shallow", "info/grafts")
#: Of all its references in one file: some million names.
_MAX_REFS_BYTES: Final = 128 * 1024 * 1024
_MAX_FILES: Final = 2_000_000
#: How deep repositories borrow objects from others, as in C git.
_MAX_ALTERNATES: Final = 5


def open_repository(path: str) -> Repo:
    """Open a repository that nobody vouches for; the caller closes it.

    Raises:
        GitRefused: a file of it is no regular file, or is larger than it may be.
        NotGitRepository, OSError: it is none, or cannot be read.
    """
    check(Path(path))
    return _Repo(path)


class _Repo(Repo):
    def get_config(self) -> ConfigFile:
        return _config(Path(os.fsdecode(self.commondir())) / "config")

    def get_worktree_config(self) -> ConfigFile:
        return _config(Path(os.fsdecode(self.commondir())) / "config.worktree")

    def get_config_stack(self) -> StackedConfig:
        return StackedConfig([self.get_config()])


def _config(path: Path) -> ConfigFile:
    found = ConfigFile()
    values: Any = found
    for section, sub, name, value in configfile.parse(configfile.read(path, path.name, follow=True) or b"", path.name):
        values.set((section,) if sub is None else (section, sub), name, b"true" if value is None else value)
    return found


def check(root: Path) -> None:
    """Look at what a reader of the repository opens.

    Raises:
        GitRefused: something is no regular file, or is larger than it may be, or they are too many.
    """
    git = root / ".git"
    _check_file(git, configfile.MAX_BYTES)
    if os.path.isfile(git):  # of a worktree or a submodule: it says where the directory is
        git = root / _words(git, ".git").removeprefix("gitdir:").strip()
    elif not os.path.exists(git):
        git = root
    places = [git]
    _check_file(git / "commondir", configfile.MAX_BYTES)
    if os.path.isfile(git / "commondir"):  # of a worktree: what it shares with the others is there
        places.append(git / _words(git / "commondir", "commondir").strip())
    for place in places:
        for name in _SMALL:
            _check_file(place / name, configfile.MAX_BYTES)
        _check_file(place / "packed-refs", _MAX_REFS_BYTES)
        for name in ("refs", "reftable"):
            _check_directory(place / name, 0)
        _check_objects(place / "objects", 0, 0)


def _check_objects(objects: Path, count: int, level: int) -> int:
    """Look at the objects, and at those of the repositories that this one borrows from; returns how many files."""
    count = _check_directory(objects, count)
    borrowed = objects / "info/alternates"
    if os.path.isfile(borrowed) and level < _MAX_ALTERNATES:
        _check_file(borrowed, configfile.MAX_BYTES)
        for line in _words(borrowed, "alternates").splitlines():
            if line and not line.startswith("#"):
                count = _check_objects(objects / line, count, level + 1)
    return count


def _words(path: Path, shown: str) -> str:
    return os.fsdecode(configfile.read(path, shown, follow=True) or b"").replace("\0", "")


def _check_directory(top: Path, count: int) -> int:
    for directory, _, files in os.walk(top):
        for file in files:
            _check_file(Path(directory) / file, None)
            count += 1
            if count > _MAX_FILES:
                raise _refused(top, f"it has over {_MAX_FILES} files")
    return count


def _check_file(path: Path, limit: int | None) -> None:
    with contextlib.suppress(OSError):  # what cannot be looked at cannot be opened either
        facts = path.stat()
        if stat.S_ISDIR(facts.st_mode):
            return
        if not stat.S_ISREG(facts.st_mode):
            raise _refused(path, "it is not a file")
        if limit is not None and facts.st_size > limit:
            raise _refused(path, f"it is over {limit} bytes")


def _refused(path: Path, why: str) -> GitRefused:
    return GitRefused(f"cannot read {path}: {why}", reason="configuration", file=str(path))
