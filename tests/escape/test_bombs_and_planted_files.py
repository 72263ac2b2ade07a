"""Processes that will not die, output bombs, sockets, users, planted libraries."""

from __future__ import annotations

import os
import pathlib
import socket
import threading
import time
from collections.abc import Callable

import pytest

from sandboxd import Sandbox
from sandboxd.errors import SandboxdError
from tests.escape.conftest import Stalls, host_pid
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real

Python = Callable[..., str]


@pytest.mark.parametrize(
    "bomb",
    [
        "kill -9 -1",
        "kill -STOP 1; kill -9 1; kill -TERM 1; kill -SEGV 1; kill -XCPU 1; echo sent",
        "for i in $(seq 40); do setsid sh -c 'trap \"\" TERM HUP; sleep 1000' & done; kill -STOP $$",
        "for i in $(seq 20); do (setsid sleep 1000 & kill -STOP $! ); done",
        'python3 -c "import os\nfor _ in range(60): os.fork() or os.setsid() or os.kill(os.getpid(), 19)"',
    ],
    ids=["kill all", "kill init", "orphans", "stopped", "forks"],
)
def test_nothing_outlives_its_sandbox(daemon: Daemon, sandbox: Sandbox, bomb: str) -> None:
    sandbox.exec(bomb, timeout=1)
    assert sandbox.exec("echo alive").stdout == "alive\n"
    group = daemon.cgroup() / sandbox.id
    began = time.monotonic()
    sandbox.destroy()
    assert time.monotonic() - began < 5  # with no grace for anybody
    assert not group.exists()


def test_a_user_cannot_limit_or_signal_init(shared: Sandbox) -> None:
    source = """
import os, resource, signal
for action in (lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (4, 4)), lambda: os.kill(1, signal.SIGCHLD),
               lambda: os.sched_setaffinity(1, {0})):
    try:
        action()
        print('allowed')
    except PermissionError:
        print('blocked')
"""
    assert shared.exec(["python3", "-c", source], user=1000).stdout.split() == ["blocked"] * 3


def rss(pid: int) -> int:
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "source",
    [
        "import os\nfor _ in range(150): os.write(1, b'x' * (1 << 20))",
        "import os\nfor _ in range(60000): os.write(1, b'y')",
        "import os\nfor _ in range(300): os.write(1, bytes(range(256)) * 64)",
        r"import os; os.write(1, b'data: {}\n\nevent: exit\n\n\x00\x00\x00\x05\x95\x02\x01\x80\x00' * 1000)",
    ],
    ids=["no newline", "tiny writes", "invalid text", "forged frames"],
)
def test_output_bombs(daemon: Daemon, sandbox: Sandbox, source: str) -> None:
    assert daemon.process
    before = rss(daemon.process.pid)
    with Stalls(daemon) as stalls:
        result = sandbox.exec(["python3", "-c", source], timeout=30)
    assert (result.exit_code, result.timed_out) == (0, False)
    assert rss(daemon.process.pid) - before < 96 << 20
    assert stalls.worst < 0.5
    assert sandbox.exec("echo alive").stdout == "alive\n"


def test_sockets_of_the_host_are_not_there(daemon: Daemon, python: Python) -> None:
    name = f"sandboxd-escape-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as abstract, socket.create_server(("127.0.0.1", 0)) as tcp:
        abstract.bind("\0" + name)
        abstract.listen()
        source = f"""
import socket
for family, address in ((1, '\\0{name}'), (1, {str(daemon.socket)!r}), (1, '/run/dbus/system_bus_socket'),
                        (1, '/run/systemd/private'), (1, '/run/docker.sock'),
                        (2, ('127.0.0.1', {tcp.getsockname()[1]})),
                        (2, ('169.254.169.254', 80)), (10, ('::1', {tcp.getsockname()[1]})),
                        (10, ('::ffff:127.0.0.1', {tcp.getsockname()[1]})), (2, ('0.0.0.0', {tcp.getsockname()[1]}))):
    with socket.socket(family) as sock:
        sock.settimeout(2)
        try:
            sock.connect(address)
            print('allowed', address)
        except OSError:
            pass
"""
        assert python(source) == ""


@pytest.mark.parametrize(
    "user", ["0:0", "-1", -1, "1000x", "4294967295", 4294967295, "root\n", " root", "", "65536", 65536, "٣", "../root"]
)
def test_users_are_parsed_strictly(shared: Sandbox, user: str | int) -> None:
    with pytest.raises(SandboxdError) as caught:
        shared.exec("id", user=user)
    assert caught.value.kind == "invalid-request"


@pytest.mark.parametrize(
    "line",
    [
        "evil:x:4294967295:0::/:/bin/sh",
        "evil:x:99999999999:0::/:/bin/sh",
    ],
)
def test_a_planted_user_is_never_root(sandbox: Sandbox, line: str) -> None:
    sandbox.exec(f"echo '{line}' >> /etc/passwd").check()
    try:
        result = sandbox.exec("id -u", user="evil")
    except SandboxdError:
        pass
    else:
        assert result.stdout.strip() != "0"
    assert sandbox.exec("echo alive").stdout == "alive\n"


def test_init_maps_nothing_of_the_sandboxs(daemon: Daemon, sandbox: Sandbox) -> None:
    def maps() -> set[str]:
        lines = pathlib.Path(f"/proc/{host_pid(daemon, sandbox)}/maps").read_text().splitlines()
        return {line.split(maxsplit=5)[5] for line in lines if line.count("/")}

    before = maps()
    sandbox.exec(
        "for f in $(find / -xdev -name 'libnss_*' -o -xdev -name 'gconv-modules*' 2>/dev/null); do echo evil > $f;"
        "done;"
        "echo 'passwd: evil files' > /etc/nsswitch.conf; echo 'evil:x:1234:1234::/:/bin/sh' >> /etc/passwd;"
        "mkdir -p /usr/lib/python3.11/encodings; echo 'raise SystemExit' > /usr/lib/python3.11/os.py"
    )
    sandbox.write_file("/workspace/ä/ö", "x")
    assert sandbox.read_text("/workspace/ä/ö") == "x"
    assert sandbox.exec("id -u", user="evil").stdout == "1234\n"
    with pytest.raises(SandboxdError):
        sandbox.exec("id", user="nobody-knows")
    assert maps() == before


def test_a_command_has_nothing_of_the_launcher_or_the_daemon(shared: Sandbox, python: Python) -> None:
    environ = shared.exec("cat /proc/self/environ; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'").stdout
    for name, value in os.environ.items():
        if len(value) > 8 and name not in ("PATH", "HOME", "LANG", "SHELL", "PWD", "OLDPWD"):
            assert value not in environ, name
    found = python("import os; print(os.getgroups(), os.umask(0), open('/proc/self/oom_score_adj').read())")
    assert found == "[0] 18 0"
    assert shared.exec("ls -l /proc/self/fd | wc -l").stdout.strip() == "5"


def test_signals_are_as_a_program_expects_them(python: Python) -> None:
    found = python("print(''.join(l for l in open('/proc/self/status') if l.startswith(('SigBlk', 'SigIgn'))))")
    blocked = int(found.split()[1], 16)
    assert blocked == 0


def test_shm_and_dev_are_bounded(sandbox: Sandbox) -> None:
    assert "No space" in sandbox.exec("head -c 1000000 /dev/zero > /dev/x").stderr
    assert "No space" in sandbox.exec("for i in $(seq 100); do : > /dev/y$i || break; done").stderr.replace(
        "cannot create", "No space: cannot create"
    )
    assert sandbox.exec("echo alive").stdout == "alive\n"
    assert threading.active_count() < 50
