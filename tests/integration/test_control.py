"""PATCH, freeze, thaw, stats and rlimits on real sandboxes, with whatever this host can enforce."""

from __future__ import annotations

import json
import os
import pathlib
import resource
import subprocess
import sys
import threading
import time

import pytest
import trio

from sandboxd import AsyncSandbox, Limits, Sandbox
from sandboxd.client import AsyncClient, Client
from sandboxd.errors import InvalidRequest, SandboxFrozen
from sandboxd.launcher import groupns
from sandboxd.linux import cgroupfs, procfs
from sandboxd.linux.kernel import CLONE_NEWCGROUP, Kernel
from sandboxd.spec import MAX_PIDS
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real

LIMITS = """
import resource
names = ("CORE", "NOFILE", "NPROC", "RTPRIO", "NICE", "MEMLOCK", "SIGPENDING", "MSGQUEUE")
print([resource.getrlimit(getattr(resource, "RLIMIT_" + name))[1] for name in names])
"""


def ticks(sandbox: Sandbox, daemon: Daemon) -> int:
    """How far the counter in /workspace has come, read from the host: a frozen sandbox answers nobody."""
    text = (daemon.pool() / sandbox.id / "upper/workspace/ticks").read_text()
    return int(text or 0)


def start_ticking(sandbox: Sandbox) -> None:
    line = "i=0; while :; do i=$((i+1)); echo $i >ticks.new; mv ticks.new ticks; sleep 0.01; done"
    sandbox.exec(f"({line}) >/dev/null 2>&1 & while ! [ -e ticks ]; do sleep 0.01; done", keep_orphans=True)


def test_frozen_is_stopped_and_thawed_goes_on(daemon: Daemon, sandbox: Sandbox) -> None:
    start_ticking(sandbox)
    assert sandbox.freeze().state == "frozen"
    stopped = ticks(sandbox, daemon)
    time.sleep(0.1)
    assert ticks(sandbox, daemon) == stopped
    began = time.monotonic()
    with pytest.raises(SandboxFrozen):
        sandbox.exec("true")
    with pytest.raises(SandboxFrozen):
        sandbox.read_file("/etc/passwd")
    assert time.monotonic() - began < 20  # nobody asks the init, which would never answer
    assert sandbox.stats().state == "frozen"
    assert sandbox.thaw().state == "running"
    assert sandbox.exec(f"for i in $(seq 500); do [ $(cat ticks) -gt {stopped} ] && exit; sleep 0.01; done; exit 1").ok


def test_a_command_under_way_outlives_a_freeze(daemon: Daemon, sandbox: Sandbox) -> None:
    with sandbox.exec_stream("echo up; read line; echo got $line", stdin=True) as stream:
        assert next(iter(stream)).data == b"up\n"
        sandbox.freeze()
        other = threading.Timer(0.1, sandbox.thaw)
        other.start()
        with pytest.raises(SandboxFrozen):
            stream.write_stdin("x\n")
        other.join()
        stream.write_stdin("y\n")
        assert b"".join(chunk.data for chunk in stream) == b"got y\n"


def test_a_restarted_daemon_finds_it_frozen_and_thaws_it(own_daemon: Daemon) -> None:
    with own_daemon.client() as client:
        sandbox = Sandbox.create(client=client, name="cold", env={"A": "1"})
        start_ticking(sandbox)
        sandbox.freeze()
        stopped = ticks(sandbox, own_daemon)
    own_daemon.stop()
    own_daemon.start()
    with own_daemon.client() as client:
        again = Sandbox.connect("cold", client=client)
        assert again.info.state == "frozen"
        assert ticks(again, own_daemon) == stopped
        with pytest.raises(SandboxFrozen):
            again.exec("true")
        again.set_env_vars({"A": "2"})
        again.thaw()
        assert again.exec("echo $A").stdout == "2\n"
        again.freeze()
        again.destroy()  # a frozen sandbox can be destroyed


