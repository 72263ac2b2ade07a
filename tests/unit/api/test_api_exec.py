"""The three answers to a command, exact to the byte, and clients that are slow or leave."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sandboxd.api import pieces
from sandboxd.api.cloudflare import container_exec
from sandboxd.api.v1 import streams
from sandboxd.errors import InvalidRequest
from sandboxd.spec import CommandSpec
from sandboxd.wire import raw
from sandboxd.wire.link import DEFAULT_WINDOW, MAX_OVERDRAFT
from sandboxd.wire.messages import Request
from sandboxd.wire.sse import SseDecoder
from tests.support.fake_daemon import FakeDaemon, daemon_in, eventually, problem
from tests.support.fake_peer import Conversation, exit_data

EXEC = "/v1/sandboxes/box/exec"
SSE = {"Accept": "text/event-stream"}
RAW = {"Accept": "application/octet-stream"}


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[FakeDaemon]:
    async with daemon_in(tmp_path) as found:
        await found.create(name="box")
        await eventually(lambda: bool(found.fake.inits))
        found.init.answers["stat"] = _bash  # Cloudflare's face looks for its shell
        yield found


async def _bash(talk: Conversation, request: Request) -> None:
    await talk.reply(request, path=b"/bin/bash", type="file", size=1, mode=0o755, uid=0, gid=0, mtime=1.0)


async def run(daemon: FakeDaemon, **fields: Any) -> dict[str, Any]:
    response = await daemon.client.post(EXEC, json={"command": ["x"], **fields})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    assert response.headers["sandboxd-process"] == found["id"]
    return found


async def events(daemon: FakeDaemon, **fields: Any) -> list[tuple[str, str, dict[str, Any]]]:
    response = await daemon.client.post(EXEC, json={"command": ["x"], **fields}, headers=SSE)
    assert response.headers["content-type"].startswith("text/event-stream")
    return [(event.event, event.id, json.loads(event.data)) for event in SseDecoder().feed(response.content)]


async def test_the_request_reaches_init_as_it_is(daemon: FakeDaemon) -> None:
    found = await run(
        daemon,
        command="echo $A",
        cwd="/tmp",
        env={"A": "ü"},
        user=5,
        stdin="grüß",
        timeout_s=2.5,
        detach=True,
        orphans="keep",
    )
    (params,) = daemon.init.asked("exec")
    assert params.pop("credit") == DEFAULT_WINDOW
    assert params == {
        "argv": list(CommandSpec.shell("echo $A")),
        "cwd": "/tmp",
        "env": {"A": "ü"},
        "user": 5,
        "stdin": "grüß".encode(),
        "timeout_s": 2.5,
        "detach": True,
        "session": None,
        "keep_orphans": True,
        "process": found["id"],
    }
    await run(daemon, command=["a", "b"], stdin=base64.b64encode(b"\xff\0").decode(), encoding="base64")
    await run(daemon, command=["a", "b"], stdin=True)
    await run(daemon, command=["a", "b"])
    assert [params["stdin"] for params in daemon.init.asked("exec")[1:]] == [b"\xff\0", True, None]


async def test_how_a_program_ends_is_a_result(daemon: FakeDaemon) -> None:
    daemon.init.script = [("stderr", b"killed\n")]
    daemon.init.exit = exit_data(None, signal="SIGKILL", timed_out=True, oom_killed=True, reason="timeout")
    found = await run(daemon)
    assert found["exit_code"] is None
    assert (found["signal"], found["timed_out"], found["oom_killed"]) == ("SIGKILL", True, True)
    assert (found["stdout"], found["stderr"], found["truncated"]) == ("", "killed\n", False)
    assert found["usage"] == {"cpu_s": 0.001, "memory_peak_bytes": 4096}


async def test_json_carries_any_bytes(daemon: FakeDaemon) -> None:
    data = bytes(range(256))
    daemon.init.script = [("stdout", data[:200]), ("stderr", data), ("stdout", data[200:])]
    found = await run(daemon, encoding="base64")
    assert base64.b64decode(found["stdout"]) == data
    assert base64.b64decode(found["stderr"]) == data
    assert (await run(daemon))["stdout"] == data.decode("utf-8", "replace")


async def test_json_keeps_the_beginning_and_the_end_and_tells_the_gap(daemon: FakeDaemon) -> None:
    half = streams.MAX_JSON_OUTPUT_BYTES // 2
    pieces = [os.urandom(200_000) for _ in range(60)]
    daemon.init.script = [("stdout", piece) for piece in pieces] + [("stderr", b"end")]
    found = await run(daemon, encoding="base64")
    sent, shown = b"".join(pieces), base64.b64decode(found["stdout"])
    (gap,) = found["gaps"]
    assert gap["stream"] == "stdout"
    assert gap["dropped_bytes"] == found["dropped_bytes"] == len(sent) - len(shown)
    assert half - 4 <= gap["offset"] <= half
    assert shown[: gap["offset"]] == sent[: gap["offset"]]
    assert shown[gap["offset"] :] == sent[-(len(shown) - gap["offset"]) :]
    assert streams.MAX_JSON_OUTPUT_BYTES - 8 <= len(shown) <= streams.MAX_JSON_OUTPUT_BYTES
    assert base64.b64decode(found["stderr"]) == b"end"
    assert found["truncated"] is True
    daemon.init.script = [("stdout", b"x" * 100)]
    assert (await run(daemon))["gaps"] == []


async def test_no_side_of_a_gap_cuts_a_character(daemon: FakeDaemon) -> None:
    data = ("a" + "\u20ac" * 4_000_000).encode()
    daemon.init.script = [("stderr", data[start : start + 250_000]) for start in range(0, len(data), 250_000)]
    found = await run(daemon)
    assert "\ufffd" not in found["stderr"]
    assert set(found["stderr"]) == {"a", "\u20ac"}
    assert len(found["stderr"].encode()) + found["dropped_bytes"] == len(data)


async def test_a_full_budget_makes_the_gap_larger_and_refuses_nothing(daemon: FakeDaemon) -> None:
    (sandbox,) = daemon.manager.registry
    with sandbox.share.hold() as other:
        other.take(int(daemon.manager.budget.each) - 100_000, "test")
        daemon.init.script = [("stdout", b"%07d\n" % number * 1000) for number in range(500)]
        found = await run(daemon)
        assert found["stdout"].startswith("0000000\n")
        assert found["stdout"].endswith("0000499\n")
        assert found["truncated"] is True
        assert len(found["stdout"]) + found["dropped_bytes"] == 4_000_000
        daemon.init.script = [("stdout", b"small")]
        assert (await run(daemon))["stdout"] == "small"
    await eventually(lambda: sandbox.share.held == daemon.manager.budget.held == 0)


CF_EXECUTE = "/cloudflare/sandboxes/box/api/execute"


async def test_cloudflares_face_tells_the_gap_in_the_text(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_exec, "MAX_OUTPUT_BYTES", 1_000_000)
    text = "begin" + "\u20ac" * 1_000_000 + "end\n"
    data = text.encode()
    daemon.init.script = [("stdout", data[at : at + 200_000]) for at in range(0, len(data), 200_000)]
    found = (await daemon.client.post(CF_EXECUTE, json={"command": "x"})).json()
    assert found["truncated"] is True
    head, rest = found["stdout"].split("\n[")
    dropped, tail = rest.split(" bytes of output were dropped here]\n")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len((head + tail).encode()) + int(dropped) == len(data)
    daemon.init.script = [("stdout", b"a\n"), ("stderr", b"\n"), ("stdout", b"b\n")]
    found = (await daemon.client.post(CF_EXECUTE, json={"command": "x"})).json()
    assert (found["stdout"], found["stderr"], "truncated" in found) == ("a\nb\n", "\n", False)


class Steps(trio.abc.Instrument):
    """The CPU time of the loop's thread that the longest step of any task takes, in seconds."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._began = time.thread_time()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest = max(self.longest, time.thread_time() - self._began)


