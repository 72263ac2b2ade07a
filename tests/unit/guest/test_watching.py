"""Watches, interleaved: what is done to a tree between any two steps of its watcher is told, or an overflow is."""

from __future__ import annotations

import os
import pathlib
import select
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sandboxd.guest import watching
from sandboxd.guest.path_filter import PathFilter
from sandboxd.guest.paths import TEMPORARY
from sandboxd.linux.inotify import Inotify

#: What is done, a key of `DEEDS`, and the paths it is done to, relative to the watched directory.
Operation = tuple[str, ...]
DEEDS: dict[str, Callable[..., Any]] = {
    "mkdir": os.mkdir,
    "write": lambda path: pathlib.Path(path).write_bytes(b"x"),
    "delete": os.unlink,
    "rmdir": os.rmdir,
    "rename": os.rename,
}

MAKE_FILL_AND_RENAME: list[Operation] = [
    ("mkdir", "t"), ("mkdir", "t/a"), ("mkdir", "t/a/b"), ("write", "t/a/f"),
    ("rename", "t/a", "t/moved"), ("write", "t/moved/b/g"), ("rename", "t", "renamed"), ("mkdir", "renamed/moved/c"),
]  # fmt: skip
MAKE_DELETE_AND_MAKE: list[Operation] = [
    ("mkdir", "t"), ("mkdir", "t/a"), ("write", "t/a/f"), ("delete", "t/a/f"), ("rmdir", "t/a"),
    ("mkdir", "t/a"), ("mkdir", "t/a/b"), ("write", "t/a/b/f"),
]  # fmt: skip
MAKE_DIRECTORY_OF_FILE: list[Operation] = [
    ("mkdir", "t"), ("write", "t/a"), ("rename", "t/a", "../out"), ("mkdir", "t/a"), ("write", "t/a/f"),
]  # fmt: skip
#: Names are taken again by something else: where it cannot be known whose is whose, an overflow may say so.
NAMES_TAKEN_AGAIN: list[Operation] = [
    ("mkdir", "t"), ("mkdir", "t/a"), ("write", "t/a/f"), ("rename", "t/a", "t/b"),
    ("mkdir", "t/a"), ("write", "t/a/g"), ("delete", "t/b/f"), ("rmdir", "t/b"), ("rename", "t/a", "t/b"),
]  # fmt: skip
MOVE_INTO_WHAT_IS_NEW: list[Operation] = [
    ("mkdir", "a"), ("write", "a/f"), ("mkdir", "a/b"), ("mkdir", "new"), ("rename", "a", "new/a"),
    ("write", "new/a/h"), ("write", "new/a/b/i"),
]  # fmt: skip
#: What happens in a directory that has left the tree is nobody's business here.
MOVE_OUT: list[Operation] = [
    ("mkdir", "z"), ("mkdir", "z/b"), ("write", "z/b/f"), ("rename", "z", "../out"), ("write", "../out/b/x"),
    ("rename", "../out/b", "../out/c"), ("mkdir", "../out/d"), ("write", "y"),
    ("delete", "../out/c/f"), ("delete", "../out/c/x"), ("rmdir", "../out/c"), ("rmdir", "../out/d"),
    ("rmdir", "../out"),
]  # fmt: skip


