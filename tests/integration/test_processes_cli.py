"""`sandboxd process`, `exec --detach` and `--orphans` on a real daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from sandboxd import Sandbox
from tests.support.daemon import Daemon
from tests.support.waiting import wait_until

pytestmark = pytest.mark.real


def cli(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sandboxd", *words],
        env={**os.environ, "SANDBOXD_URL": daemon.url},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_verbs_of_processes(daemon: Daemon, sandbox: Sandbox) -> None:
    source = "echo ready; echo trouble >&2; sleep 0.3; exit 7"
    started = cli(daemon, "process", "start", "--id", "web", sandbox.id, "--", "sh", "-c", source)
    assert (started.stdout, started.stderr) == ("web\n", "")
    assert cli(daemon, "process", "start", "--id", "web", sandbox.id, "true").returncode == 1
    found = cli(daemon, "process", "wait", "--log", "^re", "--timeout", "10", sandbox.id, "web")
    assert (found.returncode, found.stdout) == (0, "ready\n")
    followed = cli(daemon, "process", "logs", "-f", sandbox.id, "web")
    assert (followed.returncode, followed.stdout, followed.stderr) == (0, "ready\n", "trouble\n")
    assert cli(daemon, "process", "wait", sandbox.id, "web").returncode == 7
    assert cli(daemon, "process", "wait", "--port", "9", "--timeout", "0.2", sandbox.id).returncode == 124
    late = cli(daemon, "process", "wait", "--port", "9", sandbox.id, "web")
    assert (late.returncode, late.stderr) == (1, "sandboxd: the process exited first: exit code 7\n")
    assert cli(daemon, "process", "ls", "-q", sandbox.id).stdout == ""
    (shown,) = json.loads(cli(daemon, "process", "ls", "--all", "--json", sandbox.id).stdout)
    assert (shown["id"], shown["exit_code"], shown["command"]) == ("web", 7, ["sh", "-c", source])
    assert "web" in cli(daemon, "process", "ls", "-a", sandbox.id).stdout
    assert cli(daemon, "process", "logs", "--tail", "0", sandbox.id, "web").stdout == ""
    assert cli(daemon, "process", "kill", "--rm", sandbox.id, "web").returncode == 0
    gone = cli(daemon, "process", "logs", sandbox.id, "web")
    assert gone.returncode == 1
    assert "web" in gone.stderr


def test_killing(daemon: Daemon, sandbox: Sandbox) -> None:
    for name in ("a", "b", "c"):
        sandbox.start_process(["sleep", "1000"], id=name)
    found = cli(daemon, "process", "kill", "-s", "INT", sandbox.id, "a", "nobody", "b")
    assert found.returncode == 1
    assert "nobody" in found.stderr
    assert cli(daemon, "process", "wait", sandbox.id, "a").returncode == 130
    assert cli(daemon, "process", "wait", "--timeout", "0.1", sandbox.id, "c").returncode == 124
    assert cli(daemon, "process", "kill", "-s", "NONE", sandbox.id, "c").returncode == 1
    assert cli(daemon, "process", "kill", "--all", sandbox.id).returncode == 0
    assert sandbox.list_processes() == []
    for words in (("kill", sandbox.id), ("wait", "--path", "/", sandbox.id, "x"), ("start", sandbox.id)):
        assert cli(daemon, "process", *words).returncode == 2


def test_exec_detach_is_a_process(daemon: Daemon, sandbox: Sandbox) -> None:
    started = cli(daemon, "exec", "--detach", sandbox.id, "--", "sh", "-c", "echo up; sleep 1000")
    assert (started.returncode, started.stderr) == (0, "")
    process = started.stdout.strip()
    assert cli(daemon, "process", "ls", "-q", sandbox.id).stdout == f"{process}\n"
    assert cli(daemon, "process", "wait", "--log", "up", "--timeout", "20", sandbox.id, process).stdout == "up\n"
    assert cli(daemon, "process", "kill", sandbox.id, process).returncode == 0
    assert cli(daemon, "process", "wait", sandbox.id, process).returncode == 128 + 15


@pytest.mark.parametrize("session", [(), ("-s", "work")], ids=["", "session"])
@pytest.mark.parametrize("orphans", ["kill", "keep", None])
def test_orphans_are_killed_or_kept(
    daemon: Daemon, sandbox: Sandbox, session: tuple[str, ...], orphans: str | None
) -> None:
    sandbox.create_session(id="work")
    options = (*session, *(() if orphans is None else ("--orphans", orphans)))
    kept = orphans == "keep" or (orphans is None and bool(session))
    for seconds, verb in (("1007", ("exec",)), ("1008", ("process", "start", "--id", "p"))):
        line = f"setsid sleep {seconds} >/dev/null 2>&1 & true"
        assert cli(daemon, *verb, *options, sandbox.id, "sh", "-c", line).returncode == 0
        if "p" in verb:
            assert sandbox.wait_for_exit("p", timeout=100).exit_code == 0
        left = ["pgrep", "-f", f"sleep {seconds}"]
        if kept:
            assert sandbox.exec(left).exit_code == 0
        else:
            wait_until(lambda left=left: sandbox.exec(left).exit_code == 1)  # type: ignore[misc]


def test_a_process_of_a_session(daemon: Daemon, sandbox: Sandbox) -> None:
    sandbox.create_session(id="work").exec("greet() { echo hello $1; exit 1; }")
    words = ("--id", "p", "-s", "work", "--restart", sandbox.id, "greet you")
    assert cli(daemon, "process", "start", *words).stdout == "p\n"
    with sandbox.stream_process_logs("p") as stream:  # its function is there again after a restart
        found = b""
        for chunk in stream:
            found += chunk.data
            if found.count(b"hello you\n") == 2:
                break
    assert found == b"hello you\n" * 2
