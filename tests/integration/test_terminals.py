"""Terminals of a real sandbox: shells, full-screen programs, viewers that come, go, and do not read."""

from __future__ import annotations

import os
import pathlib
import pty as host_pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pyte
import pytest
import trio

from sandboxd import AsyncClient, AsyncSandbox, InvalidRequest, ProcessNotFound, Pty, Sandbox
from sandboxd.errors import LocalProtocolError
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real
PROMPT = r"[#$]$"


class Screen(pyte.Screen):
    """pyte's, which trips over the private forms of SGR that vi sends."""

    def select_graphic_rendition(self, *attributes: int, private: bool = False) -> None:
        if not private:
            super().select_graphic_rendition(*attributes)


class Seen:
    """A viewer with a terminal emulator: what a person would see."""

    def __init__(self, pty: Pty, cols: int = 80, rows: int = 24) -> None:
        self.pty = pty
        self.screen = Screen(cols, rows)
        self._emulator = pyte.ByteStream(self.screen)
        self.data = b""

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def until(self, found: str | Callable[[str], object], seconds: float = 100) -> str:
        """Look on until the screen shows something; a full-screen program says it in any order."""
        deadline = time.monotonic() + seconds
        look = found if callable(found) else lambda text: re.search(found, text, re.MULTILINE)
        while not look(self.text()):
            if not self._is_ready(max(0.0, deadline - time.monotonic())):
                raise AssertionError(f"{found!r} is not on the screen:\n{self.text()}")
            data = self.pty.read()
            assert data, f"the terminal ended:\n{self.text()}"
            self.data += data
            self._emulator.feed(data)
        return self.text()

    def _is_ready(self, seconds: float) -> bool:
        return self.pty.has_pending or bool(select.select([self.pty], [], [], seconds)[0])

    def settle(self, seconds: float = 1.5) -> str:
        """Look on until nothing has come for a while."""
        while self._is_ready(seconds):
            data = self.pty.read()
            if not data:
                break
            self._emulator.feed(data)
        return self.text()

    def type(self, text: str) -> None:
        self.pty.write(text)


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "shared" in request.fixturenames:
        request.getfixturevalue("shared").kill_all_processes()


def test_an_interactive_shell_with_line_editing_and_jobs(shared: Sandbox) -> None:
    with shared.open_pty() as pty:
        seen = Seen(pty)
        assert "job control" not in seen.until(PROMPT)
        seen.type("ecX\x7fho hullo\x1b[D\x1b[D\x1b[D\x7fe\r")  # backspace, three times left, u becomes e
        assert re.search(r"^hello$", seen.until(r"^hello\n.*[#$]$"), re.MULTILINE)
        seen.type("\x1b[A\r")  # the line before
        seen.until(lambda text: text.count("hello") == 4)
        # It says when it has the terminal: before, ^C and ^Z are the shell's, which may not heed them.
        sleep = "sh -c 'echo u''p; exec sleep 1000'"
        seen.type(f"{sleep}\r")
        seen.until(r"^up$")
        seen.type("\x03")
        seen.until(r"\^C\n.*[#$]$")
        seen.type(f"{sleep}\r")
        seen.until(lambda text: len(re.findall(r"^up$", text, re.MULTILINE)) == 2)
        seen.type("\x1a")
        seen.until(r"Stopped +sh -c")
        seen.type("kill %1; tty; stty size\r")
        # With the prompt: a ^D that comes before the shell has taken the terminal back is nobody's.
        text = seen.until(lambda text: "\n24 80\n" in text and text.endswith(("#", "$")))
        assert re.search(r"^/dev/pts/\d+$", text, re.MULTILINE)
        seen.type("\x04")
        seen.type("\x04")
        assert pty.wait().exit_code is not None
        with pytest.raises(LocalProtocolError):
            pty.write("x")


def test_the_size_changes_and_bad_ones_are_told(shared: Sandbox) -> None:
    with shared.open_pty("trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done", cols=100, rows=30) as pty:
        seen = Seen(pty, 100, 30)
        seen.until("ready")
        pty.resize(120, 40)
        seen.until(r"^40 120$")
        for cols, rows in ((0, 24), (80, 0), (10**9, 10**9)):
            with shared.open_pty(process=pty.process_id) as other:
                other.read()
                other.resize(cols, rows)
                with pytest.raises(InvalidRequest):
                    for _ in other:
                        pass
    for cols, rows in ((0, 24), (80, 0), (10**9, 24)):
        with pytest.raises(InvalidRequest):
            shared.open_pty(cols=cols, rows=rows)
    with pytest.raises(ProcessNotFound):
        shared.open_pty(process="no-such")
    plain = shared.start_process(["sleep", "1000"])
    with pytest.raises(InvalidRequest):
        shared.open_pty(process=plain)


