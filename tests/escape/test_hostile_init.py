"""User code has taken init over and turns on the daemon and the launcher."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from sandboxd import Sandbox
from sandboxd.errors import SandboxdError
from tests.escape.conftest import HostileDaemon, Stalls, check_hostile, host_pid, take_over

pytestmark = pytest.mark.real

#: What the design allows; asked of the best of a few tries, since others use this machine too.
STALL_S = 0.05

#: A socket whose last close waits: unsent bytes, a reader that does not read, SO_LINGER.
LINGERING = """
def lingering(seconds):
    server, sock = socket.socket(), socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(1)
    sock.connect(server.getsockname())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(b"x" * 65536)
    init.__dict__.setdefault("kept", []).append(server)
    return sock.detach()

def frame(message):
    return framing.encode(messages.to_array(message), limit=1 << 20)

def send(data, fds=()):
    peer._socket.setblocking(True)
    peer._socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])
    for fd in fds:
        os.close(fd)
"""
#: The daemon must close last: it has a part of the frame, or much to read before, while init closes its own copy.
SURPLUS = """
whole = frame(messages.Reply(request, {}, 1))
send(whole[:3], [lingering(2)])
time.sleep(0.1)
send(whole[3:])
"""
BUSY = """
started = frame(messages.Event(request, 0, 1.0, "start", {"id": "p-x", "pid": 7}))
events = [frame(messages.Event(request, number, 1.0, "stdout", b"")) for number in range(1, 4000)]
fds = [os.dup(2) for _ in range(40)] + [lingering(2)]
peer._socket.setblocking(True)
"""
TOO_MANY = (
    BUSY
    + """
peer._socket.sendall(started + b"".join(events))
send(frame(messages.Reply(request, {}, 0)), fds)
"""
)
QUEUED = (
    BUSY
    + """
peer._socket.sendall(started + b"".join(events) + b"\\xff" * 8)
send(b"x", fds)
"""
)
FLOOD = """
started = frame(messages.Event(request, 0, 1.0, "start", {"id": "p-x", "pid": 7}))
events = [frame(messages.Event(request, number, 1.0, "stdout", b"")) for number in range(1, 16000)]
peer._socket.setblocking(True)
peer._socket.sendall(started + b"".join(events))
"""
NESTED = """
inner = b"\\xdc\\xff\\xff" + b"\\x90" * 65535
body = b"\\x94\\x02\\xce" + struct.pack(">I", request) + b"\\x81\\xa1a" + b"\\x9f" + inner * 15 + b"\\x00"
peer._socket.setblocking(True)
peer._socket.sendall(struct.pack(">I", len(body)) + body)
"""


def longest_stall(hostile: HostileDaemon, source: str, *, tries: int) -> float:
    """Return the daemon's longest stall under the attack, the best of a few tries."""
    found = []
    for _ in range(tries):
        with (
            hostile.client() as client,
            Sandbox.create(client=client) as sandbox,
            Sandbox.create(client=client) as near,
        ):
            with Stalls(hostile) as stalls:
                take_over(hostile, sandbox, LINGERING + source, 1 if source == FLOOD else 3)
            found.append(stalls.worst)
            assert near.exec("echo alive").stdout == "alive\n"
    return min(found)


@pytest.mark.parametrize("source", [SURPLUS, TOO_MANY, QUEUED], ids=["surplus", "truncated", "queued"])
def test_closing_what_init_sent_never_stalls(hostile: HostileDaemon, source: str) -> None:
    assert longest_stall(hostile, source, tries=1) < 1


@pytest.mark.parametrize("source", [FLOOD, NESTED], ids=["events", "containers"])
def test_a_flood_never_stalls(hostile: HostileDaemon, source: str) -> None:
    assert longest_stall(hostile, source, tries=2) < STALL_S


def test_a_neighbours_files_are_served_while_descriptors_linger(hostile: HostileDaemon) -> None:
    operation = """
waiting = init.__dict__.setdefault("waiting", [])
def open_read(peer, request, params):
    waiting.append(request)
    if len(waiting) == 16:
        for number in waiting:
            whole = frame(messages.Reply(number, {"size": 1, "mtime": 0.0, "mode": 0}, 1))
            send(whole[:3], [lingering(3)])
            time.sleep(0.01)
            send(whole[3:])
        os.close(os.open("/workspace/sent", os.O_CREAT | os.O_WRONLY))
init._operations["open_read"] = open_read
answer = 1
"""
    with hostile.client() as client, Sandbox.create(client=client) as sandbox, Sandbox.create(client=client) as near:
        near.write_file("/workspace/a", "mine")
        assert take_over(hostile, sandbox, LINGERING + operation) == "1"

        def read() -> None:
            with contextlib.suppress(SandboxdError), hostile.client() as client:
                Sandbox.connect(sandbox.id, client=client).read_file("/x")

        readers = [threading.Thread(target=read) for _ in range(16)]
        for reader in readers:
            reader.start()
        sent = hostile.pool() / sandbox.id / "upper/workspace/sent"
        while not sent.exists() and any(reader.is_alive() for reader in readers):
            time.sleep(0.02)  # the daemon may drop it before it has sent all
        began = time.monotonic()
        assert near.read_text("/workspace/a") == "mine"
        took = time.monotonic() - began
        for reader in readers:
            reader.join()
    assert took < 2  # one that lingers takes three seconds


