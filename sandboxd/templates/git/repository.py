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
_SMALL: Final = ("config", "config.worktree", "HEAD", "commondir", "shallow", "info/grafts", "objects/info/alternates")
#: Of all its references in one file: some million names.
_MAX_REFS_BYTES: Final = 128 * 1024 * 1024
#: Where every file is opened by its name.
_FOLDERS: Final = ("refs", "objects/pack", "objects/info", "reftable")
_MAX_FILES: Final = 2_000_000


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
        GitRefused: something is no regular file, or is larger than it may be.
    """
    git = root / ".git"
    _check_file(git, configfile.MAX_BYTES)
    if os.path.isfile(git):  # of a worktree or a submodule: it says where the folder is
        git = root / os.fsdecode((configfile.read(git, ".git", follow=True) or b"").removeprefix(b"gitdir:").strip())
    elif not os.path.exists(git):
        git = root
    for name in _SMALL:
        _check_file(git / name, configfile.MAX_BYTES)
    _check_file(git / "packed-refs", _MAX_REFS_BYTES)
    count = 0
    for name in _FOLDERS:
        for folder, _, files in os.walk(git / name):
            for file in files:
                _check_file(Path(folder) / file, None)
                count += 1
                if count > _MAX_FILES:
                    raise _refused(git / name, f"it has over {_MAX_FILES} files")


def _check_file(path: Path, limit: int | None) -> None:
    with contextlib.suppress(OSError):  # what cannot be looked at cannot be opened either
        facts = path.stat()
        if stat.S_ISDIR(facts.st_mode):
            return
        if not stat.S_ISREG(facts.st_mode):
            raise _refused(path, "it is no file")
        if limit is not None and facts.st_size > limit:
            raise _refused(path, f"it is over {limit} bytes")


def _refused(path: Path, why: str) -> GitRefused:
    return GitRefused(f"cannot read {path}: {why}", reason="configuration", file=str(path))