@pytest.mark.parametrize(
    ("command", "exit_code", "named"),
    [("exit 7", 7, None), ("kill -KILL $$", None, "SIGKILL"), ("no-such-program", 127, None), ("printf end", 0, None)],
)
def test_the_exit_status_comes_last(shared: Sandbox, command: str, exit_code: int | None, named: str | None) -> None:
    with shared.open_pty(command) as pty:
        shown = b"".join(pty)
        assert pty.result is not None
        assert (pty.result.exit_code, pty.result.signal) == (exit_code, named)
    assert command != "printf end" or shown == b"end"
    with shared.open_pty(process=pty.process_id) as again:  # it has ended, and can still be looked at
        assert b"".join(again) == (b"\x1bc" + shown if shown else b"")
        assert again.result is not None
        assert again.result.exit_code == exit_code


def test_a_python_with_history(shared: Sandbox) -> None:
    with shared.open_pty(["python3", "-q"]) as pty:
        seen = Seen(pty)
        seen.until(r">>> ?$")
        seen.type("6*7\r")
        seen.until(r"^42$")
        seen.type("import time; print(6 * 8); time.sleep(1000)\r")
        seen.until(r"^48$")
        seen.type("\x03")
        seen.until("KeyboardInterrupt")
        seen.type("exit(3)\r")
        assert pty.wait().exit_code == 3


FULL_SCREEN = {
    "vi": (
        "vi -c 'set nocompatible' /tmp/story",
        lambda t: "line 1" in t,
        "ihello \x1b",
        lambda t: "hello line 1" in t,
        ":q!\r",
    ),
    "top": ("top -d 0.2", lambda t: "PID" in t and "top" in t, "h", lambda t: "Help for Interactive" in t, "qq"),
    "less": ("less /tmp/story", lambda t: "line 1\n" in t + "\n", "G", lambda t: "line 99" in t, "q"),
    "nano": ("nano /tmp/story", lambda t: "GNU nano" in t, "hello ", lambda t: "hello line 1" in t, "\x18n"),
}


@pytest.mark.parametrize("name", FULL_SCREEN)
def test_full_screen_programs_and_their_screen_after_a_cut(shared: Sandbox, name: str) -> None:
    command, shown, keys, answered, leave = FULL_SCREEN[name]
    shared.write_file("/tmp/story", "".join(f"line {i}\n" for i in range(1, 100)))
    with shared.open_pty(command) as pty:
        seen = Seen(pty)
        seen.until(shown)
        seen.type(keys)
        seen.until(answered)
        before = seen.settle() if name != "top" else seen.text()
    with shared.open_pty(process=pty.process_id) as pty:
        again = Seen(pty)
        again.until(answered)
        if name != "top":  # whose numbers change
            assert again.settle() == before
        for number, key in enumerate(leave if name == "top" else [leave]):
            if number:
                again.until(lambda text: shown(text) and not answered(text))
            again.type(key)
        assert pty.wait().exit_code == 0


def test_a_screen_whose_beginning_is_lost_is_painted_anew(shared: Sandbox) -> None:
    """More than the log holds: the end of it, and a program that is asked to paint."""
    source = (
        "import os, signal, sys, time\n"
        "def paint(*_): sys.stdout.write('\\x1b[2J\\x1b[1;1Hpainted'); sys.stdout.flush()\n"
        "signal.signal(signal.SIGWINCH, paint)\n"
        "sys.stdout.write('\\x1b[?1049h')\n"
        "for i in range(200_000): sys.stdout.write('\\x1b[2;1H%07d' % i)\n"
        "sys.stdout.write('\\x1b[2Jdone'); sys.stdout.flush()\n"
        "while True: time.sleep(1)\n"
    )
    shared.write_file("/tmp/painter.py", source)
    with shared.open_pty("python3 /tmp/painter.py") as pty:
        Seen(pty).until("done")
    with shared.open_pty(process=pty.process_id) as pty:
        again = Seen(pty)
        again.until("painted")
        assert b"\x1b[?1049h" in again.data[:100]


