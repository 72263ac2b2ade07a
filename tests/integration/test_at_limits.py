"""A sandbox that is at a limit says so, by kind and name, whatever is asked of it."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

import pytest

from sandboxd import ContextExited, LimitExceeded, Sandbox
from tests.support import operations
from tests.support.daemon import Daemon
from tests.support.operations import HOG, ask, ask_all, prepare

pytestmark = pytest.mark.real

#: Takes every process that it can get, and says so.
FORKS = """
import os, time
while True:
    try:
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
    except OSError:
        print("full", flush=True)
        time.sleep(0.005)  # and again: what ends just now must leave no room
"""


NEEDS_A_PROCESS = {
    *("exec", "exec of a list", "a long line", "exec in a session", "a process", "a process in a session"),
    *("a terminal", "a python context", "a javascript context", "a typescript context"),
    *("a run in a default context", "a list", "a search", "packing", "unpacking", "a watch", "a version"),
    *("a backup", "restoring", "a directory"),
}


def ask_until_full(daemon: Daemon, box: Sandbox, contexts: dict[str, str], name: str) -> None:
    for turn in range(1, 100):
        method, route, body = operations.operations(contexts, turn)[name]
        if ask(daemon.socket, method, f"/v1/sandboxes/{box.id}{route}", body).body.get("limit") == "pids":
            return
    raise AssertionError(f"{name} always works")


@pytest.fixture
def forking(tmp_path: pathlib.Path) -> Iterator[Daemon]:
    """A daemon where init forks whatever starts: a template's child counts where the controller of processes does."""
    daemon = Daemon(tmp_path, config={"standby_s": 0, "templates": False})
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture
def box(forking: Daemon) -> Iterator[Sandbox]:
    with forking.client() as client, Sandbox.create(client=client, limits={"pids": 60}) as box:
        yield box


def full(found: dict[str, operations.Answer], limit: str) -> set[str]:
    return {name for name, answer in found.items() if answer.status >= 300 and answer.body.get("limit") == limit}


def test_without_processes(forking: Daemon, box: Sandbox) -> None:
    contexts = prepare(box, forking.socket)
    box.start_process(["python3", "-c", FORKS], id=HOG)
    assert box.wait_for_log(HOG, "full", timeout=60).met
    found = ask_all(box, forking.socket, contexts)
    for name in NEEDS_A_PROCESS - full(found, "pids"):  # one that ended just then left room for another
        ask_until_full(forking, box, contexts, name)
    # What needs no process works, and an interpreter that is there goes on: it needs no thread to run code.
    for name in ("a run in python", "a run in javascript", "reading", "writing", "a stat", "a session", "a preview"):
        assert found[name].status < 300, (name, found[name])
    assert found["a run in python"].body["stdout"] == "1\n"
    assert found["a run in javascript"].body["results"][0]["text"] == "1"
    box.remove_process(HOG)
    assert box.exec("echo on").stdout == "on\n"


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_a_context_whose_restart_had_no_room_can_be_restarted_later(
    forking: Daemon, box: Sandbox, language: str
) -> None:
    context = box.create_code_context(language)
    code = "import os; os._exit(0)" if language == "python" else "process.kill(process.pid, 'SIGKILL')"
    box.run_code(code, context=context)
    box.start_process(["python3", "-c", FORKS], id=HOG)
    assert box.wait_for_log(HOG, "full", timeout=60).met
    told = set()
    for _ in range(20):  # more than init has room for: none is left behind
        with pytest.raises(
            (LimitExceeded, ContextExited)
        ) as caught:  # Node may begin, and find no room for its threads
            box.restart_code_context(context)
        told.add(caught.value.facts.get("limit"))
    assert "pids" in told
    box.remove_process(HOG)
    for _ in range(50):  # what was killed counts until it is reaped
        with contextlib.suppress(LimitExceeded, ContextExited):
            box.restart_code_context(context)
            break
    assert box.run_code("1 + 1", context=context).text == "2"


@pytest.mark.slow
def test_without_descriptors(forking: Daemon) -> None:
    """Init has 1024: a process of a session's with an open stdin holds six."""
    with forking.client() as client, Sandbox.create(client=client) as box:
        contexts = prepare(box, forking.socket)
        route = f"/v1/sandboxes/{box.id}"
        body = {"command": "read x", "stdin": True, "session": operations.SESSION}
        started = []
        while (answer := ask(forking.socket, "POST", f"{route}/processes", body)).status == 201:
            started.append(answer.body["id"])
        assert (answer.status, answer.body["limit"]) == (422, "open files")
        seen: set[str] = set()
        for turn in range(3):
            seen |= full(ask_all(box, forking.socket, contexts, turn), "open files")
            ask(forking.socket, "DELETE", f"{route}/sessions/{operations.OTHER_SESSION}")
            box.remove_process(started.pop())
        assert seen >= {"a javascript context", "a process in a session"}
        for process in started:
            box.remove_process(process)
        assert box.exec("echo on").stdout == "on\n"
        assert box.run_code("1 + 1").text == "2"


def test_without_disk(forking: Daemon) -> None:
    with forking.client() as client:
        if client.info()["launcher"]["storage"] == "directory":
            pytest.skip("this host's storage has no limit")
        with Sandbox.create(client=client, limits={"disk_bytes": 64 << 20}) as box:
            contexts = prepare(box, forking.socket)
            box.exec("cat /dev/urandom > /workspace/rest; sync")
            box.exec("cat /dev/urandom > /workspace/rest2; sync")
            found = ask_all(box, forking.socket, contexts)
            assert full(found, "disk_bytes") >= {"writing", "a copy"}
            for name in ("exec", "a run in python", "reading", "a list", "a search", "a version", "a preview"):
                assert found[name].status < 300, (name, found[name])
