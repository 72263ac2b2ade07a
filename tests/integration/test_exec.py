"""exec against a real sandbox: exact bytes, every named end, nothing that hangs."""

from __future__ import annotations

import hashlib
import os
import time

import pytest

from sandboxd import InvalidRequest, Sandbox
from tests.support.daemon import Daemon
from tests.support.standby import leaves, strangers
from tests.support.waiting import wait_until

pytestmark = pytest.mark.real


def test_a_string_is_a_shell_line_and_a_list_is_argv(shared: Sandbox) -> None:
    assert shared.exec("echo $((1+1)) | tr 2 3").stdout == "3\n"
    assert shared.exec(["echo", "$((1+1))", "a b"]).stdout == "$((1+1)) a b\n"
    assert shared.exec("-x; echo still a shell line").stdout == "still a shell line\n"


@pytest.mark.parametrize(
    ("command", "exit_code"), [("exit 3", 3), ("exit", 0), ("exec true", 0), ("false", 1), ("exit 255", 255)]
)
def test_exit_codes(shared: Sandbox, command: str, exit_code: int) -> None:
    result = shared.exec(command)
    assert (result.exit_code, result.signal) == (exit_code, None)


def test_a_program_that_cannot_be_found_is_a_result(shared: Sandbox) -> None:
    result = shared.exec(["no-such-program"])
    assert result.exit_code == 127
    assert "no-such-program" in result.stderr
    assert "not found" in result.stderr


def test_a_file_that_cannot_be_run_is_a_result(sandbox: Sandbox) -> None:
    sandbox.write_file("/workspace/text", "hello")
    assert sandbox.exec(["/workspace/text"]).exit_code == 126
    sandbox.write_file("/workspace/script", "#!/no/such/shell\n")
    sandbox.exec("chmod +x script").check()
    result = sandbox.exec(["./script"])
    assert result.exit_code == 127
    assert "interpreter" in result.stderr


def test_a_signal_is_told_by_name(shared: Sandbox) -> None:
    result = shared.exec("kill -SEGV $$")
    assert (result.exit_code, result.signal) == (None, "SIGSEGV")


def test_every_byte_survives(shared: Sandbox) -> None:
    data = os.urandom(3_000_000) + bytes(range(256))
    result = shared.exec(["cat"], stdin=data)
    assert hashlib.sha256(result.stdout_bytes).digest() == hashlib.sha256(data).digest()


def test_stdout_and_stderr_are_apart(shared: Sandbox) -> None:
    result = shared.exec("echo out; echo err >&2")
    assert (result.stdout, result.stderr) == ("out\n", "err\n")


def test_without_stdin_a_reader_sees_the_end(shared: Sandbox) -> None:
    assert shared.exec(["cat"]).exit_code == 0


def test_env_cwd_and_defaults(client: object) -> None:
    with Sandbox.create(client=client, env={"A": "1", "B": "2"}, cwd="/tmp") as sandbox:  # type: ignore[arg-type]
        result = sandbox.exec("echo $A $B $HOME $USER; pwd", env={"B": "3", "EMPTY": ""})
        assert result.stdout == "1 3 /root root\n/tmp\n"
        assert sandbox.exec("pwd", cwd="/usr").stdout == "/usr\n"


