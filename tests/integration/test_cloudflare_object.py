"""The whole Sandbox class of @cloudflare/sandbox, unchanged, in Node on a real daemon: its public API, step by step."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.cloudflare_client import TOKEN, run
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def tour(served: tuple[Daemon, str]) -> dict[str, Any]:
    """What came of each step of `tests/support/cloudflare/tour.mjs`."""
    found: dict[str, Any] = run("tour.mjs", {"url": served[1], "token": TOKEN, "sandbox": "an-object"})
    return found


def test_commands_in_the_default_session(tour: dict[str, Any]) -> None:
    assert tour["exec"]["stdout"] == "hi"
    assert tour["exec"]["sessionId"] == "sandbox-an-object"
    assert tour["state"]["stdout"] == "/tmp\n1"
    assert (tour["fails"]["success"], tour["fails"]["exitCode"], tour["fails"]["stderr"]) == (False, 3, "no")
    assert tour["setEnvVars"]["stdout"] == "unset two words"
    assert tour["execStreaming"] == {"seen": [["stdout", "out\n"], ["stderr", "err\n"]], "exitCode": 0}
    assert (tour["timeout"]["threw"], tour["afterTimeout"]["stdout"]) == ("CommandError", "two words")
    assert tour["execStream"][-1]["exitCode"] == 4
    assert tour["session"] == "/usr\nme"


def test_files_and_changes(tour: dict[str, Any]) -> None:
    wanted = {"content": "text", "streamed": "text", "names": ["e", "e/c.txt"], "exists": False}
    assert tour["files"] == wanted
    assert (tour["noFile"]["threw"], tour["noFile"]["code"]) == ("FileNotFoundError", "FILE_NOT_FOUND")
    assert tour["watch"] == ["watching", "create"]
    assert tour["checkChanges"] == "changed"


def test_processes_and_what_they_wait_for(tour: dict[str, Any]) -> None:
    assert tour["process"] == {"id": "web", "line": "Serving", "listed": ["web"], "status": "running"}
    assert tour["kill"] == "killed"
    assert tour["exit"] == {"exitCode": 7}
    assert tour["early"]["threw"] == "ProcessExitedBeforeReadyError"


def test_code(tour: dict[str, Any]) -> None:
    assert tour["code"] == {"seen": ["42 /tmp\n"], "text": "42", "error": "ZeroDivisionError", "listed": 1}


def test_preview_urls(tour: dict[str, Any]) -> None:
    shown = tour["preview"]
    assert shown["url"] == "https://8181-an-object-tok_1.example.com/"
    assert shown["good"]["status"] == 200
    assert "c.txt" not in shown["good"]["body"]
    assert [one["port"] for one in shown["listed"]] == [8181]
    assert (shown["wrong"]["status"], shown["gone"]["status"]) == (404, 404)
    assert "INVALID_TOKEN" in shown["wrong"]["body"]
    assert shown["moved"]["status"] == 301  # the visitor's to follow
    assert shown["foreign"] is None


def test_what_ends_and_comes_again(tour: dict[str, Any]) -> None:
    assert tour["destroy"] == {"stale": 410, "code": "STALE_PREVIEW_URL", "stdout": "/workspace"}
