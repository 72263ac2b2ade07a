import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import InvalidRequest, RootfsError, RootfsNotFound
from sandboxd.images import find_recipe, load_recipe, recipe_names
from sandboxd.images.steps import plan


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    directory = tmp_path / "tiny"
    (directory / "files/etc").mkdir(parents=True)
    (directory / "files/etc/motd").write_text("hello\n")
    (directory / "manifest.toml").write_text('format = 1\nsummary = "tiny"\n')
    return directory


def test_the_hash_is_of_content_alone(recipe: Path, tmp_path: Path) -> None:
    again = tmp_path / "elsewhere" / "tiny"
    shutil.copytree(recipe, again)

    assert load_recipe(recipe).hash == load_recipe(again).hash


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "manifest.toml").write_text('format = 1\nsummary = "other"\n'),
        lambda path: (path / "files/etc/motd").write_text("bye\n"),
        lambda path: (path / "files/etc/motd").chmod(0o755),
        lambda path: (path / "files/etc/motd").rename(path / "files/etc/issue"),
        lambda path: (path / "files/etc/link").symlink_to("motd"),
        lambda path: (path / "files/srv").mkdir(),
        lambda path: (path / "finish").write_text("#!/bin/sh\n"),
        lambda path: (path / "check").write_text("#!/bin/sh\n"),
    ],
    ids=["manifest", "content", "mode", "name", "link", "folder", "finish", "check"],
)
def test_the_hash_sees(recipe: Path, change: Callable[[Path], object]) -> None:
    before = load_recipe(recipe).hash
    change(recipe)

    assert load_recipe(recipe).hash != before


def test_the_hash_does_not_see_what_no_build_reads(recipe: Path) -> None:
    before = load_recipe(recipe).hash
    (recipe / "python.in").write_text("numpy\n")

    assert load_recipe(recipe).hash == before


def test_a_lock_is_part_of_the_hash(recipe: Path) -> None:
    (recipe / "manifest.toml").write_text('format = 1\n[python]\nversion = "3.13"\nlock = "python.lock"\n')
    (recipe / "python.lock").write_text("a==1\n")
    before = load_recipe(recipe).hash
    (recipe / "python.lock").write_text("a==2\n")

    assert load_recipe(recipe).hash != before


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "format = 2\n",
        "format = 1\nsurprise = true\n",
        "format = 1\nsummary = 3\n",
        "format = 1\ndebian = 3\n",
        "format = 1\n[debian]\n",
        'format = 1\n[debian]\nsuite = "trixie"\npackages = "git"\n',
        'format = 1\n[debian]\nsuite = "trixie"\nsurprise = 1\n',
        'format = 1\n[node]\nlock = "missing.lock"\n',
        'format = 1\n[node]\nlock = "../tiny/manifest.toml"\n',
        "this is no TOML",
    ],
)
def test_a_malformed_recipe_is_refused(recipe: Path, manifest: str) -> None:
    (recipe / "manifest.toml").write_text(manifest)

    with pytest.raises(RootfsError, match=r"^cannot read recipe "):
        load_recipe(recipe)


def test_find_recipe(recipe: Path) -> None:
    assert find_recipe("tiny", recipe.parent).summary == "tiny"
    with pytest.raises(RootfsNotFound) as caught:
        find_recipe("other", recipe.parent)
    assert caught.value.facts == {"rootfs": "other", "available": ["tiny"]}


@given(
    st.one_of(st.sampled_from(["", ".", "..", "a/b", "../a", "A", ".a", "-a", "a\n", "a" * 65, "a\0", "é"]), st.text())
)
def test_a_name_is_checked_before_it_is_a_path(name: str) -> None:
    try:
        find_recipe(name)
    except InvalidRequest:
        return
    except RootfsNotFound:  # pragma: no cover - it is an InvalidRequest too
        pass
    assert name in recipe_names()


def test_the_default_recipe_reads_and_its_steps_say_what_they_do() -> None:
    recipe = find_recipe("default")
    descriptions = [step.describe() for step in plan(recipe)]

    assert "default" in recipe_names()
    assert descriptions[0].endswith("from Debian trixie")
    assert descriptions[-1] == "Tidy up"
    assert len(set(descriptions)) == len(descriptions)


def test_every_requirement_of_the_default_recipe_is_pinned_by_hash() -> None:
    recipe = find_recipe("default")
    for lock in (recipe.python_lock, recipe.node_lock):
        assert lock is not None
        requirements = lock.read_text().replace("\\\n", " ").splitlines()
        pinned = [line for line in requirements if line and not line.startswith("#")]
        assert pinned
        assert all("==" in line and "--hash=sha256:" in line for line in pinned)
        assert "://" not in lock.read_text()
