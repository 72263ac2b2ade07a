"""A directory's version: the same as long as nothing changes, another one whatever does."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import FileNotFound
from sandboxd.guest import tree_digest
from sandboxd.guest.paths import TEMPORARY
from tests.support.file_jobs import run


def look(path: pathlib.Path, *, recursive: bool = True, **params: Any) -> dict[str, Any]:
    return run(tree_digest.changes, {"path": str(path), "recursive": recursive, **params}).result


def version(path: pathlib.Path, **params: Any) -> str:
    found: str = look(path, **params)["version"]
    return found


@pytest.fixture
def top(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "d/e").mkdir(parents=True)
    for name in ("f", "d/g", "d/e/h"):
        (tmp_path / name).write_text("one")
    (tmp_path / "l").symlink_to("f")
    return tmp_path


def test_nothing_that_changes_is_the_same_version(top: pathlib.Path) -> None:
    assert look(top) == look(top)
    assert look(top)["entries"] == 6
    assert len(look(top)["version"]) == 32


def set_back(path: pathlib.Path) -> None:
    """Write as many bytes as there were and put the time of the content back."""
    facts = path.stat()
    path.write_text("two")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda top: (top / "d/e/h").write_text("other"),
        lambda top: set_back(top / "d/e/h"),
        lambda top: (top / "d/e/h").chmod(0o600),
        lambda top: (top / "d/e").chmod(0o700),
        lambda top: (top / "d/e/h").rename(top / "d/e/i"),
        lambda top: (top / "d/e").rename(top / "d/i"),
        lambda top: (top / "new").touch(),
        lambda top: (top / "d/new").mkdir(),
        lambda top: (top / "f").unlink(),
        lambda top: ((top / "l").unlink(), (top / "l").symlink_to("d")),
        lambda top: ((top / "f").unlink(), (top / "f").mkdir()),
        lambda top: os.link(top / "f", top / "hard"),
    ],
    ids=[
        *(
            "content",
            "content with its time set back",
            "mode",
            "mode of a directory",
            "name",
            "name of a directory",
            "new",
        ),
        *("new directory", "deletion", "link", "kind", "hard link"),
    ],
)
def test_whatever_changes_is_another_version(top: pathlib.Path, change: Callable[[pathlib.Path], object]) -> None:
    before = version(top)
    change(top)
    assert version(top) != before


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")
def test_an_owner_is_a_part_of_it(top: pathlib.Path) -> None:
    before = version(top)
    os.chown(top / "d/e", 5, 5)
    assert version(top) != before


def test_what_is_left_out_changes_nothing(top: pathlib.Path) -> None:
    (top / "x.log").touch()
    before = version(top, exclude=["*.log", "e/"])
    (top / "x.log").write_text("more")
    (top / "y.log").touch()
    (top / "d/e/h").write_text("more")
    (top / "d" / f"{TEMPORARY}1").touch()
    assert version(top, exclude=["*.log", "e/"]) == before
    assert version(top) != before


def test_one_level_only(top: pathlib.Path) -> None:
    before = look(top, recursive=False)
    assert before["entries"] == 3
    (top / "d/g").write_text("more")
    assert look(top, recursive=False) == before


def test_one_file_has_a_version_too_through_links(top: pathlib.Path) -> None:
    before = look(top / "l")
    assert before == look(top / "f")
    assert before["entries"] == 1
    (top / "f").write_text("more")
    assert look(top / "l") != before


def test_where_the_directory_lies_is_no_part_of_it(top: pathlib.Path) -> None:
    inside = top / "d"
    before = version(inside)
    inside.rename(top / "moved")
    assert version(top / "moved") == before


def test_nothing_there(top: pathlib.Path) -> None:
    with pytest.raises(FileNotFound) as caught:
        look(top / "nowhere")
    assert caught.value.facts["path"] == str(top / "nowhere")


@given(st.lists(st.sampled_from([b"a", b"a\0b"[:1], b"b", b"a b", b"\xff", b"0"]), unique=True, max_size=4))
def test_names_are_told_apart(tmp_path_factory: pytest.TempPathFactory, names: list[bytes]) -> None:
    """No two sets of names have one version, however their bytes lie beside each other."""
    top = tmp_path_factory.mktemp("names")
    for name in names:
        (top / os.fsdecode(name)).mkdir(mode=0o755)
    before = version(top)
    (top / "zz").mkdir(mode=0o755)
    assert version(top) != before
    (top / "zz").rmdir()
    assert version(top) == before
