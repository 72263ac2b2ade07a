"""OpenAI's agents, with their own Cloudflare sandbox client and a scripted model, against the bridge API."""

from __future__ import annotations

import pytest

from tests.support import agents
from tests.support.cloudflare_client import TOKEN
from tests.support.daemon import Daemon

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def url(served: tuple[Daemon, str]) -> str:
    return f"{served[1]}/cloudflare"


def test_an_agent_works_in_a_sandbox(url: str) -> None:
    seen = agents.run("agent", url, TOKEN)
    assert seen["final"] == "done"
    listed, patched, ran = seen["outputs"]
    assert "write it" in listed
    assert "42" in listed
    assert "made.py" in patched
    assert "made by the agent" in ran


def test_the_clients_own_methods(url: str) -> None:
    seen = agents.run("session", url, TOKEN)
    assert "got typed" in seen.pop("pty")
    assert seen == {
        "exec": ["hello\n", "err\n", 3],
        "timeout": 124,
        "read": True,
        "bytes": True,
        "missing": "WorkspaceReadNotFoundError",
        "outside": seen["outside"],
        "hydrated": "in the snapshot\n",
        "running": True,
        "deleted": False,
    }
    assert seen["outside"] != "read"


def test_a_run_goes_on_where_it_stopped(url: str) -> None:
    assert agents.run("resume", url, TOKEN) == {"there": "kept\n", "gone": "kept\n"}


def test_a_wrong_key_is_told(url: str) -> None:
    assert "HTTP 401: unauthorized" in agents.run("refused", url, TOKEN)
