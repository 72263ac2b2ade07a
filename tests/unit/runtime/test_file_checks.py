"""What is asked of many files, and what an init tells of files: both are checked before they go further."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sandboxd.errors import InvalidRequest, RemoteProtocolError
from sandboxd.runtime import filefacts
from sandboxd.runtime.file_queries import MAX_FOUND, MAX_PATTERNS, MAX_TIMEOUT_S, Picked, Replacement, Search

ROW: dict[str, Any] = {
    "path": b"/a\xff",
    "type": "symlink",
    "size": 3,
    "mode": 0o777,
    "uid": 1,
    "gid": 2,
    "mtime": 1.5,
    "target": b"b",
}


def test_a_row_becomes_a_value() -> None:
    assert filefacts.parse(ROW) == filefacts.FileFacts("/a\udcff", "symlink", 3, 0o777, 1, 2, 1.5, "b")
    assert filefacts.parse({**ROW, "mtime": 7, "target": None}).mtime == 0.0
    assert filefacts.parse_file({"file": ROW}) == filefacts.parse(ROW)
    match = {"path": b"/a", "line": 1, "column": 2, "text": "x\ty"}
    assert filefacts.parse_match(match) == filefacts.LineMatch("/a", 1, 2, "x\ty")
    assert filefacts.parse_match({"path": b"/a", "type": "file"}) == filefacts.NameMatch("/a", "file")
    change = {"type": "rename", "path": b"/new", "from": b"/old", "is_folder": False}
    assert filefacts.parse_change(change) == filefacts.Change("rename", "/new", False, "/old")
    assert filefacts.parse_change({**change, "type": "write"}).old_path is None
    assert filefacts.parse_truncated({"truncated": "limit"}) == "limit"
    assert filefacts.parse_truncated({}) is None
    assert filefacts.parse_replaced({"path": b"/a", "count": 2}) == ("/a", 2)


LIES: dict[str, tuple[Callable[[dict[str, Any]], object], dict[str, Any]]] = {
    "no path": (filefacts.parse, {**ROW, "path": None}),
    "a path that is text": (filefacts.parse, {**ROW, "path": "/a"}),
    "a path with a NUL": (filefacts.parse, {**ROW, "path": b"/a\0"}),
    "a long path": (filefacts.parse, {**ROW, "path": b"/" + b"a" * filefacts.MAX_NAME_BYTES}),
    "an unknown type": (filefacts.parse, {**ROW, "type": "party"}),
    "a negative size": (filefacts.parse, {**ROW, "size": -1}),
    "a size that is true": (filefacts.parse, {**ROW, "size": True}),
    "a wide mode": (filefacts.parse, {**ROW, "mode": 0o10000}),
    "a target that is text": (filefacts.parse, {**ROW, "target": "b"}),
    "no file": (filefacts.parse_file, {}),
    "a line without text": (filefacts.parse_match, {"path": b"/a", "line": 1, "column": 1}),
    "a long line": (filefacts.parse_match, {"path": b"/a", "line": 1, "column": 1, "text": "x" * 4097}),
    "a name without type": (filefacts.parse_match, {"path": b"/a"}),
    "an unknown change": (filefacts.parse_change, {"type": "party", "path": b"/a", "is_folder": False}),
    "a rename from nowhere": (filefacts.parse_change, {"type": "rename", "path": b"/a", "is_folder": False}),
    "a change of neither": (filefacts.parse_change, {"type": "write", "path": b"/a"}),
    "an unknown end": (filefacts.parse_truncated, {"truncated": "boredom"}),
    "no count": (filefacts.parse_replaced, {"path": b"/a"}),
}


@pytest.mark.parametrize("name", LIES)
def test_what_an_init_may_not_tell(name: str) -> None:
    parse, row = LIES[name]
    with pytest.raises(RemoteProtocolError):
        parse(row)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "too many patterns": (lambda: Picked(include=("a",) * (MAX_PATTERNS + 1)), "include"),
    "an empty pattern": (lambda: Picked(exclude=("",)), "exclude"),
    "neither name nor content": (lambda: Search(path="/"), "content"),
    "a long expression": (lambda: Search(path="/", content="x" * 10_001), "content"),
    "a name with a NUL": (lambda: Search(path="/", name="\0"), "name"),
    "no limit": (lambda: Search(path="/", name="a", limit=0), "limit"),
    "a large limit": (lambda: Search(path="/", name="a", limit=MAX_FOUND + 1), "limit"),
    "no time": (lambda: Search(path="/", name="a", timeout_s=0), "timeout_s"),
    "much time": (lambda: Search(path="/", name="a", timeout_s=MAX_TIMEOUT_S + 1), "timeout_s"),
    "an endless time": (lambda: Search(path="/", name="a", timeout_s=float("nan")), "timeout_s"),
    "nothing to replace": (lambda: Replacement(path="/", pattern="", replacement="b"), "pattern"),
    "a long replacement": (lambda: Replacement(path="/", pattern="a", replacement="b" * 2**21), "replacement"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_caller_may_not_ask(name: str) -> None:
    make, field = REFUSED[name]
    with pytest.raises(InvalidRequest) as caught:
        make()
    assert caught.value.facts["field"] == field


def test_queries_become_a_file_jobs_parameters() -> None:
    search = Search(path="/a\udcff", name="*.py", hidden=True)
    assert search.params() == {
        "path": b"/a\xff",
        "name": "*.py",
        "ignore_case": False,
        "gitignore": False,
        "hidden": True,
        "limit": 1000,
        "timeout_s": 30.0,
        "content": None,
    }
    replacement = Replacement(path="/a", pattern="b", replacement="c", regex=True)
    assert {"pattern": "b", "replacement": "c", "regex": True}.items() <= replacement.params().items()
    assert Picked(include=("a",)).params() == {"include": ["a"], "exclude": []}
