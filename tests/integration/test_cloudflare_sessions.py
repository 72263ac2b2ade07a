"""Sessions of the container's API, driven by the real npm client @cloudflare/sandbox."""

from __future__ import annotations

import pytest

from tests.support.cloudflare_client import ClientError, Driver

pytestmark = pytest.mark.real


def out(cf: Driver, line: str, session: str, **options: object) -> str:
    found: str = cf.call("commands.execute", line, session, options)["stdout"]
    return found


def test_a_session_keeps_its_folder_environment_and_functions(cf: Driver) -> None:
    made = cf.call("utils.createSession", {"id": "one", "cwd": "/tmp", "env": {"A": "1", "B": None}})
    assert made["success"]
    assert out(cf, "pwd; echo $A; cd /usr; export A=2; f() { echo from f; }", "one") == "/tmp\n1"
    assert out(cf, "pwd; echo $A; f", "one") == "/usr\n2\nfrom f"
    assert out(cf, "pwd; echo ${A-none}", "two") == "/workspace\nnone"
    assert out(cf, "echo $A $C; pwd", "one", env={"C": "3"}, cwd="/etc") == "2 3\n/etc"
    assert out(cf, "echo ${C-gone}; pwd", "one") == "gone\n/usr"


def test_only_the_last_line_end_is_taken_off(cf: Driver) -> None:
    assert out(cf, r"printf 'a\n\n'", "trim") == "a\n"
    assert cf.call("commands.execute", r"printf 'a\n\n'", "__DISABLE_SESSION__")["stdout"] == "a\n\n"
    events = cf.stream("commands.executeStream", r"printf 'a\n\n'", "trim")
    assert "".join(one["data"] for one in events if one["type"] == "stdout") == "a\n\n"


def test_an_id_is_taken_once_and_ends_once(cf: Driver) -> None:
    cf.call("utils.createSession", {"id": "mine"})
    with pytest.raises(ClientError) as caught:
        cf.call("utils.createSession", {"id": "mine"})
    assert (caught.value.name, caught.value.status) == ("SessionAlreadyExistsError", 409)
    assert caught.value.context["sessionId"] == "mine"
    assert cf.call("utils.deleteSession", "mine")["sessionId"] == "mine"
    with pytest.raises(ClientError) as caught:
        cf.call("utils.deleteSession", "mine")
    assert (caught.value.name, caught.value.status) == ("SessionDestroyedError", 410)
    with pytest.raises(ClientError, match="VALIDATION_FAILED"):
        out(cf, "true", "a/../b")
    with pytest.raises(ClientError, match="VALIDATION_FAILED"):
        cf.call("utils.createSession", {"id": "bad-folder", "cwd": "/nope"})


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("exit 7", 7, ""),
        ("exec true", 0, ""),
        ("echo 'open", 2, ""),
        ("cat", 0, ""),
        ("sleep 300.31 & echo on", 0, "on"),
        ("kill -9 $$", 137, ""),
        ("cat <<END\nhere\nEND", 0, "here"),
        ("set -e; false", 1, ""),
    ],
)
def test_nothing_hangs_or_ends_a_session(cf: Driver, line: str, code: int, text: str) -> None:
    cf.call("commands.execute", "export KEPT=1; cd /tmp", "robust")
    found = cf.call("commands.execute", line, "robust")
    assert (found["exitCode"], found["stdout"]) == (code, text)
    assert cf.ms < 60_000
    events = cf.stream("commands.executeStream", line, "robust")
    assert (events[0]["type"], events[-1]["type"], events[-1]["exitCode"]) == ("start", "complete", code)
    assert out(cf, "echo $KEPT; pwd", "robust") == "1\n/tmp"
    cf.call("commands.execute", "pkill -f 'sleep 300[.]31'", None)


def test_a_timeout_kills_the_command_and_the_session_stays(cf: Driver) -> None:
    cf.call("commands.execute", "export KEPT=2", "timed")
    with pytest.raises(ClientError) as caught:
        cf.call("commands.execute", "sleep 300.21 & sleep 300.21", "timed", {"timeoutMs": 300})
    assert (caught.value.name, caught.value.status) == ("CommandError", 500)
    assert caught.value.message == "Command timeout after 300ms"
    assert out(cf, "echo $KEPT; pgrep -f 'sleep 300[.]21'", "timed") == "2"
    cf.call("utils.createSession", {"id": "bounded", "commandTimeoutMs": 200})
    with pytest.raises(ClientError, match="200ms"):
        cf.call("commands.execute", "sleep 300", "bounded")
    events = cf.stream("commands.executeStream", "sleep 300", "bounded")
    assert (events[-1]["type"], events[-1]["exitCode"]) == ("complete", 124)


def test_one_session_is_in_order_and_two_are_parallel(cf: Driver) -> None:
    def run(line: str, session: str) -> dict[str, object]:
        return {"id": line, "op": "call", "on": "commands.execute", "args": [line, session]}

    line = "echo begin >> /tmp/order; sleep 0.1; echo end >> /tmp/order"
    cf.ask("all", requests=[run(line, "line"), run(line, "line"), run(line, "line")])
    assert out(cf, "cat /tmp/order", "line").split() == ["begin", "end"] * 3
    meet = "touch /tmp/{0}; for i in $(seq 3000); do [ -e /tmp/{1} ] && echo met && break; sleep 0.02; done"
    both = [run(meet.format("left", "right"), "left"), run(meet.format("right", "left"), "right")]
    assert [one["ok"]["stdout"] for one in cf.ask("all", requests=both)] == ["met", "met"]


def test_processes_and_files_of_a_session(cf: Driver) -> None:
    cf.call("commands.execute", "mkdir -p /workspace/s; cd /workspace/s; export WHO=me", "place")
    cf.call("processes.startProcess", "echo $WHO; pwd", "place", {"processId": "of-a-session"})
    events = cf.stream("processes.streamProcessLogs", "of-a-session")
    assert "".join(one["data"] for one in events if one["type"] == "stdout") == "me\n/workspace/s\n"
    cf.call("files.writeFile", "here.txt", "1", "place")
    assert cf.call("files.exists", "/workspace/s/here.txt", None)["exists"]
    assert [one["name"] for one in cf.call("files.listFiles", ".", "place")["files"]] == ["here.txt"]


def test_a_bare_exit_ends_a_process(cf: Driver) -> None:
    cf.call("processes.startProcess", "echo a; exit 4", "place", {"processId": "bare"})
    assert cf.stream("processes.streamProcessLogs", "bare")[-1]["exitCode"] == 4
    assert cf.call("processes.getProcess", "bare")["process"]["status"] == "failed"
    assert cf.call("processes.getProcessLogs", "bare")["stdout"] == "a\n"
