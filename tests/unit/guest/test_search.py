"""Searching and replacing in a directory: what is found and where, what is passed over, and what has a bound."""

from __future__ import annotations

import errno
import os
import pathlib
import re
import signal
import stat
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.errors import Conflict, FileNotFound, InvalidRequest
from sandboxd.guest import search
from sandboxd.guest.paths import TEMPORARY
from tests.support.file_jobs import Done, run

SEARCH: dict[str, Any] = {
    "content": None, "name": None, "ignore_case": False, "limit": 1000, "timeout_s": 60, "gitignore": False,
    "hidden": True,
}  # fmt: skip
REPLACE: dict[str, Any] = {key: value for key, value in SEARCH.items() if key != "content"} | {"regex": True}


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """A file job has its process's alarm to itself; pytest-timeout's is put back."""
    handler, timer = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    yield
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, *timer)


def find(path: pathlib.Path, **params: Any) -> Done:
    return run(search.search, {"path": str(path), **SEARCH, **params})


def found(path: pathlib.Path, **params: Any) -> list[tuple[str, int, int, str]]:
    rows = find(path, **params).rows
    return [(os.fsdecode(r["path"])[len(str(path)) + 1 :], r["line"], r["column"], r["text"]) for r in rows]


def names(path: pathlib.Path, **params: Any) -> list[str]:
    return [os.fsdecode(row["path"])[len(str(path)) + 1 :] for row in find(path, **params).rows]


def change(path: pathlib.Path, pattern: str, replacement: str, **params: Any) -> Done:
    return run(search.replace, {"path": str(path), **REPLACE, "pattern": pattern, "replacement": replacement, **params})


@pytest.fixture
def top(tmp_path: pathlib.Path) -> pathlib.Path:
    for name, content in {
        "a.py": "import os\nx = 1\nos.exit()\n", "d/b.py": "# os\n", "d/c.txt": "os os\r\n", ".h/e.py": "os\n", "f": "",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content.encode())
    return tmp_path


# --- names -------------------------------------------------------------------------------------------------


def test_names_and_types(top: pathlib.Path) -> None:
    (top / "l").symlink_to("d")
    os.mkfifo(top / "fifo")
    done = find(top)
    assert {os.path.relpath(os.fsdecode(row["path"]), top): row["type"] for row in done.rows} == {
        ".h": "directory", ".h/e.py": "file", "a.py": "file", "d": "directory", "d/b.py": "file", "d/c.txt": "file",
        "f": "file", "fifo": "fifo", "l": "symlink",
    }  # fmt: skip
    assert done.result == {"truncated": None, "files": 9}


def test_which_files_are_meant(top: pathlib.Path) -> None:
    (top / ".gitignore").write_text("d/\n")
    assert names(top, name="*.py") == [".h/e.py", "a.py", "d/b.py"]
    assert names(top, name="*.py", hidden=False) == ["a.py", "d/b.py"]
    assert names(top, name="*.py", gitignore=True) == [".h/e.py", "a.py"]
    assert names(top, name="d/*") == ["d/b.py", "d/c.txt"]
    assert names(top, name="nothing") == []
    assert [row[0] for row in found(top, name="*.py", content="os", hidden=False)] == ["a.py", "a.py", "d/b.py"]


def test_one_file_is_meant_itself(top: pathlib.Path) -> None:
    (top / "l").symlink_to("a.py")
    os.mkfifo(top / "fifo")
    done = find(top / "l", content="x =")
    assert [(row["path"], row["line"]) for row in done.rows] == [(os.fsencode(top / "l"), 2)]
    assert done.result["files"] == 1
    assert find(top / "fifo", content="x").result == {"truncated": None, "files": 0}
    with pytest.raises(FileNotFound):
        find(top / "nowhere")


def test_a_limit_cuts_and_says_so(top: pathlib.Path) -> None:
    done = find(top, limit=3)
    assert (len(done.rows), done.result["truncated"]) == (3, "limit")
    done = find(top, content="os", limit=2)
    assert (len(done.rows), done.result["truncated"]) == (2, "limit")


