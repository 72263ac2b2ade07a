"""The SDK under both event loops and the command line, against a real daemon."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
from typing import IO

import anyio
import pytest

from sandboxd import AsyncSandbox, Sandbox
from sandboxd.client import AsyncClient
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real
PROGRAM = str(pathlib.Path(sys.executable).with_name("sandboxd"))


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_the_async_sdk(daemon: Daemon, backend: str) -> None:
    async def main() -> None:
        async with AsyncClient(daemon.url) as client, AsyncSandbox.create(client=client) as sandbox:
            await sandbox.write_file("/workspace/x", b"\x00\xff")
            assert await sandbox.read_file("/workspace/x") == b"\x00\xff"
            assert (await sandbox.exec("echo hi")).stdout == "hi\n"
            said: list[str] = []
            async with sandbox.exec_stream("echo one; echo two", on_stdout=said.append) as stream:
                assert (await stream.wait()).exit_code == 0
            assert "".join(said) == "one\ntwo\n"
            assert sandbox.id in {other.id for other in await AsyncSandbox.list(client=client)}

    anyio.run(main, backend=backend)


def cli(daemon: Daemon, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "SANDBOXD_URL": daemon.url}
    return subprocess.run([PROGRAM, *arguments], env=env, input=stdin, capture_output=True, timeout=60, check=False)


def test_run_passes_everything_through(daemon: Daemon) -> None:
    data = os.urandom(300_000)
    done = cli(daemon, "run", "--", "sh", "-c", "cat; echo err >&2; exit 7", stdin=data)
    assert (done.returncode, done.stdout, done.stderr) == (7, data, b"err\n")
    assert cli(daemon, "run", "--", "python3", "-c", "print(1)").stdout == b"1\n"
    assert cli(daemon, "run", "--", "no-such-program").returncode == 127
    assert cli(daemon, "run", "--", "sh", "-c", "kill -TERM $$").returncode == 128 + 15
    assert cli(daemon, "run", "--rootfs", "no-such-rootfs", "--", "true").returncode == 125


def test_the_life_of_a_sandbox(daemon: Daemon, tmp_path: pathlib.Path) -> None:
    name = "cli-test"
    sandbox_id = cli(daemon, "create", "--name", name, "-e", "A=1").stdout.decode().strip()
    assert cli(daemon, "create", "--name", name).returncode == 1
    assert name.encode() in cli(daemon, "ls").stdout
    assert cli(daemon, "exec", name, "--", "sh", "-c", "echo $A").stdout == b"1\n"
    (tmp_path / "f").write_bytes(b"\x00data")
    assert cli(daemon, "cp", str(tmp_path / "f"), f"{name}:/workspace/f").returncode == 0
    assert cli(daemon, "cp", f"{sandbox_id}:/workspace/f", "-").stdout == b"\x00data"
    assert cli(daemon, "rm", name).returncode == 0
    gone = cli(daemon, "exec", name, "--", "true")
    assert (gone.returncode, gone.stderr) == (125, b"sandboxd: cannot find sandbox 'cli-test'\n")


@pytest.mark.slow
def test_the_demo_runs(daemon: Daemon, tmp_path: pathlib.Path) -> None:
    picture = tmp_path / "picture.png"
    done = cli(daemon, "demo", "--output", str(picture))
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    with daemon.client() as client:
        assert not [s for s in Sandbox.list(client=client) if s.info.name == "demo"]


@pytest.mark.slow
def test_a_daemon_that_was_started_without_standard_streams(tmp_path: pathlib.Path) -> None:
    class Bare(Daemon):
        def command(self) -> list[str]:
            return ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *super().command()]

    daemon = Bare(tmp_path)
    daemon.start()
    try:
        assert cli(daemon, "run", "--", "sh", "-c", "echo out; echo err >&2").stdout == b"out\n"
        assert daemon.process
        for pid in (daemon.process.pid, daemon.launcher_pid()):
            assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)] == ["/dev/null"] * 3
    finally:
        daemon.close()


def test_closed_streams_of_the_terminal_and_of_code(daemon: Daemon, sandbox: Sandbox) -> None:
    def redirected(how: str, *words: str) -> tuple[int, bytes]:
        line = ["/bin/sh", "-c", f'exec "$@" {how}', "sh", PROGRAM, *words]
        env = {**os.environ, "SANDBOXD_URL": daemon.url}
        done = subprocess.run(line, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
        return done.returncode, done.stderr

    refused = b"sandboxd: cannot write to standard output: Bad file descriptor\n"
    assert redirected("<&-", "shell", sandbox.id) == (0, b"")
    assert redirected("", "shell", sandbox.id, "sh", "-c", "cat; cat; exit 5") == (
        5,
        b"",
    )  # at its end for each that reads
    assert redirected(">&-", "shell", sandbox.id) == (125, refused)
    assert redirected("<&-", "code", sandbox.id, "-") == (0, b"")
    assert redirected(">&-", "code", sandbox.id, "-c", "print(1)") == (125, refused)
    assert redirected("2>/dev/full", "code", sandbox.id, "-c", "1/0") == (125, b"")


class Running(subprocess.Popen[bytes]):
    """A program whose output goes into pipes."""

    stdout: IO[bytes]
    stderr: IO[bytes]


def started(daemon: Daemon, *words: str) -> Running:
    return Running(
        [PROGRAM, *words],
        env={**os.environ, "SANDBOXD_URL": daemon.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


#: Cleans up at the named signal, and tells that it listens.
CLEANS = """trap 'echo cleaned up; exit 3' {}; python3 -c '
import signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
print("ready", flush=True)
signal.pause()'"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_reaches_what_runs_inside(daemon: Daemon, sandbox: Sandbox, number: int) -> None:
    line = CLEANS.format(signal.Signals(number).name.removeprefix("SIG"))
    with started(daemon, "exec", sandbox.id, "sh", "-c", line) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.read() == b"cleaned up\n"
        assert process.wait(30) == 3


