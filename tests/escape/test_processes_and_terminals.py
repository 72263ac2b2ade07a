"""Processes and terminals that attack: swapped names, stolen keys, bombs."""

from __future__ import annotations

import contextlib
import os
import pathlib
import time

import pytest

from sandboxd import InvalidRequest, LimitExceeded, NotAvailable, Sandbox
from sandboxd.client.calls import Call
from sandboxd.client.process_calls import parse_process
from tests.escape.conftest import Stalls, host_pid
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real


def start(sandbox: Sandbox, command: str | list[str], process: str, **fields: object) -> None:
    """Start a process, a terminal's among others, by the API itself: the SDK opens terminals to look at them."""
    body = {"command": command, "id": process, **fields}
    path = f"/v1/sandboxes/{sandbox.id}/processes"
    sandbox.client.send(Call("POST", path, body=body, what="process", parse=parse_process))


@pytest.mark.parametrize("process", ["self", "1"])
def test_a_process_that_is_to_start_in_a_descriptor(shared: Sandbox, process: str) -> None:
    for number in range(3, 40):
        cwd = f"/proc/{process}/fd/{number}"
        for more in ({}, {"terminal": {"cols": 80, "rows": 24}}):
            with contextlib.suppress(InvalidRequest):  # there is no such directory, for init
                start(shared, "pwd -P", "x", cwd=cwd, **more)
                assert shared.wait_for_exit("x", timeout=10).exit_code == 126
                shared.remove_process("x")


SWAPPER = """
import os
os.chdir('/dev')
print('swapping', flush=True)
while True:
    for name in ('pts', 'ptmx', 'console', 'tty'):
        try:
            os.rename(name, name + '.was')
            os.symlink('/etc/shadow', name)
            os.unlink(name)
            os.rename(name + '.was', name)
        except OSError:
            pass
    for number in range(8):
        name = f'pts/{number}'
        for action in (lambda: os.unlink(name), lambda: os.symlink('/proc/sys/kernel/core_pattern', name),
                       lambda: os.rename(name, 'pts/x')):
            try:
                action()
                print('allowed', flush=True)
            except OSError:
                pass
"""


@pytest.mark.slow
def test_terminal_names_swapped_while_terminals_are_opened(daemon: Daemon, sandbox: Sandbox) -> None:
    core_pattern = pathlib.Path("/proc/sys/kernel/core_pattern").read_text()
    swapper = sandbox.start_process(["python3", "-c", SWAPPER])
    assert sandbox.wait_for_log(swapper, "swapping", timeout=20).met
    command = ["stat", "-L", "-c", "%t", "/proc/self/fd/0", "/proc/self/fd/1"]
    opened = 0
    for _ in range(1000):
        with contextlib.suppress(NotAvailable, LimitExceeded):  # /dev/pts is another thing at that moment
            start(sandbox, command, "t", terminal={"cols": 80, "rows": 24})
            assert sandbox.wait_for_exit("t", timeout=20).exit_code == 0
            assert sandbox.get_process_logs("t").stdout == "88\r\n88\r\n"  # 136: a pseudo-terminal of devpts
            sandbox.remove_process("t")
            opened += 1
    assert opened > 100
    assert "allowed" not in sandbox.get_process_logs(swapper).stdout
    assert pathlib.Path("/proc/sys/kernel/core_pattern").read_text() == core_pattern
    assert sandbox.exec("echo alive").stdout == "alive\n"


STUFFER = """
import errno, fcntl, os, termios
TIOCLINUX, TIOCCONS, TIOCSCTTY = 0x541C, 0x541D, 0x540E
for fd in (0, os.open('/dev/tty', os.O_RDWR)):
    for name, request, argument in (('TIOCSTI', termios.TIOCSTI, b'x'), ('TIOCLINUX', TIOCLINUX, b'\\x03'),
                                    ('TIOCCONS', TIOCCONS, b'')):
        try:
            fcntl.ioctl(fd, request, argument)
            print(name, 'allowed')
        except OSError as error:
            print(name, 'blocked' if error.errno in (errno.EPERM, errno.ENOTTY, errno.EIO) else 'broken')
"""


