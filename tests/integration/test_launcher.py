"""The launcher alone: creations that fail at every kernel call, the sweep, requests from a hostile daemon."""

from __future__ import annotations

import itertools
import os
import pathlib
import select
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from sandboxd.launcher.plan import INIT_PLAN, LaunchSpec, PreparedSpec, plan_builder, plan_prepared
from sandboxd.linux import procfs
from sandboxd.spec import DEFAULT_LIMITS
from sandboxd.wire.messages import Failure, Reply
from tests.support.launching import LauncherProcess

pytestmark = pytest.mark.real

FAILING = (str(pathlib.Path(__file__).parents[1] / "support" / "failing_launcher.py"),)
ID = "a" * 20
MORE_THAN_A_BIRTH_TAKES = 400


@pytest.fixture
def launcher(tmp_path: pathlib.Path) -> Iterator[LauncherProcess]:
    launcher = LauncherProcess(tmp_path)
    yield launcher
    launcher.close()
    assert not launcher.cgroup.exists()


def create(launcher: LauncherProcess, sandbox_id: str = ID, **changes: object) -> Reply | Failure:
    params = {"rootfs": "default", "limits": {}, "network": {"mode": "none"}, "seccomp": "default", **changes}
    return launcher.asker.ask("create", id=sandbox_id, **params)


def step_names() -> set[str]:
    prepared = PreparedSpec(
        id=ID, stage="/x", processes=9, seccomp="default", range_base=1, tcp_rmem="1 1 1", tcp_wmem="1 1 1"
    )
    rest = LaunchSpec(id=ID, rootfs="x", tree="/x", disk="/x", limits=DEFAULT_LIMITS, machine_id="0")
    return {step.name for plan in (plan_prepared(prepared), plan_builder(rest), INIT_PLAN) for step in plan}


#: How often every call is tried until each step has failed once.
ROUNDS = 4


@pytest.mark.slow
def test_a_creation_that_fails_at_any_kernel_call_leaves_nothing(tmp_path: pathlib.Path) -> None:
    launcher = LauncherProcess(tmp_path, module=FAILING)
    failed_steps: set[str] = set()
    try:
        assert isinstance(create(launcher, f"fail{10**6:016d}"), Reply)
        launcher.asker.ask("destroy", id=f"fail{10**6:016d}")
        fds, mounts = launcher.fds(), len(procfs.mounts())
        # Steps that make no call of the kernel's interface cannot fail here. Which call is the n-th depends on which of
        # the processes is faster, so a round may miss a step; and the first round is done whole.
        wanted = step_names() - {"limit-resources", "call-builder"} | {"id-range", "host-side", "unshare", "clone"}
        for number, role in itertools.product(range(ROUNDS), ("fail", "pid1")):
            if number and failed_steps >= wanted:
                break
            for call in range(1, MORE_THAN_A_BIRTH_TAKES):
                sandbox_id = f"{role}{call:016d}"
                answer = create(launcher, sandbox_id)
                if isinstance(answer, Reply):
                    break
                assert answer.kind == "launch-failed", answer
                assert answer.facts["errno"] == "EIO", answer
                assert answer.facts["step"], answer
                assert answer.facts["syscall"], answer
                failed_steps.add(answer.facts["step"])
                assert launcher.leftovers() == [], f"{role} {call} ({answer.message}) left something"
                assert abs(launcher.fds() - fds) <= 1, answer  # the map of a range is kept until there is a rest
                assert launcher.children() == [], answer
            else:
                pytest.fail("no creation succeeded")
            launcher.asker.ask("destroy", id=sandbox_id)
            assert launcher.leftovers() == []
        assert len(procfs.mounts()) == mounts
        assert failed_steps >= wanted
    finally:
        launcher.close()


def test_a_foreign_root_with_links_is_refused(tmp_path: pathlib.Path) -> None:
    """tests/README.md, rows 3, 5 and 6: a rootfs whose /proc, /sys, /dev or /etc leads elsewhere."""
    rootfs = tmp_path / "rootfs"
    canary = tmp_path / "canary"
    canary.mkdir()
    for name, target in (("proc", "/tmp"), ("sys", "../../etc"), ("dev", str(canary)), ("etc", str(canary))):
        tree = rootfs / name / "private" / "tree"
        for directory in {"proc", "sys", "dev", "etc", "tmp"} - {name}:
            (tree / directory).mkdir(parents=True)
        (tree / name).symlink_to(target)
        (rootfs / name / "rootfs.json").write_text("{}")
    tree = rootfs / "hostname" / "private" / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "hostname").symlink_to(canary / "hostname")
    (rootfs / "hostname" / "rootfs.json").write_text("{}")
    launcher = LauncherProcess(tmp_path, rootfs_dir=str(rootfs))
    try:
        for name in ("proc", "sys", "dev", "etc", "hostname"):
            answer = create(launcher, rootfs=name)
            assert isinstance(answer, Failure), name
            assert (answer.kind, answer.facts["errno"]) == ("launch-failed", "ELOOP"), answer
            assert launcher.leftovers() == []
        assert list(canary.iterdir()) == []
    finally:
        launcher.close()


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        ({"id": "../../etc"}, "invalid-request"),
        ({"id": "short"}, "invalid-request"),
        ({"id": 5}, "invalid-request"),
        ({"rootfs": "../default"}, "invalid-request"),
        ({"rootfs": "/var/lib/sandboxd/rootfs/default"}, "invalid-request"),
        ({"rootfs": "nothing-here"}, "rootfs-not-found"),
        ({"limits": {"memory_bytes": -1}}, "invalid-request"),
        ({"limits": {"memory_bytes": 1e400}}, "invalid-request"),
        ({"limits": {"memory_bytes": "1"}}, "invalid-request"),
        ({"limits": {"disks": 1}}, "invalid-request"),
        ({"limits": [1]}, "invalid-request"),
        ({"network": "host"}, "invalid-request"),
        ({"network": {"mode": "host"}}, "invalid-request"),
        ({"network": {"mode": "none", "link": 1}}, "invalid-request"),
        ({"seccomp": "none"}, "profile-not-found"),
        ({"seccomp": "../default"}, "profile-not-found"),
        ({"uid": 0}, "invalid-request"),
        ({"tree": "/"}, "invalid-request"),
    ],
)
def test_a_hostile_daemon_gains_nothing(launcher: LauncherProcess, params: dict[str, object], kind: str) -> None:
    merged = {"id": ID, "rootfs": "default", "limits": {}, "network": {"mode": "none"}, "seccomp": "default", **params}
    answer = launcher.asker.ask("create", **merged)
    assert isinstance(answer, Failure)
    assert answer.kind == kind
    assert launcher.leftovers() == []


