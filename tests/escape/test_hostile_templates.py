"""What a rootfs's code can do in a template, and what sandboxes can do to one and to its children."""

from __future__ import annotations

import array
import functools
import hashlib
import json
import os
import pathlib
import signal
import socket
import struct
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from sandboxd import Sandbox
from sandboxd.launcher import profiles, template_start
from sandboxd.launcher.templates import PYTHON
from sandboxd.linux.kernel import Kernel
from sandboxd.wire.messages import Failure, Reply, Request
from tests.support.daemon import ROOTFS_DIR, Daemon, children_of
from tests.support.launching import PROFILES, LauncherProcess
from tests.support.templates import is_template_child, load_template, pid_of, status_of, template_pid
from tests.support.waiting import wait_until

pytestmark = pytest.mark.real

PROBE = pathlib.Path(__file__).parents[1] / "probes" / "hostile_template.py"
TREE = f"{ROOTFS_DIR}/default/private/tree"
ID = "a" * 20
#: Where the answer is neither EPERM nor ENOSYS: what is not there, is read-only, or was never sent anywhere.
OTHERWISE = {
    "proc": {"ENOENT"},
    "core_pattern": {"ENOENT"},
    "shadow": {"EACCES"},
    "mknod": {"EROFS"},
    "network": {"ENETUNREACH", "ECONNREFUSED"},
    "nice": {"EACCES"},
    "packet socket": {"EAFNOSUPPORT"},
    "raw socket": {"EPERM", "ESOCKTNOSUPPORT", "EPROTONOSUPPORT"},
    **{
        f"write {directory}": {"EROFS", "EACCES"}
        for directory in ("/", "/tmp", "/dev", "/var/tmp", "/root", "/run", "/usr")
    },
}


def has_ended(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}") or status_of(pid)["State"].startswith("Z")


@pytest.fixture(scope="module")
def loaded(daemon: Daemon) -> Daemon:
    load_template(daemon)
    return daemon


@pytest.fixture(scope="module")
def answers(loaded: Daemon, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the attacks of the probe were answered, run as a template's first code."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    program = os.memfd_create("probe")
    os.write(program, PROBE.read_bytes())
    start = template_start.Start(
        argv=PYTHON,
        tree=TREE,
        stage=str(tmp_path_factory.mktemp("stage")),
        filters=tuple(profiles.compile_all(PROFILES).template),
        program=program,
    )
    pid = os.fork()
    if pid == 0:
        template_start.run(Kernel(), start, theirs.fileno(), lambda *what: theirs.sendall(repr(what).encode()))
    theirs.close()
    os.close(program)
    ours.settimeout(30)
    ours.send(json.dumps([os.getpid(), loaded.launcher_pid(), template_pid(loaded)]).encode())
    said: dict[str, str] = json.loads(ours.recv(1 << 16))
    ours.close()
    os.waitpid(pid, 0)
    return said


def test_a_hostile_rootfs_has_no_power_over_the_host_in_its_template(answers: dict[str, str]) -> None:
    assert len(answers) > 50
    wrong = {
        name: answer
        for name, answer in answers.items()
        if answer not in OTHERWISE.get(name, {"EPERM", "ENOSYS", "EACCES"})
    }
    assert not wrong


# --- from a child ---


@pytest.fixture
def two(loaded: Daemon) -> Iterator[tuple[Sandbox, Any, Any]]:
    """A sandbox with two contexts, both children of the template."""
    with loaded.client() as client, Sandbox.create(client=client) as sandbox:
        one, other = (sandbox.create_code_context("python") for _ in range(2))
        for context in (one, other):
            assert is_template_child(pid_of(loaded, sandbox, context))
        yield sandbox, one, other


def test_a_child_reaches_neither_the_template_nor_another_child(two: tuple[Sandbox, Any, Any]) -> None:
    sandbox, one, other = two
    victim = int(sandbox.run_code("import os; secret = 'x' * 99; print(os.getpid())", context=other).stdout)
    code = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.ptrace(16, {victim}, 0, 0), ctypes.get_errno() in (1,))
for name in ("mem", "environ", "fd", "maps", "root/etc", "cwd", "exe"):
    try:
        path = "/proc/{victim}/" + name
        print(name, os.listdir(path) if name in ("fd", "root/etc", "cwd") else
              os.readlink(path) if name == "exe" else open(path, "rb").read(10))
    except OSError as error:
        print(name, "refused")
