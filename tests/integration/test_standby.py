"""The process that stands by for the next command: that a program cannot tell, and that nothing depends on it."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sandboxd import Sandbox
from tests.support.daemon import Daemon
from tests.support.standby import init_pid, leaves, pid_inside, ready, strangers, waiting
from tests.support.waiting import wait_until

pytestmark = pytest.mark.real

OWN_PID = ["sh", "-c", "echo $$"]
#: What a program can tell of itself; it is the program that looks, with no shell in between that would change it.
FILES = (
    "limits",
    "oom_score_adj",
    "coredump_filter",
    "timerslack_ns",
    "uid_map",
    "cgroup",
    "environ",
    "status",
    "stat",
)
READ = ["cat", *(f"/proc/self/{name}" for name in FILES)]
LINKS = [
    "find",
    *(f"/proc/self/{name}" for name in ("fd", "ns", "cwd", "root")),
    "-maxdepth",
    "1",
    "-printf",
    r"%f %l\n",
]
#: Of status: numbers of processes, memory, and how often it waited.
CHANGING = re.compile(r"(Tgid|Ngid|Pid|PPid|NS\w+|Vm\w+|Rss\w+|SigQ|\w*voluntary_ctxt_switches):")


def own_pid(box: Sandbox) -> int:
    return int(box.exec(OWN_PID).check().stdout)


def standing_by(daemon: Daemon, box: Sandbox) -> int:
    """Return the pid, as the sandbox knows it, of the process that waits, once it does."""
    return pid_inside(ready(daemon, box)["standby"])


def descriptors(daemon: Daemon, box: Sandbox) -> int:
    return len(os.listdir(f"/proc/{init_pid(daemon, box)}/fd"))


@pytest.fixture
def box(daemon: Daemon, sandbox: Sandbox) -> Sandbox:
    """A sandbox in which a process stands by."""
    for _ in range(2):
        sandbox.exec(["true"]).check()
    ready(daemon, sandbox)
    return sandbox


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Daemon]]:
    """Daemons with that many seconds of `standby_s`, one for each number."""
    daemons: dict[int, Daemon] = {}

    def get(standby_s: int) -> Daemon:
        if standby_s not in daemons:
            daemon = Daemon(tmp_path_factory.mktemp("s"), config={"standby_s": standby_s})
            daemon.start()
            daemons[standby_s] = daemon
        return daemons[standby_s]

    yield get
    for daemon in daemons.values():
        daemon.close()


def test_the_next_command_is_the_one_that_waited(daemon: Daemon, sandbox: Sandbox) -> None:
    sandbox.exec(["true"]).check()
    assert waiting(daemon, sandbox) == {}  # nothing follows yet
    sandbox.exec(["true"]).check()
    for _ in range(3):
        waits = standing_by(daemon, sandbox)
        assert own_pid(sandbox) == waits
    waits = standing_by(daemon, sandbox)
    process = sandbox.start_process(["sleep", "1000"])
    assert process.pid == waits
    assert standing_by(daemon, sandbox) != waits  # the next one comes while that still runs
    sandbox.kill_process(process)
    wait_until(lambda: strangers(sandbox) == [])


# --- what a program sees ---


def told(kind: str, box: Sandbox, argv: list[str], session: Any) -> str:
    """Return what a program prints that was started in one of the ways that there are."""
    if kind == "terminal":
        with box.open_pty(argv) as pty:
            found = b"".join(iter(pty.read, b""))
            assert pty.wait().exit_code == 0
        return found.decode().replace("\r\n", "\n")
    if kind == "session":
        return str(session.exec(" ".join(argv).replace(r"%f %l\n", r"'%f %l\n'")).check().stdout)
    return box.exec(argv, stdin=b"words" if kind == "stdin" else None).check().stdout


def facts_of(read: str, links: str) -> tuple[int, dict[str, Any]]:
    """Return the pid of the program that was told of and all that is no number of a process, a pipe or a time."""
    lines = read.splitlines()
    fields = lines[-1][lines[-1].rindex(")") + 2 :].split()
    pid = int(lines[-1].split()[0])
    parent, group, session, terminal, front = map(int, fields[1:6])
    return pid, {
        "read": [re.sub(r"/work/\S+", "/work/leaf", line) for line in lines[:-1] if not CHANGING.match(line)],
        "links": sorted(re.sub(r"(pipe|socket):\[\d+\]|/proc/\d+/", r"\1", line) for line in links.splitlines()),
        "own": (parent == 1, group == pid, session == pid, front == pid),
        "terminal": terminal,
        "priority, threads": fields[15:18],
        "exit signal, policy": (fields[35], *fields[37:39]),
    }


@pytest.mark.parametrize("user", ["root", 1234])
@pytest.mark.parametrize("kind", ["plain", "stdin", "terminal", "session"])
def test_nothing_tells_it_from_a_fork(daemon: Daemon, user: str | int, kind: str) -> None:
    with daemon.client() as client, Sandbox.create(client=client, user=user, env={"A": "b"}) as box:
        session = box.create_session() if kind == "session" else None
        first, forked = facts_of(*(told(kind, box, argv, session) for argv in (READ, LINKS)))
        waits = standing_by(daemon, box)
        read = told(kind, box, READ, session)
        standing_by(daemon, box)
        pid, other = facts_of(read, told(kind, box, LINKS, session))
        assert other == forked
        if kind != "session":  # there the shell is what waited, and it has a child
            assert pid == waits != first
            assert forked["own"] == (True, True, True, kind == "terminal")
        assert "Uid:\t" + "\t".join([str(0 if user == "root" else user)] * 4) in forked["read"]


FAILURES: dict[str, tuple[list[str], dict[str, Any], int]] = {
    "not on PATH": (["no-such-program"], {}, 127),
    "no such path": (["/no/such/program"], {}, 127),
    "no interpreter": (["/workspace/script"], {}, 127),
    "not executable": (["/etc/passwd"], {}, 126),
    "a directory": (["/etc"], {}, 126),
    "not executable on PATH": (["passwd"], {"env": {"PATH": "/etc"}}, 126),
    "a directory that it may not enter": (["true"], {"cwd": "/closed", "user": 1234}, 126),
}


def test_what_cannot_be_started_says_the_same(daemon: Daemon, configured: Callable[[int], Daemon]) -> None:
    with (
        daemon.client() as client,
        configured(0).client() as other,
        Sandbox.create(client=client) as box,
        Sandbox.create(client=other) as plain,
    ):
        for each in (box, plain):
            each.exec("mkdir -m 700 /closed; echo '#!/no/shell' >script; chmod +x script").check()
        box.exec(["true"]).check()
        for name, (argv, options, status) in FAILURES.items():
            before = ready(daemon, box)["standby"]
            found, forked = box.exec(argv, **options), plain.exec(argv, **options)
            assert (found.exit_code, found.stdout, found.stderr) == (status, "", forked.stderr), name
            assert forked.exit_code == status, name
            assert forked.stderr.startswith("sandboxd: cannot "), name
            assert ready(daemon, box)["standby"] != before, name


def state(pid: int) -> str:
    """Return a process's state as ps has it; empty once it is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


