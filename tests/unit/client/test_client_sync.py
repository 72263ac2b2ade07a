"""The synchronous SDK against the real application, and against daemons that break."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

import sandboxd
from sandboxd import Client, Limits, Sandbox, errors
from sandboxd.wire import raw
from tests.support import canned
from tests.support.canned import Asked, CannedServer, exit_event, stream_answer
from tests.support.fake_peer import exit_data
from tests.support.local_daemon import LocalDaemon, local_daemon, recorded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = bytes(range(256)) * 2000


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalDaemon]:
    with local_daemon(tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture
def sandbox(daemon: LocalDaemon) -> Iterator[Sandbox]:
    with Sandbox.create() as found:
        yield found


def test_health_and_info(daemon: LocalDaemon) -> None:
    with Client() as client:
        client.health()
        assert client.info()["version"] == "0"
        with Sandbox.create(client=client) as sandbox:
            assert sandbox.id in client.metrics()
            assert sandbox.id not in client.metrics(sandboxes=False)


def test_create_sends_only_what_was_given(daemon: LocalDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = recorded(monkeypatch)
    with Sandbox.create() as plain:
        assert (requests[-1].method, requests[-1].path, requests[-1].body) == ("POST", "/v1/sandboxes", {})
        assert plain.info.limits.memory_bytes == 2 << 30
        assert plain.info.created_at.utcoffset() == dt.timedelta(0)
    assert not daemon.sandboxes
    given: dict[str, Any] = {
        "name": "a",
        "rootfs": "r",
        "env": {"A": "b"},
        "cwd": "/",
        "user": 5,
        "labels": {"x": "y"},
        "seccomp": "strict",
    }
    with Sandbox.create(**given, limits=Limits(cpus=0.5), network="none") as full:
        assert requests[-1].body == given | {"limits": {"cpus": 0.5}, "network": {"mode": "none"}}
        assert (full.name, full.info.user, full.info.env) == ("a", 5, {"A": "b"})
        assert "a" in repr(full)


def test_connect_list_and_refresh(daemon: LocalDaemon) -> None:
    with Client() as client:
        made = [Sandbox.create(name=f"s{number}", client=client) for number in range(5)]
        assert [found.id for found in Sandbox.list(client=client)] == [one.id for one in made]
        found = Sandbox.connect("s3", client=client)
        assert found.id == made[3].id
        made[3].freeze()
        assert found.info.state == "running"
        assert found.refresh().state == found.info.state == "frozen"
        made[3].thaw()
    [first, *_] = Sandbox.list()
    assert first.exec("echo on a connection of its own").ok
    first.close()


def test_destroy_twice_is_no_error(daemon: LocalDaemon) -> None:
    sandbox = Sandbox.create()
    sandbox.destroy()
    sandbox.destroy()
    sandbox.close()


def test_leaving_the_block_by_an_error_destroys_and_keeps_the_error(daemon: LocalDaemon) -> None:
    with pytest.raises(ZeroDivisionError), Sandbox.create():
        _ = 1 / 0
    assert not daemon.sandboxes


def test_a_failing_destroy_is_noted_on_the_error_of_the_block(daemon: LocalDaemon) -> None:
    with Client() as client:
        sandbox = Sandbox.create(client=client)
        daemon.refuse("destroy", errors.Conflict("cannot destroy it: not today"))
        with pytest.raises(ZeroDivisionError) as caught, sandbox:
            _ = 1 / 0
        assert "could not be destroyed" in caught.value.__notes__[0]
        with pytest.raises(errors.SandboxdError), Sandbox.create(client=client):
            pass


def test_the_token_is_sent(daemon: LocalDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOXD_URL", daemon.tcp_url)
    with pytest.raises(errors.Unauthenticated) as caught:
        Sandbox.list()
    assert caught.value.status == 401
    monkeypatch.setenv("SANDBOXD_TOKEN", daemon.token)
    assert Sandbox.list() == []


def test_exec(sandbox: Sandbox) -> None:
    result = sandbox.exec("echo out; echo err >&2; exit 3")
    assert (result.exit_code, result.signal, result.stdout, result.stderr) == (3, None, "out\n", "err\n")
    assert not result.ok
    assert result.usage.cpu_s == 0.001
    with pytest.raises(sandboxd.CommandFailed) as caught:
        result.check()
    assert caught.value.result is result
    assert caught.value.exit_code == 3
    assert "exit code 3: err" in str(caught.value)
    assert sandbox.exec(["true"]).check().ok


def test_a_program_that_is_not_found_and_one_that_is_killed_are_results(sandbox: Sandbox) -> None:
    assert sandbox.exec(["no-such-program-at-all"]).exit_code == 127
    killed = sandbox.exec("kill -KILL $$")
    assert (killed.exit_code, killed.signal, killed.ok) == (None, "SIGKILL", False)
    slow = sandbox.exec("sleep 60", timeout=0.05)
    assert slow.timed_out
    assert "timed out" in slow.describe()


def test_exec_passes_its_facets(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = sandbox.exec(
        ["sh", "-c", "pwd; echo $A; cat"], cwd=str(tmp_path), env={"A": "b"}, stdin="typed", timeout=9
    )
    assert result.stdout == f"{tmp_path}\nb\ntyped"
    requests = recorded(monkeypatch)
    sandbox.exec("true", user="nobody", keep_orphans=True)
    assert requests[-1].body == {"command": "true", "user": "nobody", "orphans": "keep"}


def test_every_byte_survives(sandbox: Sandbox) -> None:
    data = bytes(range(256)) * 5000
    result = sandbox.exec(["cat"], stdin=data)
    assert result.stdout_bytes == data
    assert sandbox.exec(["cat"], stdin=b"").stdout_bytes == b""
    assert sandbox.exec("printf '\\377'").stdout == "\ufffd"


def test_input_over_the_bound_is_told_with_the_way_out(sandbox: Sandbox) -> None:
    with pytest.raises(errors.LimitExceeded, match="write_file"):
        sandbox.exec("cat", stdin="x" * (5 << 20))
    with pytest.raises(errors.InvalidRequest):
        sandbox.exec("echo \ud800")


def test_stream_iterates_and_calls_back(sandbox: Sandbox) -> None:
    seen: list[tuple[str, str]] = []
    with sandbox.exec_stream(
        "echo one; echo two >&2",
        on_stdout=lambda text: seen.append(("out", text)),
        on_stderr=lambda text: seen.append(("err", text)),
    ) as stream:
        assert stream.process_id
        assert stream.result is None
        chunks = list(stream)
    assert stream.result is not None
    assert stream.wait() is stream.result
    assert {(chunk.stream, chunk.text) for chunk in chunks} == {("stdout", "one\n"), ("stderr", "two\n")}
    assert sorted(seen) == [("err", "two\n"), ("out", "one\n")]
    assert "exit code 0" in repr(stream)


def test_output_arrives_while_the_command_runs(sandbox: Sandbox) -> None:
    with sandbox.exec_stream("echo ready; read answer; echo got $answer", stdin=True) as stream:
        assert next(stream).text == "ready\n"  # and the command waits for us, so this did not come at its end
        stream.write_stdin("yes\n")
        assert next(stream).text == "got yes\n"
        assert stream.wait().ok
    with pytest.raises(errors.ProcessNotRunning):
        stream.write_stdin(b"late")


def test_closing_stdin_ends_the_reader(sandbox: Sandbox) -> None:
    with sandbox.exec_stream("wc -c", stdin=True) as stream:
        stream.write_stdin(b"a" * (3 << 19))  # more than one request
        stream.close_stdin()
        assert "".join(chunk.text for chunk in stream).strip() == str(3 << 19)


def test_leaving_a_stream_kills_the_command(daemon: LocalDaemon, sandbox: Sandbox) -> None:
    with sandbox.exec_stream("echo ready; sleep 600") as stream:
        next(stream)
    assert daemon.ended.get(timeout=10) == (stream.process_id, True)
    with pytest.raises(errors.LocalProtocolError):
        stream.wait()


def test_a_failing_callback_ends_the_stream(daemon: LocalDaemon, sandbox: Sandbox) -> None:
    def fail(text: str) -> None:
        raise LookupError(text)

    with pytest.raises(LookupError), sandbox.exec_stream("echo x; sleep 600", on_stdout=fail) as stream:
        stream.wait()
    assert daemon.ended.get(timeout=10)[1]


# --- daemons that break ------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[CannedServer]:
    """A daemon that answers an exec with whatever a test says."""
    with CannedServer(tmp_path / "broken.sock", lambda asked: canned.json_answer(200, {})) as found:
        yield found


@contextlib.contextmanager
def over(server: CannedServer, *answers: bytes) -> Iterator[Sandbox]:
    """Give a sandbox of this daemon, whose commands get these answers one after the other."""
    execs = iter(answers)

    def answer(asked: Asked) -> bytes:
        return next(execs) if asked.path[-1] == "exec" else canned.json_answer(200, canned.sandbox_object(1))

    server.answer = answer
    with Client(server.url) as client:
        yield Sandbox.connect("x", client=client)


@pytest.mark.parametrize("sent", [b"", raw.encode(raw.STDOUT, b"half")[:-1]])
def test_a_connection_that_breaks(broken: CannedServer, sent: bytes) -> None:
    with over(broken, stream_answer(sent, ends=False), stream_answer(canned.exit_frame())) as sandbox:
        with pytest.raises(errors.DaemonUnavailable):
            sandbox.exec("true")
        assert sandbox.exec("echo the next one works").ok


@pytest.mark.parametrize(
    "sent",
    [
        raw.encode(raw.STDOUT, b"no exit frame"),
        raw.encode(raw.STDOUT, b"half a frame")[:-1],
        b"\x09\x00\x00\x00\x00",
        raw.encode(raw.EXIT, b"no json"),
        raw.encode(raw.EXIT, b"[]"),
        raw.encode(raw.EXIT, b"{}"),
        raw.encode(raw.EXIT, json.dumps(exit_event()).encode()) + b"more",
        raw.encode(raw.PROBLEM, b"{}"),
    ],
)
def test_a_stream_that_breaks_the_protocol(broken: CannedServer, sent: bytes) -> None:
    with over(broken, stream_answer(sent)) as sandbox, pytest.raises(errors.RemoteProtocolError):
        sandbox.exec("true")


def test_a_problem_in_the_stream_is_raised_as_its_kind(broken: CannedServer) -> None:
    problem = {"kind": "sandbox-gone", "detail": "cannot go on: destroyed", "message": "no clash", "id": "x"}
    sent = raw.encode(raw.STDOUT, b"before") + raw.encode(raw.PROBLEM, json.dumps(problem).encode())
    with over(broken, stream_answer(sent)) as sandbox, pytest.raises(errors.SandboxGone) as caught:
        sandbox.exec("true")
    assert caught.value.id == "x"


def test_an_answer_that_is_no_stream(broken: CannedServer) -> None:
    answer = canned.json_answer(200, {"exit_code": 0})
    with over(broken, answer) as sandbox, pytest.raises(errors.RemoteProtocolError):
        sandbox.exec("true")


# --- streams and files -------------------------------------------------------------------------------------


def test_a_slow_reader_slows_the_sender_and_loses_nothing(daemon: LocalDaemon, sandbox: Sandbox) -> None:
    frames, size = 256, 1 << 18
    daemon.scripts["@flood"] = ([("stdout", bytes(size))] * frames, exit_data())
    (init,) = daemon.inside.fake.inits.values()
    with sandbox.exec_stream(["@flood"]) as stream:
        total = len(next(stream).data)
        assert sum(talk.sent_bytes for talk in init.conversations) < frames * size  # what is not read is not sent
        total += sum(len(chunk.data) for chunk in stream)
    assert total == frames * size


def test_text_is_whole_characters(daemon: LocalDaemon, sandbox: Sandbox) -> None:
    pieces = ["ä€😀".encode()[start : start + 1] for start in range(9)] + ["ä".encode()[:1]]
    daemon.scripts["@text"] = ([("stdout", piece) for piece in pieces], exit_data())
    seen: list[str] = []
    with sandbox.exec_stream(["@text"], on_stdout=seen.append) as stream:
        chunks = list(stream)
    assert seen == ["ä", "€", "😀", "\ufffd"]
    assert b"".join(chunk.data for chunk in chunks) == b"".join(pieces)


def test_files(daemon: LocalDaemon, sandbox: Sandbox) -> None:
    assert sandbox.write_file("/a b/ä?#.txt", "häh") == 4
    assert sandbox.read_text("/a b/ä?#.txt") == "häh"
    assert sandbox.write_file("/b", bytearray(b"\0\xff")) == 2
    assert sandbox.read_file("/b") == b"\0\xff"
    assert sandbox.write_file("/c", io.BytesIO(DATA)) == len(DATA)
    assert sandbox.write_file("/d", iter([b"1", b"", b"2"])) == 2
    assert sandbox.write_file("/e", io.StringIO("text")) == 4  # type: ignore[arg-type]
    assert sandbox.write_file("/f", b"") == 0
    assert sandbox.read_file("/f") == b""
    target = io.BytesIO()
    assert sandbox.download("/c", target) == len(DATA)
    with sandbox.read_file_stream("/c") as stream:
        assert stream.size == len(DATA)
        assert b"".join(stream) == target.getvalue() == daemon.file("/c").read_bytes()
    with pytest.raises(errors.FileNotFound) as caught:
        sandbox.read_file("/none")
    assert "/none" in str(caught.value)


@pytest.mark.parametrize("path", ["relative", "/a/../b", "/nul\0", "/lone\ud800"])
def test_a_path_that_cannot_be_meant_is_refused_here(sandbox: Sandbox, path: str) -> None:
    with pytest.raises(errors.InvalidRequest):
        sandbox.read_file(path)
    with pytest.raises(errors.InvalidRequest):
        sandbox.write_file(path, b"")


def test_write_file_takes_no_numbers(sandbox: Sandbox) -> None:
    with pytest.raises(errors.InvalidRequest):
        sandbox.write_file("/x", [1, 2])  # type: ignore[list-item]


def test_one_client_serves_many_threads(daemon: LocalDaemon) -> None:
    results: list[str] = []
    with Client() as client, Sandbox.create(client=client) as sandbox:

        def work(number: int) -> None:
            results.append(sandbox.exec(f"echo {number}").stdout)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(results, key=int) == [f"{number}\n" for number in range(16)]


def test_a_closed_client_says_so(daemon: LocalDaemon) -> None:
    client = Client()
    client.close()
    assert "closed" in repr(client)
    with pytest.raises(errors.LocalProtocolError):
        client.health()
