"""The launcher's pure parts: the plan, id arithmetic, records, removal, parsing."""

from __future__ import annotations

import contextlib
import os
import pathlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd import spec
from sandboxd.errors import InvalidRequest
from sandboxd.guest import users
from sandboxd.launcher import idranges
from sandboxd.launcher.plan import (
    INIT_PLAN,
    SANDBOX_CAPABILITIES,
    ChildRequest,
    LaunchSpec,
    PreparedSpec,
    plan_builder,
    plan_prepared,
)
from sandboxd.launcher.records import Record, RecordStore
from sandboxd.launcher.storage.directory import INLINE_ENTRIES, DirectoryDriver
from sandboxd.launcher.storage.reserve import DiskReserve
from sandboxd.linux import cgroupfs, procfs
from sandboxd.linux.kernel import Kernel

NEWBORN = PreparedSpec(
    id="a" * 20,
    stage="/run/stage",
    processes=9,
    seccomp="default",
    range_base=idranges.base_of(7),
    tcp_rmem="4096 131072 262144",
    tcp_wmem="4096 16384 262144",
)
SPEC = LaunchSpec(
    id="a" * 20,
    rootfs="default",
    tree="/rootfs/default/private/tree",
    disk="/pool/x",
    limits=spec.DEFAULT_LIMITS,
    machine_id="0" * 32,
)
STEPS = [step for plan in (plan_prepared(NEWBORN), plan_builder(SPEC), INIT_PLAN) for step in plan]


def test_the_plan_is_ordered_as_the_walls_need() -> None:
    names = [step.name for step in STEPS]
    assert len(set(names)) == len(names)
    order = [
        "isolate-mounts",
        "act-as-owner",
        "restrict-proc",
        "mount-layers",
        "mount-overlay",
        "attach-mounts",
        "pivot-root",
        "make-user-namespace",
        "enter-root",
        "become-root",
        "drop-privileges",
        "apply-seccomp",
        "close-descriptors",
    ]
    assert [name for name in names if name in order] == order
    assert names[-3:] == order[-3:]  # the user namespace is the last but what it takes away


def test_every_step_says_what_it_does() -> None:
    for step in STEPS:
        assert step.describe()
        assert step.describe()[0].islower() or step.describe()[0] == "/"


def test_the_plan_is_pure() -> None:
    assert plan_prepared(NEWBORN) == plan_prepared(NEWBORN)
    assert plan_builder(SPEC) == plan_builder(SPEC)


def test_a_spec_reaches_the_builder_as_it_was() -> None:
    order = ChildRequest(*msgpack.unpackb(NEWBORN.order()))
    assert (order.range_base, order.processes, order.seccomp) == (idranges.base_of(7), 9, "default")
    assert PreparedSpec.unpack(order.spec) == NEWBORN
    assert LaunchSpec.unpack(SPEC.pack()) == SPEC


def test_capabilities_reach_nothing_of_the_host() -> None:
    forbidden = (2, 8, 12, 13, 16, 18, 19, 21, 24, 25, 27, 38, 39, 40)  # DAC_READ_SEARCH … CHECKPOINT_RESTORE
    assert not any(SANDBOX_CAPABILITIES >> number & 1 for number in forbidden)


@given(st.integers(0, idranges.RANGES - 1), st.integers(0, idranges.RANGES - 1))
def test_ranges_never_meet(one: int, two: int) -> None:
    first, second = idranges.base_of(one), idranges.base_of(two)
    assert one == two or abs(first - second) >= spec.ID_RANGE_WIDTH
    assert first >= idranges.FIRST_ID > 65_536
    assert first + spec.ID_RANGE_WIDTH <= idranges.DISK_FIRST_ID


def test_records_survive_and_torn_ones_do_not_hurt(tmp_path: pathlib.Path) -> None:
    store = RecordStore(str(tmp_path))
    record = Record(
        id="a" * 20, pid=os.getpid(), started=procfs.start_time(os.getpid()) or 0, range_index=3, rootfs="default",
        seccomp="default", devices=[1], limits={}, unenforced=[],
    )  # fmt: skip
    store.save(record)
    (tmp_path / ("b" * 20)).write_bytes(b"\xc1torn")
    assert store.load() == {record.id: record}
    assert record.is_alive
    assert sorted(store.names()) == ["a" * 20, "b" * 20]
    store.remove(record.id)
    store.remove(record.id)
    assert store.load() == {}


def test_removal_is_budgeted_and_follows_no_link(tmp_path: pathlib.Path) -> None:
    pool, outside = tmp_path / "pool", tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    for n in range(INLINE_ENTRIES):
        (pool / "id" / f"d{n}" / "e").mkdir(parents=True)
        (pool / "id" / f"d{n}" / "e" / "f").write_text("x")
    (pool / "id" / "link").symlink_to(outside)
    (pool / "idx").mkdir()
    driver = DirectoryDriver(Kernel(), str(pool), DiskReserve(str(pool), 0))
    assert not driver.remove("id")
    assert driver.stored() == ["id", "idx"]
    assert driver.remove("id", in_child=True)
    assert driver.remove("id")
    assert [path.name for path in pool.iterdir()] == ["idx"]
    assert (outside / "kept").exists()


def test_mountinfo_and_stat_are_parsed_as_the_kernel_writes_them() -> None:
    line = r"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 shared:2 - cgroup2 none rw"
    (mount,) = procfs.parse_mountinfo(line)
    assert (mount.root, mount.target, mount.fstype, mount.options) == ("/mnt1", "/mnt 2", "cgroup2", ("rw", "noatime"))
    assert cgroupfs.find_mount([mount]) is None  # a part of the hierarchy is not the hierarchy
    stat = "7 (a) b (c)) S " + " ".join(str(n) for n in range(4, 53))
    assert procfs.parse_stat(stat) == ("S", 22)
    assert procfs.start_time(2**22 + 1) is None


@given(st.text(max_size=200))
def test_passwd_may_say_anything(text: str) -> None:
    for user in users.parse_passwd(text):
        assert 0 <= user.uid < spec.ID_RANGE_WIDTH
        assert 0 <= user.gid < spec.ID_RANGE_WIDTH
    assert all(0 <= gid < spec.ID_RANGE_WIDTH for gid in users.parse_groups(text, "root"))


def test_users_of_an_ordinary_file() -> None:
    text = "root:x:0:0:root:/root:/bin/bash\nbroken\nme:x:1000:100::/home/me:\nminus:x:4294967295:0::/:\n²:x:²:0::/:\n"
    assert [(user.name, user.uid, user.gid) for user in users.parse_passwd(text)] == [("root", 0, 0), ("me", 1000, 100)]
    assert users.parse_groups("a:x:7:me,you\nb:x:8:you\n", "me") == (7,)


@pytest.mark.parametrize("user", ["0:0", "-1", "1000x", "4294967295", "root\n", "65536", "", "a b", True, -1, 65536])
def test_strange_users_are_refused(user: str | int) -> None:
    """Users that could be read in two ways (tests/README.md, row 40)."""
    with pytest.raises(InvalidRequest):
        spec.check_user(user)


def test_ids_are_ids() -> None:
    assert len({spec.check_id(spec.new_id()) for _ in range(1000)}) == 1000


@given(st.text(max_size=60))
def test_a_checked_path_is_absolute_and_straight(path: str) -> None:
    straight = path.startswith("/") and "\0" not in path and ".." not in path.split("/")
    with contextlib.nullcontext() if straight else pytest.raises(InvalidRequest):
        assert spec.check_path(path) == path
