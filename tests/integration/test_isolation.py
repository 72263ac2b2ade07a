"""What a sandbox looks like from inside, and what of it is seen on the host."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable

import pytest

from sandboxd import Sandbox
from sandboxd.launcher import idranges
from sandboxd.launcher.plan import SANDBOX_CAPABILITIES
from sandboxd.linux import procfs
from tests.support.daemon import Daemon
from tests.support.standby import strangers
from tests.support.waiting import wait_until

pytestmark = pytest.mark.real

Run = Callable[[str], str]


def status_of(run: Run, pid: str) -> dict[str, str]:
    lines = run(f"cat /proc/{pid}/status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def host_pid(daemon: Daemon, sandbox: Sandbox) -> int:
    """Return the host's pid of a sandbox's init."""
    return int((daemon.cgroup() / sandbox.id / "init" / "cgroup.procs").read_text())


def test_is_a_host_of_its_own(shared: Sandbox, run: Run) -> None:
    assert run("hostname") == shared.id
    assert run("cat /etc/hostname") == shared.id
    assert run("id -un; id -u") == "root\n0"
    assert run("ls /sys/class/net") == "lo"
    assert run("cat /proc/1/comm") == "init"
    wait_until(lambda: strangers(shared) == [])
    assert run("pwd") == "/workspace"
    assert run("cat /etc/resolv.conf") == ""


def test_each_has_its_own_machine_id(client: object, shared: Sandbox) -> None:
    with Sandbox.create(client=client) as other:  # type: ignore[arg-type]
        ids = {sandbox.read_text("/etc/machine-id") for sandbox in (shared, other)}
    assert len(ids) == 2
    assert all(len(machine_id) == 33 for machine_id in ids)


@pytest.mark.parametrize("kind", ["mnt", "pid", "net", "ipc", "uts", "cgroup", "user", "time"])
def test_every_namespace_is_its_own(shared: Sandbox, daemon: Daemon, run: Run, kind: str) -> None:
    inside = run(f"readlink /proc/self/ns/{kind}")
    assert inside != os.readlink(f"/proc/self/ns/{kind}")
    if kind != "time":  # init's own children are the first in it (time_namespaces(7))
        assert os.readlink(f"/proc/{host_pid(daemon, shared)}/ns/{kind}") == inside


@pytest.mark.parametrize("pid", ["1", "self"])
def test_privileges_are_the_few(run: Run, pid: str) -> None:
    """tests/README.md, rows 18 and 44: read from /proc, for pid 1 and for a command."""
    status = status_of(run, pid)
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(status[name], 16) == SANDBOX_CAPABILITIES, name
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_init_has_three_descriptors_and_nothing_of_the_host(daemon: Daemon, sandbox: Sandbox) -> None:
    """tests/README.md, rows 2 and 44: no exec closed anything for init, so what it holds is read from the host."""
    pid = host_pid(daemon, sandbox)
    targets = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    kinds = {target.partition(":")[0] for target in targets}
    # null, the loop, its wake-up pipe, the listener, the daemon's connection, and the cgroup mount of its own.
    assert kinds <= {"/dev/null", "anon_inode", "pipe", "socket", "/", "/work"}, targets
    assert all(not target.startswith(("/var", "/run", "/sys", "/tmp")) for target in targets)
    environ = pathlib.Path(f"/proc/{pid}/environ").read_bytes()
    assert b"PATH" not in environ
    assert pathlib.Path(f"/proc/{pid}/oom_score_adj").read_text() == "0\n"
    assert pathlib.Path(f"/proc/{pid}/cwd").resolve().as_posix() == "/"


def test_a_command_has_three_descriptors(run: Run) -> None:
    assert run("ls -1 /proc/self/fd | head -n 3; ls /proc/self/fd | wc -l") == "0\n1\n2\n4"  # and ls' own


def test_init_cannot_be_looked_into(run: Run) -> None:
    """Row 21: not dumpable, so its memory, environment and descriptors are closed to the sandbox's own root."""
    for name in ("mem", "environ", "fd", "root", "maps", "exe"):
        assert "denied" in run(f"ls /proc/1/{name}/ 2>&1 || cat /proc/1/{name} 2>&1 | head -c 100").lower()


