"""The prepared sandbox that the launcher holds: taken, refused, killed, and gone with its launcher."""

from __future__ import annotations

import os
import pathlib
import select
import signal
from collections.abc import Iterator

import pytest

from sandboxd.launcher.create_child import NAME
from sandboxd.linux import cgroupfs
from sandboxd.wire.messages import Failure, Reply, Request
from tests.support.daemon import process_name
from tests.support.launching import LauncherProcess
from tests.support.waiting import SOON_S, wait_until

pytestmark = pytest.mark.real

ID, OTHER = "a" * 20, "b" * 20
#: Far more than a prepared sandbox takes, on a busy machine too.
#: System calls, as /proc/<pid>/syscall has them.
READ, RECVMSG = ("63", "212") if os.uname().machine == "aarch64" else ("0", "47")


@pytest.fixture
def launcher(tmp_path: pathlib.Path) -> Iterator[LauncherProcess]:
    launcher = LauncherProcess(tmp_path)
    yield launcher
    launcher.close()
    assert not launcher.cgroup.exists()


def processes(launcher: LauncherProcess, sandbox_id: str) -> dict[int, str]:
    """Return what is in a sandbox's groups."""
    found = {}
    for path in (launcher.cgroup / sandbox_id).rglob("cgroup.procs"):
        try:
            found.update({int(pid): process_name(int(pid)) for pid in path.read_text().split()})
        except OSError:
            continue  # it goes
    return found


def hold(launcher: LauncherProcess, sandbox_id: str = ID) -> dict[int, str]:
    """Have a prepared sandbox held and return its processes: the builder, which waits, and pid 1."""
    assert isinstance(launcher.asker.ask("prepare", id=sandbox_id), Reply)
    wait_until(lambda: sorted(map(waits_in, processes(launcher, sandbox_id))) == ["orders", "root"])
    assert set(processes(launcher, sandbox_id).values()) == {NAME}
    return processes(launcher, sandbox_id)


def waits_in(pid: int) -> str:
    """Return what one of a prepared sandbox's processes waits for: the builder for orders, pid 1 for a root."""
    try:
        return {READ: "orders", RECVMSG: "root"}.get(pathlib.Path(f"/proc/{pid}/syscall").read_text().split()[0], "")
    except OSError:
        return ""


def is_first(pid: int) -> bool:
    """Whether a process is pid 1 of a pid namespace."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return status.partition("NSpid:")[2].splitlines()[0].split()[1:] == ["1"]


def create(launcher: LauncherProcess, sandbox_id: str = ID, **limits: int) -> Reply:
    reply = launcher.asker.ask(
        "create", id=sandbox_id, rootfs="default", limits=limits, network={"mode": "none"}, seccomp="default"
    )
    assert isinstance(reply, Reply), reply
    return reply


def runs(launcher: LauncherProcess, sandbox_id: str = ID) -> bool:
    init = launcher.init(sandbox_id)
    init.ask("configure", env={}, cwd="/", user="root")
    said = init.run("sh", "-c", "echo $$ && test -w /dev/shm && test -d /sys/class && cat /etc/hostname")
    init.close()
    return said.split()[-1].decode() == sandbox_id


def kill(pid: int) -> None:
    """Kill a process and wait for its end."""
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([pidfd], [], [], SOON_S)
    os.close(pidfd)


def destroyed(launcher: LauncherProcess, *ids: str) -> bool:
    for sandbox_id in ids:
        assert isinstance(launcher.asker.ask("destroy", id=sandbox_id), Reply)
    assert launcher.leftovers() == []
    wait_until(lambda: launcher.children() == [])  # a builder that has handed over may still be ending
    return True


def test_a_sandbox_is_made_of_the_newborn_that_is_held(launcher: LauncherProcess) -> None:
    held = hold(launcher)
    reply = create(launcher)
    assert reply.result["pid"] in held
    assert runs(launcher)
    assert destroyed(launcher, ID)


def test_an_order_at_once_takes_the_newborn_that_is_being_made(launcher: LauncherProcess) -> None:
    for _ in range(5):
        assert isinstance(launcher.asker.ask("prepare", id=ID), Reply)
        wait_until((launcher.cgroup / ID).exists)
        create(launcher)
        assert runs(launcher)
        assert destroyed(launcher, ID)


def test_an_order_of_other_limits_gets_what_it_asked_for(launcher: LauncherProcess) -> None:
    """The limit of processes is the user namespace's own, which is there already: another creation is made."""
    hold(launcher)
    assert create(launcher, pids=64).result["limits"]["pids"] == 64
    assert runs(launcher)
    hold(launcher, OTHER)
    assert create(launcher, OTHER, memory_bytes=64 * 1024 * 1024).result["limits"]["memory_bytes"] == 64 * 1024 * 1024
    init = launcher.init(OTHER)
    init.ask("configure", env={}, cwd="/", user="root")
    assert init.run("df", "--output=size", "-B1", "/dev/shm").split()[-1] == str(32 * 1024 * 1024).encode()
    init.close()
    assert destroyed(launcher, ID, OTHER)