# --- what goes wrong ---


def test_killed_or_stopped_they_are_not_missed_and_leave_nothing(configured: Callable[[int], Daemon]) -> None:
    """And when nobody comes they go: all four sandboxes are back at nothing, by then at the latest."""
    daemon = configured(5)  # longer than all of this takes between two commands, on a busy machine too
    harms = [(who, number) for who in ("standby", "forker") for number in (signal.SIGKILL, signal.SIGSTOP)]
    with daemon.client() as client:
        boxes = [Sandbox.create(client=client) for _ in harms]
        for box in boxes:
            box.exec(["true"]).check()
        held = [descriptors(daemon, box) for box in boxes]
        for box, (who, number) in zip(boxes, harms, strict=True):
            for _ in range(2):  # the second within those seconds of the first
                box.exec(["true"]).check()
            found = ready(daemon, box)
            os.kill(found[who], number)
            # Until the signal has struck, whoever has it may still become the next command, which then dies of it.
            wait_until(lambda pid=found[who]: state(pid) in ("", "Z", "T"))  # type: ignore[misc]
            for word in ("one", "two", "three"):
                assert box.exec(["echo", word], timeout=60).stdout == f"{word}\n"
            if (who, number) != ("forker", signal.SIGSTOP):  # a forker that is stopped makes none
                assert ready(daemon, box)[who] != found[who]
            assert len(leaves(daemon, box)) <= 3  # theirs, and that of one that was asked for
        for box in boxes:
            wait_until(lambda box=box: leaves(daemon, box) == [])  # type: ignore[misc]
            assert strangers(box) == []
        wait_until(lambda: [descriptors(daemon, box) for box in boxes] == held)
        groups = [daemon.cgroup() / box.id for box in boxes]
        for box in boxes:
            box.exec(["true"]).check()  # destroyed with them, too
            box.destroy()
        wait_until(lambda: not any(group.exists() for group in groups))


def test_destroyed_in_the_middle_nothing_is_left(daemon: Daemon, sandbox: Sandbox) -> None:
    for _ in range(2):
        sandbox.exec(["true"]).check()
    found = ready(daemon, sandbox)
    os.kill(found["forker"], signal.SIGSTOP)
    sandbox.exec(["true"]).check()
    sandbox.exec(["true"]).check()  # one was asked for, and will never be
    sandbox.destroy()
    wait_until(lambda: not (daemon.cgroup() / sandbox.id).exists())
    assert not pathlib.Path(f"/proc/{found['forker']}").exists()