# --- content -----------------------------------------------------------------------------------------------


def test_lines_and_columns_count_from_one(top: pathlib.Path) -> None:
    assert found(top, content="os") == [
        (".h/e.py", 1, 1, "os"), ("a.py", 1, 8, "import os"), ("a.py", 3, 1, "os.exit()"), ("d/b.py", 1, 3, "# os"),
        ("d/c.txt", 1, 1, "os os"),
    ]  # fmt: skip
    (top / "u").write_text("äöü os\n")
    assert found(top, content="os", name="u") == [("u", 1, 5, "äöü os")], "columns are characters"


BYTES = st.lists(st.sampled_from([b"a", b"b", b".", b"\\", b"(", b"\xff", "é".encode(), b"\n"]), max_size=20).map(
    b"".join
)
LINES = st.lists(st.text("ab \té\r", max_size=4), max_size=9)


@settings(max_examples=60)
@given(LINES, st.booleans(), st.sampled_from(["a", "b+", "^a", "b$", "^", "é", "a|b", "(a)(b)?", r"\s", "[^a]"]),
       st.integers(5, 12))  # fmt: skip
def test_each_matching_line_is_told_once_whatever_the_blocks(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], ends: bool, pattern: str, block: int
) -> None:
    """A line that fits no block is cut there: the lines here are at most 8 bytes long."""
    top = tmp_path_factory.mktemp("lines")
    lines = [line.replace("\r", "") for line in lines]
    text = "\n".join(lines) + ("\n" if ends else "")
    (top / "f").write_bytes(text.encode())
    judge = []
    told = text.split("\n")
    if told[-1] == "":
        told.pop()
    compiled = re.compile(pattern)
    for number, line in enumerate(told, 1):
        match = compiled.search(line)
        if match:
            judge.append(("f", number, match.start() + 1, line))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "BLOCK_BYTES", block if max(map(len, map(str.encode, lines)), default=0) < block else 64)
        seen = found(top, content=pattern)
    if pattern in (r"\s", "[^a]"):  # both match the end of a line as well
        assert [row for row in judge if row not in seen] == []
    else:
        assert seen == judge


def test_a_file_of_many_blocks_has_its_lines_counted(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "BLOCK_BYTES", 1000)
    lines = [f"line {number} " + "x" * (number % 50) for number in range(1, 2000)]
    (tmp_path / "f").write_text("\n".join(lines))
    assert found(tmp_path, content="^line 1[0-9]{3} .*x$", limit=3) == [
        ("f", n, 1, lines[n - 1]) for n in (1001, 1002, 1003)
    ]
    assert found(tmp_path, content="line 1999") == [("f", 1999, 1, lines[-1])]


def test_a_line_over_a_block_is_cut_there(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "BLOCK_BYTES", 64)
    (tmp_path / "f").write_text("x" * 1000 + "\nneedle\n")
    assert found(tmp_path, content="needle") == [("f", 2, 1, "needle")]


def test_a_long_line_is_told_to_its_bound(tmp_path: pathlib.Path) -> None:
    (tmp_path / "f").write_text("é" * 10_000 + "needle")
    ((_, line, column, text),) = found(tmp_path, content="needle")
    assert (line, column, text) == (1, 10_001, "é" * 500)


def test_what_is_no_text_is_shown_as_such(tmp_path: pathlib.Path) -> None:
    (tmp_path / os.fsdecode(b"\xff")).write_bytes(b"a\xff needle\n")
    (row,) = find(tmp_path, content="needle").rows
    assert row["path"].endswith(b"/\xff")
    assert row["text"] == "a\ufffd needle"