def test_patched_env_holds_for_later_commands(client: Client, sandbox: Sandbox) -> None:
    sandbox.set_env_vars({"A": "1", "B": "2"})
    assert sandbox.exec("echo $A$B").stdout == "12\n"
    sandbox.update(env={"A": None, "B": "3"}, labels={"k": "v"}, cwd="/tmp")
    assert sandbox.exec("echo ${A-unset} $B; pwd").stdout == "unset 3\n/tmp\n"
    with pytest.raises(InvalidRequest) as caught:
        sandbox.update(cwd="/nowhere", env={"B": "4"})
    assert caught.value.field == "cwd"
    assert sandbox.exec("echo $B; pwd").stdout == "3\n/tmp\n"
    assert Sandbox.connect(sandbox.id, client=client).info.labels == {"k": "v"}


def test_patched_limits_are_kept_and_told(own_daemon: Daemon) -> None:
    with own_daemon.client() as client:
        sandbox = Sandbox.create(client=client, name="a")
        info = sandbox.update(limits=Limits(memory_bytes=1 << 28, pids=77))
        assert (info.limits.memory_bytes, info.limits.pids) == (1 << 28, 77)
        assert sandbox.update(limits={"pids": None}).limits.pids == 1024
        with pytest.raises(InvalidRequest) as caught:
            sandbox.update(limits=Limits(memory_bytes=1 << 49))
        assert (caught.value.field, caught.value.bound < 1 << 49) == ("limits.memory_bytes", True)
        with pytest.raises(InvalidRequest) as caught:
            Sandbox.create(client=client, limits={"cpus": 4096})
        assert caught.value.field == "limits.cpus"
        own_daemon.stop()
        own_daemon.start()
        again = Sandbox.connect("a", client=client)
        assert again.info.limits.memory_bytes == 1 << 28