class Rows:
    """Takes what a watcher tells."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def row(self, row: dict[str, Any], size: int) -> None:
        assert size > 0
        self.rows.append(row)

    def flush(self) -> None:
        """Nothing waits."""

    def known(self, root: pathlib.Path) -> set[str]:
        """Return what a reader who began with an empty directory believes to be there."""
        known: set[str] = set()
        for row in self.rows:
            path, kind = os.fsdecode(row["path"]), row["type"]
            if kind == "create":
                known.add(path)
            elif kind == "rename":
                old = os.fsdecode(row["from"])
                below = old + "/" if row["is_folder"] else None
                moved = {name for name in known if name == old or (below and name.startswith(below))}
                known = known - moved | {path + name[len(old) :] for name in moved} | {path}
            elif kind == "remove":
                known = {name for name in known if name != path and not name.startswith(path + "/")}
        return {name.removeprefix(f"{root}/") for name in known}


class Stage:
    """One directory, one watcher, and what is done to the directory while the watcher takes its steps.

    `schedule` says how many operations have been done when the watcher has taken so many steps. A step is a look at
    the tree (an open, a stat, a list of names), a new watch, or the next event.
    """

    def __init__(self, inotify: Inotify, root: pathlib.Path, operations: list[Operation]) -> None:
        self.root = root
        self.rows = Rows()
        self.steps = 0
        self._operations = operations
        self._done = 0
        self._schedule: dict[int, int] = {}
        self._inotify = inotify
        root.mkdir()
        self._watcher = watching._Watcher(str(root), True, True, self.rows, PathFilter({}))  # type: ignore[arg-type]
        self._watcher.start()

    def run(self, schedule: dict[int, int], *, late: bool) -> None:
        """Do all operations and take all events; `late`: each event comes when the queue was found empty before it."""
        self._schedule = schedule
        self.steps = 0
        self.step()
        while True:
            for happening in self._inotify.read():
                self.step()
                self._watcher._on_happening(happening)
                if late:
                    self._watcher._caught_up()
            if not self._pending():
                if self._done == len(self._operations):
                    break
                self._do(len(self._operations))
        self._watcher._tell_moved_away()

    def step(self) -> None:
        self._do(self._schedule.get(self.steps, 0))
        self.steps += 1

    def _pending(self) -> bool:
        return bool(select.select([self._inotify.fd], [], [], 0)[0])

    def _do(self, count: int) -> None:
        while self._done < count:
            name, *paths = self._operations[self._done]
            self._done += 1
            full = [f"{self.root}/{path}" for path in paths]
            DEEDS[name](*full)

    def there(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*")}

    def close(self) -> None:
        """Leave the instance as if nothing had been watched: closing one takes the kernel long."""
        for number in list(self._watcher._paths):
            self._inotify.unwatch(number)
        while self._pending():
            list(self._inotify.read())
        shutil.rmtree(self.root)


class Theatre:
    """Runs an interleaving after the other."""

    def __init__(self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._inotify = Inotify()
        self._directory = tmp_path
        self._stage: Stage | None = None
        self._count = 0
        monkeypatch.setattr(watching, "Inotify", lambda: self._inotify)
        for owner, name in ((os, "open"), (os, "stat"), (os, "scandir"), (Inotify, "watch")):
            monkeypatch.setattr(owner, name, self._stepping(getattr(owner, name)))

    def _stepping(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            stage, self._stage = self._stage, None  # what the operations themselves call is no step
            if stage is not None:
                stage.step()
                self._stage = stage
            return function(*args, **options)

        return call

    def play(self, operations: list[Operation], schedule: dict[int, int], *, late: bool) -> tuple[Stage, set[str]]:
        """Run one interleaving; return its stage and what is there in the end."""
        self._count += 1
        stage = Stage(self._inotify, self._directory / str(self._count), operations)
        self._stage = stage
        try:
            stage.run(schedule, late=late)
        finally:
            self._stage = None
        there = stage.there()
        stage.close()
        return stage, there

    def close(self) -> None:
        os.close(self._inotify.fd)


@pytest.fixture
def theatre(tmp_path: pathlib.Path) -> Iterator[Theatre]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = Theatre(tmp_path, monkeypatch)
        yield made
    made.close()


@pytest.mark.parametrize(
    ("operations", "may_overflow", "late"),
    [
        pytest.param(MAKE_FILL_AND_RENAME, False, False, id="rename"),
        pytest.param(MAKE_FILL_AND_RENAME, False, True, id="rename-late"),
        pytest.param(MAKE_DELETE_AND_MAKE, False, False, id="make-again"),
        pytest.param(MAKE_DIRECTORY_OF_FILE, False, False, id="folder-of-file"),
        pytest.param(NAMES_TAKEN_AGAIN, True, False, id="names-taken-again"),
        pytest.param(MOVE_INTO_WHAT_IS_NEW, False, False, id="move-into-new"),
        pytest.param(MOVE_OUT, False, False, id="move-out"),
    ],
)
def test_whatever_happens_between_two_steps_is_told(
    theatre: Theatre, operations: list[Operation], *, may_overflow: bool, late: bool
) -> None:
    """All interleavings of two switches: some operations, some steps, some operations, all steps, the rest."""
    wrong: list[str] = []
    plays = 0
    descriptors = len(os.listdir("/proc/self/fd"))
    for first in range(1, len(operations) + 1):
        for second in range(first, len(operations) + 1):
            at = 1
            while True:
                stage, there = theatre.play(operations, {0: first, at: second}, late=late)
                plays += 1
                known = stage.rows.known(stage.root)
                overflow = any(row["type"] == "overflow" for row in stage.rows.rows)
                if (overflow and not may_overflow) or (not overflow and known != there):
                    lost, ghosts = sorted(there - known), sorted(known - there)
                    wrong.append(f"{first=} {second=} {at=} {overflow=} {lost=} {ghosts=}")
                at += 1
                if first == second or at > stage.steps:
                    break
    assert not wrong, (len(wrong), plays, wrong[:12])
    assert len(os.listdir("/proc/self/fd")) == descriptors


class Watched:
    """A directory with a watcher, whose rows are taken after each operation."""

    def __init__(self, root: pathlib.Path, *, target: pathlib.Path | None = None, recursive: bool = True) -> None:
        self.root = root
        self.rows = Rows()
        is_folder = target is None
        path = str(root if target is None else target)
        self.watcher = watching._Watcher(path, is_folder, recursive, self.rows, PathFilter({}))  # type: ignore[arg-type]
        self.watcher.start()
        self.rows.rows.clear()

    def after(self, *operation: str) -> list[tuple[str, str]]:
        """Do something and return what is told of it: kinds and paths."""
        name, *paths = operation
        DEEDS[name](*(f"{self.root}/{path}" for path in paths))
        inotify = self.watcher._inotify
        while select.select([inotify.fd], [], [], 0)[0]:
            for happening in inotify.read():
                self.watcher._on_happening(happening)
        self.watcher._tell_moved_away()
        self.watcher._caught_up()
        found = [(row["type"], os.fsdecode(row["path"]).removeprefix(f"{self.root}/")) for row in self.rows.rows]
        self.rows.rows.clear()
        return found

    def close(self) -> None:
        os.close(self.watcher._inotify.fd)


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    root = tmp_path / "root"
    (root / "d" / "e").mkdir(parents=True)
    for name in ("f", "d/f", "d/e/f", "../in", "../in2", f"{TEMPORARY}0", f"d/e/{TEMPORARY}1", f"{TEMPORARY}2"):
        (root / name).write_text("x")
    return root


def test_what_takes_the_place_of_a_file_is_a_write(tree: pathlib.Path) -> None:
    watched = Watched(tree)
    assert watched.after("rename", f"{TEMPORARY}0", "f") == [("write", "f")]
    assert watched.after("rename", f"d/e/{TEMPORARY}1", "d/e/f") == [("write", "d/e/f")]
    assert watched.after("rename", "../in", "d/f") == [("write", "d/f")]
    assert watched.after("rename", f"{TEMPORARY}2", "new") == [("create", "new")]
    # Names go with their directories, and go away with what had them.
    assert watched.after("rename", "d", "moved") == [("rename", "moved")]
    assert watched.after("rename", "../in2", "moved/e/f") == [("write", "moved/e/f")]
    assert watched.after("rename", "moved/e/f", "../in") == [("remove", "moved/e/f")]
    assert watched.after("rename", "../in", "moved/e/f") == [("create", "moved/e/f")]
    assert watched.after("delete", "new") == [("remove", "new")]
    assert watched.after("rename", "moved/e/f", "new") == [("rename", "new")]
    assert watched.after("rename", "f", "new") == [("rename", "new")]
    watched.close()


@pytest.mark.parametrize("recursive", [False, True])
def test_so_it_is_of_one_file_and_of_one_level(tree: pathlib.Path, *, recursive: bool) -> None:
    level, one = Watched(tree, recursive=False), Watched(tree, target=tree / "f", recursive=recursive)
    DEEDS["rename"](tree / f"{TEMPORARY}0", tree / "f")
    assert [watched.after("delete", "../in2" if watched is one else "../in") for watched in (level, one)] == [
        [("write", "f")],
        [("write", "f")],
    ]
    assert level.after("rename", f"{TEMPORARY}2", "new") == [("create", "new")]
    level.close()
    one.close()


def test_a_folder_that_takes_anothers_place_is_watched(tree: pathlib.Path) -> None:
    (tree / "empty").mkdir()
    (tree / "../full").mkdir()
    (tree / "../full/a").write_text("x")
    watched = Watched(tree)
    assert watched.after("rename", "../full", "empty") == [("create", "empty"), ("create", "empty/a")]
    assert watched.after("write", "empty/b")[0] == ("create", "empty/b")
    watched.close()


def test_names_beyond_the_bound_are_forgotten_well(tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MAX_NAMES", 1)
    watched = Watched(tree)
    told = {watched.after("rename", source, target)[0][0] for source, target in (("../in", "f"), ("../in2", "d/f"))}
    assert told <= {"create", "write"}
    assert "create" in told
    assert watched.watcher._named <= 1
    watched.close()