def test_signals_to_run_and_to_a_session(daemon: Daemon, sandbox: Sandbox) -> None:
    session = sandbox.create_session()
    for words in (["run", "--", "sh", "-c"], ["exec", "-s", session.id, sandbox.id, "sh", "-c"]):
        with started(daemon, *words, CLEANS.format("INT")) as process:
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGINT)
            assert process.stdout.read() == b"cleaned up\n", words
            assert process.wait(30) == 3, words
    session.exec("A=1").check()  # it goes on
    with daemon.client() as client:
        assert [one.id for one in Sandbox.list(client=client)] == [sandbox.id]


def test_a_second_signal_kills_what_runs_inside(daemon: Daemon, sandbox: Sandbox) -> None:
    code = """import os, signal
for number in (2, 15): signal.signal(number, lambda *_: os.write(1, b"told\\n"))
os.write(1, b"ready\\n")
while True: signal.pause()"""
    with started(daemon, "exec", sandbox.id, "python3", "-c", code) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"told\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    assert not [one for one in sandbox.list_processes() if one.is_running]


def test_ctrl_c_interrupts_code(daemon: Daemon, sandbox: Sandbox) -> None:
    code = "kept = 1\nprint('ready', flush=True)\nwhile True: pass"
    with started(daemon, "code", sandbox.id, "-c", code) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in process.stderr.read()
        assert process.wait(30) == 130
    assert cli(daemon, "code", sandbox.id, "-c", "kept").stdout == b"1\n"
    code = (
        "import time\ntry:\n    print('ready', flush=True)\n    time.sleep(600)\nexcept KeyboardInterrupt: print('bye')"
    )
    with started(daemon, "code", sandbox.id, "-c", code) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"bye\n"
        assert process.wait(30) == 0
