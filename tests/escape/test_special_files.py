"""Links, FIFOs, devices, locks, watches, setuid files; nothing of it is the host's."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import threading
import time

import pytest

from sandboxd import Sandbox
from sandboxd.errors import SandboxdError
from sandboxd.launcher import idranges
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real

LOWER = "etc/os-release"


def lower(daemon: Daemon, path: str) -> pathlib.Path:
    """Return a file of the shared rootfs as the host has it."""
    return (pathlib.Path(daemon.rootfs_dir) / "default" / "private" / "tree" / path).resolve()


def test_a_hard_link_and_a_write_stay_in_the_upper_layer(daemon: Daemon, sandbox: Sandbox) -> None:
    shared = lower(daemon, "usr/lib/os-release")
    before, data = shared.stat(), shared.read_bytes()
    sandbox.exec("ln /usr/lib/os-release /workspace/l && echo evil > /workspace/l && chmod 4777 /workspace/l").check()
    sandbox.exec(
        "chown 1000 /usr/lib/os-release; touch -d 2001-01-01 /usr/lib/os-release; rm /usr/lib/os-release"
    ).check()
    after = shared.stat()
    assert (after.st_nlink, after.st_uid, after.st_mode, after.st_mtime) == (
        before.st_nlink, before.st_uid, before.st_mode, before.st_mtime,
    )  # fmt: skip
    assert shared.read_bytes() == data


@pytest.mark.parametrize(
    "make",
    [
        "mkfifo /workspace/x",
        "ln -s /dev/zero /workspace/x",
        "ln -s /dev/tty /workspace/x",
        "ln -s /dev/ptmx /workspace/x",
        "ln -s /proc/self/mem /workspace/x",
        "ln -s /proc/self/root/etc/passwd /workspace/x",
        "ln -s /proc/1/root/etc/passwd /workspace/x",
        "ln -s x /workspace/x",
        "mkdir /workspace/x",
        "python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('/workspace/x')\"",
    ],
)
def test_what_is_no_file_never_hangs_a_read(sandbox: Sandbox, make: str) -> None:
    sandbox.exec(make).check()
    began = time.monotonic()
    with pytest.raises(SandboxdError):
        sandbox.read_file("/workspace/x")
    assert time.monotonic() - began < 20


def test_a_planted_link_shows_the_sandboxs_own_file(sandbox: Sandbox) -> None:
    secret = pathlib.Path("/etc/shadow").read_text()
    for target in ("/etc/shadow", "../../../../../../etc/shadow"):
        sandbox.exec(f"ln -sfn {target} /workspace/l").check()
        assert sandbox.read_text("/workspace/l") != secret
        sandbox.write_file("/workspace/l", "evil")
        assert pathlib.Path("/etc/shadow").read_text() == secret


def test_a_leased_file_does_not_stop_init(daemon: Daemon, sandbox: Sandbox) -> None:
    source = """
import fcntl, os, signal, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
held = [open(path, 'r+') for path in ('/etc/passwd', '/etc/group', '/workspace/f')]
for file in held:
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
open('/workspace/ready', 'w').close()
while not os.path.exists('/workspace/go'):
    time.sleep(0.02)
"""
    sandbox.write_file("/workspace/f", "x")

    def hold() -> None:
        with daemon.client() as client:
            Sandbox.connect(sandbox.id, client=client).exec(["python3", "-c", source])

    thread = threading.Thread(target=hold)
    thread.start()
    while _missing(sandbox):
        time.sleep(0.02)
    began = time.monotonic()
    for action in (lambda: sandbox.read_file("/workspace/f"), lambda: sandbox.exec("true", user="user")):
        with contextlib.suppress(SandboxdError):
            action()
    sandbox.exec("true")
    assert time.monotonic() - began < 20  # the kernel takes a lease away after 45
    sandbox.exec("touch /workspace/go").check()
    thread.join()


def _missing(sandbox: Sandbox) -> bool:
    return sandbox.exec("test -e /workspace/ready").exit_code != 0


def test_locks_and_watches_are_the_sandboxs_own(daemon: Daemon, sandbox: Sandbox, neighbour: Sandbox) -> None:
    source = """