def test_rlimits_of_a_command(sandbox: Sandbox) -> None:
    hard = min(1 << 20, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    found = json.loads(sandbox.exec(["python3", "-c", LIMITS]).stdout)
    assert found == [1, hard, found[2], 0, 0, 8 << 20, 4096, 819_200]
    assert found[2] in (1024, MAX_PIDS)
    told = sandbox.exec("ulimit -c unlimited; ulimit -n 2000000; nice -n -5 true; ulimit -e 5; chrt -f 1 true")
    assert told.exit_code != 0
    assert told.stdout == ""


def test_a_root_cannot_multiply_its_rlimits_by_its_users(sandbox: Sandbox) -> None:
    """The ceilings are the user namespace's: the kernel adds up what all of its 65,536 users have pending."""
    program = """
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
def queue(uid, told, go_on):
    os.setresuid(uid, uid, uid)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN})
    count = sum(libc.sigqueue(os.getpid(), int(signal.SIGRTMIN), ctypes.c_long(0)) == 0 for _ in range(3000))
    os.write(told, f"{count}\\n".encode())
    os.read(go_on, 1)
    os._exit(0)
heard, told = os.pipe()
go_on, hold = os.pipe()
total = 0
for uid in (1, 2, 3):
    if os.fork() == 0:
        os.close(hold)
        queue(uid, told, go_on)
    total += int(os.read(heard, 16))
print(total)
"""
    assert int(sandbox.exec(["python3", "-c", program], timeout=20).stdout) == 4096


def test_a_root_cannot_spread_a_fork_bomb_over_its_users(client: Client) -> None:
    """With the pids controller or without: what all 65,536 users of a sandbox may have together is its limit."""
    program = """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
started = 0
for uid in range(1, 101):
    try:
        pid = os.fork()
    except OSError:
        break
    if pid == 0:
        try:
            os.setresuid(uid, uid, uid)
        finally:
            signal.pause()
    started += 1
print(started)
"""
    with Sandbox.create(client=client, limits={"pids": 30}) as sandbox:
        assert 20 <= int(sandbox.exec(["python3", "-c", program], timeout=20).stdout) <= 30 + 16
        assert sandbox.exec("echo well").stdout == "well\n"


def test_stats_grow_with_use(sandbox: Sandbox) -> None:
    before = sandbox.stats()
    sandbox.exec(["python3", "-c", "import time\nwhile time.process_time() < 0.3: pass"])
    after = sandbox.stats()
    assert after.cpu_s is not None
    assert before.cpu_s is not None
    assert after.cpu_s - before.cpu_s > 0.25
    assert after.limits == sandbox.info.limits
    unenforced = sandbox.info.unenforced
    assert (after.memory_bytes is None) == ("memory_bytes" in unenforced)
    assert (after.pids is None) == ("pids" in unenforced)


def test_the_command_line_changes_freezes_and_tells(daemon: Daemon, sandbox: Sandbox) -> None:
    def run(*words: str) -> str:
        program = pathlib.Path(sys.executable).with_name("sandboxd")
        done = subprocess.run(
            [program, "--url", daemon.url, *words], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("update", sandbox.id, "-e", "A=1", "--pids", "50", "--label", "k=v")
    info = sandbox.refresh()
    assert (info.env, info.limits.pids, info.labels) == ({"A": "1"}, 50, {"k": "v"})
    run("update", sandbox.id, "--unset", "A", "--unlabel", "k")
    info = sandbox.refresh()
    assert (info.env, info.labels) == ({}, {})
    run("freeze", sandbox.id)
    assert sandbox.refresh().state == "frozen"
    assert sandbox.id in run("stats", sandbox.id)
    assert json.loads(run("stats", "--json", sandbox.id))[0]["state"] == "frozen"
    run("thaw", sandbox.id)
    assert sandbox.refresh().state == "running"


def test_the_async_sdk_does_the_same(daemon: Daemon) -> None:
    async def main() -> None:
        async with AsyncClient(daemon.url) as client, AsyncSandbox.create(client=client) as sandbox:
            await sandbox.set_env_vars({"A": "1"})
            assert (await sandbox.exec("echo $A")).stdout == "1\n"
            assert (await sandbox.update(limits=Limits(pids=60))).limits.pids == 60
            assert (await sandbox.freeze()).state == "frozen"
            assert (await sandbox.stats()).state == "frozen"
            with pytest.raises(SandboxFrozen):
                await sandbox.exec("true")
            assert (await sandbox.thaw()).state == "running"

    trio.run(main)


def test_a_cgroup_namespace_made_ahead_is_rooted_where_it_should_be() -> None:
    """What hosts with controllers do; here the kernel is asked whether it did."""
    mount = cgroupfs.find_mount(procfs.mounts())
    assert mount
    group, kernel = f"{mount}/sandboxd-groupns-{os.getpid()}", Kernel()
    os.makedirs(f"{group}/init")
    read, write = os.pipe()
    before = len(os.listdir("/proc/self/fd"))
    try:
        namespace = groupns.make(kernel, group)
        assert (pathlib.Path(group) / "cgroup.procs").read_text() == ""
        inside = os.open(f"{group}/init", os.O_RDONLY)
        pid, pidfd = kernel.clone3(0, cgroup_fd=inside)
        if pid == 0:
            kernel.setns(namespace, CLONE_NEWCGROUP)
            os.write(write, pathlib.Path("/proc/self/cgroup").read_bytes())
            os._exit(0)
        os.waitpid(pid, 0)
        for fd in (namespace, inside, pidfd):
            os.close(fd)
        assert "0::/init" in os.read(read, 4096).decode().splitlines()
        assert len(os.listdir("/proc/self/fd")) == before
        with pytest.raises(FileNotFoundError):
            groupns.make(kernel, f"{group}/nowhere")
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(read)
        os.close(write)
        cgroupfs.remove_tree(group)


def test_a_sandbox_of_many_cgroups_is_destroyed_whole(daemon: Daemon, client: Client) -> None:
    """The launcher removes them in pieces (tests/unit/launcher/test_teardown.py)."""
    sandbox = Sandbox.create(client=client)
    group = daemon.cgroup() / sandbox.id
    for number in range(500):
        (group / "work" / f"many-{number}").mkdir()
    sandbox.destroy()
    assert not group.exists()