def test_it_can_be_turned_off(configured: Callable[[int], Daemon]) -> None:
    daemon = configured(0)
    with daemon.client() as client, Sandbox.create(client=client) as box:
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            box.exec(["true"]).check()
            assert waiting(daemon, box) == {}
        wait_until(lambda: leaves(daemon, box) == [])


def test_more_words_than_a_message_holds(daemon: Daemon, box: Sandbox) -> None:
    waits = standing_by(daemon, box)
    for size in (20_000, 40_000, 100_000):
        found = box.exec(["sh", "-c", "echo $$ ${#1}", "sh", "x" * size]).check().stdout.split()
        assert (int(found[0]) == waits, int(found[1])) == (size == 20_000, size)
        waits = standing_by(daemon, box)
    # Those that could not be used are gone; idle for ten seconds, all would be.
    wait_until(lambda: len(leaves(daemon, box)) == 2, seconds=9)


def test_many_at_once(daemon: Daemon, box: Sandbox) -> None:
    found: dict[int, str] = {}

    def run(number: int) -> None:
        with daemon.client() as client:
            other = Sandbox.connect(box.id, client=client)
            found[number] = other.exec(f"cat; echo {number}", stdin=f"{number} ".encode()).check().stdout

    threads = [threading.Thread(target=run, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: f"{number} {number}\n" for number in range(20)}
    wait_until(lambda: strangers(box) == [])
    ready(daemon, box)
    wait_until(lambda: len(leaves(daemon, box)) == 2, seconds=9)


def test_a_changed_limit_holds_for_the_next_command(daemon: Daemon, box: Sandbox) -> None:
    def limit() -> str:
        return box.exec(["bash", "-c", "ulimit -u"]).check().stdout.strip()

    # The launcher changes init's limit, where the host lets it; else its own root does, which may lower it.
    line = "while read number; do prlimit --pid 1 --nproc=$number:$number && echo done; done"
    with box.exec_stream(["bash", "-c", line], stdin=True) as stream:
        told = iter(stream)
        for pids in (900, 800):
            waits = standing_by(daemon, box)
            box.update(limits={"pids": pids})
            stream.write_stdin(f"{pids}\n".encode())
            assert next(told).data == b"done\n"
            assert limit() == str(pids)
            assert standing_by(daemon, box) != waits
            assert limit() == str(pids)  # those that come later have it too


LOOK = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)

def find():
    found = {}
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            found[open(f'/proc/{pid}/comm').read().strip()] = pid
        except OSError:
            pass
    return {name: found[name] for name in ('forker', 'standby') if name in found}

def attempt(what):
    try:
        return what() not in (None, -1, b'')
    except OSError:
        return False

def read(path):
    with open(path, 'rb') as file:
        return file.read(1)

deadline = time.monotonic() + 100  # the one that waited is this program: another one is on its way
while len(find()) < 2:
    assert time.monotonic() < deadline
for who, pid in find().items():
    for name in ('mem', 'environ', 'maps', 'auxv', 'syscall', 'stack'):
        print(who, name, attempt(lambda: read(f'/proc/{pid}/{name}')))
    for name in ('fd', 'root', 'cwd'):
        print(who, name, attempt(lambda: os.listdir(f'/proc/{pid}/{name}/')))
    print(who, 'exe', attempt(lambda: os.readlink(f'/proc/{pid}/exe')))
    for request in (16, 0x4206):  # PTRACE_ATTACH, PTRACE_SEIZE
        print(who, request, attempt(lambda: libc.ptrace(request, int(pid), 0, 0)))
    print(who, 'pidfd', attempt(lambda: libc.syscall(438, os.pidfd_open(int(pid)), 3, 0)))
"""


@pytest.mark.parametrize("user", ["root", 1234])
def test_neither_can_be_looked_into(box: Sandbox, user: str | int) -> None:
    lines = box.exec(["python3", "-c", LOOK], user=user).check().stdout.splitlines()
    assert len(lines) == 26
    assert [line for line in lines if not line.endswith("False")] == []


def test_it_outlives_the_daemon(own_daemon: Daemon) -> None:
    with own_daemon.client() as client:
        box = Sandbox.create(client=client)
        for _ in range(2):
            box.exec(["true"]).check()
        waits = standing_by(own_daemon, box)
        own_daemon.signal(signal.SIGKILL)
        own_daemon.start()
    with own_daemon.client() as client:
        box = Sandbox.connect(box.id, client=client)
        assert own_pid(box) == waits
        waits = standing_by(own_daemon, box)
        assert own_pid(box) == waits
