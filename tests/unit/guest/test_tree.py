"""Walks, deletions and copies of trees, some of which change meanwhile."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import LimitExceeded, NotAFile
from sandboxd.guest import tree
from sandboxd.guest.paths import TEMPORARY
from sandboxd.guest.tree import Copier
from sandboxd.linux.kernel import Kernel
from tests.support.file_jobs import left_open

KERNEL = Kernel()
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    with left_open():
        yield


def opened(path: pathlib.Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def walked(path: pathlib.Path, **options: Any) -> list[str]:
    """Return the paths that a walk gives; it leaves no descriptor open."""
    root = opened(path)
    before = len(os.listdir("/proc/self/fd"))
    found = [entry.path for entry in tree.walk(root, **options)]
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(root)
    return found


def grow(top: pathlib.Path, *names: str) -> None:
    """Make files, directories (`a/`) and links (`a -> b`), and what is above them."""
    for line in names:
        name, _, target = line.partition(" -> ")
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if target:
            path.symlink_to(target)
        elif name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_text(name)


def facts_of(top: pathlib.Path) -> dict[bytes, tuple[Any, ...]]:
    """Return all that a copy keeps, of everything below a directory."""
    found: dict[bytes, tuple[Any, ...]] = {}
    root = os.fsencode(top)
    for at, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(at, name)
            one = os.lstat(path)
            content: bytes | None = None
            if stat.S_ISREG(one.st_mode):
                content = pathlib.Path(os.fsdecode(path)).read_bytes()
            elif stat.S_ISLNK(one.st_mode):
                content = os.readlink(path)
            mtime = None if stat.S_ISLNK(one.st_mode) or stat.S_ISFIFO(one.st_mode) else one.st_mtime_ns
            found[os.path.relpath(path, root)] = (one.st_mode, one.st_uid, one.st_gid, mtime, content)
    return found


#: Trees: each name a file of these bytes, or a tree.
NAMES = st.sampled_from([b"a", b"b", b"a.b", b"a-", b".h", b"A", "é".encode(), b"\xff", b"x y", b"a\n"])
TREES: st.SearchStrategy[dict[bytes, Any]] = st.recursive(
    st.dictionaries(NAMES, st.binary(max_size=9), max_size=4),
    lambda below: st.dictionaries(NAMES, st.one_of(st.binary(max_size=9), below), max_size=4),
    max_leaves=8,
)


def plant(top: pathlib.Path, plan: dict[bytes, Any]) -> None:
    for name, content in plan.items():
        path = top / os.fsdecode(name)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.mkdir()
            plant(path, content)


def names_of(plan: dict[bytes, Any], prefix: tuple[bytes, ...] = ()) -> list[tuple[bytes, ...]]:
    found = []
    for name, content in plan.items():
        found.append((*prefix, name))
        if isinstance(content, dict):
            found += names_of(content, (*prefix, name))
    return found


# --- walks -------------------------------------------------------------------------------------------------


@given(TREES, st.sampled_from([None, 1, 2, 3]), st.data())
def test_a_walk_gives_everything_once_in_order_and_goes_on_behind_any_name(
    tmp_path_factory: pytest.TempPathFactory, plan: dict[bytes, Any], at_most: int | None, data: st.DataObject
) -> None:
    top = tmp_path_factory.mktemp("walk")
    plant(top, plan)
    everything = sorted(names_of(plan))
    wanted = [os.fsdecode(b"/".join(parts)) for parts in everything]
    assert walked(top, at_most=at_most) == wanted
    if wanted:
        place = data.draw(st.integers(0, len(wanted) - 1))
        assert walked(top, at_most=at_most, after=wanted[place]) == wanted[place + 1 :]
    seen = [parts for parts in everything if not any(part.startswith(b".") for part in parts)]
    assert walked(top, at_most=at_most, hidden=False) == [os.fsdecode(b"/".join(parts)) for parts in seen]
    flat = [os.fsdecode(parts[0]) for parts in everything if len(parts) == 1]
    assert walked(top, at_most=at_most, recursive=False) == flat


def test_a_walk_goes_on_behind_a_name_that_is_gone(tmp_path: pathlib.Path) -> None:
    grow(tmp_path, "a/x", "a/z", "c", "b/q")
    assert walked(tmp_path, after="a/y") == ["a/z", "b", "b/q", "c"]
    assert walked(tmp_path, after="a0") == ["b", "b/q", "c"]
    assert walked(tmp_path, after="a/x/deeper/yet") == ["a/z", "b", "b/q", "c"]
    assert walked(tmp_path, after="zzz") == []


def test_temporary_names_are_left_out(tmp_path: pathlib.Path) -> None:
    grow(tmp_path, "a", f"{TEMPORARY}1", f"d/{TEMPORARY}2/x", "d/b")
    assert walked(tmp_path) == ["a", "d", "d/b"]


def test_a_walk_follows_no_link(tmp_path: pathlib.Path) -> None:
    grow(tmp_path, "d/x", "l -> d", "loop -> .", "out -> /")
    assert walked(tmp_path) == ["d", "d/x", "l", "loop", "out"]


def test_a_caller_keeps_a_walk_out_of_a_directory_or_opens_it_itself(tmp_path: pathlib.Path) -> None:
    grow(tmp_path, "a/x", "b/x", "c/x", "d")
    before = len(os.listdir("/proc/self/fd"))
    root = opened(tmp_path)
    found = []
    for entry in tree.walk(root):
        found.append(entry.path)
        if entry.path == "a":
            entry.descend = False
        if entry.path in ("b", "c"):
            entry.opened = os.open(entry.name, os.O_RDONLY, dir_fd=entry.directory)
            entry.descend = entry.path == "b"
    os.close(root)
    assert found == ["a", "b", "b/x", "c", "d"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_walk_that_is_left_early_closes_what_it_opened(tmp_path: pathlib.Path) -> None:
    grow(tmp_path, "a/b/c/d")
    root = opened(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    walk = tree.walk(root)
    assert [next(walk).path for _ in range(4)] == ["a", "a/b", "a/b/c", "a/b/c/d"]
    assert len(os.listdir("/proc/self/fd")) == before + 3
    walk.close()  # type: ignore[attr-defined]  # a generator
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_walk_ends_at_its_greatest_depth(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_DEPTH", 3)
    grow(tmp_path, "a/b/c/")
    root = opened(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LimitExceeded) as caught:
        list(tree.walk(root))
    assert caught.value.facts == {"bound": 3}
    assert len(os.listdir("/proc/self/fd")) == before
    grow(tmp_path, "z/y/file")
    shutil.rmtree(tmp_path / "a")
    assert walked(tmp_path) == ["z", "z/y", "z/y/file"]


@pytest.mark.parametrize("kind", ["link", "file", "nothing"])
def test_a_directory_that_is_swapped_ends_the_walk_there(tmp_path: pathlib.Path, kind: str) -> None:
    grow(tmp_path, "top/a/x", "top/b", "outside/secret")
    root = opened(tmp_path / "top")
    found = []
    for entry in tree.walk(root):
        found.append(entry.path)
        if entry.path == "a":
            shutil.rmtree(tmp_path / "top/a")
            if kind == "link":
                (tmp_path / "top/a").symlink_to("../outside")
            elif kind == "file":
                (tmp_path / "top/a").touch()
    assert found == ["a", "b"]


def test_what_disappears_is_passed_over(tmp_path: pathlib.Path) -> None:
    grow(tmp_path, "a", "b", "c", "d")
    root = opened(tmp_path)
    found = []
    for entry in tree.walk(root):
        found.append(entry.path)
        (tmp_path / "b").unlink(missing_ok=True)
        (tmp_path / "c").unlink(missing_ok=True)
    assert found == ["a", "d"]


def test_a_directory_that_may_not_be_read_is_an_error(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, "a/x")
    root = opened(tmp_path)

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError):
        list(tree.walk(root))


# --- deletions ---------------------------------------------------------------------------------------------


def delete(top: pathlib.Path, name: str) -> None:
    fd = opened(top)
    before = len(os.listdir("/proc/self/fd"))
    try:
        tree.delete_tree(fd, name)
    finally:
        assert len(os.listdir("/proc/self/fd")) == before
        os.close(fd)


@given(TREES)
def test_a_tree_is_deleted_whole(tmp_path_factory: pytest.TempPathFactory, plan: dict[bytes, Any]) -> None:
    top = tmp_path_factory.mktemp("delete")
    (top / "tree").mkdir()
    (top / "kept").mkdir()
    plant(top / "tree", plan)
    delete(top, "tree")
    assert os.listdir(top) == ["kept"]


def test_deleting_follows_no_link(tmp_path: pathlib.Path) -> None:
    grow(tmp_path, "outside/kept", "tree/d/l -> ../../outside", "tree/out -> ../outside", "tree/f -> ../outside/kept")
    delete(tmp_path, "tree")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["kept", "outside"]


def test_a_link_is_no_tree(tmp_path: pathlib.Path) -> None:
    grow(tmp_path, "outside/kept", "l -> outside", "f")
    for name, number in (("l", errno.ENOTDIR), ("f", errno.ENOTDIR), ("nowhere", errno.ENOENT)):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
            delete(tmp_path, name)
        assert caught.value.errno == number
    assert (tmp_path / "outside/kept").exists()


def dig(top: pathlib.Path, name: str, depth: int) -> None:
    """Make directories below each other, deeper than any path can name."""
    fd = opened(top)
    for level in range(depth):
        name = name if level == 0 else "d" * 20
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=below))
        os.close(fd)
        fd = below
    os.close(fd)


@pytest.mark.parametrize("depth", [1, 255, 256, 257, 600])
def test_depth_costs_no_descriptors(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    dig(tmp_path, "tree", depth)
    most = 0
    real = os.open

    def counted(*args: Any, **options: Any) -> int:
        nonlocal most
        fd = real(*args, **options)
        most = max(most, len(os.listdir("/proc/self/fd")))
        return fd

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "open", counted)
    delete(tmp_path, "tree")
    assert os.listdir(tmp_path) == []
    assert most < before + 300


def test_many_names_are_taken_in_batches(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "_DELETE_BATCH", 7)
    grow(tmp_path, *(f"tree/{n}" for n in range(50)), *(f"tree/d{n}/x" for n in range(20)))
    delete(tmp_path, "tree")
    assert os.listdir(tmp_path) == []


def test_what_is_made_meanwhile_is_deleted_too(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, "tree/a", "tree/d/b")
    real = os.unlink
    made: list[str] = []

    def unlink(name: str, *, dir_fd: int) -> None:
        real(name, dir_fd=dir_fd)
        if len(made) < 5:
            made.append(f"new{len(made)}")
            os.close(os.open(made[-1], os.O_CREAT | os.O_WRONLY, dir_fd=dir_fd))

    monkeypatch.setattr(os, "unlink", unlink)
    delete(tmp_path, "tree")
    assert len(made) == 5
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("becomes", ["link", "directory", "nothing"])
def test_a_name_that_is_swapped_before_it_is_deleted(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, becomes: str
) -> None:
    """A directory that becomes a link, or a file that becomes a directory, is looked at again."""
    grow(tmp_path, "outside/kept", "tree/d/x", "tree/f")
    one = tree._delete_one
    swapped: list[str] = []

    def swap(top: int, directory: int, name: str, is_folder: bool, depth: int) -> bool:
        if not swapped and name == ("f" if becomes == "directory" else "d"):
            swapped.append(name)
            if becomes == "directory":
                (tmp_path / "tree/f").unlink()
                (tmp_path / "tree/f").mkdir()
            else:
                shutil.rmtree(tmp_path / "tree/d")
            if becomes == "link":
                (tmp_path / "tree/d").symlink_to("../outside")
        return one(top, directory, name, is_folder, depth)

    monkeypatch.setattr(tree, "_delete_one", swap)
    delete(tmp_path, "tree")
    assert swapped
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["kept", "outside"]


def test_a_name_that_never_goes_is_an_error_and_no_loop(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(tmp_path, "tree/a")

    def is_directory(*_: object, **__: object) -> None:
        raise IsADirectoryError(errno.EISDIR, "always")

    monkeypatch.setattr(os, "unlink", is_directory)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
        delete(tmp_path, "tree")
    assert caught.value.errno == errno.EBUSY


def test_discard_takes_whatever_is_there(tmp_path: pathlib.Path) -> None:
    grow(tmp_path, "outside/kept", "d/x", "f", "l -> outside")
    fd = opened(tmp_path)
    for name in ("d", "f", "l", "nowhere"):
        tree.discard(fd, name)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["kept", "outside"]


# --- copies ------------------------------------------------------------------------------------------------


def copy(top: pathlib.Path, name: str = "source", new: str = "target") -> Copier:
    fd = opened(top)
    before = len(os.listdir("/proc/self/fd"))
    copier = Copier()
    try:
        copier.copy(fd, name, fd, new, os.stat(name, dir_fd=fd, follow_symlinks=False))
    finally:
        assert len(os.listdir("/proc/self/fd")) == before
        os.close(fd)
    return copier


@given(TREES)
def test_a_copy_is_the_same(tmp_path_factory: pytest.TempPathFactory, plan: dict[bytes, Any]) -> None:
    top = tmp_path_factory.mktemp("copy")
    (top / "source").mkdir()
    plant(top / "source", plan)
    for number, path in enumerate(sorted(top.rglob("source/**/*"), reverse=True)):
        os.utime(path, ns=(number, 10**9 * number + 1))
    copier = copy(top)
    assert facts_of(top / "source") == facts_of(top / "target")
    assert (top / "target").stat().st_mtime_ns == (top / "source").stat().st_mtime_ns
    assert copier.entries == len(names_of(plan)) + 1
    assert copier.bytes == sum(len(fact[4] or b"") for fact in facts_of(top / "source").values())
    assert copier.skipped == 0


def test_modes_times_and_kinds_are_kept(tmp_path: pathlib.Path) -> None:
    grow(tmp_path, "source/d/f", "source/closed/x", "source/l -> /etc/shadow", "source/dangling -> nowhere")
    os.mkfifo(tmp_path / "source/fifo")
    for name, mode in (("d/f", 0o4751), ("d", 0o2770), ("closed/x", 0), ("closed", 0o500), ("fifo", 0o640)):
        (tmp_path / "source" / name).chmod(mode)
    os.utime(tmp_path / "source/closed", ns=(5, 7))
    copier = copy(tmp_path)
    assert facts_of(tmp_path / "source") == facts_of(tmp_path / "target")
    assert (copier.entries, copier.skipped) == (8, 0)


@as_root
def test_owners_are_kept_of_links_and_fifos_too(tmp_path: pathlib.Path) -> None:
    grow(tmp_path, "source/d/f", "source/l -> d")
    os.mkfifo(tmp_path / "source/fifo")
    for number, path in enumerate([tmp_path / "source", *(tmp_path / "source").rglob("*")]):
        os.chown(path, 1000 + number, 2000 + number, follow_symlinks=False)
    copy(tmp_path)
    assert facts_of(tmp_path / "source") == facts_of(tmp_path / "target")
    assert (tmp_path / "target").stat().st_uid == 1000


def test_sockets_are_left_out_of_a_tree_and_refused_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(tmp_path, "source/f")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("source/s")
        copier = copy(tmp_path)
        assert (copier.entries, copier.skipped) == (2, 1)
        with pytest.raises(NotAFile) as caught:
            copy(tmp_path / "source", "s", "t")
        assert caught.value.facts == {"path": "s", "file_type": "socket"}
    assert set(facts_of(tmp_path / "target")) == {b"f"}


def test_one_thing_is_copied_alone(tmp_path: pathlib.Path) -> None:
    grow(tmp_path, "f", "l -> f")
    assert copy(tmp_path, "f", "g").bytes == 1
    copy(tmp_path, "l", "m")
    assert (tmp_path / "g").read_text() == "f"
    assert os.readlink(tmp_path / "m") == "f"
    with pytest.raises(FileExistsError):
        copy(tmp_path, "f", "g")


def test_a_copy_into_itself_ends(tmp_path: pathlib.Path) -> None:
    grow(tmp_path, "source/a", "source/d/b")
    fd, into = opened(tmp_path), opened(tmp_path / "source/d")
    Copier().copy(fd, "source", into, "copy", os.stat(tmp_path / "source"))
    assert {p.decode() for p in facts_of(tmp_path / "source/d/copy")} == {"a", "d", "d/b"}


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_a_file_that_is_swapped_is_not_followed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    grow(tmp_path, "secret", "f")
    plain = Copier._copy_plain

    def swap(self: Copier, *args: Any) -> bool:
        (tmp_path / "f").unlink()
        (tmp_path / "f").symlink_to("secret") if kind == "link" else os.mkfifo(tmp_path / "f")
        return plain(self, *args)

    monkeypatch.setattr(Copier, "_copy_plain", swap)
    with pytest.raises(OSError):  # noqa: PT011 - ELOOP or ENOENT
        copy(tmp_path, "f", "g")
    assert not (tmp_path / "g").exists()


def test_holes_stay_holes(tmp_path: pathlib.Path) -> None:
    size = 1 << 34
    with open(tmp_path / "f", "wb") as file:
        file.truncate(size)
        file.seek(1 << 20)
        file.write(b"data")
        file.seek(size - 4)
        file.write(b"tail")
    copier = copy(tmp_path, "f", "g")
    made = (tmp_path / "g").stat()
    assert made.st_size == size
    assert made.st_blocks * 512 < 1 << 20
    assert copier.bytes < 1 << 20
    with open(tmp_path / "g", "rb") as file:
        file.seek(1 << 20)
        assert file.read(5) == b"data\0"
        file.seek(size - 5)
        assert file.read() == b"\0tail"


@pytest.mark.parametrize("size", [0, 1 << 33])
def test_a_file_that_is_nothing_but_a_hole(tmp_path: pathlib.Path, size: int) -> None:
    (tmp_path / "f").touch()
    os.truncate(tmp_path / "f", size)
    assert copy(tmp_path, "f", "g").bytes == 0
    assert (tmp_path / "g").stat().st_size == size


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_ranges_cannot_be_copied_bytes_are(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "f").write_bytes(content)

    def cannot(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "copy_file_range", cannot)
    assert copy(tmp_path, "f", "g").bytes == len(content)
    assert (tmp_path / "g").read_bytes() == content


def test_another_failure_of_a_copy_is_one(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, "f")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="full"):
        copy(tmp_path, "f", "g")


def test_a_file_that_shrinks_meanwhile_keeps_its_size_as_a_hole(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100_000)
    real = os.copy_file_range

    def shrink(source: int, target: int, count: int, *offsets: int) -> int:
        os.truncate(tmp_path / "f", 10)
        return real(source, target, count, *offsets)

    monkeypatch.setattr(os, "copy_file_range", shrink)
    assert copy(tmp_path, "f", "g").bytes == 10
    assert (tmp_path / "g").read_bytes() == b"x" * 10 + bytes(99_990)


# --- moves and placements ----------------------------------------------------------------------------------


def test_a_move_is_a_rename(tmp_path: pathlib.Path) -> None:
    grow(tmp_path, "a/x", "f", "g")
    fd = opened(tmp_path)
    before = (tmp_path / "a").stat().st_ino
    assert tree.move(KERNEL, (fd, "a"), (fd, "b"), overwrite=False)
    assert (tmp_path / "b").stat().st_ino == before
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
        tree.move(KERNEL, (fd, "f"), (fd, "g"), overwrite=False)
    assert caught.value.errno == errno.EEXIST
    assert tree.move(KERNEL, (fd, "f"), (fd, "g"), overwrite=True)
    assert (tmp_path / "g").read_text() == "f"


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make renames of one name fail as those across filesystems do."""
    rename = os.rename
    rename_new = Kernel.rename_new

    def set_apart(name: str) -> None:
        def one(old: str, new: str, **options: Any) -> None:
            if old == name:
                raise OSError(errno.EXDEV, "apart")
            rename(old, new, **options)

        def other(self: Kernel, old: str, *rest: Any) -> None:
            if old == name:
                raise OSError(errno.EXDEV, "apart")
            rename_new(self, old, *rest)

        monkeypatch.setattr(os, "rename", one)
        monkeypatch.setattr(Kernel, "rename_new", other)

    return set_apart


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_move_across_filesystems_copies_and_deletes(
    tmp_path: pathlib.Path, apart: Callable[[str], None], overwrite: bool
) -> None:
    grow(tmp_path, "source/d/x", "source/l -> d", "f")
    os.utime(tmp_path / "source/d", ns=(3, 5))
    before = facts_of(tmp_path / "source")
    fd = opened(tmp_path)
    apart("source")
    assert not tree.move(KERNEL, (fd, "source"), (fd, "target"), overwrite=overwrite)
    assert facts_of(tmp_path / "target") == before
    apart("f")
    assert not tree.move(KERNEL, (fd, "f"), (fd, "g"), overwrite=overwrite)
    assert set(os.listdir(tmp_path)) == {"target", "g"}