def test_several_viewers_see_the_same_and_all_may_type(shared: Sandbox) -> None:
    with shared.open_pty("cat") as first, shared.open_pty(process=first.process_id) as second:
        one, two = Seen(first), Seen(second)
        one.type("from one\r")
        two.type("from two\r")
        for seen in (one, two):
            seen.until(lambda text: text.count("from one") == 2 and text.count("from two") == 2)
        first.close()
        two.type("alone\r")
        two.until(lambda text: text.count("alone") == 2)


def test_a_viewer_that_does_not_read_stalls_nobody(shared: Sandbox) -> None:
    gaps: list[int] = []
    command = "sleep 0.5; head -c 20000000 /dev/zero | tr '\\0' x; echo; echo the end; sleep 1000"
    with shared.open_pty(command, on_gap=gaps.append) as slow, shared.open_pty(process=slow.process_id) as fast:
        count = 0
        tail = b""
        while b"the end" not in tail:
            data = fast.read()
            count += len(data)
            tail = (tail + data)[-100:]
        assert count > 20_000_000  # nothing lost for who keeps up
        seen = Seen(slow)
        seen.until("the end")
        assert gaps
        assert gaps[0] > 1_000_000


def test_ctrl_c_works_under_a_flood(shared: Sandbox) -> None:
    with shared.open_pty("yes; echo over") as pty:
        for _ in range(50):
            pty.read()
        pty.write("\x03")
        began = time.monotonic()
        result = pty.wait()
        assert time.monotonic() - began < 60
        assert result.signal == "SIGINT" or result.exit_code == 130


def test_a_terminal_without_viewers_is_hung_up(shared: Sandbox) -> None:
    with shared.open_pty("trap 'echo hup > /tmp/hup; exit' HUP; while :; do sleep 0.05; done", linger=1.0) as pty:
        process = pty.process_id
        time.sleep(1.3)
        assert shared.get_process(process).is_running  # while somebody looks
    with shared.open_pty(process=process):
        time.sleep(1.3)
    ended = shared.wait_for_exit(process, timeout=100)
    assert ended.met
    assert shared.get_process(process).reason == "hangup"
    assert shared.read_file("/tmp/hup") == b"hup\n"
    stubborn = shared.open_pty("trap '' HUP; while :; do sleep 0.05; done", linger=0.1)
    stubborn.close()
    assert shared.wait_for_exit(stubborn.process_id, timeout=100).signal == "SIGKILL"


def test_the_user_owns_the_terminal(shared: Sandbox) -> None:
    with shared.open_pty("id -u; stat -c '%U %a' $(tty); echo typed > $(tty)", user="user") as pty:
        shown = b"".join(pty).decode().split()
    assert shown == ["1000", "user", "620", "typed"]


def test_env_cwd_and_names(shared: Sandbox) -> None:
    with shared.open_pty("echo $TERM $A; pwd", env={"A": "é"}, cwd="/tmp", id="mine") as pty:
        assert b"".join(pty).decode().split() == ["xterm-256color", "é", "/tmp"]
        assert pty.process_id == "mine"
    assert shared.get_process("mine").terminal


def test_terminals_are_bounded(sandbox: Sandbox) -> None:
    """The sandbox's own root can use them up; that is told, and ends with it."""
    hog = sandbox.start_process(
        [
            "python3",
            "-c",
            "import os, time\ntry:\n while 1: os.openpty()\nexcept OSError: print('all', flush=True)\ntime.sleep(1000)",
        ]
    )
    assert sandbox.wait_for_log(hog, ".", timeout=100).met
    from sandboxd.errors import LimitExceeded

    with pytest.raises(LimitExceeded):
        sandbox.open_pty()
    sandbox.remove_process(hog)
    with sandbox.open_pty("echo fine") as pty:
        assert b"fine" in b"".join(pty)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_terminal_outlives_the_daemon(own_daemon: Daemon, number: int) -> None:
    with own_daemon.client() as client, Sandbox.create(client=client) as sandbox:
        with sandbox.open_pty() as pty:
            seen = Seen(pty)
            seen.until(PROMPT)
            seen.type("A=remembered\r")
            seen.until(lambda text: text.count("A=") == 1 and text.endswith("#"))
            own_daemon.signal(number)
            with pytest.raises(Exception, match="daemon"):
                pty.wait()
        own_daemon.start()
        with sandbox.open_pty(process=pty.process_id) as pty:
            again = Seen(pty)
            again.until("A=remembered")
            again.type("echo $A\r")
            again.until(r"^remembered$")


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_the_asynchronous_twin(daemon: Daemon, shared: Sandbox, backend: str) -> None:
    import anyio

    async def main() -> None:
        async with AsyncClient(daemon.url) as client:
            other = await AsyncSandbox.connect(shared.id, client=client)
            async with other.open_pty("stty -echo; echo ready; cat") as pty:
                shown = b""
                while b"ready" not in shown:
                    shown += await pty.read()
                await pty.resize(90, 30)
                await pty.write("hello\n")
                while b"hello" not in shown:
                    shown += await pty.read()
                await pty.write("\x04")
                assert (await pty.wait()).exit_code == 0
            with pytest.raises(InvalidRequest):
                async with other.open_pty(cols=0):
                    pass
            logs = ""
            process = await other.start_process("echo $0; echo err >&2; sleep 0.1; exit 2", id=f"twin-{backend}")
            async with other.stream_process_logs(process) as stream:
                async for chunk in stream:
                    logs += chunk.text
                assert stream.result is not None
            assert sorted(logs.split()) == ["/bin/sh", "err"]
            assert (await other.wait_for_exit(process)).exit_code == 2
            assert (await other.get_process_logs(process, tail=1)).stderr == "err\n"
            assert process.id in [info.id for info in await other.list_processes()]
            await other.kill_all_processes()

    anyio.run(main, backend=backend)
    assert trio is not None