def test_a_deep_tree_of_cgroups_is_refused_or_removed(hostile: HostileDaemon) -> None:
    dig = """
fd = os.dup(init._work_fd)
for depth in range(1500):
    try:
        os.mkdir("d", dir_fd=fd)
    except OSError as error:
        answer = error.errno
        break
    below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
    os.close(fd)
    fd = below
os.close(fd)
answer = depth
"""
    with hostile.client() as client:
        near = Sandbox.create(client=client)
        sandbox = Sandbox.create(client=client)
        assert take_over(hostile, sandbox, dig)
        with contextlib.suppress(SandboxdError):
            sandbox.destroy()
        assert near.exec("echo alive").stdout == "alive\n"
        near.destroy()


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostileDaemon]:
    """A hostile daemon for what leaves it whole."""
    daemon = HostileDaemon(tmp_path_factory.mktemp("h"))
    daemon.start()
    check_hostile(daemon)
    yield daemon
    daemon.wreck()


KINDS = {
    "memfd": "fd = os.memfd_create('x'); os.truncate(fd, 3 << 30)",
    "sealed memfd": "fd = os.memfd_create('x', 2); fcntl.fcntl(fd, 1033, 15)",
    "O_PATH": "fd = os.open('/etc/passwd', os.O_PATH)",
    "write only": "fd = os.open('/tmp/f', os.O_WRONLY | os.O_CREAT)",
    "read and write": "fd = os.open('/tmp/f', os.O_RDWR | os.O_CREAT)",
    "O_DIRECT": "fd = os.open('/etc/passwd', os.O_RDONLY | os.O_DIRECT)",
    "directory": "fd = os.open('/', os.O_RDONLY)",
    "FIFO": "os.path.exists('/tmp/p') or os.mkfifo('/tmp/p'); fd = os.open('/tmp/p', os.O_RDONLY | os.O_NONBLOCK)",
    "pipe": "fd = os.pipe()[0]",
    "device": "fd = os.open('/dev/zero', os.O_RDONLY)",
    "terminal": "fd = os.open('/dev/ptmx', os.O_RDONLY | os.O_NOCTTY)",
    "proc": "fd = os.open('/proc/self/status', os.O_RDONLY)",
    "cgroup": "fd = os.open('cgroup.procs', os.O_RDONLY, dir_fd=init._work_fd)",
    "sysfs": "fd = os.open('/sys/kernel/notes', os.O_RDONLY)",
    "tmpfs of /dev": "fd = os.open('/dev/f', os.O_RDONLY | os.O_CREAT, 0o600)",
    "unix socket": "fd = socket.socket(socket.AF_UNIX).detach()",
    "listener": "fd = os.dup(listener.fileno())",
    "epoll": "fd = os.dup(3)",
    "eventfd": "fd = os.eventfd(0)",
    "the link itself": "fd = os.dup(peer._socket.fileno())",
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_descriptor_that_is_no_file_of_its_disk_is_refused(taken: HostileDaemon, kind: str) -> None:
    source = f"""
def open_read(peer, request, params):
    {KINDS[kind]}
    peer.reply(request, {{"size": 1, "mtime": 0.0, "mode": 0}}, fd)
init._operations["open_read"] = open_read
answer = 1
"""
    with taken.client() as client, Sandbox.create(client=client) as sandbox:
        assert take_over(taken, sandbox, source) == "1"
        with pytest.raises(SandboxdError):
            sandbox.read_file("/x")
        assert client.info()


WRITE_KINDS = {
    "memfd": "fd = os.memfd_create('x')",
    "read only": "fd = os.open('/tmp/f', os.O_RDONLY | os.O_CREAT)",
    "O_PATH": "fd = os.open('/etc/passwd', os.O_PATH)",
    "O_DIRECT": "fd = os.open('/tmp/f', os.O_WRONLY | os.O_CREAT | os.O_DIRECT)",
    "O_ASYNC": "fd = os.open('/tmp/f', os.O_WRONLY | os.O_CREAT); fcntl.fcntl(fd, fcntl.F_SETFL, 0x2000)",
    "full FIFO": "os.path.exists('/tmp/p') or os.mkfifo('/tmp/p'); os.open('/tmp/p', os.O_RDONLY | os.O_NONBLOCK); "
    "fd = os.open('/tmp/p', os.O_WRONLY)",
    "full pipe": "fd = os.pipe()[1]",
    "device": "fd = os.open('/dev/null', os.O_WRONLY)",
    "terminal": "fd = os.open('/dev/ptmx', os.O_WRONLY | os.O_NOCTTY)",
    "connected socket": "pair = socket.socketpair(); init.__dict__['kept'] = pair[1]; fd = pair[0].detach()",
    "cgroup.kill of its own": "fd = os.open('cgroup.procs', os.O_WRONLY, dir_fd=init._work_fd)",
}


@pytest.mark.parametrize("kind", list(WRITE_KINDS))
def test_a_descriptor_to_write_that_is_no_file_of_its_disk_is_refused(taken: HostileDaemon, kind: str) -> None:
    source = f"""
def open_write(peer, request, params):
    {WRITE_KINDS[kind]}
    peer.reply(request, {{"ticket": 1}}, fd)
init._operations["open_write"] = open_write
answer = 1
"""
    with taken.client() as client, Sandbox.create(client=client) as sandbox:
        assert take_over(taken, sandbox, source) == "1"
        began = time.monotonic()
        with pytest.raises(SandboxdError):
            sandbox.write_file("/x", b"x" * (1 << 20))
        assert time.monotonic() - began < 30
        assert client.info()


#: Regular files of its own disk are taken: what is odd about them is the sandbox's own loss.
ODD_FILES = {
    "unlinked": ("fd = os.open('/tmp/f', os.O_RDONLY | os.O_CREAT | os.O_EXCL); os.unlink('/tmp/f')", 1),
    "of eight exbibytes": ("f = os.open('/tmp/f', os.O_RDWR | os.O_CREAT); os.truncate(f, (1 << 40)); "
                           "fd = os.open('/tmp/f', os.O_RDONLY)", 1 << 40),
    "that shrinks": ("f = os.open('/tmp/f', os.O_RDWR | os.O_CREAT); os.truncate(f, 64 << 20); "
                     "fd = os.open('/tmp/f', os.O_RDONLY); init._loop.call_later(0.02, lambda: os.truncate(f, 0))",
                     64 << 20),
    "under a lease": ("fd = os.open('/tmp/f', os.O_RDONLY | os.O_CREAT); fcntl.fcntl(fd, 1024, fcntl.F_RDLCK)", 1),
    "locked": ("f = os.open('/tmp/f', os.O_RDWR | os.O_CREAT); fcntl.lockf(f, fcntl.LOCK_EX); "
               "fd = os.open('/tmp/f', os.O_RDONLY)", 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(ODD_FILES))
def test_an_odd_file_of_its_own_stalls_and_fills_nobody(taken: HostileDaemon, kind: str) -> None:
    code, size = ODD_FILES[kind]
    source = f"""
def open_read(peer, request, params):
    {code}
    peer.reply(request, {{"size": {size}, "mtime": 0.0, "mode": 0}}, fd)
init._operations["open_read"] = open_read
answer = 1
"""
    assert taken.process
    status = pathlib.Path(f"/proc/{taken.process.pid}/status")
    with taken.client() as client, Sandbox.create(client=client) as sandbox, Sandbox.create(client=client) as near:
        assert take_over(taken, sandbox, source) == "1"
        with Stalls(taken) as stalls, contextlib.suppress(SandboxdError), sandbox.read_file_stream("/x") as stream:
            count = 0
            for piece in stream:
                count += len(piece)
                if count > 32 << 20:
                    break
        assert stalls.worst < 1
        assert near.exec("echo alive").stdout == "alive\n"
    assert int(status.read_text().partition("VmRSS:")[2].split()[0]) < 300_000


def test_answers_that_lie(taken: HostileDaemon) -> None:
    """Frames of the wrong type, id, size or order end that link alone."""
    lies = {
        "unknown id": "peer._queue(frame(messages.Reply(10**6, {}, 0)), None)",
        "a request": "peer._queue(frame(messages.Request(1, 'create', {})), None)",
        "a hello again": "peer._queue(frame(messages.Hello(1)), None)",
        "no array": "peer._queue(struct.pack('>I', 1) + b'\\x01', None)",
        "too large": "peer._queue(struct.pack('>I', 1 << 31), None)",
        "more descriptors announced than sent": "peer.send(messages.Reply(request, {}, 5))",
        "a foreign kind": "peer.send(messages.Failure(request, 'unauthenticated', 'give me your token', {}))",
        "facts that shadow": "peer.send(messages.Failure(request, 'conflict', 'x', {'self': 1, 'kind': 'x', 'a': 1}))",
        "exit before start": "peer.send(messages.Event(request, 0, 1.0, 'exit', {}))",
        "over its credit": "[peer._queue(frame(messages.Event(request, i, 1.0, 'stdout', b'x' * 900000)), None) "
        "for i in range(9)]",
    }
    for name, lie in lies.items():
        with taken.client() as client, Sandbox.create(client=client) as sandbox:
            assert take_over(taken, sandbox, LINGERING + lie, 3) is None, name
            assert client.info(), name


def test_a_slow_answer_holds_nobody_else(taken: HostileDaemon) -> None:
    drip = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
data = frame(messages.Reply(request, {}, 0))
peer._socket.setblocking(True)
for byte in data[:-1]:
    peer._socket.send(bytes([byte]))
    time.sleep(0.01)
os.close(os.open("/workspace/sent", os.O_CREAT | os.O_WRONLY))
signal.sigtimedwait([signal.SIGUSR1], 100)
peer._socket.send(data[-1:])
"""
    with taken.client() as client, Sandbox.create(client=client) as sandbox, Sandbox.create(client=client) as near:
        thread = threading.Thread(target=take_over, args=(taken, sandbox, LINGERING + drip, 100))
        thread.start()
        sent = taken.pool() / sandbox.id / "upper/workspace/sent"
        while not sent.exists() and thread.is_alive():
            time.sleep(0.01)
        for _ in range(10):
            assert near.exec("echo alive", timeout=30).stdout == "alive\n"
        assert thread.is_alive()  # it still waits for the last byte
        os.kill(host_pid(taken, sandbox), signal.SIGUSR1)
        thread.join()


PID_1 = """
def clone3(flags):
    arguments = (ctypes.c_uint64 * 11)(flags, 0, 0, 0, 17)
    ctypes.set_errno(0)
    child = libc.syscall(435, arguments, 88)
    if child == 0:
        os._exit(0)
    return "allowed" if child > 0 else errno.errorcode[ctypes.get_errno()]

def attempt(action):
    try:
        return f"allowed {action()!r}"
    except OSError as error:
        return errno.errorcode[error.errno]

pidfd = peer._socket.getsockopt(socket.SOL_SOCKET, 77)  # SO_PEERPIDFD: the daemon's
parent = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=init._work_fd)
top = os.open("../..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=init._work_fd)
answer = {
    **{f"clone3 {flag:#x}": clone3(flag) for flag in FLAGS},
    "signal the daemon": raw(424, pidfd, 0, 0, 0),
    "join the daemon": raw(308, pidfd, 0x20000),
    "take the daemon's fd": raw(438, pidfd, 3, 0),
    **{f"namespace {number} of the daemon": raw(16, pidfd, 0xFF00 | number, 0) for number in range(1, 11)},
    "path of the listener": raw(16, listener.fileno(), 0x89E0, 0),
    "mkdir in the sandbox's group": attempt(lambda: os.mkdir("evil", dir_fd=parent)),
    "mkdir in init's group": attempt(lambda: os.mkdir("init/evil", dir_fd=parent)),
    "leave the cgroup mount": "EPERM" if os.fstat(top).st_ino == os.fstat(parent).st_ino else "allowed",
    **{
        f"write {name}": attempt(lambda name=name: os.open(name, os.O_WRONLY, dir_fd=parent))
        for name in ("memory.max", "pids.max", "cpu.max", "cgroup.freeze", "cgroup.kill", "cgroup.max.depth",
                     "cgroup.subtree_control", "cgroup.type", "init/cgroup.procs", "init/cgroup.freeze",
                     "work/memory.max", "work/cgroup.freeze", "work/cgroup.kill")
        if name in os.listdir(parent) or "/" in name
    },
    "mount": raw(165, 0, 0, 0, 0, 0),
    "setns": raw(308, os.open("/proc/self/ns/mnt", os.O_RDONLY), 0),
}
for fd in (pidfd, parent, top):
    os.close(fd)
"""


def test_what_pid_1_itself_may_do(taken: HostileDaemon) -> None:
    """init keeps clone3 and a writable view of its cgroup: neither gives more than its commands have."""
    flags = (0x80, 0x8000, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x10020000, 0x20000000, 0x40000000)
    with taken.client() as client, Sandbox.create(client=client) as sandbox:
        answer = take_over(taken, sandbox, f"FLAGS = {flags}\n{PID_1}")
        assert answer
        found = json.loads(answer)
        assert isinstance(found, dict), found
    refused = {"EPERM", "EACCES", "ENOSYS", "EINVAL", "ENOSPC", "ENOENT", "EROFS"}
    known = {"mkdir in the sandbox's group", "leave the cgroup mount"}
    assert {name: value for name, value in found.items() if value not in refused and name not in known} == {}
