"""Operations on single files and directories: what they answer, what they refuse, and what a link never becomes."""

from __future__ import annotations

import os
import pathlib
import stat
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd import errors
from sandboxd.guest import file_operations, tree
from sandboxd.guest.jobs import Function
from sandboxd.guest.paths import TEMPORARY
from sandboxd.linux.kernel import Kernel
from tests.support.file_jobs import Done, left_open, run

#: What every request of a name has; a test gives the rest.
DEFAULTS: dict[str, dict[str, Any]] = {
    "list": {"recursive": False, "hidden": True, "limit": 100, "after": None},
    "delete": {"recursive": False},
    "mkdir": {"mode": None, "parents": False},
    "symlink": {},
    "rename": {"overwrite": False},
    "copy": {"overwrite": False},
    "chmod": {"recursive": False},
    "chown": {"recursive": False, "user": None, "group": None},
    "truncate": {"size": 0},
}


#: Whatever a file can be called.
NAMES = st.binary(min_size=1, max_size=3).filter(lambda name: not set(b"/\0") & set(name) and name not in (b".", b".."))


def do(name: str, path: pathlib.Path | str | bytes, **params: Any) -> dict[str, Any]:
    return ask(name, path, **params).result


def ask(name: str, path: pathlib.Path | str | bytes, **params: Any) -> Done:
    function: Function = file_operations.FUNCTIONS[name]
    given_path = str(path) if isinstance(path, pathlib.Path) else path
    given_params = {key: str(value) if isinstance(value, pathlib.Path) else value for key, value in params.items()}
    return run(function, {"path": given_path, **DEFAULTS[name], **given_params})


