"""An init that is asked by a daemon of another age: keys that it does not know, and lacks."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from sandboxd import Sandbox
from sandboxd.wire.link import DEFAULT_WINDOW
from sandboxd.wire.messages import Reply
from tests.support.daemon import Daemon
from tests.support.launching import Asker

pytestmark = pytest.mark.real

LATER: dict[str, Any] = {"later": [1], "and": {"more": None}}


@pytest.fixture
def init(daemon: Daemon, sandbox: Sandbox) -> Iterator[Asker]:
    """A link of the test's own to the sandbox's init."""
    sandbox.exec("true")
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(daemon.runtime_dir / "links" / f"{sandbox.id}.sock"))
    asker = Asker(connection)
    yield asker
    asker.close()


def ask(init: Asker, op: str, **params: Any) -> dict[str, Any]:
    answer = init.ask(op, **params)
    assert isinstance(answer, Reply), answer
    return answer.result


def output(init: Asker, line: str, process: str, **params: Any) -> str:
    ask(init, "exec", argv=["sh", "-c", line], process=process, credit=DEFAULT_WINDOW, **params)
    return b"".join(event.data for event in init.events if isinstance(event.data, bytes)).decode()


def test_a_daemon_that_knows_more(init: Asker, sandbox: Sandbox) -> None:
    ask(init, "configure", env={"A": "b"}, cwd="/tmp", user="root", **LATER)
    assert output(init, "echo $A; pwd", "new", **LATER) == "b\n/tmp\n"
    assert ask(init, "start", argv=["sleep", "1000"], process="new-start", **LATER)["running"] is True
    assert ask(init, "session_create", session="new", env={}, **LATER)["session"] == "new"
    shell = ["/bin/sh", "-c", "--", "pwd"]
    ask(init, "exec", argv=shell, session="new", process="new-in", credit=DEFAULT_WINDOW, **LATER)
    assert [event.data for event in init.events if event.type == "stdout"] == [b"/tmp\n"]
    assert [process.id for process in sandbox.list_processes() if process.is_running] == ["new-start"]


def test_a_daemon_that_knows_less(init: Asker) -> None:
    ask(init, "configure", env={}, cwd="/", user="root")  # no `standby_s`
    # Without `keep_orphans` what is left behind is killed; without `stdin` there is none.
    left = output(init, "cat; sleep 1000 & echo $!", "old")
    assert output(init, f"kill -0 {int(left)} 2>/dev/null || echo gone", "old-look") == "gone\n"
    left = output(init, "sleep 1000 & echo $!", "keeping", keep_orphans=True)
    assert output(init, f"kill -0 {int(left)} && echo there", "keeping-look") == "there\n"
    assert ask(init, "start", argv=["true"], process="old-start")["restarts"] == 0
    assert ask(init, "session_create", session="old")["session"] == "old"