class Person:
    """Somebody at a terminal of this machine with `sandboxd shell` in it."""

    def __init__(self, daemon: Daemon, *words: str) -> None:
        self.fd, slave = host_pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sandboxd", "shell", *words],
            env={**os.environ, "SANDBOXD_URL": daemon.url},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = b""

    def until(self, wanted: bytes, seconds: float = 100) -> None:
        deadline = time.monotonic() + seconds
        while wanted not in self.seen:
            assert select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))[0], self.seen
            self.seen += os.read(self.fd, 65536)

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def leave(self) -> int:
        code = self.process.wait(100)
        os.close(self.fd)
        return code


def test_a_person_at_a_shell(daemon: Daemon, sandbox: Sandbox) -> None:
    import fcntl
    import struct
    import termios

    person = Person(daemon, "--id", "mine", sandbox.id)
    person.until(b"# ")
    fcntl.ioctl(person.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    os.kill(person.process.pid, signal.SIGWINCH)
    person.type(b"until [ \"$(stty size)\" = '33 99' ]; do sleep 0.1; done; echo now-$((40+1)); sleep 1000\r")
    person.until(b"now-41")
    person.type(b"\x03")  # ends the sleep in there, not the program here
    person.type(b"echo still-$((40+2))\r")
    person.until(b"still-42")
    person.type(b"exit 9\r")
    assert person.leave() == 9
    assert sandbox.get_process("mine").exit_code == 9


def test_a_shell_that_is_come_back_to(daemon: Daemon, sandbox: Sandbox) -> None:
    person = Person(daemon, "--id", "long", sandbox.id)
    person.until(b"# ")
    person.type(b"A=before; echo s''et\r")
    person.until(b"set\r\n")
    person.process.kill()
    person.leave()
    again = Person(daemon, "--attach", "long", sandbox.id)
    again.until(b"A=before")
    again.type(b"echo $A-$((1+1))\r")
    again.until(b"before-2")
    again.type(b"exit\r")
    assert again.leave() == 0


def test_a_shell_without_a_terminal_takes_its_input_to_the_end(daemon: Daemon, sandbox: Sandbox) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "sandboxd", "shell", sandbox.id, "--", "sh", "-c", "read a; echo got $a; exit 4"],
        env={**os.environ, "SANDBOXD_URL": daemon.url},
        input=b"word\n",
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert found.returncode == 4, found.stderr
    assert b"got word" in found.stdout


def test_no_terminal_is_left_behind(forking: Daemon) -> None:
    with forking.client() as client, Sandbox.create(client=client) as sandbox:
        check_what_terminals_leave(forking, sandbox)


def check_what_terminals_leave(daemon: Daemon, sandbox: Sandbox) -> None:
    (pid,) = (daemon.cgroup() / sandbox.id / "init" / "cgroup.procs").read_text().split()

    def descriptors() -> int:
        return len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir()))

    with sandbox.open_pty("true") as pty:
        pty.wait()
    before = descriptors()
    for _ in range(40):
        with sandbox.open_pty("echo x") as pty:
            pty.wait()
    pty = sandbox.open_pty()
    sandbox.kill_all_processes()
    pty.close()
    assert sandbox.exec("ls /dev/pts").stdout.split() == ["ptmx"]
    assert descriptors() <= before
