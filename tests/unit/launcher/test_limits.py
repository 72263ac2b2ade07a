"""Limits: what may be asked, what is written where, what is read back; against directories that look like cgroupfs."""

from __future__ import annotations

import ast
import math
import pathlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.errors import CgroupError, InvalidRequest
from sandboxd.launcher import limits, stats
from sandboxd.launcher.cgroups import SandboxCgroups
from sandboxd.linux import disks, procfs
from sandboxd.linux.kernel import Kernel
from sandboxd.spec import DEFAULT_LIMITS, IoLimits, Limits

ID = "a" * 20
EVERY = ("cpu", "io", "memory", "pids")
WRONG: tuple[Any, ...] = (
    {"memory_bytes": 1 << 20},
    {"memory_bytes": 1e9},
    {"memory_bytes": "1G"},
    {"memory_bytes": True},
    {"cpus": math.nan},
    {"cpus": math.inf},
    {"cpus": True},
    {"cpus": 0},
    {"cpus": "2"},
    {"pids": 3},
    {"pids": 1 << 40},
    {"pids": 7.0},
    {"disk_bytes": -1},
    {"io": 5},
    {"io": []},
    {"io": {"speed": 1}},
    {"io": {"read_iops": 0}},
    {"io": {"read_bytes_per_s": 1.5}},
)


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_limit_is_named(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Limits(**wrong)  # type: ignore[arg-type]
    assert caught.value.field.startswith(f"limits.{next(iter(wrong))}")


def test_io_is_taken_as_a_mapping_and_an_empty_one_says_nothing() -> None:
    assert Limits(io={"read_iops": 7}).io == IoLimits(read_iops=7)  # type: ignore[arg-type]
    assert Limits(io=IoLimits()).io is None
    assert Limits().merged(Limits(io=IoLimits(write_iops=3))).io == IoLimits(write_iops=3)


def test_a_limit_above_the_host_is_named_with_what_there_is() -> None:
    host = limits.Host(memory_bytes=1 << 30, cpus=2, pids=1000)
    for asked in (Limits(memory_bytes=(1 << 30) + 1), Limits(cpus=2.5), Limits(pids=1001)):
        with pytest.raises(InvalidRequest) as caught:
            host.check(asked)
        assert caught.value.bound in (1 << 30, 2, 1000)
    host.check(Limits(memory_bytes=1 << 30, cpus=2, pids=1000, disk_bytes=1 << 50))


def test_a_default_fits_a_small_host() -> None:
    fitted = limits.Host(memory_bytes=1 << 30, cpus=1, pids=500).fit(DEFAULT_LIMITS)
    assert (fitted.memory_bytes, fitted.cpus, fitted.pids) == (1 << 30, 1, 500)
    assert limits.Host(memory_bytes=1 << 40, cpus=64, pids=32_768).fit(DEFAULT_LIMITS) == DEFAULT_LIMITS


def test_this_host_is_looked_at() -> None:
    host = limits.Host.look()
    assert host.memory_bytes > 1 << 26
    assert host.cpus >= 1
    assert host.pids > 100


def test_what_is_written_where() -> None:
    asked = Limits(memory_bytes=1 << 30, cpus=1.5, pids=100, io=IoLimits(read_bytes_per_s=1 << 20, write_iops=9))
    assert limits.settings_of(asked, EVERY, ["254:0", "7:1"]) == [
        ("memory.swap.max", "0"),
        ("memory.max", "max"),
        ("init/memory.max", str(64 << 20)),
        ("work/memory.max", str(1 << 30)),
        ("memory.max", str((1 << 30) + (64 << 20))),
        ("pids.max", "116"),
        ("init/pids.max", "16"),
        ("work/pids.max", "100"),
        ("cpu.max", "175000 100000"),
        ("init/cpu.weight", "1000"),
        ("work/cpu.max", "150000 100000"),
        ("io.max", "254:0 rbps=1048576 wbps=max riops=max wiops=9"),
        ("io.max", "7:1 rbps=1048576 wbps=max riops=max wiops=9"),
    ]


@settings(deadline=None)  # other work on the machine is no failure
@given(
    st.builds(
        Limits,
        memory_bytes=st.none() | st.integers(1 << 24, 1 << 50),
        cpus=st.none() | st.floats(0.01, 4096),
        pids=st.none() | st.integers(4, 32_768),
        io=st.none() | st.builds(IoLimits, read_iops=st.integers(1, 1 << 50)),
    ),
    st.sets(st.sampled_from(EVERY)),
)
def test_work_always_meets_its_limit_before_init_does(asked: Limits, controllers: set[str]) -> None:
    written = limits.settings_of(asked, controllers, ["254:0"])
    for name, unit in (("memory", asked.memory_bytes), ("pids", asked.pids)):
        values = {file: value for file, value in written if file.endswith(f"{name}.max")}
        assert bool(values) == (name in controllers)
        if values and unit is not None:
            whole, init, work = (int(values[f"{place}{name}.max"]) for place in ("", "init/", "work/"))
            assert work == unit
            assert whole == work + init
    quotas = [int(value.split()[0]) for file, value in written if file.endswith("cpu.max") and "max" not in value]
    assert all(quota >= 1000 for quota in quotas)
    assert {file.rpartition("/")[2].partition(".")[0] for file, _ in written} <= controllers


def test_rlimit_nproc_stands_in_where_nobody_counts() -> None:
    assert limits.processes_of(Limits(pids=50), ()) == 50
    assert limits.processes_of(Limits(pids=50), ("pids",)) == 32_768


def test_nobody_is_ever_moved_between_cgroups() -> None:
    """A write to cgroup.procs waits for the kernel after a pause: processes are born where they belong instead."""
    for room in ("guest", "launcher"):
        for path in pathlib.Path(limits.__file__).parents[1].joinpath(room).rglob("*.py"):
            code = "\n".join(ast.unparse(node) for node in _without_docstrings(ast.parse(path.read_text())))
            named = [line for line in code.splitlines() if "cgroup.procs" in line]
            assert all(
                "chown" in line or "chmod" in line or "_read_all(" in line or line.startswith("        for path in (")
                for line in named
            ), (path, named)


def _without_docstrings(tree: ast.Module) -> list[ast.stmt]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree.body


# --- directories that look like cgroupfs


def fake(mount: pathlib.Path, controllers: str) -> SandboxCgroups:
    """A hierarchy of plain files: what is not there cannot be written, as in the kernel's."""
    for group in (mount, mount / "ours"):
        group.mkdir(parents=True)
        (group / "cgroup.controllers").write_text(controllers)
        (group / "cgroup.subtree_control").write_text("")
    for name in ("", "init", "work"):
        group = mount / "ours" / ID / name
        group.mkdir(parents=True)
        for file in ("cgroup.subtree_control", "cgroup.freeze", "cgroup.events", *(f"{c}.max" for c in EVERY)):
            (group / file).write_text("")
        (group / "cpu.weight").write_text("")
    return SandboxCgroups(Kernel(), "ours", mount=str(mount), directories=["/"])


def test_limits_reach_the_files(tmp_path: pathlib.Path) -> None:
    cgroups = fake(tmp_path / "cg", "cpuset cpu memory pids")
    assert cgroups.controllers == {"cpu", "memory", "pids"}
    assert set(cgroups.unenforceable()) == {"io"}
    cgroups._limit(ID, Limits(memory_bytes=1 << 25, cpus=0.5, pids=9))
    group = tmp_path / "cg/ours" / ID
    assert (group / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (group / "work/cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (group / "work/memory.max").read_text() == str(1 << 25)
    assert (group / "work/cpu.max").read_text() == "50000 100000"
    assert (group / "io.max").read_text() == ""
    cgroups.change(ID, Limits(memory_bytes=1 << 26, cpus=0.5, pids=9))
    assert (group / "work/memory.max").read_text() == str(1 << 26)


def test_speeds_that_are_lifted_are_written_too(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroups = fake(tmp_path / "cg", "io")
    monkeypatch.setattr(disks, "under", lambda directories: ["254:0"])
    found = tmp_path / "cg/ours" / ID / "io.max"
    cgroups._limit(ID, Limits(io=IoLimits(read_iops=5)))
    assert found.read_text() == "254:0 rbps=max wbps=max riops=5 wiops=max"
    cgroups.change(ID, Limits())
    assert found.read_text().startswith("254:0 rbps=max wbps=max riops=max wiops=max")


def test_without_controllers_every_limit_is_told_as_missing(tmp_path: pathlib.Path) -> None:
    cgroups = fake(tmp_path / "cg", "hugetlb")
    assert not cgroups.controllers  # huge pages alone are no reason to touch the host's hierarchy
    assert (tmp_path / "cg/cgroup.subtree_control").read_text() == ""
    assert set(cgroups.unenforceable()) == {"memory_bytes", "cpus", "pids", "io"}
    cgroups._limit(ID, DEFAULT_LIMITS)
    assert (tmp_path / "cg/ours" / ID / "work/memory.max").read_text() == ""


def test_huge_pages_are_none_where_memory_is_limited(tmp_path: pathlib.Path) -> None:
    cgroups = fake(tmp_path / "cg", "memory hugetlb")
    for size in ("2MB", "1GB"):
        (tmp_path / "cg/ours" / ID / f"hugetlb.{size}.max").write_text("max")
    cgroups._limit(ID, DEFAULT_LIMITS)
    assert {(tmp_path / "cg/ours" / ID / f"hugetlb.{size}.max").read_text()[:1] for size in ("2MB", "1GB")} == {"0"}


def test_a_limit_that_the_kernel_refuses_is_an_error_with_its_path(tmp_path: pathlib.Path) -> None:
    cgroups = fake(tmp_path / "cg", "memory")
    (tmp_path / "cg/ours" / ID / "work/memory.max").unlink()
    with pytest.raises(CgroupError) as caught:
        cgroups.change(ID, DEFAULT_LIMITS)
    assert caught.value.path.endswith("work/memory.max")
    assert caught.value.errno == "ENOENT"


def test_freeze_is_a_wish_and_a_fact(tmp_path: pathlib.Path) -> None:
    cgroups = fake(tmp_path / "cg", "")
    group = tmp_path / "cg/ours" / ID
    cgroups.freeze(ID, True)
    assert (group / "cgroup.freeze").read_text() == "1"
    assert cgroups.is_to_freeze(ID)
    assert not cgroups.is_frozen(ID)
    (group / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert cgroups.is_frozen(ID)
    with pytest.raises(CgroupError):
        cgroups.freeze("b" * 20, True)


# --- stats


def test_what_nobody_counts_is_none(tmp_path: pathlib.Path) -> None:
    assert set(stats.collect(str(tmp_path)).values()) == {None}


def test_stats_are_read_from_where_they_count(tmp_path: pathlib.Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\nnr_periods 3\n")
    (work / "memory.current").write_text("4096\n")
    (work / "memory.peak").write_text("8192\n")
    (work / "memory.events").write_text("low 0\noom 2\noom_kill 3\noom_group_kill 1\n")
    (work / "pids.current").write_text("5\n")
    (tmp_path / "io.stat").write_text("")
    assert stats.collect(str(tmp_path)) == {
        "cpu_s": 2.5,
        "cpu_user_s": 2.0,
        "cpu_system_s": 0.5,
        "cpu_throttled_s": None,
        "memory_bytes": 4096,
        "memory_peak_bytes": 8192,
        "oom_kills": 3,
        "pids": 5,
        "io": {"read_bytes": 0, "write_bytes": 0, "reads": 0, "writes": 0},
    }


def test_traffic_through_a_loop_device_counts_once() -> None:
    loop = "7:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0"
    disk = "254:0 rbytes=30 wbytes=40 rios=3 wios=4 dbytes=0 dios=0"
    assert stats.traffic(f"{loop}\n{disk}\n") == {"read_bytes": 30, "write_bytes": 40, "reads": 3, "writes": 4}
    assert stats.traffic(loop) == {"read_bytes": 10, "write_bytes": 20, "reads": 1, "writes": 2}


@settings(deadline=None)  # other work on the machine is no failure
@given(st.text())
def test_no_file_of_the_kernel_breaks_the_reader(text: str) -> None:
    assert all(isinstance(value, int) for value in stats.table(text).values())


# --- disks


def test_a_partition_is_named_by_its_disk(tmp_path: pathlib.Path) -> None:
    disk = tmp_path / "devices/vda"
    (disk / "vda1").mkdir(parents=True)
    (disk / "dev").write_text("254:0\n")
    (disk / "vda1/dev").write_text("254:1\n")
    (disk / "vda1/partition").write_text("1\n")
    block = tmp_path / "dev/block"
    block.mkdir(parents=True)
    (block / "254:0").symlink_to("../../devices/vda")
    (block / "254:1").symlink_to("../../devices/vda/vda1")
    assert disks.whole("254:1", str(tmp_path)) == "254:0"
    assert disks.whole("254:0", str(tmp_path)) == "254:0"
    assert disks.whole("9:9", str(tmp_path)) == "9:9"


def test_a_folder_in_memory_is_on_no_disk() -> None:
    assert disks.under(["/proc", "/nowhere"]) == []


def test_a_folder_is_in_the_last_and_nearest_mount() -> None:
    lines = (
        "1 0 254:0 / / rw - ext4 /dev/vda rw",
        "2 1 0:9 / /pool rw - btrfs /dev/loop1 rw",
        "3 1 0:10 / /pool rw - btrfs /dev/loop2 rw",
        "4 1 0:11 / /poolside rw - tmpfs none rw",
    )
    mounts = procfs.parse_mountinfo("\n".join(lines))
    found = {path: disks.mount_of(path, mounts) for path in ("/pool", "/pool/x/y", "/pools", "/poolside/x")}
    assert {path: mount and mount.source for path, mount in found.items()} == {
        "/pool": "/dev/loop2", "/pool/x/y": "/dev/loop2", "/pools": "/dev/vda", "/poolside/x": "none",
    }  # fmt: skip
