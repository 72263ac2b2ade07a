"""`run`, `exec` and `cp` as real processes: standard streams, statuses and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import IO, TYPE_CHECKING, Any, cast

import pytest

from tests.support.local_daemon import LocalDaemon, local_daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SANDBOXD = [sys.executable, "-m", "sandboxd.cli.main"]


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalDaemon]:
    with local_daemon(tmp_path, monkeypatch) as found:
        yield found


def sandboxd(*words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    options = {"stdin": subprocess.DEVNULL} | options if "input" not in options else options
    done: Any = subprocess.run([*SANDBOXD, *words], capture_output=True, timeout=60, check=False, **options)
    return cast("subprocess.CompletedProcess[bytes]", done)


class Running(subprocess.Popen[bytes]):
    """A program whose streams are pipes."""

    stdin: IO[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]


def start(*words: str, **options: Any) -> Running:
    return Running([*SANDBOXD, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize(
    ("command", "status"),
    [("exit 0", 0), ("exit 7", 7), ("exit 126", 126), ("kill -TERM $$", 143), ("kill -KILL $$", 137)],
)
def test_run_passes_the_status(daemon: LocalDaemon, command: str, status: int) -> None:
    assert sandboxd("run", "--", "sh", "-c", command).returncode == status
    assert not daemon.sandboxes


def test_run_passes_both_outputs_apart_and_every_byte_of_input(daemon: LocalDaemon) -> None:
    data = bytes(range(256)) * 4000
    result = sandboxd("run", "sh", "-c", "cat; echo err >&2", input=data)
    assert (result.returncode, result.stdout, result.stderr) == (0, data, b"err\n")


def test_run_gives_what_is_asked_for(daemon: LocalDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "from here")
    words = ["run", "--keep", "--rootfs", "r", "--pids", "9", "-e", "A=b", "-e", "OURS", "-w", str(tmp_path)]
    words += ["-u", "u", "--timeout", "9"]
    result = sandboxd(*words, "--", "sh", "-c", "pwd; echo $A")
    assert result.stdout.decode() == f"{tmp_path}\nb\n"
    (created,), (ran,) = daemon.created, daemon.asked("exec")
    assert (created["rootfs"], created["limits"]["pids"]) == ("r", 9)
    assert ran["env"] == {"A": "b", "OURS": "from here"}
    assert (ran["user"], ran["timeout_s"], ran["stdin"]) == ("u", 9, None)  # /dev/null needs no pipe


def test_run_statuses_of_its_own(daemon: LocalDaemon) -> None:
    missing = sandboxd("run", "--", "no-such-program-at-all")
    assert (missing.returncode, missing.stderr) == (127, b"cannot run 'no-such-program-at-all': not found\n")
    slow = sandboxd("run", "--timeout", "0.05", "--", "sleep", "600")
    assert slow.returncode == 124
    assert b"it timed out" in slow.stderr
    refused = sandboxd("--url", daemon.tcp_url, "run", "--", "true")
    assert refused.returncode == 125
    assert refused.stderr.startswith(b"sandboxd: cannot ")
    assert refused.stderr.count(b"\n") == 1


def test_run_keep(daemon: LocalDaemon) -> None:
    result = sandboxd("run", "--keep", "--", "true")
    [key] = daemon.sandboxes
    assert result.stderr.decode() == f"sandboxd: kept the sandbox {key}\n"


def test_a_program_that_ends_first_does_not_wait_for_input(daemon: LocalDaemon) -> None:
    read, write = os.pipe()  # nobody writes, and nobody closes
    try:
        result = sandboxd("run", "--", "echo", "done", stdin=read)
    finally:
        os.close(read)
        os.close(write)
    assert (result.returncode, result.stdout) == (0, b"done\n")


def test_input_that_the_program_does_not_want_is_no_failure(daemon: LocalDaemon) -> None:
    result = sandboxd("run", "--", "head", "-c", "5", input=b"x" * 3_000_000)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"xxxxx", b"")


def test_streams_are_live_in_both_directions(daemon: LocalDaemon) -> None:
    with start("run", "--", "sh", "-c", "echo ready; read a; echo got $a >&2", stdin=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.stdin.write(b"yes\n")
        process.stdin.flush()
        assert process.stderr.readline() == b"got yes\n"
        assert process.wait(30) == 0


def test_a_reader_that_has_enough_ends_it_cleanly(daemon: LocalDaemon) -> None:
    with start("run", "--", "yes", stdin=subprocess.DEVNULL) as process:
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141
    assert daemon.ended.get(timeout=10)[1]
    assert not daemon.sandboxes


#: A child that tells of a signal; it cannot come too early, for "ready" says that it is awaited.
TOLD = (
    "import os, signal, sys; "
    'signal.signal(int(sys.argv[1]), lambda *_: (os.write(1, b"child told\\n"), os._exit(0))); '
    'os.write(1, b"ready\\n"); signal.pause()'
)
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]


@pytest.mark.parametrize(
    ("verb", "number"), [*((("run", "--"), number) for number in SIGNALS), (("exec", "a"), signal.SIGINT)]
)
def test_a_signal_goes_to_the_command(daemon: LocalDaemon, verb: tuple[str, ...], number: int) -> None:
    """To all of its group, as from a terminal: the shell's trap runs because its child ended."""
    sandboxd("create", "--name", "a")
    name = signal.Signals(number).name.removeprefix("SIG")
    line = f"trap 'echo cleaned up; exit 3' {name}; {sys.executable} -c '{TOLD}' {number:d}"
    with start(*verb, "sh", "-c", line, stdin=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.read() == b"child told\ncleaned up\n"
        assert process.wait(30) == 3
    assert not daemon.ended.get(timeout=10)[1]
    assert daemon.names() == ["a"]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_that_heeds_no_signal_ends_by_it(daemon: LocalDaemon, number: int) -> None:
    with start("run", "--", "sh", "-c", "ulimit -c 0; echo ready; exec sleep 600", stdin=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.communicate(timeout=30) == (b"", b"")
        assert process.returncode == 128 + number
    assert not daemon.sandboxes


@pytest.mark.parametrize("verb", [("run", "--"), ("exec", "a")], ids=["run", "exec"])
def test_a_second_signal_kills(daemon: LocalDaemon, verb: tuple[str, ...]) -> None:
    sandboxd("create", "--name", "a")
    line = "trap 'echo told' INT TERM; echo ready; while :; do sleep 0.1; done"
    with start(*verb, "sh", "-c", line, stdin=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"told\n"
        process.send_signal(signal.SIGTERM)
        assert process.stderr.read() == b""
        assert process.wait(30) == 143
    assert daemon.ended.get(timeout=10)[1]
    assert daemon.names() == ["a"]


def test_a_command_that_does_not_end_in_time_is_killed(daemon: LocalDaemon) -> None:
    program = (
        "import sys; from sandboxd.cli import passing; passing.GRACE_S = 0.3\n"
        "sys.argv = ['sandboxd', 'run', '--', 'sh', '-c', 'trap \"\" INT; echo ready; exec sleep 600']\n"
        "from sandboxd.cli.main import main; main()"
    )
    with Running(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert daemon.ended.get(timeout=10)[1]
    assert not daemon.sandboxes


def test_a_signal_that_timeout_sends_twice_is_one(daemon: LocalDaemon) -> None:
    """timeout(1) signals its child and then its whole group."""
    line = f"trap 'sleep 0.5; echo cleaned up; exit 3' TERM; {sys.executable} -c '{TOLD}' 15"
    with start("run", "--", "sh", "-c", line, stdin=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"child told\ncleaned up\n"
        assert process.wait(30) == 3


def test_a_signal_while_the_sandbox_is_made_leaves_nothing(daemon: LocalDaemon) -> None:
    with start("run", "--", "true", stdin=subprocess.DEVNULL) as process:
        daemon.before_create = lambda: process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert not daemon.sandboxes
    assert daemon.ended.empty()


def test_exec(daemon: LocalDaemon) -> None:
    key = sandboxd("create", "--name", "a").stdout.decode().strip()
    result = sandboxd("exec", "-e", "A=b", "a", "--", "sh", "-c", "echo $A; cat; exit 4", input=b"in")
    assert (result.returncode, result.stdout) == (4, b"b\nin")
    assert sandboxd("exec", key, "echo", "--", "-x").stdout == b"-- -x\n"
    for _ in range(2):
        daemon.ended.get(timeout=10)
    detached = sandboxd("exec", "-d", "a", "--", "true")
    assert daemon.ended.get(timeout=10)[0] == detached.stdout.decode().strip()
    assert key in daemon.sandboxes


def test_cp_through_pipes(daemon: LocalDaemon) -> None:
    sandboxd("create", "--name", "a")
    data = bytes(range(256)) * 4000
    assert sandboxd("cp", "-", "a:/x", input=data).returncode == 0
    assert daemon.file("/x").read_bytes() == data
    assert sandboxd("cp", "a:/x", "-").stdout == data