import ctypes, fcntl, os, time
held = [open(path, 'rb') for path in ('/usr/lib/os-release', '/dev/null', '/dev/zero', '/bin/sh')]
for file in held:
    fcntl.flock(file, fcntl.LOCK_EX)
libc = ctypes.CDLL(None)
watch = libc.inotify_init1(os.O_NONBLOCK)
for path in (b'/usr/lib/os-release', b'/dev/null', b'/dev/zero', b'/usr/lib/locale/C.utf8/LC_CTYPE', b'/bin'):
    libc.inotify_add_watch(watch, path, 0xfff)
time.sleep(0.3)
try:
    os.read(watch, 65536)
except BlockingIOError:
    pass
open('/workspace/ready', 'w').close()
time.sleep(1.5)
try:
    print('events', len(os.read(watch, 65536)))
except BlockingIOError:
    print('none')
"""
    output = []

    def hold() -> None:
        with daemon.client() as client:
            output.append(Sandbox.connect(sandbox.id, client=client).exec(["python3", "-c", source]).stdout)

    thread = threading.Thread(target=hold)
    thread.start()
    upper = daemon.pool() / sandbox.id / "upper/workspace/ready"
    while not upper.exists():
        time.sleep(0.01)
    for path in (str(lower(daemon, "usr/lib/os-release")), "/dev/null", "/dev/zero"):
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert (
        neighbour.exec("flock -xn /usr/lib/os-release true && flock -xn /dev/null cat /usr/lib/os-release").exit_code
        == 0
    )
    thread.join()
    assert output == ["none\n"]


def test_a_setuid_file_belongs_to_nobody_in_a_closed_tree(daemon: Daemon, sandbox: Sandbox) -> None:
    sandbox.exec(
        "cp /bin/sh /workspace/s && chmod 6755 /workspace/s && chown 0:0 /workspace/s; chmod 6755 /workspace/s"
    )
    pool = daemon.pool()
    facts = (pool / sandbox.id / "upper/workspace/s").stat()
    assert facts.st_uid == facts.st_gid == idranges.DISK_FIRST_ID
    assert pool.stat().st_mode & 0o7777 == 0o700


def test_a_setuid_file_gives_a_user_nothing(sandbox: Sandbox) -> None:
    sandbox.exec("cp /bin/sh /usr/local/bin/s && chmod 6755 /usr/local/bin/s").check()
    result = sandbox.exec(
        ["/usr/local/bin/s", "-p", "-c", "id -u; grep -E 'CapEff|NoNewPrivs' /proc/self/status"], user=1000
    )
    assert result.stdout.split() == ["1000", "CapEff:", "0" * 16, "NoNewPrivs:", "1"]


def test_a_fifo_for_dev_null_does_not_stop_init(daemon: Daemon, sandbox: Sandbox) -> None:
    sandbox.exec("rm /dev/null && mkfifo /dev/null").check()
    answered = threading.Event()

    def go() -> None:
        try:
            with daemon.client() as client:
                Sandbox.connect(sandbox.id, client=client).exec("true")
        except SandboxdError:
            return
        answered.set()

    threading.Thread(target=go, daemon=True).start()
    assert answered.wait(30)


def test_a_refused_write_leaves_nothing(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxdError):
        sandbox.write_file("/dev/x", "x")
    assert "sandboxd-tmp" not in sandbox.exec("ls -a /dev").stdout


def test_truncating_a_file_that_is_read_ends_the_read(daemon: Daemon, sandbox: Sandbox) -> None:
    sandbox.exec(
        "head -c 30000000 /dev/zero > /workspace/f; truncate -s 7E /workspace/sparse 2>/dev/null; true"
    ).check()
    source = """
import os, time
for _ in range(40):
    os.truncate('/workspace/f', 10)
    time.sleep(0.02)
    os.truncate('/workspace/f', 30000000)
    time.sleep(0.02)
"""

    def flip() -> None:
        with daemon.client() as client:
            Sandbox.connect(sandbox.id, client=client).exec(["python3", "-c", source])

    thread = threading.Thread(target=flip)
    thread.start()
    began = time.monotonic()
    while thread.is_alive():
        with contextlib.suppress(SandboxdError):
            assert len(sandbox.read_file("/workspace/f")) in (10, 30000000)
    thread.join()
    assert time.monotonic() - began < 60
    assert os.path.exists(daemon.state_dir)
