"""Whatever a sandbox says as metadata is shown without what a terminal would obey, by every verb."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from sandboxd import errors
from sandboxd.cli import main
from sandboxd.wire import raw
from tests.support.canned import (
    Asked,
    CannedServer,
    exit_frame,
    json_answer,
    plain,
    problem_answer,
    sandbox_object,
    stream_answer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Sets a window's title, in seven and in eight bits; goes back over the line; turns the reading direction.
EVIL = "x\x1b]0;t\x07\x9b2J\r\x08\u202ey"
SHOWN = "x\\x1b]0;t\\x07\\xc2\\x9b2J"
WHEN = "2026-01-02T03:04:05.678Z"


def file_object(**fields: Any) -> dict[str, Any]:
    base = {"path": f"/{EVIL}", "type": EVIL, "size": 4, "mode": "0644", "uid": 7, "gid": 8, "modified_at": WHEN}
    return base | fields


PROCESS = {
    "id": EVIL,
    "pid": 7,
    "status": "running",
    "command": ["sh", EVIL],
    "cwd": f"/{EVIL}",
    "started_at": WHEN,
    "usage": {},
}
CONTEXT = {"id": EVIL, "language": EVIL, "state": EVIL, "version": EVIL, "created_at": WHEN}
SESSION = {"id": EVIL, "shell": EVIL, "user": EVIL, "cwd": EVIL, "created_at": WHEN, "commands": 1, "waiting": 0}
PORT = {"port": 8000, "url": f"http://{EVIL}", "name": EVIL, "public": True}
MATCH = {"path": f"/{EVIL}", "type": "file", "line": 1, "column": 1, "text": EVIL}
STATS = {"state": EVIL, "limits": {}, "cpu_s": 1.0}
SANDBOX = sandbox_object(1, name=EVIL, labels={EVIL: EVIL}, rootfs=EVIL, state=EVIL, cwd=f"/{EVIL}")
#: Verb and words -> what the daemon answers to whatever is asked of its routes below a sandbox.
TABLE: dict[tuple[str, ...], Any] = {
    ("ls",): None,
    ("info",): None,
    ("info", "a"): None,
    ("version",): None,
    ("metrics",): None,
    ("create",): None,
    ("process", "ls", "-a", "a"): {"items": [PROCESS], "next": None},
    ("process", "ls", "-q", "a"): {"items": [PROCESS], "next": None},
    ("process", "start", "a", "true"): PROCESS,
    ("process", "wait", "--log", "x", "a", "p"): {"met": True, "reason": "log", "line": EVIL},
    ("process", "wait", "--port", "1", "a", "p"): {"met": False, "reason": "exit", "signal": EVIL},
    ("session", "ls", "a"): {"items": [SESSION]},
    ("session", "create", "a"): SESSION,
    ("contexts", "ls", "a"): {"items": [CONTEXT]},
    ("contexts", "ls", "-q", "a"): {"items": [CONTEXT]},
    ("contexts", "create", "a"): CONTEXT,
    ("ports", "a"): {"items": [PORT]},
    ("expose", "a", "8000"): PORT,
    ("stats", "a"): STATS,
    ("clone", "a", "https://x/y"): [
        ("progress", {"phase": EVIL, "done": 1, "total": 2, "received_bytes": 1, "submodule": EVIL}),
        ("end", {
            "target_dir": EVIL, "branch": EVIL, "commit": EVIL, "objects": 1, "received_bytes": 1, "files": 1,
        }),
    ],
    ("files", "ls", "a", "/"): {"items": [file_object(target=EVIL)], "next": None},
    ("files", "ls", "-l", "a", "/"): {"items": [file_object(target=EVIL)], "next": None},
    ("files", "stat", "a", "/x"): file_object(target=EVIL),
    ("files", "search", "a", "x", "/"): {"items": [MATCH], "truncated": None, "files": 1},
    ("files", "find", "a", "x", "/"): {"items": [MATCH], "truncated": EVIL, "files": 1},
    ("files", "replace", "a", "x", "y", "/"): {
        "items": [{"path": f"/{EVIL}", "count": 1}], "count": 1, "truncated": EVIL,
    },
    ("files", "changes", "a", "/"): {"version": EVIL, "changed": None, "entries": 1},
    ("files", "watch", "a", "/x"): [
        ("ready", {}),
        ("rename", {"path": f"/{EVIL}", "from": f"/{EVIL}", "is_folder": True}),
        ("end", {}),
    ],
    ("events",): [("network-denied", {"time": 1.5, "offset": 1, "sandbox": "x", "sandbox_name": EVIL, "name": EVIL})],
}  # fmt: skip


def evil(told: Any) -> Callable[[Asked], bytes]:
    """Answer every route below a sandbox with this object, or with an error that quotes a sandbox."""

    def answer(asked: Asked) -> bytes:
        path = asked.path
        if path == ["info"]:
            return json_answer(200, {"version": EVIL, "nested": {EVIL: [EVIL, EVIL]}})
        if path == ["metrics"]:
            return plain(200, f'of{{name="{EVIL}"}} 1\n'.encode(), "text/plain")
        if len(path) < 3 and path != ["events"]:
            is_one = asked.method == "POST" or len(path) == 2
            return json_answer(201, SANDBOX if is_one else {"items": [SANDBOX], "next": None})
        if isinstance(told, list):
            lines = [f"event: {kind}\nid: {at}\ndata: {json.dumps(what)}\n\n" for at, (kind, what) in enumerate(told)]
            return plain(200, "".join(lines).encode(), "text/event-stream")
        if told is None:
            return problem_answer(errors.FileNotFound(f"cannot do it: {EVIL}", path=EVIL, hint=EVIL))
        return json_answer(200, told)

    return answer


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CannedServer]:
    with CannedServer(tmp_path / "d.sock", evil(None)) as found:
        monkeypatch.setenv("SANDBOXD_URL", found.url)
        monkeypatch.delenv("SANDBOXD_TOKEN", raising=False)
        yield found


def is_harmless(text: str) -> bool:
    return all(char == "\n" or char.isprintable() for char in text)


@pytest.mark.parametrize("words", TABLE, ids=" ".join)
def test_what_is_said_is_harmless(
    daemon: CannedServer, words: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    daemon.answer = evil(TABLE[words])
    done = CliRunner().invoke(main.cli, list(words), prog_name="sandboxd")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    said = done.stdout + done.stderr + capfd.readouterr().out  # streams are written past Python's own
    assert is_harmless(said), said
    assert SHOWN in said or words in (("create",), ("stats", "a"))
    if "ls" in words:
        assert len(done.stdout.splitlines()) <= 2  # a head and a row, whatever is in it


@pytest.mark.parametrize(
    "words",
    [
        ("files", "stat", "a", "/x"),
        ("cp", "a:/x", "/nowhere"),
        ("process", "kill", "a", "p"),
        ("exec", "a", "true"),
        ("code", "a", "-c", "1"),
        ("process", "logs", "a", "p"),
        ("clone", "a", "https://x/y"),
    ],
    ids=" ".join,
)
def test_what_an_error_says_is_harmless(daemon: CannedServer, words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(main.cli, list(words), prog_name="sandboxd")
    assert done.exit_code
    assert is_harmless(done.stderr), done.stderr
    assert SHOWN in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_a_command_prints_is_as_it_is(daemon: CannedServer) -> None:
    data = EVIL.encode() + b"\xff\n"

    def answer(asked: Asked) -> bytes:
        if asked.path[-1] == "exec":
            return stream_answer(raw.encode(raw.STDOUT, data), exit_frame())
        if asked.path[-1] == "files":
            return plain(200, data, "application/octet-stream")
        return json_answer(200, SANDBOX)

    daemon.answer = answer
    for words in (["exec", "a", "x"], ["files", "cat", "a", "/x"], ["cp", "a:/x", "-"]):
        done = subprocess.run(
            [sys.executable, "-m", "sandboxd", *words], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, data), done.stderr