async def _read_raw(daemon: FakeDaemon, path: str, body: dict[str, Any], accept: str) -> int:
    """Ask, and count what comes without looking at it: the client is in the same loop."""
    stream = await daemon.raw_connection()
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nContent-Length: {len(data)}\r\n"
    async with stream:
        await stream.send_all(head.encode() + b"Content-Type: application/json\r\nConnection: close\r\n\r\n" + data)
        size = 0
        while piece := await stream.receive_some(1 << 18):
            size += len(piece)
    return size


@pytest.mark.own_server
@pytest.mark.parametrize(
    ("path", "accept"),
    [
        (EXEC, "application/json"),
        (EXEC, "text/event-stream"),
        (CF_EXECUTE, "application/json"),
        (f"{CF_EXECUTE}/stream", "text/event-stream"),
    ],
)
async def test_a_large_answer_never_holds_the_loop(daemon: FakeDaemon, path: str, accept: str) -> None:
    piece = b"\x01" * 250_000
    daemon.init.script = [("stdout", piece)] * 16 + [("stderr", piece)] * 16
    body = {"command": "x"}
    await _read_raw(daemon, path, body, accept)  # what is made at the first use
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    try:
        assert await _read_raw(daemon, path, body, accept) > 6 * 8_000_000
    finally:
        trio.lowlevel.remove_instrument(steps)
    assert steps.longest < 0.05
    await eventually(lambda: daemon.manager.budget.held == 0)