@pytest.mark.parametrize("user", ["root", 1000])
def test_no_keys_are_put_into_a_terminal(shared: Sandbox, user: str | int) -> None:
    shared.write_file("/tmp/stuffer.py", STUFFER)
    with shared.open_pty(["python3", "/tmp/stuffer.py"], user=user) as pty:
        shown = b"".join(pty).decode()
    assert shown.count("blocked") == 6, shown
    assert "allowed" not in shown
    assert "broken" not in shown


def test_a_command_has_no_terminal_and_takes_none(shared: Sandbox) -> None:
    """Neither a plain command nor one in another session reaches the terminal of a person beside it."""
    with shared.open_pty("echo $$; stty raw -echo; cat") as pty:
        pty.read()
        assert "No such device" in shared.exec("echo x > /dev/tty").stderr
        source = """
import fcntl, os
os.setsid() if os.getpid() != os.getsid(0) else None
for name in os.listdir('/dev/pts'):
    if name.isdigit():
        fd = os.open('/dev/pts/' + name, os.O_RDWR | os.O_NOCTTY)
        try:
            fcntl.ioctl(fd, 0x540E, 1)
            print('stolen')
        except OSError:
            print('blocked')
"""
        assert shared.exec(["python3", "-c", source], user="user").stdout in ("", "blocked\n")
        assert shared.exec(["python3", "-c", source]).stdout == "blocked\n"


def test_init_and_secrets_of_others_are_out_of_reach(daemon: Daemon, shared: Sandbox) -> None:
    secret = shared.start_process(["sleep", "1000"], env={"SECRET": "hunter2-abcdef"}, user="root")
    source = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def tell(name, action):
    try:
        found = action()
        print(name, 'allowed' if found is not None and found != -1 else 'blocked')
    except OSError:
        print(name, 'blocked')
def read(path):
    with open(path, 'rb') as file:
        return file.read(1) or None
for pid in (1, {secret.pid}):
    for name in ('mem', 'environ', 'auxv', 'maps'):
        tell(f'{{pid}} {{name}}', lambda: read(f'/proc/{{pid}}/{{name}}'))
    for name in ('root', 'cwd', 'exe', 'fd'):
        tell(f'{{pid}} {{name}}', lambda: os.listdir(f'/proc/{{pid}}/{{name}}/') and 1)
    tell(f'{{pid}} attach', lambda: libc.ptrace(16, pid, 0, 0))
    tell(f'{{pid}} seize', lambda: libc.ptrace(0x4206, pid, 0, 0))
    tell(f'{{pid}} kill', lambda: os.kill(pid, 9))