print(sorted(int(pid) for pid in os.listdir("/proc") if pid.isdigit()))
"""
    lines = sandbox.run_code(code, context=one).stdout.splitlines()
    assert lines[0] == "-1 True"
    assert [line.split()[1] for line in lines[1:8]] == ["refused"] * 7, lines
    own = int(sandbox.run_code("print(os.getpid())", context=one).stdout)
    assert set(json.loads(lines[8])) == {1, victim, own}  # neither the template nor what it forked in between


def test_the_templates_own_files_cannot_be_written_through_a_child(loaded: Daemon, two: tuple[Any, ...]) -> None:
    """CVE-2019-5736 once more: the interpreter that runs is the rootfs's own file, not the overlay's view of it."""
    binary = pathlib.Path(TREE, "usr/bin/python3.13")
    before = hashlib.sha256(binary.read_bytes()).hexdigest(), binary.stat().st_mode
    sandbox, one, _ = two
    code = """
import os
for act in (lambda: os.open("/proc/self/exe", os.O_WRONLY), lambda: os.open("/proc/self/exe", os.O_RDWR | os.O_TRUNC),
            lambda: os.chmod("/proc/self/exe", 0o777), lambda: os.truncate("/proc/self/exe", 0),
            lambda: os.listdir("/proc/self/map_files"), lambda: os.chown("/proc/self/exe", 0, 0),
            lambda: os.setxattr("/proc/self/exe", "user.x", b"1"), lambda: os.link("/proc/self/exe", "/tmp/x")):
    try:
        found = act()
        print("allowed" if not isinstance(found, list) else "listed")
    except OSError as error:
        print("refused")
print([line for name in ("maps", "mountinfo") for line in open("/proc/self/" + name) if "rootfs/default" in line])
"""
    lines = sandbox.run_code(code, context=one).stdout.splitlines()
    assert set(lines[:-1]) <= {"refused", "listed"}, lines
    assert lines.count("listed") <= 1
    assert lines[-1] == "[]"
    assert (hashlib.sha256(binary.read_bytes()).hexdigest(), binary.stat().st_mode) == before


def test_a_planted_module_is_never_loaded_with_privilege(loaded: Daemon) -> None:
    """Whatever a sandbox puts where Python, or C's library, looks: who loads it has what any of its processes has."""
    plant = r"""
cat > /tmp/evil.py <<'END'
try:
    import os
    lines = [line for line in open('/proc/self/status') if line.startswith(('Cap', 'Seccomp_filters', 'NoNewPrivs'))]
    spaces = [os.readlink('/proc/self/ns/' + name) for name in ('user', 'mnt')]
    open('/workspace/loaded', 'a').write(repr((lines, spaces)) + '\n')
except Exception:
    pass
END
for directory in /usr/lib/python3/dist-packages /usr/lib/python3.13 /usr/local/lib/python3.13/dist-packages; do
    cp --remove-destination /tmp/evil.py $directory/sitecustomize.py; done
for name in os socket ctypes/__init__ json/__init__ encodings/utf_8 resource random site; do
    [ -e /usr/lib/python3.13/$name.py ] && cat /tmp/evil.py >> /usr/lib/python3.13/$name.py; done
cat > /tmp/evil.c <<'END'
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
__attribute__((constructor)) static void loaded(void)
{
    char text[99];
    int fd = open("/workspace/native", O_WRONLY | O_CREAT | O_APPEND, 0666);
    write(fd, text, snprintf(text, sizeof text, "%d %d\n", getpid(), getppid()));
}
END
gcc -shared -fPIC -o /tmp/evil.so /tmp/evil.c
for name in libnss_files.so.2 libnss_dns.so.2 libnss_compat.so.2; do cp --remove-destination /tmp/evil.so \
    /usr/lib/x86_64-linux-gnu/$name; done
echo 'passwd: compat files dns' > /etc/nsswitch.conf
"""
    with loaded.client() as client, Sandbox.create(client=client) as sandbox:
        done = sandbox.exec(plant)
        assert done.exit_code == 0, done.stderr
        namespaces = sandbox.exec("readlink /proc/self/ns/user /proc/self/ns/mnt").stdout.split()
        sandbox.exec("rm -f /workspace/loaded /workspace/native")
        for _ in range(3):
            context = sandbox.create_code_context("python")
            assert not is_template_child(pid_of(loaded, sandbox, context))
        told = sandbox.exec("cat /workspace/loaded").stdout.splitlines()
        assert told
        for line in told:
            status, seen = eval(line)
            assert seen == namespaces
            facts = dict(item.split(":", 1) for item in status)
            assert facts["CapPrm"].strip() == "00000000000000fb"
            assert facts["CapBnd"].strip() == "00000000000000fb"
            assert facts["NoNewPrivs"].strip() == "1"
            assert facts["Seccomp_filters"].strip() == "3"  # the sandbox's own alone: no template's child has read it
        assert sandbox.exec("cat /workspace/native 2>/dev/null || true").stdout == ""


# --- a hostile init, a hostile daemon ---