def test_ids_are_nobodys_on_the_host(daemon: Daemon, sandbox: Sandbox) -> None:
    pid = host_pid(daemon, sandbox)
    uid = os.stat(f"/proc/{pid}").st_uid
    sandbox.exec("touch /workspace/mine; chmod u+s /workspace/mine").check()
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    first = int(status.split("Uid:")[1].split()[0])
    assert uid in (0, first)  # not dumpable: /proc shows it as root's
    assert idranges.FIRST_ID <= first < idranges.DISK_FIRST_ID
    stored = (daemon.pool() / sandbox.id / "upper/workspace/mine").stat()
    assert stored.st_uid == idranges.DISK_FIRST_ID  # tests/README.md, row 48
    for directory in (daemon.state_dir / "pool", daemon.runtime_dir / "pool"):
        assert directory.stat().st_mode & 0o077 == 0


def test_ranges_are_disjoint(client: object, daemon: Daemon) -> None:
    with Sandbox.create(client=client) as one, Sandbox.create(client=client) as two:  # type: ignore[arg-type]
        bases = {int(sandbox.exec("cat /proc/self/uid_map").stdout.split()[1]) for sandbox in (one, two)}
    low, high = sorted(bases)
    assert high - low >= 65_536


def test_the_host_sees_no_mount_of_it(daemon: Daemon, sandbox: Sandbox) -> None:
    targets = [mount.target for mount in procfs.mounts()]
    assert not [target for target in targets if str(daemon.state_dir) in target or str(daemon.runtime_dir) in target]
    inside = sandbox.exec("cat /proc/self/mountinfo").stdout
    assert str(daemon.state_dir) not in inside
    assert "/var/lib" not in inside
    for mount in procfs.parse_mountinfo(inside):
        assert "nosuid" in mount.options, mount
        assert "nodev" in mount.options or mount.target in ("/dev", "/dev/pts") or mount.target.startswith("/proc/")


def test_users_and_files_behave(run: Run) -> None:
    """What package managers do: other users, ownership, setuid bits, renames of lower directories, hard links."""
    assert run("chown 1000:1000 /tmp && stat -c %u:%g /tmp; chown 0:0 /tmp") == "1000:1000"
    assert run("mkdir -p /t && mv /usr/share/doc /t/doc 2>/dev/null || mv /usr/share /t/share; ls /t | wc -l") == "1"
    assert run("echo a > /workspace/a && ln /workspace/a /workspace/b && stat -c %h /workspace/b") == "2"
    assert run("mkfifo /workspace/f && stat -c %F /workspace/f") == "fifo"
    assert run("useradd -m tester && su tester -c 'id -un'") == "tester"


def test_port_80_and_ping_work(run: Run) -> None:
    program = "import socket; s=socket.socket(); s.bind(('127.0.0.1',80)); s.listen(); print('bound')"
    assert run(f'python3 -c "{program}"') == "bound"
    assert "1 received" in run("ping -c 1 -W 2 127.0.0.1")
    assert "1 received" in run("ping -c 1 -W 2 ::1")


def test_a_pty_can_be_opened(run: Run) -> None:
    assert run("python3 -c \"import pty,os; pty.spawn(['tty'])\"").startswith("/dev/pts/")


@pytest.mark.parametrize(
    ("user", "expected"), [("user", "1000"), (1000, "1000"), ("4242", "4242"), (0, "0"), ("nobody", "65534")]
)
def test_runs_as_the_user_asked_for(shared: Sandbox, user: str | int, expected: str) -> None:
    result = shared.exec("id -u; grep -E '^(CapEff|CapPrm)' /proc/self/status", user=user).check()
    lines = result.stdout.split()
    assert lines[0] == expected
    caps = {int(word, 16) for word in lines if len(word) == 16}
    assert caps == ({SANDBOX_CAPABILITIES} if expected == "0" else {0})


def test_node_and_python_run(shared: Sandbox) -> None:
    versions = shared.exec(["node", "-p", "JSON.stringify(process.versions)"]).check().stdout
    assert int(json.loads(versions)["node"].split(".")[0]) >= 24
    assert (
        shared.exec(["python3", "-c", "import numpy, pandas, matplotlib; print(numpy.arange(3).sum())"]).stdout == "3\n"
    )
