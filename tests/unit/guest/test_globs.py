"""Patterns of names, with git itself as the judge."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sandboxd.guest.globs import Pattern, Rules, is_ignored, parse_ignore

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is the judge")


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.py", "a/b/c.py", True),
        ("*.py", "a.py/c", False),
        ("/a.py", "a.py", True),
        ("/a.py", "b/a.py", False),
        ("a/*", "a/b", True),
        ("a/*", "a/b/c", False),
        ("a/**", "a/b/c", True),
        ("a/**", "a", False),
        ("**/c", "c", True),
        ("**/c", "a/b/c", True),
        ("a/**/c", "a/c", True),
        ("a/**/c", "a/x/y/c", True),
        ("[ab]?", "bx", True),
        ("[!ab]x", "bx", False),
        ("[]-]x", "]x", True),
        ("a[", "a[", False),
        ("\\*", "*", True),
        ("\\*", "a", False),
        ("ü*", "über", True),
    ],
)
def test_a_pattern(pattern: str, path: str, matches: bool) -> None:
    assert Pattern(pattern).matches(path, is_folder=False) is matches


def test_nested_files_decide_from_the_inside_out() -> None:
    stack: Rules = [("", parse_ignore("*.log\n# no\n\n!keep.log\nbuild/\n")), ("sub/", parse_ignore("!x.log\n"))]
    assert is_ignored(stack, "a.log", is_folder=False)
    assert not is_ignored(stack, "keep.log", is_folder=False)
    assert not is_ignored(stack, "sub/x.log", is_folder=False)
    assert is_ignored(stack, "sub/y.log", is_folder=False)
    assert is_ignored(stack, "sub/build", is_folder=True)
    assert not is_ignored(stack, "build", is_folder=False)


def test_a_hostile_pattern_is_quick() -> None:
    began = time.monotonic()
    for text in ("*a" * 8 + "b", "*" * 900, "**/" * 8 + "x", "a*" * 400, "[" * 900):
        Pattern(text).matches("a" * 255, is_folder=False)
        Pattern("/" + text).matches("/".join(["a"] * 100), is_folder=False)
    assert time.monotonic() - began < 5


#: Left out: an escaped slash, which git takes for a slash here and not there, and a slash in a class, which means none.
PART = st.text(alphabet="ab.*?[]!-\\", min_size=1, max_size=5).filter(
    lambda part: not part.endswith("\\") and ("[" not in part or part.endswith("]"))
)
PATTERN = st.builds(
    lambda negated, lead, parts, tail: negated + lead + "/".join(parts) + tail,
    st.sampled_from(["", "", "", "!"]),
    st.sampled_from(["", "", "/", "**/"]),
    st.lists(st.one_of(PART, st.just("**")), min_size=1, max_size=3),
    st.sampled_from(["", "", "/", "/**"]),
)
PATHS = ["a", "b", "ab", "a.b", "a/a", "a/b", "b/a", "b/ab", "a/b/a", "b/b/ab", "aa/.b", "]", "-", "a-", "!", "[a]"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("git")
    subprocess.run(["git", "init", "-q", path], check=True)
    return path


@needs_git
@pytest.mark.slow
@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(["-**/*"])
@example(["a**/b"])
@example(["a**"])
@example(["/a**"])
@given(st.lists(PATTERN, min_size=1, max_size=4))
def test_as_git_says(repository: pathlib.Path, patterns: list[str]) -> None:
    text = "\n".join(patterns) + "\n"
    (repository / ".gitignore").write_text(text)
    answer = subprocess.run(
        ["git", "-C", repository, "check-ignore", "--no-index", "-z", "--stdin"],
        input="\0".join(PATHS).encode(),
        capture_output=True,
        check=False,  # 1 is "none is ignored"
    ).stdout
    theirs = {name for name in answer.decode().split("\0") if name}
    stack: Rules = [("", parse_ignore(text))]
    ours = set()
    for path in PATHS:
        parts = path.split("/")
        directories = ["/".join(parts[: count + 1]) for count in range(len(parts) - 1)]
        if any(is_ignored(stack, directory, is_folder=True) for directory in directories) or is_ignored(
            stack, path, is_folder=False
        ):
            ours.add(path)
    assert ours == theirs, text