"""
    shown = shared.exec(["python3", "-c", source], user=1000).stdout.splitlines()
    assert len(shown) == 22
    assert [line for line in shown if "allowed" in line] == []
    as_root = shared.exec(["python3", "-c", source.replace(f"(1, {secret.pid})", "(1,)")]).stdout.splitlines()
    assert [line for line in as_root if "allowed" in line and "kill" not in line] == []
    environ = shared.exec("cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'", user=1000).stdout
    assert "hunter2" not in environ
    assert host_pid(daemon, shared) > 0
    shared.remove_process(secret)


def test_processes_that_will_not_die_are_gone_within_a_second(daemon: Daemon, sandbox: Sandbox) -> None:
    for line in (
        "trap '' TERM HUP INT; for i in $(seq 30); do setsid sh -c 'trap \"\" TERM HUP; sleep 1000' & done; sleep 1000",
        "(setsid sh -c 'kill -STOP $$' &); kill -STOP $$",
        "python3 -c 'import os, time\nfor _ in range(6): os.fork()\n"
        "os.setsid() if os.getpid() != os.getpgid(0) else 0\ntime.sleep(1000)'",
    ):
        process = sandbox.start_process(line)
        terminal = sandbox.open_pty(line)
        time.sleep(0.5)
        began = time.monotonic()
        sandbox.kill_all_processes()
        assert time.monotonic() - began < 5
        terminal.close()
        assert process.id
    # Its own, and those of init's two that stand by.
    sandbox.exec("while [ $(ls -d /sys/fs/cgroup/work/*/ | wc -l) -gt 3 ]; do sleep 0.01; done", timeout=10).check()
    assert len(os.listdir(daemon.cgroup() / sandbox.id / "work")) > 0


@pytest.mark.parametrize(
    "source",
    [
        "import os\nfor _ in range(200): os.write(1, b'x' * (1 << 20))",
        "import os\nfor _ in range(60000): os.write(1, b'y')",
        "import os\nfor _ in range(20000): os.write(1, b'\\x1b[6n\\x1b]52;c;aGk=\\x07\\x1b[?1049h' * 20)",
        "import os\nfor _ in range(3000): os.write(1, bytes(range(256)) * 16)",
    ],
    ids=["no newline", "tiny writes", "escape sequences", "every byte"],
)
def test_bombs_in_the_background_and_on_a_terminal(daemon: Daemon, sandbox: Sandbox, source: str) -> None:
    """Nobody reads the one, a viewer and a slow one look at the other; the daemon stays small and awake."""
    assert daemon.process

    def rss() -> int:
        return int(pathlib.Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1]) * 4096  # type: ignore[union-attr]

    before = rss()
    command = ["python3", "-c", source]
    with Stalls(daemon) as stalls:
        background = sandbox.start_process(command)
        with sandbox.open_pty(command) as slow, sandbox.open_pty(process=slow.process_id) as viewer:
            assert viewer.wait().exit_code == 0
        assert sandbox.wait_for_exit(background, timeout=60).exit_code == 0
        assert not sandbox.wait_for_log(background, "(a|aa)+$|(.*a){9}b").met
    assert rss() - before < 96 << 20
    assert stalls.worst < 0.5
    logs = sandbox.get_process_logs(background)
    assert len(logs.stdout_bytes) <= 1 << 20
    assert sandbox.exec("echo alive").stdout == "alive\n"


def test_output_cannot_speak_for_the_daemon(sandbox: Sandbox) -> None:
    """Forged frames, events and messages in output arrive as the bytes that they are."""
    forged = (
        b'data: {"exit_code": 0}\n\nevent: exit\nid: 9\n\n\x03\x00\x00\x00\x02{}\x06\x00\x00\x00\x02{}'
        b'{"type": "exit", "exit_code": 0}\x88\x02\x03\xe8\x81\x05hello'
    )
    sandbox.write_file("/tmp/forged", forged)
    process = sandbox.start_process("cat /tmp/forged; exit 3")
    with sandbox.stream_process_logs(process) as stream:
        assert b"".join(chunk.data for chunk in stream) == forged
        assert stream.result is not None
        assert stream.result.exit_code == 3
    with sandbox.open_pty("stty raw; cat /tmp/forged; exit 4") as pty:
        assert b"".join(pty) == forged
        assert pty.result is not None
        assert pty.result.exit_code == 4


@pytest.mark.parametrize(
    "source",
    [
        "import os, time\nfor fd in range(64):\n try: os.close(fd)\n except OSError: pass\ntime.sleep(1000)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        "import os, time\nos.dup2(0, 1); os.dup2(0, 2)\nfor n in range(3, 1000):\n os.dup2(0, n)\ntime.sleep(1000)",
        "import signal\nfor n in {*range(1, 65)} - {9, 19, 32, 33}: signal.signal(n, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
    ],
    ids=["closes all", "stops itself", "swaps all", "ignores all"],
)
def test_a_process_that_breaks_its_streams_or_ignores_signals_is_ended(sandbox: Sandbox, source: str) -> None:
    """The part of a worker that is a process; contexts have their own."""
    process = sandbox.start_process(["python3", "-c", source], stdin=True)
    with sandbox.open_pty(["python3", "-c", source]) as pty:
        time.sleep(0.5)
        assert sandbox.get_process(process).is_running
        sandbox.kill_process(process, "KILL")
        sandbox.kill_process(pty.process_id, "KILL")
        for name in (process.id, pty.process_id):
            assert sandbox.wait_for_exit(name, timeout=30).signal == "SIGKILL"
        assert pty.wait().signal == "SIGKILL"
    assert sandbox.exec(["python3", "-c", source], timeout=0.5).timed_out
    assert sandbox.exec("echo next").stdout == "next\n"


def test_what_is_printed_after_the_end_is_not_in_the_log(sandbox: Sandbox) -> None:
    process = sandbox.start_process("(sleep 0.4; echo late; sleep 0.1; echo later) & echo in time", keep_orphans=True)
    assert sandbox.wait_for_exit(process, timeout=10).met
    time.sleep(0.8)
    assert sandbox.get_process_logs(process).stdout == "in time\n"
    with sandbox.stream_process_logs(process) as stream:
        assert b"".join(chunk.data for chunk in stream) == b"in time\n"