async def test_sse_tells_every_event(daemon: FakeDaemon) -> None:
    daemon.init.script = [("stdout", b"a\r\nb\n"), ("stderr", b"c")]
    found = await events(daemon)
    assert [(name, identity) for name, identity, _ in found] == [
        ("start", "0"),
        ("stdout", "1"),
        ("stderr", "2"),
        ("exit", "3"),
    ]
    assert found[0][2]["pid"] == 7
    assert found[1][2]["text"] == "a\r\nb\n"
    assert found[3][2]["exit_code"] == 0
    assert all({"offset", "time"} <= set(data) for _, _, data in found)


async def test_a_character_that_events_cut_arrives_whole(daemon: FakeDaemon) -> None:
    euro = "€".encode()
    daemon.init.script = [
        ("stdout", b"1" + euro[:1]),
        ("stderr", euro[:2]),
        ("stdout", euro[1:2]),
        ("stdout", euro[2:] + b"2"),
        ("stderr", euro[2:]),
        ("stdout", euro[:2]),
    ]
    found = await events(daemon)
    out = "".join(data["text"] for name, _, data in found if name == "stdout")
    assert out == "1€2\ufffd"
    assert "".join(data["text"] for name, _, data in found if name == "stderr") == "€"
    assert found[-1][0] == "exit"


async def test_sse_carries_any_bytes_in_base64(daemon: FakeDaemon) -> None:
    data = os.urandom(300_000)
    daemon.init.script = [("stdout", data[:77]), ("stdout", data[77:])]
    found = await events(daemon, encoding="base64")
    assert b"".join(base64.b64decode(item["data_b64"]) for name, _, item in found if name == "stdout") == data


async def test_raw_frames_are_exact(daemon: FakeDaemon) -> None:
    data = os.urandom(900_000)
    daemon.init.script = [("stdout", data[:400_000]), ("stderr", b"\0"), ("stdout", data[400_000:])]
    response = await daemon.client.post(EXEC, json={"command": ["x"]}, headers=RAW)
    decoder = raw.RawDecoder()
    frames = decoder.feed(response.content)
    decoder.close()
    assert b"".join(frame.payload for frame in frames if frame.type == raw.STDOUT) == data
    assert b"".join(frame.payload for frame in frames if frame.type == raw.STDERR) == b"\0"
    last = json.loads(frames[-1].payload)
    assert frames[-1].type == raw.EXIT
    assert (last["id"], last["exit_code"]) == (response.headers["sandboxd-process"], 0)


async def test_an_error_before_the_start_is_a_problem(daemon: FakeDaemon) -> None:
    async def refuse(talk: Conversation, request: Request) -> None:
        raise InvalidRequest("cannot use cwd /nowhere: ENOENT", field="cwd")

    daemon.init.answers["exec"] = refuse
    for headers in ({}, SSE, RAW):
        found = problem(await daemon.client.post(EXEC, json={"command": ["x"]}, headers=headers))
        assert (found["status"], found["field"]) == (400, "cwd")


async def test_headers_come_before_the_first_output(daemon: FakeDaemon) -> None:
    daemon.init.script, daemon.init.wait_for_cancel = [], True
    for headers in (SSE, RAW):
        with trio.fail_after(30):
            async with daemon.client.stream("POST", EXEC, json={"command": ["x"]}, headers=headers) as response:
                assert response.headers["sandboxd-process"]