class Inside:
    """A launcher with a sandbox, whose init's part in a handoff the test plays."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.launcher = LauncherProcess(directory)
        answer = self.launcher.asker.ask(
            "create", id=ID, rootfs="default", limits={}, network={"mode": "none"}, seccomp="default"
        )
        assert isinstance(answer, Reply), answer
        self.work = self.launcher.cgroup / ID / "work"
        self.sockets: list[socket.socket] = []

    def enter(self, leaf: str, **changes: object) -> tuple[Reply | Failure, socket.socket]:
        ours, theirs = socket.socketpair()
        self.sockets.append(ours)
        ours.settimeout(20)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        params = {"id": ID, "template": "python", "leaf": leaf, "wait": True, **changes}
        asker = self.launcher.asker
        asker._next += 1
        frame = asker.link.send(Request(asker._next, "enter", params))
        socket.send_fds(asker.socket, [frame], [theirs.fileno()])
        theirs.close()
        answer = asker._receive()
        assert isinstance(answer, Reply | Failure)
        return answer, ours

    def arrive(self, leaf: str) -> tuple[int, socket.socket]:
        """Return the pid of a child that has arrived."""
        (self.work / leaf).mkdir()
        answer, ours = self.enter(leaf)
        assert isinstance(answer, Reply), answer
        data, ancillary, _, _ = ours.recvmsg(100, socket.CMSG_SPACE(12))
        assert data == b"h"
        return struct.unpack("3i", ancillary[0][2])[0], ours

    def template(self) -> int:
        (pid,) = [p for p in children_of(self.launcher.process.pid) if int(status_of(p)["Uid"].split()[0]) > 2 * 10**9]
        return pid

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        self.launcher.asker.ask("destroy", id=ID)
        assert not [path for path in self.launcher.leftovers() if "template-" not in path]
        self.launcher.close()
        assert not self.launcher.cgroup.exists()


@pytest.fixture
def inside(tmp_path: pathlib.Path) -> Iterator[Inside]:
    inside = Inside(tmp_path)
    yield inside
    inside.close()


def test_what_a_hostile_init_says_to_a_child_ends_that_child_alone(inside: Inside) -> None:
    first, _ = inside.arrive("p0")
    template = inside.template()
    huge = struct.pack(">I", 0xFFFFFFFF)
    body = msgpack.packb({"rlimits": {}, "env": {}, "cwd": "/", "home": "/", "with": None})
    words = (huge, b"\xff" * 64, struct.pack(">I", 1) + b"\xc1", struct.pack(">I", len(body)) + body)
    for number, data in enumerate(words):
        pid, ours = inside.arrive(f"q{number}")
        assert status_of(pid)["CapEff"] == status_of(pid)["CapBnd"] == "00000000000000fb"  # before it hears a word
        rights = array.array("i", [ours.fileno()] * 40)
        ours.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        ours.shutdown(socket.SHUT_WR)
        wait_until(functools.partial(has_ended, pid))
    assert inside.template() == template
    assert os.path.exists(f"/proc/{first}")  # it waits for its job still, harmless


def test_a_leaf_is_a_leaf_of_that_sandbox(inside: Inside) -> None:
    inside.arrive("p0")
    for name in ("..", "../init", "/", ".", "", "a/b", "p0/../../init", "no-such-leaf", "x" * 99, "../../template-0"):
        answer, ours = inside.enter(name)
        assert isinstance(answer, Failure), name
    for changes in ({"id": "b" * 20}, {"id": 7}, {"template": "perl"}, {"template": None}, {"wait": 3}, {"more": 1}):
        answer, ours = inside.enter("p0", **changes)
        assert isinstance(answer, Failure), changes
        assert ours.recv(1) == b""  # nobody holds the other end


def test_a_frozen_leaf_holds_nobody_up_but_itself(inside: Inside) -> None:
    inside.arrive("p0")
    (inside.work / "cold").mkdir()
    (inside.work / "cold" / "cgroup.freeze").write_text("1")
    answer, _ = inside.enter("cold")
    assert isinstance(answer, Reply)
    inside.arrive("p1")
    os.kill(inside.template(), signal.SIGKILL)  # with a child of it frozen on its way
    wait_until(lambda: len(children_of(inside.launcher.process.pid)) <= 2)


def test_an_ended_sandbox_is_not_entered(inside: Inside) -> None:
    inside.arrive("p0")
    (inside.work / "late").mkdir()
    inside.launcher.asker.ask("kill", id=ID)
    while True:  # a kill is asked for; the end comes when it comes
        listed = inside.launcher.asker.ask("list")
        assert isinstance(listed, Reply)
        if not listed.result["sandboxes"][0]["alive"]:
            break
    answer, _ = inside.enter("late")
    assert isinstance(answer, Failure)