def test_a_move_across_filesystems_that_fails_leaves_both(tmp_path: pathlib.Path, apart: Callable[[str], None]) -> None:
    grow(tmp_path, "source/x", "target/y", "f")
    fd = opened(tmp_path)
    apart("source")
    for overwrite, wanted in ((False, errno.EEXIST), (True, errno.ENOTEMPTY)):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
            tree.move(KERNEL, (fd, "source"), (fd, "target"), overwrite=overwrite)
        assert caught.value.errno == wanted
        assert set(facts_of(tmp_path)) == {b"source", b"source/x", b"target", b"target/y", b"f"}


def test_a_copy_has_its_name_when_it_is_whole(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, "source/x", "source/y")
    fd = opened(tmp_path)
    seen: list[bool] = []
    copy_file = Copier._copy_file

    def watch(self: Copier, *args: Any) -> None:
        seen.append((tmp_path / "target").exists())
        copy_file(self, *args)
        if len(seen) == 2 and fails:
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Copier, "_copy_file", watch)
    facts = (tmp_path / "source").stat()
    fails = True
    with pytest.raises(OSError, match="full"):
        tree.place(KERNEL, (fd, "source"), (fd, "target"), facts, overwrite=False)
    assert os.listdir(tmp_path) == ["source"]
    fails = False
    tree.place(KERNEL, (fd, "source"), (fd, "target"), facts, overwrite=False)
    assert seen == [False] * 4
    assert set(os.listdir(tmp_path)) == {"source", "target"}
