"""start, ps, logs, kill and wait on a real daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from sandboxd import Sandbox
from tests.support.daemon import Daemon

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
    started = cli(daemon, "start", "--id", "web", sandbox.id, "--", "sh", "-c", source)
    assert (started.stdout, started.stderr) == ("web\n", "")
    assert cli(daemon, "start", "--id", "web", sandbox.id, "true").returncode == 1
    found = cli(daemon, "wait", "--log", "^re", "--timeout", "10", sandbox.id, "web")
    assert (found.returncode, found.stdout) == (0, "ready\n")
    followed = cli(daemon, "logs", "-f", sandbox.id, "web")
    assert (followed.returncode, followed.stdout, followed.stderr) == (0, "ready\n", "trouble\n")
    assert cli(daemon, "wait", sandbox.id, "web").returncode == 7
    assert cli(daemon, "wait", "--port", "9", "--timeout", "0.2", sandbox.id).returncode == 124
    late = cli(daemon, "wait", "--port", "9", sandbox.id, "web")
    assert (late.returncode, late.stderr) == (1, "sandboxd: the process ended first: exit code 7\n")
    assert cli(daemon, "ps", "-q", sandbox.id).stdout == ""
    (shown,) = json.loads(cli(daemon, "ps", "--all", "--json", sandbox.id).stdout)
    assert (shown["id"], shown["exit_code"], shown["command"]) == ("web", 7, ["sh", "-c", source])
    assert "web" in cli(daemon, "ps", "-a", sandbox.id).stdout
    assert cli(daemon, "logs", "--tail", "0", sandbox.id, "web").stdout == ""
    assert cli(daemon, "kill", "--rm", sandbox.id, "web").returncode == 0
    gone = cli(daemon, "logs", sandbox.id, "web")
    assert gone.returncode == 1
    assert "web" in gone.stderr


def test_killing(daemon: Daemon, sandbox: Sandbox) -> None:
    for name in ("a", "b", "c"):
        sandbox.start_process(["sleep", "1000"], id=name)
    found = cli(daemon, "kill", "-s", "INT", sandbox.id, "a", "nobody", "b")
    assert found.returncode == 1
    assert "nobody" in found.stderr
    assert cli(daemon, "wait", sandbox.id, "a").returncode == 130
    assert cli(daemon, "wait", "--timeout", "0.1", sandbox.id, "c").returncode == 124
    assert cli(daemon, "kill", "-s", "NONE", sandbox.id, "c").returncode == 1
    assert cli(daemon, "kill", "--all", sandbox.id).returncode == 0
    assert sandbox.list_processes() == []
    for words in (("kill", sandbox.id), ("wait", "--path", "/", sandbox.id, "x"), ("start", sandbox.id)):
        assert cli(daemon, *words).returncode == 2
