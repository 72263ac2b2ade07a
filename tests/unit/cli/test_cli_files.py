"""`sandboxd files`: what it asks of the daemon, how it shows names, and what it refuses."""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from sandboxd import errors
from sandboxd.cli import file_text, main
from sandboxd.cli.files import files as group
from sandboxd.cli.output import shown, shown_line
from sandboxd.client.file_calls import FileChange
from tests.support.canned import Asked, CannedServer, json_answer, plain, problem_answer, sandbox_object
from tests.support.local_daemon import local_daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RAW = b"/workspace/caf\xe9\x1b[31m"
RAW_TEXT = os.fsdecode(RAW)
B64 = base64.b64encode(RAW).decode()


def file_object(path: str, **fields: Any) -> dict[str, Any]:
    base = {"type": "file", "size": 4, "mode": "0644", "uid": 7, "gid": 8, "modified_at": "2001-02-03T04:05:06.789Z"}
    return {"path": path, **base, **fields}


STRANGE = file_object("/workspace/caf\ufffd\x1b[31m", path_b64=B64)
LINK = file_object("/workspace/l", type="symlink", mode="0777", target="a\nb")


class FilesServer(CannedServer):
    """Answers the routes of files with what a test put into `answers`, by method and verb; nothing else is there."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, self._answer)
        self.answers: dict[tuple[str, ...], Any] = {}

    def _answer(self, asked: Asked) -> bytes:
        if asked.path[2:3] != ["files"]:
            return json_answer(200, sandbox_object(1, name="a"))
        found = self.answers.get((asked.method, *asked.path[3:]))
        try:
            if found is None:
                raise errors.FileNotFound("cannot look at it: no such file or directory")
            if isinstance(found, bytes):
                return plain(200, found, "text/event-stream")
            return json_answer(200, found(asked.query) if callable(found) else found)
        except errors.SandboxdError as error:
            return problem_answer(error)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FilesServer]:
    with FilesServer(tmp_path / "d.sock") as found:
        monkeypatch.setenv("SANDBOXD_URL", found.url)
        monkeypatch.delenv("SANDBOXD_TOKEN", raising=False)
        yield found


def sandboxd(*words: str, **options: Any) -> Result:
    return CliRunner().invoke(main.cli, list(words), prog_name="sandboxd", **options)


def files(*words: str, **options: Any) -> Result:
    return sandboxd("files", *words, **options)


def asked(daemon: FilesServer) -> tuple[str, str, dict[str, str], Any]:
    """Return the last request: its method, its path below …/files, its query and its body."""
    last = daemon.requests[-1]
    return last.method, "".join(f"/{part}" for part in last.path[3:]), last.query, last.json if last.body else b""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain name é", "plain name é"),
        (os.fsdecode(b"a\xffb"), "a\\xffb"),
        ("a\nb\tc\\d", "a\\nb\\tc\\\\d"),
        ("\x1b]0;x\x07", "\\x1b]0;x\\x07"),
        ("\u202e", "\\xe2\\x80\\xae"),
        ("\ud800", "\\xed\\xa0\\x80"),
    ],
)
def test_names_are_shown_on_one_line(name: str, expected: str) -> None:
    assert shown(name) == expected


def test_lines_keep_tabs_and_backslashes() -> None:
    assert shown_line("a\t\\n\x1bé") == "a\t\\n\\x1bé"


def test_a_change_as_a_line() -> None:
    changed = FileChange(type="rename", path="/new", is_folder=True, old_path="/old\n")
    assert file_text.change_line(changed) == "rename   /old\\n/ -> /new/"
    assert file_text.change_json(changed) == {"type": "rename", "path": "/new", "is_folder": True, "from": "/old\n"}


def test_moments_are_utc() -> None:
    there = dt.datetime(2026, 1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    assert file_text.utc(there) == "2025-12-31T23:00:00Z"


def test_ls(daemon: FilesServer) -> None:
    pages = {None: {"items": [STRANGE], "next": "2"}, "2": {"items": [LINK], "next": None}}
    daemon.answers["GET", "list"] = lambda query: pages[query.get("cursor")]
    assert files("ls", "a").stdout == "caf\\xe9\\x1b[31m\nl\n"
    assert asked(daemon)[2] == {"path": "/workspace", "cursor": "2"}
    files("ls", "-aR", "a", "/x")
    assert asked(daemon)[2] == {"path": "/x", "recursive": "true", "hidden": "true", "cursor": "2"}
    head, first, second = files("ls", "-l", "a", "//workspace/").stdout.splitlines()
    assert head.split() == ["MODE", "OWNER", "SIZE", "MODIFIED", "NAME"]
    assert first.split() == ["-rw-r--r--", "7:8", "4", "2001-02-03T04:05:06Z", "caf\\xe9\\x1b[31m"]
    assert second.endswith("  l -> a\\nb")
    assert second.startswith("lrwxrwxrwx")
    assert json.loads(files("ls", "--json", "a").stdout) == [STRANGE, LINK]


def test_ls_of_a_file_and_of_nothing(daemon: FilesServer) -> None:
    def refuse(query: dict[str, str]) -> None:
        kind = errors.NotAFile if query["path"] == "/f" else errors.FileNotFound
        raise kind("cannot list it: no directory")

    daemon.answers |= {("GET", "list"): refuse, ("GET", "stat"): file_object("/f")}
    assert files("ls", "a", "/f").stdout == "/f\n"
    assert files("ls", "-l", "a", "/f").stdout.splitlines()[1].endswith(" /f")
    missing = files("ls", "a", "/none")
    assert (missing.exit_code, missing.stderr) == (1, "sandboxd: cannot list it: no directory\n")


def test_stat(daemon: FilesServer) -> None:
    daemon.answers["GET", "stat"] = STRANGE
    facts = dict(line.split(maxsplit=1) for line in files("stat", "-L", "a", RAW_TEXT).stdout.splitlines())
    assert asked(daemon) == ("GET", "/stat", {"path_b64": B64, "follow": "true"}, b"")
    assert facts["path"] == "/workspace/caf\\xe9\\x1b[31m"
    assert (facts["mode"], facts["owner"], facts["size"], facts["type"]) == ("0644", "7:8", "4", "file")
    assert json.loads(files("stat", "--json", "a", "/x").stdout) == [STRANGE]
    del daemon.answers["GET", "stat"]
    missing = files("stat", "--json", "a", "/x", "/y")
    assert (missing.exit_code, missing.stdout, missing.stderr.count("\n")) == (1, "[]\n", 2)


def test_write_and_cat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    data = bytes(range(256)) * 3000
    with local_daemon(tmp_path, monkeypatch) as daemon:
        assert sandboxd("create", "--name", "a").exit_code == 0
        assert files("write", "-m", "750", "a", "/f", input=data).exit_code == 0
        (asked_for,) = daemon.asked("open_write")
        assert (daemon.file("/f").read_bytes(), asked_for["mode"]) == (data, "0750")
        assert files("write", "a", "/empty", input=b"").exit_code == 0
        assert daemon.file("/empty").read_bytes() == b""
        result = files("cat", "a", "/f", "/none", "/empty", "/f")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("sandboxd: cannot open ")
    assert capfdbinary.readouterr().out == data + data


@pytest.mark.parametrize(
    ("words", "verb", "body"),
    [
        (["mkdir", "-p", "-m", "700", "a", "/d"], "mkdir", {"path": "/d", "parents": True, "mode": "0700"}),
        (["mv", "a", "/x", "/y"], "rename", {"path": "/x", "new_path": "/y", "overwrite": True}),
        (["mv", "-n", "a", "/x", "/d/"], "rename", {"path": "/x", "new_path": "/d/x", "overwrite": False}),
        (["copy", "a", RAW_TEXT, "/y"], "copy", {"path_b64": B64, "new_path": "/y", "overwrite": True}),
        (["ln", "a", "../t", "/l"], "symlink", {"path": "/l", "target": "../t"}),
        (["chmod", "-R", "a", "755", "/d"], "chmod", {"path": "/d", "mode": "0755", "recursive": True}),
        (["chown", "a", "7:g", "/d"], "chown", {"path": "/d", "user": 7, "group": "g", "recursive": False}),
        (["truncate", "a", "/f", "1.5K"], "truncate", {"path": "/f", "size": 1536}),
        (["chown", "a", ":8", "/d"], "chown", {"path": "/d", "user": None, "group": 8, "recursive": False}),
    ],
)
def test_what_the_verbs_ask_for(daemon: FilesServer, words: list[str], verb: str, body: dict[str, Any]) -> None:
    found = file_object("/y")
    daemon.answers["POST", verb] = {**found, "file": found, "count": 1}
    result = files(*words)
    assert (result.exit_code, result.output) == (0, "")
    assert asked(daemon) == ("POST", f"/{verb}", {}, body)


def test_mv_into_a_folder(daemon: FilesServer) -> None:
    daemon.answers |= {("GET", "stat"): file_object("/d", type="directory"), ("POST", "rename"): file_object("/d/x")}
    assert files("mv", "a", "/up/x", "/d").exit_code == 0
    assert asked(daemon)[3] == {"path": "/up/x", "new_path": "/d/x", "overwrite": True}


def test_rm_tells_each_that_it_cannot_delete(daemon: FilesServer) -> None:
    def delete(query: dict[str, str]) -> None:
        gone.append(query)
        if query["path"] == "/none":
            raise errors.FileNotFound("cannot delete /none: there is no such file")

    gone: list[dict[str, str]] = []
    daemon.answers["DELETE",] = delete
    result = files("rm", "a", "/none", "/x")
    assert (result.exit_code, result.stderr) == (1, "sandboxd: cannot delete /none: there is no such file\n")
    assert gone == [{"path": "/none"}, {"path": "/x"}]
    assert files("rm", "-rf", "a", "/none").exit_code == 0
    assert gone[-1] == {"path": "/none", "recursive": "true"}


def test_search_and_find(daemon: FilesServer) -> None:
    line = {"path": STRANGE["path"], "path_b64": B64, "line": 3, "column": 1, "text": "a\tb\x1b"}
    answer = {"items": [line], "truncated": "limit", "files": 9}
    daemon.answers["POST", "search"] = answer
    result = files("search", "a", "a.b", "--name", "*.py", "-ia", "--limit", "1", "--timeout", "2", "--gitignore")
    assert result.stdout == "/workspace/caf\\xe9\\x1b[31m:3:a\tb\\x1b\n"
    assert result.stderr == "sandboxd: the result is incomplete: the limit was reached\n"
    flags = {"ignore_case": True, "gitignore": True, "hidden": True}
    named = {"path": "/workspace", "name": "*.py", "content": "a.b", "limit": 1, "timeout_s": 2.0}
    assert asked(daemon)[3] == named | flags
    assert json.loads(files("search", "--json", "a", "x").stdout) == answer
    found = {"items": [{"path": "/x/d", "type": "directory"}], "truncated": None, "files": 1}
    daemon.answers["POST", "search"] = found
    result = files("find", "a", "d*", "/x")
    assert (result.stdout, result.stderr) == ("/x/d\n", "")
    assert asked(daemon)[3] == {"path": "/x", "name": "d*"} | dict.fromkeys(flags, False)
    assert json.loads(files("find", "--json", "a", "d*").stdout) == found


def test_replace(daemon: FilesServer) -> None:
    answer = {"items": [{"path": "/x", "count": 2}], "count": 2, "truncated": None}
    daemon.answers["POST", "replace"] = answer
    assert files("replace", "-e", "a", "(b)", r"\1", "/x").stdout == "/x:2\n"
    given = asked(daemon)[3]
    assert (given["pattern"], given["replacement"], given["regex"]) == ("(b)", r"\1", True)
    assert json.loads(files("replace", "--json", "a", "b", "c", "/x").stdout) == answer


def test_watch(daemon: FilesServer, capfd: pytest.CaptureFixture[str]) -> None:
    made = {"path": STRANGE["path"], "path_b64": B64, "is_folder": False}
    moved = {"path": "/b", "from": "/a", "is_folder": True}
    events: tuple[tuple[str, dict[str, Any]], ...] = (("ready", {}), ("create", made), ("rename", moved), ("end", {}))
    stream = "".join(f"event: {name}\ndata: {json.dumps(value)}\n\n" for name, value in events)
    daemon.answers["GET", "watch"] = stream.encode()
    result = files("watch", "--no-recursive", "a")
    assert asked(daemon)[2] == {"path": "/workspace"}
    assert (result.exit_code, result.stderr) == (
        0,
        "sandboxd: watching /workspace\nsandboxd: /workspace is gone\n",
    )
    assert capfd.readouterr().out == "create   /workspace/caf\\xe9\\x1b[31m\nrename   /a/ -> /b/\n"
    files("watch", "--json", "a", "/w")
    assert asked(daemon)[2] == {"path": "/w", "recursive": "true"}
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert lines == [{"type": "create", **made}, {"type": "rename", **moved}]


@pytest.mark.parametrize(
    "words",
    [
        ["nope"],
        ["ls"],
        ["cat", "a"],
        ["chmod", "a", "u+x", "/x"],
        ["chmod", "a", "10000", "/x"],
        ["chown", "a", ":", "/x"],
        ["truncate", "a", "/x"],
        ["truncate", "a", "/x", "big"],
        ["mv", "a", "/x"],
        ["replace", "a", "x", "y"],
        ["search", "a", "x", "--limit", "0"],
    ],
)
def test_usage_is_status_2(words: list[str]) -> None:
    result = files(*words)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


@pytest.mark.parametrize("path", ["x", "/a/../b"])
@pytest.mark.parametrize("verb", ["ls", "cat", "stat", "rm"])
def test_a_path_must_be_absolute(daemon: FilesServer, verb: str, path: str) -> None:
    result = files(verb, "a", path)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("sandboxd: cannot accept path")


def test_every_verb_has_help() -> None:
    names = sandboxd("files", "-h").stdout
    for name in group.commands:
        assert f"  {name} " in names
        assert files(name, "-h").exit_code == 0