def test_binary_files_are_passed_over(tmp_path: pathlib.Path) -> None:
    (tmp_path / "binary").write_bytes(b"needle\0")
    (tmp_path / "late").write_bytes(b"needle" + b"x" * 9000 + b"\0")
    assert [row[0] for row in found(tmp_path, content="needle")] == ["late"]
    assert change(tmp_path, "needle", "pin").rows == [{"path": os.fsencode(tmp_path / "late"), "count": 1}]
    assert (tmp_path / "binary").read_bytes() == b"needle\0"


def test_what_is_no_file_is_never_opened(tmp_path: pathlib.Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/f").write_text("needle")
    (tmp_path / "top").mkdir()
    os.mkfifo(tmp_path / "top/fifo")
    (tmp_path / "top/l").symlink_to("../secret/f")
    (tmp_path / "top/d").symlink_to("../secret")
    assert found(tmp_path / "top", content="needle") == []
    assert change(tmp_path / "top", "needle", "pin").result["files"] == 0
    assert (tmp_path / "secret/f").read_text() == "needle"


@pytest.mark.parametrize("becomes", ["link", "fifo", "nothing"])
def test_a_file_that_is_swapped_is_passed_over(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, becomes: str
) -> None:
    (tmp_path / "secret").write_text("needle")
    (tmp_path / "top").mkdir()
    (tmp_path / "top/f").write_text("needle")
    open_file = search._open_file

    def swap(entry: Any) -> int | None:
        (tmp_path / "top/f").unlink(missing_ok=True)
        if becomes == "link":
            (tmp_path / "top/f").symlink_to("../secret")
        elif becomes == "fifo":
            os.mkfifo(tmp_path / "top/f")
        return open_file(entry)

    monkeypatch.setattr(search, "_open_file", swap)
    assert found(tmp_path / "top", content="needle") == []
    assert change(tmp_path / "top", "needle", "pin").result == {"truncated": None, "files": 0, "count": 0}
    assert (tmp_path / "secret").read_text() == "needle"


# --- patterns ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["(", "[", "*", "(?P<a>x)(?P<a>y)", "x{99999999999999999999}", "(" * 5000])
def test_patterns_that_are_none(top: pathlib.Path, pattern: str) -> None:
    for ask in (lambda: find(top, content=pattern), lambda: change(top, pattern, "")):
        with pytest.raises(InvalidRequest) as caught:
            ask()
        assert caught.value.facts == {"field": "content"}


def test_a_pattern_that_never_ends_is_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").write_text("aaa\n")
    (tmp_path / "b").write_text("a" * 64 + "b")
    for ask in (
        lambda: find(tmp_path, content=r"^(a+)+$", timeout_s=0.2),
        lambda: change(tmp_path, r"^(a+)+$", "x", timeout_s=0.2),
    ):
        done = ask()
        assert done.result["truncated"] == "timeout"
        assert [os.path.basename(row["path"]) for row in done.rows] == [b"a"]
    assert (tmp_path / "b").read_text() == "a" * 64 + "b"
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_capitals_may_count_or_not(top: pathlib.Path) -> None:
    assert found(top, content="OS") == []
    assert len(found(top, content="OS", ignore_case=True)) == 5


# --- replacement -------------------------------------------------------------------------------------------


def test_replacing(top: pathlib.Path) -> None:
    done = change(top, r"\bo(s)", r"<\1>", hidden=False)
    assert done.rows == [
        {"path": os.fsencode(top / "a.py"), "count": 2}, {"path": os.fsencode(top / "d/b.py"), "count": 1},
        {"path": os.fsencode(top / "d/c.txt"), "count": 2},
    ]  # fmt: skip
    assert done.result == {"truncated": None, "files": 3, "count": 5}
    assert (top / "a.py").read_text() == "import <s>\nx = 1\n<s>.exit()\n"
    assert (top / "d/c.txt").read_bytes() == b"<s> <s>\r\n"
    assert (top / ".h/e.py").read_text() == "os\n"


@given(BYTES, st.text("ab.\\(\x01-", min_size=1, max_size=2), st.text("xy\\1é", max_size=3))
def test_a_literal_is_what_bytes_replace_says(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, pattern: str, replacement: str
) -> None:
    top = tmp_path_factory.mktemp("literal")
    (top / "f").write_bytes(data)
    done = change(top, pattern, replacement, regex=False)
    text = data.decode("utf-8", "surrogateescape")
    wanted = text.replace(pattern, replacement).encode("utf-8", "surrogateescape")
    assert (top / "f").read_bytes() == wanted
    assert done.result["count"] == text.count(pattern)


def test_a_file_keeps_its_mode_and_owner_and_what_does_not_match_its_inode(top: pathlib.Path) -> None:
    (top / "a.py").chmod(0o4750)
    if os.geteuid() == 0:
        os.chown(top / "a.py", 1234, 2345)
        (top / "a.py").chmod(0o4750)
    before = {name: (top / name).stat() for name in ("a.py", "f")}
    change(top, "import", "from")
    after = {name: (top / name).stat() for name in ("a.py", "f")}
    assert after["a.py"].st_ino != before["a.py"].st_ino
    assert stat.S_IMODE(after["a.py"].st_mode) == 0o4750
    assert (after["a.py"].st_uid, after["a.py"].st_gid) == (before["a.py"].st_uid, before["a.py"].st_gid)
    assert after["f"].st_ino == before["f"].st_ino


@pytest.mark.parametrize("replacement", [r"\1", r"\g<name>", "\\", r"\g<"])
def test_replacements_that_are_none(top: pathlib.Path, replacement: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        change(top, "os", replacement)
    assert caught.value.facts == {"field": "replacement"}
    assert (top / "a.py").read_text().startswith("import os")


def test_the_limit_counts_files_that_change(top: pathlib.Path) -> None:
    done = change(top, "os", "so", limit=1)
    assert done.result == {"truncated": "limit", "files": 1, "count": 1}
    assert (top / "a.py").read_text().startswith("import os")


def test_large_files_are_passed_over(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MAX_REPLACE_BYTES", 10)
    (tmp_path / "at").write_text("x" * 10)
    (tmp_path / "over").write_text("x" * 11)
    assert change(tmp_path, "x", "y").result["files"] == 1
    assert (tmp_path / "over").read_text() == "x" * 11


def rewriting(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Let somebody else act right before the new file takes the old one's place."""
    fchmod = os.fchmod

    def first(fd: int, mode: int) -> None:
        fchmod(fd, mode)
        act()

    monkeypatch.setattr(os, "fchmod", first)


def test_a_file_that_is_written_meanwhile_is_read_again(top: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = iter(["os and more"])

    def write() -> None:
        for content in writes:
            (top / "a.py").write_text(content)
            return

    rewriting(monkeypatch, write)
    assert change(top / "a.py", "os", "so").result["count"] == 1
    assert (top / "a.py").read_text() == "so and more"


@pytest.mark.parametrize("how", ["written", "replaced"])
def test_a_file_that_is_written_all_the_time_is_a_conflict(
    top: pathlib.Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    count = iter(range(1000))

    def write() -> None:
        number = next(count)
        if how == "written":
            os.utime(top / "a.py", ns=(0, number))
            return
        (top / "new").write_text("os")
        os.utime(top / "new", ns=(0, (top / "a.py").stat().st_mtime_ns))
        (top / "new").rename(top / "a.py")

    rewriting(monkeypatch, write)
    with pytest.raises(Conflict) as caught:
        change(top / "a.py", "os", "so")
    assert caught.value.facts == {"path": "a.py"}
    assert "os" in (top / "a.py").read_text()
    assert not [name for name in os.listdir(top) if TEMPORARY in name]
    assert next(count) == 5


def test_a_full_disk_leaves_the_old_file(top: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "full")

    rewriting(monkeypatch, full)
    with pytest.raises(OSError, match="full"):
        change(top, "os", "so")
    assert (top / "a.py").read_text().startswith("import os")
    assert not [path for path in top.rglob("*") if TEMPORARY in path.name]
    assert signal.SIGALRM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