@pytest.mark.parametrize("op", ["", "exec", "mount", "__class__", "_remove", "destroy"])
def test_operations_are_a_closed_list(launcher: LauncherProcess, op: str) -> None:
    answer = launcher.asker.ask(op, id="../x")
    assert isinstance(answer, Failure)
    assert answer.kind == "invalid-request"


def test_what_lives_outlives_the_launcher(launcher: LauncherProcess, tmp_path: pathlib.Path) -> None:
    """SIGKILL of the launcher: the next one lists the living, sweeps the dead, and destroys both wholly."""
    dead = "b" * 20
    assert isinstance(create(launcher), Reply)
    answer = create(launcher, dead)
    assert isinstance(answer, Reply)
    launcher.process.send_signal(signal.SIGKILL)
    launcher.process.wait()
    pidfd = os.pidfd_open(answer.result["pid"])
    os.kill(answer.result["pid"], signal.SIGKILL)
    select.select([pidfd], [], [], 30)
    os.close(pidfd)
    second = LauncherProcess(tmp_path)
    try:
        reply = second.asker.ask("list")
        assert isinstance(reply, Reply)
        assert [(item["id"], item["alive"]) for item in reply.result["sandboxes"]] == [(ID, True)]
        init = second.init(ID)
        init.ask("configure", env={}, cwd="/", user="root")
        assert init.run("echo", "alive") == b"alive\n"
        init.close()
        second.asker.ask("destroy", id=ID)
        assert second.leftovers() == []
    finally:
        second.close()


def test_an_ended_init_is_told_with_its_reason(launcher: LauncherProcess) -> None:
    answer = create(launcher)
    assert isinstance(answer, Reply)
    os.kill(answer.result["pid"], signal.SIGKILL)
    listed: dict[str, Any] = {}
    while not listed.get("reason"):
        reply = launcher.asker.ask("list")
        assert isinstance(reply, Reply)
        (listed,) = reply.result["sandboxes"]
    assert listed["reason"] == "init was killed by SIGKILL"
    launcher.asker.ask("destroy", id=ID)
    assert launcher.leftovers() == []


def test_nothing_of_an_earlier_sandbox_is_in_a_later_init(launcher: LauncherProcess) -> None:
    """Row 44: env goes from the daemon to init, never through the launcher, whose memory every init shares."""
    secret = "S3CRET" * 8
    other = "b" * 20
    assert isinstance(create(launcher), Reply)
    first = launcher.init(ID)
    first.ask("configure", env={"SECRET": secret}, cwd="/", user="root")
    first.run("sh", "-c", "echo $SECRET")
    answer = create(launcher, other)
    assert isinstance(answer, Reply)
    assert secret.encode() not in _memory(answer.result["pid"])
    first.close()
    for sandbox_id in (ID, other):
        launcher.asker.ask("destroy", id=sandbox_id)


def _memory(pid: int) -> bytes:
    found = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            fields = line.split()
            low, high = (int(value, 16) for value in fields[0].split("-"))
            if "r" in fields[1] and "[v" not in line:
                memory.seek(low)
                found.append(memory.read(high - low) or b"")
    return b"".join(found)


@pytest.mark.slow
def test_a_twenty_thousand_levels_deep_tree_is_removed(launcher: LauncherProcess) -> None:
    """A path that no PATH_MAX holds: removal must neither recurse nor run out of descriptors."""
    assert isinstance(create(launcher), Reply)
    init = launcher.init(ID)
    init.ask("configure", env={}, cwd="/", user="root")
    script = "import os\nos.chdir('/tmp')\nfor _ in range(20000):\n os.mkdir('d'); os.chdir('d'); open('f','w').close()"
    assert init.run("python3", "-c", script) == b""
    init.close()
    assert isinstance(launcher.asker.ask("destroy", id=ID), Reply)
    assert launcher.leftovers() == []