def mode_of(path: pathlib.Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def top(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "f").write_text("content")
    (tmp_path / "d/g").write_text("g")
    (tmp_path / "l").symlink_to("f")
    (tmp_path / "dl").symlink_to("d")
    (tmp_path / "dangling").symlink_to("nowhere")
    return tmp_path


def test_every_operation_is_tested_here() -> None:
    assert set(DEFAULTS) == set(file_operations.FUNCTIONS)


# --- looking -----------------------------------------------------------------------------------------------


def look(path: pathlib.Path | str, **params: Any) -> dict[str, Any]:
    return file_operations.stat_file(Kernel(), {"path": str(path), **params})


def test_a_row_tells_what_the_kernel_does(top: pathlib.Path) -> None:
    facts = (top / "f").stat()
    assert look(top / "f") == {
        "path": os.fsencode(top / "f"), "type": "file", "size": 7, "mode": mode_of(top / "f"), "uid": facts.st_uid,
        "gid": facts.st_gid, "mtime": facts.st_mtime, "target": None,
    }  # fmt: skip


def test_a_link_is_told_or_followed(top: pathlib.Path) -> None:
    assert (look(top / "l")["type"], look(top / "l")["target"]) == ("symlink", b"f")
    followed = look(top / "l", follow=True)
    assert (followed["type"], followed["size"], followed["target"]) == ("file", 7, None)
    assert look(top / "dl/g")["type"] == "file", "links above the last part are followed"
    assert look(top / "dangling")["target"] == b"nowhere"
    with pytest.raises(errors.FileNotFound):
        look(top / "dangling", follow=True)
    assert look("/")["type"] == "directory"
    assert look("/dev/null")["type"] == "character-device"


def test_looking_leaves_nothing_open(top: pathlib.Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    look(top / "f", follow=True)
    look(top / "l")
    for name, follow in (("nowhere", False), ("nowhere", True), ("f/x", False)):
        with pytest.raises((errors.FileNotFound, errors.NotAFile)) as caught:
            look(top / name, follow=follow)
        assert caught.value.facts["path"] == str(top / name)
    assert len(os.listdir("/proc/self/fd")) == before


# --- lists -------------------------------------------------------------------------------------------------


def test_a_list_and_its_pages(top: pathlib.Path) -> None:
    (top / ".hidden").touch()
    (top / f"{TEMPORARY}1").touch()
    names = []
    after = None
    while True:
        done = ask("list", top, recursive=True, limit=2, after=after)
        assert len(done.rows) <= 2
        names += [os.path.relpath(os.fsdecode(row["path"]), top) for row in done.rows]
        after = done.result["next"]
        if after is None:
            break
    assert names == [".hidden", "d", "d/e", "d/g", "dangling", "dl", "f", "l"]
    flat = ask("list", top / "dl", hidden=False)
    assert [row["path"] for row in flat.rows] == [os.fsencode(top / "dl/e"), os.fsencode(top / "dl/g")]
    assert flat.result == {"next": None}
    assert [row["target"] for row in ask("list", top, hidden=False).rows] == [None, b"nowhere", b"d", None, b"f"]


def test_a_page_that_is_exactly_full_is_the_last(top: pathlib.Path) -> None:
    done = ask("list", top / "d", limit=2)
    assert (len(done.rows), done.result) == (2, {"next": None})


def test_a_page_is_bounded_whatever_is_asked_for(top: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_operations, "MAX_PAGE", 3)
    done = ask("list", top, limit=10**9)
    assert (len(done.rows), done.result) == (3, {"next": b"dl"})


@given(st.lists(NAMES, unique=True, max_size=8), st.integers(1, 4))
def test_pages_give_every_name_once(tmp_path_factory: pytest.TempPathFactory, names: list[bytes], limit: int) -> None:
    top = tmp_path_factory.mktemp("pages")
    for name in names:
        (top / os.fsdecode(name)).touch()
    found: list[bytes] = []
    after = None
    while True:
        done = ask("list", top, limit=limit, after=after)
        found += [row["path"].removeprefix(os.fsencode(top) + b"/") for row in done.rows]
        after = done.result["next"]
        if after is None:
            break
    assert found == sorted(names)


@pytest.mark.parametrize(("name", "kind"), [("nowhere", errors.FileNotFound), ("f", errors.NotAFile)])
def test_what_is_no_directory_is_not_listed(top: pathlib.Path, name: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        ask("list", top / name)


# --- deletions ---------------------------------------------------------------------------------------------


def test_deleting(top: pathlib.Path) -> None:
    for name in ("f", "dl", "dangling", "d/e"):
        assert do("delete", top / name) == {}
    assert sorted(os.listdir(top)) == ["d", "l"]
    with pytest.raises(errors.DirectoryNotEmpty):
        do("delete", top / "d")
    do("delete", top / "d", recursive=True)
    assert os.listdir(top) == ["l"]
    with pytest.raises(errors.FileNotFound):
        do("delete", top / "d", recursive=True)


def test_a_links_target_is_never_deleted(top: pathlib.Path) -> None:
    do("delete", top / "dl", recursive=True)
    assert (top / "d/g").exists()


@pytest.mark.parametrize("name", sorted(set(DEFAULTS) - {"list", "chmod", "chown", "mkdir", "truncate"}))
def test_the_root_has_no_name(name: str) -> None:
    more = {"new_path": "/x"} if name in ("rename", "copy") else {"target": "x"} if name == "symlink" else {}
    with pytest.raises(errors.InvalidRequest):
        do(name, "/", **more)


# --- making ------------------------------------------------------------------------------------------------


def test_making_directories(top: pathlib.Path) -> None:
    done = do("mkdir", top / "new")
    assert (done["created"], done["file"]["type"], done["file"]["mode"]) == (True, "directory", 0o755)
    do("mkdir", top / "private", mode="1700")
    assert mode_of(top / "private") == 0o1700
    with pytest.raises(errors.FileNotFound):
        do("mkdir", top / "a/b/c")
    assert do("mkdir", top / "a/b/c", parents=True, mode="0700")["created"]
    assert [mode_of(top / name) for name in ("a", "a/b", "a/b/c")] == [0o755, 0o755, 0o700]
    assert not do("mkdir", top / "a/b/c", parents=True)["created"]
    assert mode_of(top / "a/b/c") == 0o700


@pytest.mark.parametrize("name", ["f", "l", "dl", "dangling", "d"])
def test_what_is_there_is_no_new_directory(top: pathlib.Path, name: str) -> None:
    with pytest.raises(errors.FileExists) as caught:
        do("mkdir", top / name)
    assert caught.value.facts["path"] == str(top / name)


def test_with_parents_what_is_there_must_be_a_directory(top: pathlib.Path) -> None:
    assert not do("mkdir", top / "dl", parents=True)["created"]
    with pytest.raises(errors.NotAFile):
        do("mkdir", top / "f", parents=True)
    with pytest.raises(errors.FileNotFound):
        do("mkdir", top / "dangling", parents=True)
    with pytest.raises(errors.FileExists):
        do("mkdir", "/", parents=True)
    with pytest.raises(errors.InvalidRequest):
        do("mkdir", top / "x", mode="0888")


@pytest.mark.parametrize("target", [b"f", b"/etc/shadow", b"../..", b"\xff"])
def test_a_link_leads_where_it_is_told(top: pathlib.Path, target: bytes) -> None:
    done = do("symlink", top / "new/link", target=target)
    assert os.readlink(os.fsencode(top / "new/link")) == target == done["file"]["target"]
    with pytest.raises(errors.FileExists):
        do("symlink", top / "new/link", target=target)


@pytest.mark.parametrize("target", ["", "a\0b", "x" * 4096])
def test_a_link_to_an_impossible_name(top: pathlib.Path, target: str) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        do("symlink", top / "new/link", target=target)
    assert caught.value.facts == {"field": "target"}
    assert not (top / "new").exists()


# --- renaming and copying ----------------------------------------------------------------------------------


def test_renaming(top: pathlib.Path) -> None:
    done = do("rename", top / "f", new_path=top / "x/y/z")
    assert done["file"]["path"] == os.fsencode(top / "x/y/z")
    do("rename", top / "dl", new_path=top / "moved")
    assert os.readlink(top / "moved") == "d"
    do("rename", top / "d", new_path=top / "x/d")
    assert (top / "x/d/g").read_text() == "g"


@pytest.mark.parametrize("verb", ["rename", "copy"])
def test_what_is_there_is_replaced_only_if_asked(top: pathlib.Path, verb: str) -> None:
    with pytest.raises(errors.FileExists) as caught:
        do(verb, top / "f", new_path=top / "d/g")
    assert caught.value.facts["path"] == str(top / "d/g")
    assert (top / "d/g").read_text() == "g"
    do(verb, top / "f", new_path=top / "d/g", overwrite=True)
    assert (top / "d/g").read_text() == "content"
    assert (top / "f").exists() == (verb == "copy")
    assert not [name for name in os.listdir(top / "d") if TEMPORARY in name]


@pytest.mark.parametrize("verb", ["rename", "copy"])
def test_what_is_missing_makes_no_directories(top: pathlib.Path, verb: str) -> None:
    with pytest.raises(errors.FileNotFound) as caught:
        do(verb, top / "nowhere", new_path=top / "x/y")
    assert caught.value.facts["path"] == str(top / "nowhere")
    assert not (top / "x").exists()


def test_a_directory_moves_not_into_itself(top: pathlib.Path) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        do("rename", top / "d", new_path=top / "d/e/d")
    assert caught.value.facts == {"field": "new_path"}


def test_a_directory_replaces_no_full_one(top: pathlib.Path) -> None:
    (top / "other").mkdir()
    for overwrite in (False, True):
        with pytest.raises((errors.DirectoryNotEmpty, errors.FileExists)) as caught:
            do("rename", top / "other", new_path=top / "d", overwrite=overwrite)
        assert caught.value.facts["path"] == str(top / "d")
        with pytest.raises(errors.FileExists):
            do("copy", top / "other", new_path=top / "d", overwrite=overwrite)
    assert (top / "d/g").exists()


def test_copying(top: pathlib.Path) -> None:
    done = do("copy", top / "d", new_path=top / "x/copy")
    assert (done["entries"], done["bytes"], done["skipped"]) == (3, 1, 0)
    assert done["file"]["type"] == "directory"
    assert sorted(os.listdir(top / "x/copy")) == ["e", "g"]
    do("copy", top / "l", new_path=top / "l2")
    assert os.readlink(top / "l2") == "f"
    do("copy", top / "f", new_path=top / "dangling2")
    with pytest.raises(errors.NotAFile) as caught:
        do("copy", "/dev/null", new_path=top / "null")
    assert caught.value.facts["file_type"] == "character-device"
    assert not (top / "null").exists()


def test_a_full_disk_is_told_of_the_copy(top: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "full")

    monkeypatch.setattr(tree, "copy_data", full)
    with pytest.raises(errors.QuotaExceeded) as caught:
        do("copy", top / "f", new_path=top / "x")
    assert caught.value.facts["path"] == str(top / "x")
    assert not (top / "x").exists()


# --- modes and owners --------------------------------------------------------------------------------------


def test_modes(top: pathlib.Path) -> None:
    assert do("chmod", top / "f", mode="0600") == {"file": look(top / "f"), "entries": 1}
    assert mode_of(top / "f") == 0o600
    do("chmod", top / "l", mode="4711")
    assert mode_of(top / "f") == 0o4711, "the path's own link is followed"
    assert do("chmod", top / "d", mode="0711", recursive=True)["entries"] == 3
    assert [mode_of(top / name) for name in ("d", "d/e", "d/g")] == [0o711] * 3


def test_links_below_are_passed_over(top: pathlib.Path) -> None:
    (top / "d/out").symlink_to("../f")
    before = mode_of(top / "f")
    do("chmod", top / "d", mode="0700", recursive=True)
    assert mode_of(top / "f") == before


def test_a_file_that_becomes_a_link_is_passed_over(top: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = top / "f"
    secret.chmod(0o640)
    real_open = os.open

    def swap(name: Any, flags: int, *args: Any, **options: Any) -> int:
        if name == "g" and flags & os.O_PATH:
            (top / "d/g").unlink()
            (top / "d/g").symlink_to("../f")
        return real_open(name, flags, *args, **options)

    monkeypatch.setattr(os, "open", swap)
    do("chmod", top / "d", mode="0777", recursive=True)
    assert (top / "d/g").is_symlink()
    assert mode_of(secret) == 0o640


def test_what_disappears_is_passed_over(top: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = tree.walk

    def vanish(root: int) -> Iterator[tree.Entry]:
        for entry in walk(root):
            if entry.name == "g":
                (top / "d/g").unlink()
            yield entry

    monkeypatch.setattr(tree, "walk", vanish)
    assert do("chmod", top / "d", mode="0755", recursive=True)["entries"] == 2


@pytest.mark.parametrize("mode", [None, "", "8", "99999", "-1", "0o7"])
def test_modes_that_are_none(top: pathlib.Path, mode: str | None) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        do("chmod", top / "f", mode=mode)
    assert caught.value.facts["field"] == "mode"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")
def test_owners(top: pathlib.Path) -> None:
    (top / "d/out").symlink_to("../f")
    assert do("chown", top / "d", user=1234, recursive=True)["entries"] == 4
    assert {path.lstat().st_uid for path in (top / "d").rglob("*")} == {1234}
    assert (top / "f").stat().st_uid == 0, "a link is given away, not what it leads to"
    do("chown", top / "l", group=2345)
    assert ((top / "f").stat().st_uid, (top / "f").stat().st_gid) == (0, 2345)
    do("chown", top / "f", user="root")
    assert (top / "f").stat().st_gid == 2345


def test_owners_that_are_none(top: pathlib.Path) -> None:
    for params in ({}, {"user": "no-such-user"}, {"group": "no-such-group"}, {"user": -1}, {"group": 1 << 32}):
        with pytest.raises(errors.InvalidRequest):
            do("chown", top / "f", **params)


# --- what a path leads to ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "real"), [("f", "f"), ("l", "f"), ("dl", "d"), ("dl/g", "d/g")])
def test_followed_gives_the_place_of_what_is_there(top: pathlib.Path, name: str, real: str) -> None:
    with left_open():
        fd, last, facts = file_operations.followed(Kernel(), str(top / name))
        assert os.path.join(os.readlink(f"/proc/self/fd/{fd}"), last) == str(top / real)
        assert facts.st_ino == (top / real).stat().st_ino
        fd, last, _ = file_operations.followed(Kernel(), "/")
        assert (os.readlink(f"/proc/self/fd/{fd}"), last) == ("/", ".")


@pytest.mark.parametrize(("name", "kind"), [("f", "file"), ("fifo", "fifo")])
def test_require_directory_waits_for_nobody(top: pathlib.Path, name: str, kind: str) -> None:
    os.mkfifo(top / "fifo")
    with left_open(), pytest.raises(errors.NotAFile) as caught:
        file_operations.require_directory(Kernel(), str(top / name), "search")
    assert caught.value.facts == {"path": str(top / name), "file_type": kind}


@pytest.mark.parametrize("name", sorted(DEFAULTS))
@pytest.mark.parametrize("path", ["relative", "/a/../b", "/a\0b", "", "/" + "x" * 5000, b"/..", b"x"])
def test_no_operation_takes_a_path_that_is_none(name: str, path: str | bytes) -> None:
    params = {**DEFAULTS[name], "path": path, "new_path": path, "target": "x", "mode": "0755", "user": 0}
    with pytest.raises(errors.InvalidRequest):
        run(file_operations.FUNCTIONS[name], params)
