"""What git ignores below any directory of a repository, with git itself as the judge."""

from __future__ import annotations

import os
import pathlib
import random
import shutil
import subprocess

import pytest

from sandboxd.guest.path_filter import Ignores
from sandboxd.guest.tree import walk

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is the judge")

ENV = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
NAMES = ["a", "b", "build", "x.log", "y.log", "z.txt", ".hidden", "é"]
PATTERNS = [
    "*.log", "!x.log", "/a", "a/", "build/", "b/**", "**/z.txt", "!/b", "a/b", "/a/build", "*", "!*/", "!*.txt", "é",
    ".hidden", "a/*", "!a/b", "build/x.log", "# a", "", "**/a/b", "\\!x",
]  # fmt: skip


def git(directory: pathlib.Path, *words: str) -> bytes:
    done = subprocess.run(["git", "-C", str(directory), *words], capture_output=True, env=ENV, check=True, timeout=60)
    return done.stdout


def theirs(repository: pathlib.Path, root: pathlib.Path) -> set[pathlib.Path]:
    """Return the files below `root` that git does not ignore, of other repositories in it too."""
    found = set()
    for name in git(repository, "ls-files", "-o", "--exclude-standard", "-z").split(b"\0"):
        path = repository / os.fsdecode(name)
        if name.endswith(b"/"):
            found |= theirs(path, root)
        elif name and root in path.parents:
            found.add(path)
    return found


def ours(root: pathlib.Path) -> set[pathlib.Path]:
    """Return the files below `root` that a backup or a search takes."""
    before = len(os.listdir("/proc/self/fd"))
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        entries = list(Ignores(fd).pick(walk(fd)))
    finally:
        os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before
    return {root / entry.path for entry in entries if not entry.is_folder}


class Grown:
    """A tree of random directories, files and rules, and which directories of it are repositories."""

    def __init__(self, directory: pathlib.Path, seed: int) -> None:
        self._random = random.Random(seed)
        self.repositories = [directory]
        self.directories = [directory]
        git(directory, "init", "-q")
        self._grow(directory, 0)
        for repository in self.repositories:
            (repository / ".git/info").mkdir(exist_ok=True)
            (repository / ".git/info/exclude").write_text(self._rules())

    def _rules(self) -> str:
        return "".join(line + "\n" for line in self._random.sample(PATTERNS, self._random.randint(0, 4)))

    def _grow(self, directory: pathlib.Path, depth: int) -> None:
        if self._random.random() < 0.5:
            (directory / ".gitignore").write_text(self._rules())
        for name in self._random.sample(NAMES, 5):
            path = directory / name
            if depth < 3 and self._random.random() < 0.45:
                path.mkdir()
                self.directories.append(path)
                if self._random.random() < 0.15:
                    git(path, "init", "-q")
                    self.repositories.append(path)
                self._grow(path, depth + 1)
            else:
                path.write_text("x")

    def repository_of(self, directory: pathlib.Path) -> pathlib.Path:
        return max(
            (one for one in self.repositories if one == directory or one in directory.parents),
            key=lambda p: len(p.parts),
        )


@pytest.mark.parametrize("seed", range(12))
def test_every_folder_of_a_repository_is_as_git_says(tmp_path: pathlib.Path, seed: int) -> None:
    (tmp_path / ".gitignore").write_text("*\n")  # above the repository: nobody asks
    top = tmp_path / "top"
    top.mkdir()
    grown = Grown(top, seed)
    for directory in grown.directories:
        assert ours(directory) == theirs(grown.repository_of(directory), directory), (seed, directory)


def test_the_rules_above_a_folder_are_those_of_its_repository(tmp_path: pathlib.Path) -> None:
    top = tmp_path / "top"
    (top / "src/deep").mkdir(parents=True)
    git(top, "init", "-q")
    (tmp_path / ".gitignore").write_text("outside\n")
    (top / ".gitignore").write_text("*.log\n/src/deep/only\n")
    (top / "src/.gitignore").write_text("!keep.log\n")
    (top / ".git/info/exclude").write_text("secret\n*.keep\n")
    (top / "src/deep/.gitignore").write_text("!a.keep\n")
    for name in ("outside", "a.log", "keep.log", "only", "secret", "a.keep", "b.keep", "plain"):
        (top / "src/deep" / name).write_text("x")
    assert {path.name for path in ours(top / "src/deep")} == {".gitignore", "outside", "keep.log", "a.keep", "plain"}


def test_a_worktree_has_its_repositorys_excludes(tmp_path: pathlib.Path) -> None:
    top, tree = tmp_path / "top", tmp_path / "tree"
    git(tmp_path, "init", "-q", str(top))
    git(top, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x")
    git(top, "worktree", "add", "-q", str(tree))
    (top / ".git/info/exclude").write_text("secret\n")
    (tree / "d").mkdir()
    for name in ("secret", "plain"):
        (tree / "d" / name).write_text("x")
    assert ours(tree / "d") == theirs(tree, tree / "d") == {tree / "d/plain"}


def test_without_a_repository_the_rules_begin_at_the_folder(tmp_path: pathlib.Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / ".gitignore").write_text("a\n")
    (tmp_path / "d/.gitignore").write_text("b\n")
    for name in ("a", "b", "c", "e/b"):
        (tmp_path / "d" / name).write_text("x")
    assert {str(path.relative_to(tmp_path / "d")) for path in ours(tmp_path / "d")} == {".gitignore", "a", "c"}


@pytest.mark.parametrize("odd", ["fifo", "folder", "link", "large", "loop", "nowhere"])
def test_rules_that_cannot_be_read_are_none(tmp_path: pathlib.Path, odd: str) -> None:
    top = tmp_path / "top"
    (top / "d").mkdir(parents=True)
    (top / "d/a").write_text("x")
    (tmp_path / "rules").write_text("a\n")
    git(top, "init", "-q")
    place = top / ".gitignore"
    if odd == "fifo":
        os.mkfifo(place)
    elif odd == "folder":
        place.mkdir()
    elif odd == "link":
        place.symlink_to("../rules")  # git does not follow it either
    elif odd == "large":
        place.write_text("a\n" + "#" * (1 << 20))
    else:
        shutil.rmtree(top / ".git")
        (top / ".git").write_text(f"gitdir: {top / '.git' if odd == 'loop' else '/nowhere'}\n")
    assert {path.name for path in ours(top / "d")} == {"a"}
