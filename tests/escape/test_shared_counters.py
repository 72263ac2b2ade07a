"""What the kernel counts for the whole host must not be for one sandbox to use up."""

from __future__ import annotations

import pathlib
import threading
import time
from collections.abc import Callable

import pytest

from sandboxd import Sandbox
from sandboxd.launcher import buffers
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real

Python = Callable[..., str]


def test_aio_contexts_of_the_host_are_left_alone(python: Python) -> None:
    """A sixteenth of the budget is taken for a moment, not all of it: databases of the host live on it."""
    source = """
import ctypes
context = ctypes.c_ulong(0)
print(ctypes.CDLL(None).syscall(206, 2048, ctypes.byref(context)))
"""
    assert python(source) == "-1"


def test_ptys_are_bounded_for_each_sandbox(python: Python) -> None:
    source = """
import os
count = 0
try:
    while count < 1000:
        os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY)
        count += 1
except OSError as error:
    print('bounded')
else:
    print('took', count)
"""
    assert python(f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (2000, 2000))\n{source}") == "bounded"


USE_UP = {
    "inotify": ("libc.inotify_init1(0)", "libc.inotify_init1(0)"),
    "mqueue": (
        "libc.mq_open(b'/q%d' % count, os.O_RDWR | os.O_CREAT, 0o600, 0)",
        "libc.mq_open(b'/other', os.O_RDWR | os.O_CREAT, 0o600, 0)",
    ),
    "pipe": ("large_pipe()", "large_pipe()"),
}
PRELUDE = """
import ctypes, fcntl, os, resource, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
libc = ctypes.CDLL(None, use_errno=True)
kept = []
def large_pipe():
    try:
        kept.append(os.pipe())
        return 0 if fcntl.fcntl(kept[-1][1], 1031, 1 << 20) >= 1 << 20 else -1
    except OSError:
        return -1
"""


@pytest.mark.parametrize("what", list(USE_UP))
def test_counters_of_a_user_are_the_sandboxs_own(
    daemon: Daemon, sandbox: Sandbox, neighbour: Sandbox, what: str
) -> None:
    take, probe = USE_UP[what]
    greedy = f"""{PRELUDE}
count = 0
while count < 4000 and {take} >= 0:
    count += 1
open('/workspace/full', 'w').write(str(count))
time.sleep(100)
"""

    def go() -> None:
        with daemon.client() as client:
            Sandbox.connect(sandbox.id, client=client).exec(["python3", "-c", greedy], timeout=100)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not sandbox.exec("cat /workspace/full 2>/dev/null").stdout and time.monotonic() < deadline:
        time.sleep(0.05)
    assert 0 < int(sandbox.exec("cat /workspace/full").stdout) < 4000, "it was not used up"
    ask = ["python3", "-c", f"{PRELUDE}count = 0\nprint({probe} >= 0)"]
    assert sandbox.exec(ask).stdout == "False\n"
    assert neighbour.exec(ask).stdout == "True\n"
    sandbox.exec("pkill -9 python3")
    thread.join(100)


#: Connections to itself whose windows have grown by reading, and which then nobody reads: prints what each holds.
HOARD = """
import select, socket
listener = socket.create_server(('127.0.0.1', 0))
data, held = bytes(1 << 20), []
for _ in range(8):
    sender = socket.create_connection(listener.getsockname())
    receiver, _ = listener.accept()
    sender.setblocking(False), receiver.setblocking(False)
    sent = read = 0
    while read < 48 << 20:
        for there, act in ((sender, 0), (receiver, 1)):
            try:
                if act:
                    read += len(there.recv(1 << 20))
                else:
                    sent += there.send(data)
            except BlockingIOError:
                pass
    while select.select([], [sender], [], 0.2)[1]:
        sent += sender.send(data)
    held.append((sent - read, sender, receiver))
print(max(size for size, _, _ in held))
"""


def test_what_a_socket_holds_is_a_part_of_the_hosts_budget(daemon: Daemon, python: Python) -> None:
    """All TCP sockets share net.ipv4.tcp_mem; a namespace has no part of its own, so each socket's is bounded."""
    wanted = buffers.of_host()
    for name, value in wanted._asdict().items():
        assert python(f"print(open('/proc/sys/net/ipv4/{name}').read())").split() == value.split()
    most = sum(int(value.split()[2]) for value in wanted)
    packets = 2 * 65_536  # a buffer that has a byte of room takes one of the largest, at either end
    assert int(python(HOARD)) <= most + packets
    with daemon.client() as client, Sandbox.create(client=client) as other:  # of a prepared sandbox that was held
        assert other.exec("cat /proc/sys/net/ipv4/tcp_rmem").stdout.split() == wanted.tcp_rmem.split()
        assert other.exec("echo 4096 131072 33554432 > /proc/sys/net/ipv4/tcp_rmem").exit_code != 0


@pytest.mark.parametrize(
    ("pressure_pages", "own", "wanted"),
    [
        (40_000, "4096\t131072\t33554432", "4096 131072 262144"),  # 1 GiB of memory: the floor
        (1_048_576, "4096\t16384\t6291456", "4096 16384 2097152"),
        (1 << 26, "4096\t16384\t33554432", "4096 16384 4194304"),
        (1 << 26, "4096\t16384\t65536", "4096 16384 65536"),  # an operator's own, which is less
        (None, "4096\t524288\t6291456", "4096 262144 262144"),  # the launcher is in a namespace without tcp_mem
    ],
)
def test_a_sockets_part_follows_the_hosts_budget(
    tmp_path: pathlib.Path, pressure_pages: int | None, own: str, wanted: str
) -> None:
    if pressure_pages is not None:
        (tmp_path / "tcp_mem").write_text(f"1\t{pressure_pages}\t{pressure_pages}\n")
    for name in ("tcp_rmem", "tcp_wmem"):
        (tmp_path / name).write_text(own + "\n")
    assert buffers.of_host(str(tmp_path)) == (wanted, wanted)


def test_the_hosts_aio_count_is_as_it_was() -> None:
    assert int(pathlib.Path("/proc/sys/fs/aio-nr").read_text()) < 65536