@pytest.mark.parametrize("whom", ["builder", "pid 1", "both"])
def test_a_newborn_that_was_killed_is_not_born(launcher: LauncherProcess, whom: str) -> None:
    held = hold(launcher)
    for pid in held:
        if whom == "both" or is_first(pid) == (whom == "pid 1"):
            os.kill(pid, signal.SIGKILL)
    reply = create(launcher)
    assert reply.result["pid"] not in held
    assert runs(launcher)
    assert destroyed(launcher, ID)


def test_another_id_is_held_in_place_of_the_first(launcher: LauncherProcess) -> None:
    for number in range(20):
        launcher.asker.ask("prepare", id=f"{number:020d}")
    hold(launcher)
    hold(launcher, OTHER)
    wait_until(lambda: not (launcher.cgroup / ID).exists())
    assert [path.name for path in launcher.cgroup.glob("*/")] == [OTHER]
    create(launcher)
    assert runs(launcher)
    assert destroyed(launcher, ID, OTHER)


def test_an_order_for_a_newborn_that_another_replaces_is_born(launcher: LauncherProcess) -> None:
    requests = [
        Request(1001, "prepare", {"id": OTHER}),
        Request(1002, "create", {"id": ID, "rootfs": "default", "limits": {}}),
    ]
    for is_made in (True, False):
        if is_made:
            hold(launcher)
        else:
            assert isinstance(launcher.asker.ask("prepare", id=ID), Reply)
            wait_until((launcher.cgroup / ID).exists)
        ends = launcher.asker.ask_all(*requests)
        assert all(isinstance(end, Reply) for end in ends.values()), ends
        assert runs(launcher)
        hold(launcher, "c" * 20)  # the other one makes room
        assert destroyed(launcher, ID, "c" * 20)
        requests = [Request(one.id + 10, one.op, one.params) for one in requests]


def test_an_order_that_is_refused_leaves_the_newborn(launcher: LauncherProcess) -> None:
    held = hold(launcher)
    answer = launcher.asker.ask(
        "create", id=ID, rootfs="nothing-here", limits={}, network={"mode": "none"}, seccomp="default"
    )
    assert isinstance(answer, Failure)
    assert answer.kind == "rootfs-not-found"
    assert create(launcher).result["pid"] in held
    assert destroyed(launcher, ID)


def test_a_destroyed_newborn_leaves_nothing(launcher: LauncherProcess) -> None:
    hold(launcher)
    assert destroyed(launcher, ID)


@pytest.mark.parametrize("bad", ["../../etc", "short", 5, None, ID])
def test_ids_of_newborns_are_checked(launcher: LauncherProcess, bad: object) -> None:
    create(launcher)
    answer = launcher.asker.ask("prepare", id=bad)
    assert isinstance(answer, Failure)
    assert answer.kind == ("name-taken" if bad == ID else "invalid-request")
    assert destroyed(launcher, ID)


def test_a_newborn_ends_with_its_launcher(launcher: LauncherProcess, tmp_path: pathlib.Path) -> None:
    hold(launcher)
    launcher.process.send_signal(signal.SIGKILL)
    launcher.process.wait()
    wait_until(lambda: not cgroupfs.is_populated(str(launcher.cgroup)))
    second = LauncherProcess(tmp_path)
    try:
        reply = second.asker.ask("list")
        assert isinstance(reply, Reply)
        assert reply.result["sandboxes"] == []
        second.asker.ask("destroy", id=ID)  # waits for the sweep
        assert second.leftovers() == []
    finally:
        second.close()