@pytest.mark.parametrize("headers", [{}, SSE, RAW], ids=["json", "sse", "raw"])
async def test_a_client_that_leaves_cancels_its_command(daemon: FakeDaemon, headers: dict[str, str]) -> None:
    daemon.init.wait_for_cancel = True
    stream = await daemon.raw_connection()
    body = b'{"command": ["x"]}'
    head = b"".join(b"%s: %s\r\n" % (name.encode(), value.encode()) for name, value in headers.items())
    await stream.send_all(
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n%s" % (EXEC.encode(), len(body), head, body)
    )
    await eventually(lambda: bool(daemon.init.asked("exec")))
    (talk,) = daemon.init.conversations
    (request,) = [request for request in talk.requests if request.op == "exec"]
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert not talk.cancelled[request.id].is_set()
    await stream.aclose()
    with trio.fail_after(30):
        await talk.cancelled[request.id].wait()


async def test_a_command_that_ended_is_not_cancelled(daemon: FakeDaemon) -> None:
    for headers in ({}, SSE, RAW):
        await daemon.client.post(EXEC, json={"command": ["x"]}, headers=headers)
    await trio.testing.wait_all_tasks_blocked(0.01)
    (talk,) = daemon.init.conversations
    assert not any(event.is_set() for event in talk.cancelled.values())


@pytest.mark.parametrize("headers", [SSE, RAW], ids=["sse", "raw"])
async def test_a_slow_reader_stops_its_own_source_only(daemon: FakeDaemon, headers: dict[str, str]) -> None:
    total = 64 * 1024 * 1024
    daemon.init.script = [("stdout", b"z" * 262_144)] * (total // 262_144)
    async with daemon.client.stream("POST", EXEC, json={"command": ["x"]}, headers=headers) as response:
        await trio.testing.wait_all_tasks_blocked(0.2)
        (talk,) = daemon.init.conversations
        # One window, what a last event may overdraw, and what the two sockets and a batch on its way hold.
        assert talk.sent_bytes <= 2 * DEFAULT_WINDOW + MAX_OVERDRAFT + 2 * 1024 * 1024
        other = await daemon.client.get("/v1/sandboxes/box")
        assert other.status_code == 200
        size = 0
        async for piece in response.aiter_raw():
            size += len(piece)
        assert size > total
    assert talk.sent_bytes == total


async def test_a_silent_stream_gives_signs_of_life(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "KEEP_ALIVE_S", 0.01)
    daemon.init.wait_for_cancel = True
    stream = await daemon.raw_connection()
    async with stream:
        await stream.send_all(
            b'POST %s HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nContent-Length: 17\r\n\r\n{"command":["x"]}'
            % EXEC.encode()
        )
        seen = b""
        with trio.fail_after(30):
            while seen.count(b": keep-alive\n\n") < 2:
                seen += await stream.receive_some(1000)


@pytest.mark.parametrize("form", ["json", "sse", "raw"])
async def test_a_sandbox_that_goes_ends_its_streams_with_a_name(daemon: FakeDaemon, form: str) -> None:
    daemon.init.wait_for_cancel = True
    answers: list[Any] = []

    async def ask() -> None:
        headers = {"json": {}, "sse": SSE, "raw": RAW}[form]
        answers.append(await daemon.client.post(EXEC, json={"command": ["x"]}, headers=headers))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await daemon.manager.destroy("box")
    (response,) = answers
    if form == "json":
        found = problem(response)
    elif form == "sse":
        last = SseDecoder().feed(response.content)[-1]
        assert last.event == "problem"
        found = json.loads(last.data)
    else:
        frame = raw.RawDecoder().feed(response.content)[-1]
        assert frame.type == raw.PROBLEM
        found = json.loads(frame.payload)
    assert (found["kind"], found["status"]) == ("sandbox-gone", 409)


@pytest.mark.own_server
async def test_a_stop_ends_streams_and_leaves_sandboxes(daemon: FakeDaemon) -> None:
    daemon.init.wait_for_cancel = True
    answers: list[Any] = []

    async def ask() -> None:
        answers.append(await daemon.client.post(EXEC, json={"command": ["x"]}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked(0.05)
        daemon.server.stop()
        daemon.manager.stop()
        with trio.fail_after(30):
            await daemon.server.drained.wait()
    assert problem(answers[0])["kind"] == "server-busy"
    assert not daemon.fake.destroyed
    (talk,) = daemon.init.conversations
    assert not any(event.is_set() for event in talk.cancelled.values())
