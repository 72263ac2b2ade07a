"""Terminals, ports, and the transport "websocket" of Cloudflare's npm client, over real WebSockets of Node's."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.support.cloudflare_client import ClientError, Driver

pytestmark = pytest.mark.real


# --- terminals ---


def pty(cf: Driver, session: str, *steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = cf.ask("pty", query={"sessionId": session}, steps=steps, **more)
    assert found["left"] == 0
    return found


def test_a_terminal(cf: Driver) -> None:
    shown = pty(
        cf,
        "t1",
        {"send": "stty -echo; PS1=; echo ready-$((1+1))\n"},
        {"until": "ready-2"},
        {"text": {"type": "resize", "cols": 101, "rows": 33}},
        {"send": "until stty size | grep '33 101'; do sleep 0.02; done; exit 5\n"},
        {"until": "33 101"},
        stay=True,
    )
    assert shown["texts"] == [{"type": "ready"}, {"type": "exit", "code": 5}]
    assert shown["code"] == 1000


def test_a_terminal_is_its_sessions_and_shared(cf: Driver) -> None:
    cf.call("commands.execute", "cd /usr/share; export MARK=of-the-session", "t2")
    line = "echo $MARK $PWD; KEPT=still; echo first-$((40+2))\n"
    pty(cf, "t2", {"send": line}, {"until": "of-the-session /usr/share"}, {"until": "first-42"})
    again = pty(cf, "t2", {"until": "first-42"}, {"send": "echo $KEPT-here\n"}, {"until": "still-here"})
    assert "of-the-session /usr/share" in again["before"]  # what was there, then `ready`, then what is new
    assert "still-here" not in again["before"]
    assert again["texts"] == [{"type": "ready"}]
    both = cf.ask(
        "all",
        requests=[
            {"id": n, "op": "pty", "query": {"sessionId": "t2"}, "steps": steps}
            for n, steps in enumerate(
                [
                    [{"until": "first-42"}, {"send": "sleep 0.5; echo both-$((5+6))\n"}, {"until": "both-11"}],
                    [{"until": "both-11"}],
                ]
            )
        ],
    )
    assert [one["ok"]["left"] for one in both] == [0, 0]
    assert pty(cf, "t2", {"send": "exit\n"}, stay=True)["texts"][-1]["type"] == "exit"
    assert pty(cf, "t2", {"send": "echo new-$((1+2))\n"}, {"until": "new-3"})["texts"][0] == {"type": "ready"}


def test_a_size_is_not_behind_what_nobody_reads(cf: Driver) -> None:
    deaf = "stty raw -echo; trap 'stty size' WINCH; echo up-$((1+1)); while :; do sleep 0.05; done"
    shown = pty(
        cf,
        "t4",
        {"send": f'exec sh -c "{deaf}"\n'},
        {"until": "up-2"},
        {"send": "x" * 900_000},
        {"text": {"type": "resize", "cols": 101, "rows": 33}},
        {"until": "33 101"},
        {"send": "x" * 900_000},
        {"text": {"type": "resize", "cols": 102, "rows": 34}},
        {"until": "34 102"},
    )
    assert [one["type"] for one in shown["texts"]] == ["ready"]


def test_a_terminals_shell_and_its_size(cf: Driver) -> None:
    query = {"sessionId": "t3", "cols": "100", "rows": "20", "shell": "/bin/sh"}
    shown = cf.ask("pty", query=query, steps=[{"send": "echo $0; stty size\n"}, {"until": "20 100"}])
    assert "/bin/sh" in shown["output"]


@pytest.mark.parametrize(
    "query", [{"cols": "0"}, {"sessionId": "a/b"}, {"nothing": "x"}, {"access_token": "wrong"}, {"shell": "a\0b"}]
)
def test_a_handshake_that_is_refused(cf: Driver, query: dict[str, str]) -> None:
    with pytest.raises(ClientError):
        cf.ask("pty", query=query, steps=[])


# --- ports ---


def test_a_port_is_watched_until_it_answers(cf: Driver) -> None:
    line = "mkdir -p /tmp/www; sleep 0.3; exec python3 -m http.server 8123 --directory /tmp/www"
    cf.call("processes.startProcess", line, None, {"processId": "www"})
    events = cf.stream("ports.watchPort", {"port": 8123, "mode": "http", "path": "/", "processId": "www"})
    assert [one["type"] for one in events] == ["watching", "ready"]
    assert (events[1]["port"], events[1]["statusCode"]) == (8123, 200)
    assert cf.stream("ports.watchPort", {"port": 8123, "mode": "tcp"})[-1]["type"] == "ready"
    asked = {"port": 8123, "path": "/none", "statusMin": 404, "statusMax": 404}
    assert cf.stream("ports.watchPort", asked)[-1]["statusCode"] == 404
    cf.call("processes.killProcess", "www")


def test_a_port_whose_process_ends(cf: Driver) -> None:
    cf.call("processes.startProcess", "sleep 0.3; exit 9", None, {"processId": "dies"})
    last = cf.stream("ports.watchPort", {"port": 8124, "processId": "dies"})[-1]
    assert (last["type"], last["exitCode"]) == ("process_exited", 9)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"port": 0}, "INVALID_PORT"),
        ({"port": 70000}, "INVALID_PORT"),
        ({"port": 80, "statusMin": 700}, "VALIDATION_FAILED"),
        ({"port": 80, "mode": "udp"}, "VALIDATION_FAILED"),
        ({"port": 80, "processId": "nobody"}, "PROCESS_NOT_FOUND"),
    ],
)
def test_ports_that_cannot_be_watched(cf: Driver, asked: dict[str, Any], code: str) -> None:
    with pytest.raises(ClientError) as caught:
        cf.stream("ports.watchPort", asked)
    assert caught.value.code == code


# --- the transport "websocket" ---


def test_every_kind_of_request_over_one_socket(cf: Driver) -> None:
    over = {"transport": "websocket"}
    assert cf.call("utils.ping", **over) == "pong"
    found = cf.call("commands.execute", "echo é; exit 3", "s", **over)
    assert (found["stdout"], found["exitCode"]) == ("é", 3)
    data = base64.b64encode(bytes(range(256)) * 8192).decode()  # over what other WebSockets take
    cf.call("files.writeFile", "/workspace/large", data, None, {"encoding": "base64"}, **over)
    assert cf.call("files.readFile", "/workspace/large", None, **over)["content"] == data
    found = cf.call("commands.execute", "yes é | head -c 900000; exit 4", None, **over)  # an answer in pieces
    assert (found["stdout"], found["exitCode"]) == ("é\n" * 300_000, 4)
    with pytest.raises(ClientError) as caught:
        cf.call("files.readFile", "/nope", None, **over)
    assert (caught.value.name, caught.value.status) == ("FileNotFoundError", 404)
    events = cf.stream("commands.executeStream", "echo a; echo b >&2; exit 2", None, **over)
    assert {one["type"] for one in events} == {"start", "stdout", "stderr", "complete"}
    with pytest.raises(ClientError, match="404"):
        cf.stream("processes.streamProcessLogs", "nobody", **over)
    assert cf.code("print('über'); 1+1", **over)["results"][0]["text"] == "2"
    assert cf.call("processes.listProcesses", **over)["success"]


def test_requests_over_one_socket_are_answered_as_they_end(cf: Driver) -> None:
    def run(line: str) -> dict[str, Any]:
        return {"id": line, "op": "call", "on": "commands.execute", "args": [line, None], "transport": "websocket"}

    meet = "touch /tmp/{0}; for i in $(seq 3000); do [ -e /tmp/{1} ] && echo met && break; sleep 0.02; done"
    both = cf.ask("all", requests=[run(meet.format("l", "r")), run(meet.format("r", "l"))])
    assert [one["ok"]["stdout"] for one in both] == ["met\n"] * 2


def test_a_stream_that_is_cancelled_ends_its_command(cf: Driver) -> None:
    cf.stream("commands.executeStream", "echo on; sleep 300.88", None, until="stdout", transport="websocket")
    wait = "for i in $(seq 1000); do pgrep -f 'sleep 300[.]88' >/dev/null || { echo gone; exit; }; sleep 0.05; done"
    assert cf.call("commands.execute", wait, None)["stdout"] == "gone\n"


def test_a_socket_needs_the_token(cf: Driver) -> None:
    with pytest.raises(ClientError, match="WebSocket"):
        cf.call("utils.ping", transport="websocket", token="wrong")


def test_messages_that_are_none_are_told_and_end_nothing(cf: Driver) -> None:
    request = {"type": "request", "id": "1", "method": "GET", "path": "/api/ping"}
    nonsense: list[Any] = [
        "nonsense",
        [1],
        {"type": "request", "id": 7},
        {"type": "request", "id": "x", "method": "BREW", "path": "/api/ping"},
        {"type": "request", "id": "y", "method": "GET", "path": "api/ping"},
        {"type": "else", "id": "z"},
        {"type": "cancel", "id": "of-nobody"},
    ]
    steps = [*({"text": one} for one in nonsense), {"send": "bytes"}, {"text": request}, {"until": '"pong"'}]
    shown = cf.ask("pty", path="/ws", query={}, steps=steps)
    errors = [one for one in shown["texts"] if one["type"] == "error"]
    assert [one.get("id") for one in errors] == [None, None, None, "x", "y", "z", None]
    assert all(one["status"] == 400 for one in errors)


def test_a_request_that_leads_elsewhere_is_told(cf: Driver) -> None:
    def ask(path: str, method: str = "GET") -> dict[str, Any]:
        steps = [{"text": {"type": "request", "id": "1", "method": method, "path": path}}, {"until": "}"}]
        texts = cf.ask("pty", path="/ws", query={}, steps=steps)["texts"]
        assert texts[0]["type"] == "response"
        shown: dict[str, Any] = texts[0]
        return shown

    assert ask("/../../../v1/sandboxes")["status"] == 404
    assert ask("/ws")["status"] == 400
    assert ask("/api/ping", "DELETE")["status"] >= 400
    assert ask("/api/process/list?status=odd")["body"]["code"] == "VALIDATION_FAILED"


def test_who_leaves_ends_what_runs(cf: Driver) -> None:
    body = {"command": "sleep 300.99"}
    request = {"type": "request", "id": "1", "method": "POST", "path": "/api/execute/stream", "body": body}
    cf.ask("pty", path="/ws", query={}, steps=[{"text": request}, {"until": "start"}])
    wait = "for i in $(seq 1000); do pgrep -f 'sleep 300[.]99' >/dev/null || { echo gone; exit; }; sleep 0.05; done"
    assert cf.call("commands.execute", wait, None)["stdout"] == "gone\n"