@pytest.mark.parametrize("field", [{"cwd": "/no/such"}, {"cwd": "/etc/passwd"}, {"user": "nobody-there"}])
def test_a_place_or_user_that_does_not_exist_is_an_error(shared: Sandbox, field: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        shared.exec("true", **field)  # type: ignore[arg-type]
    assert caught.value.field == next(iter(field))


def test_a_timeout_kills_the_whole_tree(shared: Sandbox) -> None:
    began = time.monotonic()
    result = shared.exec("setsid sleep 1000 & (sleep 1001 & sleep 1002) & sleep 1003", timeout=0.3)
    assert result.timed_out
    assert (result.exit_code, result.signal) == (None, "SIGKILL")
    assert time.monotonic() - began < 100
    assert shared.exec("pgrep -c sleep || true").stdout == "0\n"


def test_a_timeout_may_be_months_away(shared: Sandbox) -> None:
    """epoll_wait(2) takes 24 days at most: what waited for longer ended init, and the sandbox with it."""
    assert shared.exec("sleep 0.1; echo done", timeout=100 * 86_400).stdout == "done\n"


def test_orphans_are_killed_unless_kept(shared: Sandbox) -> None:
    result = shared.exec("sleep 1000 & echo started")
    assert result.stdout == "started\n"
    assert shared.exec("pgrep -c sleep || true").stdout == "0\n"
    shared.exec("sleep 1004 & echo started", keep_orphans=True).check()
    assert shared.exec("pgrep -fc '^sleep 1004' || true").stdout == "1\n"
    shared.exec("pkill sleep")


def test_an_orphan_that_is_kept_may_go_on_writing(shared: Sandbox) -> None:
    shared.exec(
        "(for i in 1 2 3 4 5 6 7 8; do sleep 0.05; echo $i; done; echo done > /tmp/orphan) & true", keep_orphans=True
    ).check()
    shared.exec("while ! [ -e /tmp/orphan ]; do sleep 0.02; done", timeout=10).check()


def test_usage_counts_children(shared: Sandbox) -> None:
    result = shared.exec("python3 -c 'sum(range(10**7))' & wait")
    assert result.usage.cpu_s is not None
    assert result.usage.cpu_s > 0.05
    assert (result.usage.memory_peak_bytes or 0) > 1_000_000


def test_many_at_once_do_not_mix(shared: Sandbox) -> None:
    streams = [shared.exec_stream(f"for i in 1 2 3; do echo {n}; done") for n in range(8)]
    for n, stream in enumerate(streams):
        with stream:
            assert b"".join(chunk.data for chunk in stream) == f"{n}\n".encode() * 3


def test_streams_while_it_runs(sandbox: Sandbox) -> None:
    with sandbox.exec_stream("echo one; read line; echo got $line", stdin=True) as stream:
        chunks = iter(stream)
        assert next(chunks).data == b"one\n"
        stream.write_stdin(b"two\n")
        assert next(chunks).data == b"got two\n"
        assert stream.wait().exit_code == 0


def test_a_client_that_leaves_ends_its_command(sandbox: Sandbox) -> None:
    with sandbox.exec_stream("echo up; sleep 1005") as stream:
        assert next(iter(stream)).data == b"up\n"
    sandbox.exec("while pgrep -f '^sleep 1005'; do sleep 0.02; done", timeout=10).check()


def test_a_detached_command_outlives_its_client(sandbox: Sandbox) -> None:
    with sandbox.exec_stream("echo up; sleep 0.3; touch /tmp/detached; sleep 1006", detach=True) as stream:
        assert next(iter(stream)).data == b"up\n"
    sandbox.exec("while ! [ -e /tmp/detached ]; do sleep 0.02; done", timeout=10).check()
    assert sandbox.exec("pgrep -fc '^sleep 1006'").stdout == "1\n"


@pytest.mark.slow
def test_two_hundred_short_commands_leave_no_zombie(daemon: Daemon, sandbox: Sandbox) -> None:
    for _ in range(200):
        sandbox.exec(["true"])
    wait_until(lambda: strangers(sandbox) == [])
    wait_until(lambda: len(leaves(daemon, sandbox)) <= 2)  # the standby's and its forker's


@pytest.mark.slow
def test_init_imports_nothing_in_use(sandbox: Sandbox) -> None:
    """After pivot_root an import would run the rootfs's code as pid 1 (tests/README.md, row 43)."""
    sandbox.exec(
        "mkdir -p /usr/lib/python3.11 /usr/local/lib/python3.11; rm -rf /usr/lib/python3* /usr/local/lib/python3*"
    )
    assert sandbox.exec("echo still here", user="user", timeout=60).stdout == "still here\n"
    sandbox.write_file("/workspace/new/file", b"x")
    assert sandbox.read_file("/workspace/new/file") == b"x"
    with pytest.raises(InvalidRequest):
        sandbox.exec("true", cwd="/nowhere")
