"""The doctor's verdicts on what the kernel offers, for hosts that are made up: evaluators are pure."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.linux.probes import cgroups, filters, namespaces, overlay
from sandboxd.linux.probes.child import Outcome
from sandboxd.linux.probes.feature import Feature, Report, Status

WORKS = Outcome(True)
REFUSED = Outcome(error="clone3: EPERM", code="EPERM", syscall="clone3")


def one(features: list[Feature], name: str) -> Feature:
    (found,) = [item for item in features if item.name == name]
    return found


def statuses(features: list[Feature]) -> dict[str, str]:
    return {item.name: str(item.status) for item in features}


# --- cgroups ------------------------------------------------------------------------------------------------

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:3 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate,favordynmods
"""


def test_reading_hierarchies() -> None:
    assert cgroups.v1_controllers(HYBRID) | {"rw": ""} == {
        "rw": "",
        "cpu": "/sys/fs/cgroup/cpu",
        "cpuacct": "/sys/fs/cgroup/cpu",
        "memory": "/sys/fs/cgroup/memory",
        "io": "/sys/fs/cgroup/blkio",
    }
    assert {"nsdelegate", "favordynmods"} <= cgroups.options_of(HYBRID, "/sys/fs/cgroup/unified")
    assert cgroups.own_group("8:pids:/x\n0::/a/b\n") == "/a/b"
    assert cgroups.own_group("8:pids:/x\n") == "/"
    table = "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t0\t1\t0\nblkio\t0\t1\t0\ncpu\t3\t1\t1\n"
    assert cgroups.disabled_controllers(table) == {"memory", "io"}


@given(st.text(alphabet="ab -/:0\n\t", max_size=200))
def test_reading_hierarchies_never_fails(text: str) -> None:
    cgroups.v1_controllers(text)
    cgroups.options_of(text, "/")
    cgroups.own_group(text)
    cgroups.disabled_controllers(text)


UNIFIED = cgroups.CgroupTree(
    "/sys/fs/cgroup",
    frozenset({"nsdelegate"}),
    writable=True,
    controllers=frozenset({"memory", "pids", "cpu", "io"}),
    enabled=frozenset({"memory", "pids"}),
    has_processes=True,
    has_kill=True,
    into_cgroup=WORKS,
)


def test_a_unified_host_has_every_controller() -> None:
    found = cgroups.evaluate(UNIFIED)
    assert set(statuses(found).values()) == {"ok"}
    assert one(found, "cgroup:memory").found == "enabled"
    assert one(found, "cgroup:cpu").found == "available"
    assert one(found, "cgroup2:nsdelegate").found == "set"
    assert one(found, "cgroup2:favordynmods").found == "not set"


def test_a_hybrid_host_is_degraded_and_says_who_holds_what() -> None:
    facts = dataclasses.replace(
        UNIFIED, controllers=frozenset(), enabled=frozenset(), v1={"memory": "/sys/fs/cgroup/memory"}
    )
    found = cgroups.evaluate(facts)
    assert one(found, "cgroup2").status is Status.OK
    assert "hybrid" in one(found, "cgroup2").found
    memory = one(found, "cgroup:memory")
    assert memory.status is Status.DEGRADED
    assert "/sys/fs/cgroup/memory" in memory.found
    assert "--allow-unenforced" in memory.means
    assert "cgroup_no_v1=all" in (memory.remedy or "")
    assert "not among" in one(found, "cgroup:pids").found
    assert Report(tuple(found)).ok


def test_controllers_that_cannot_be_passed_on() -> None:
    contained = dataclasses.replace(UNIFIED, is_delegated=True)
    assert one(cgroups.evaluate(contained), "cgroup:memory").status is Status.OK
    assert "blocked by processes" in one(cgroups.evaluate(contained), "cgroup:cpu").found
    booted = dataclasses.replace(UNIFIED, controllers=frozenset(), enabled=frozenset(), disabled=frozenset({"memory"}))
    assert "cgroup_disable=memory" in (one(cgroups.evaluate(booted), "cgroup:memory").remedy or "")


@pytest.mark.parametrize(
    ("changes", "name", "status"),
    [
        ({"mount": None}, "cgroup2", "missing"),
        ({"mount": None}, "clone-into-cgroup", "unknown"),
        ({"writable": False}, "cgroup2", "missing"),
        ({"writable": None}, "cgroup2", "ok"),
        ({"into_cgroup": REFUSED}, "clone-into-cgroup", "missing"),
        ({"into_cgroup": None}, "clone-into-cgroup", "unknown"),
        ({"has_kill": False}, "cgroup.kill", "missing"),
        ({"has_kill": None}, "cgroup.kill", "unknown"),
    ],
)
def test_cgroups_that_lack_something(changes: dict[str, Any], name: str, status: str) -> None:
    found = cgroups.evaluate(dataclasses.replace(UNIFIED, **changes))
    assert statuses(found)[name] == status


# --- namespaces, overlay, seccomp ---------------------------------------------------------------------------


def nothing_but(kind: str, outcome: Outcome | None, limit: int | None) -> Feature:
    outcomes = dict.fromkeys(namespaces.KINDS, WORKS) | {kind: outcome}
    limits = dict.fromkeys(namespaces.KINDS, 100_000) | {kind: limit}
    found = namespaces.evaluate(namespaces.NamespaceTrials(outcomes, limits))
    assert {item.status for item in found if item.name != f"namespace:{kind}"} == {Status.OK}
    return one(found, f"namespace:{kind}")


@pytest.mark.parametrize("kind", namespaces.KINDS)
@pytest.mark.parametrize(
    ("outcome", "limit", "status", "word"),
    [
        (WORKS, 100_000, "ok", None),
        (WORKS, None, "ok", None),
        (WORKS, 40, "degraded", "sysctl -w user.max_"),
        (Outcome(error="clone3: ENOSPC", code="ENOSPC"), 3, "missing", "sysctl -w user.max_"),
        (Outcome(error="clone3: EINVAL", code="EINVAL"), None, "missing", "CONFIG_"),
        (REFUSED, 100_000, "missing", "container"),
        (None, 100_000, "unknown", "sudo"),
        (None, 0, "missing", "sysctl -w user.max_"),
    ],
)
def test_namespaces(kind: str, outcome: Outcome | None, limit: int | None, status: str, word: str | None) -> None:
    found = nothing_but(kind, outcome, limit)
    assert (str(found.status), found.essential) == (status, True)
    assert found.remedy is None if word is None else word in (found.remedy or "")


@pytest.mark.parametrize(
    ("outcome", "status", "word"),
    [
        (WORKS, "ok", None),
        (None, "unknown", "sudo"),
        (Outcome(error="mount merged: ENODEV", code="ENODEV", syscall="mount"), "missing", "modprobe overlay"),
        (Outcome(error="mount_setattr /x: EINVAL", code="EINVAL", syscall="mount_setattr"), "missing", "--state-dir"),
        (Outcome(error="mount merged: EROFS", code="EROFS", syscall="mount"), "missing", "writable"),
        (Outcome(error="unshare: EPERM", code="EPERM", syscall="unshare"), "missing", "container"),
        (Outcome(error="it died before it answered"), "missing", "dmesg"),
    ],
)
def test_overlay(outcome: Outcome | None, status: str, word: str | None) -> None:
    (found,) = overlay.evaluate(overlay.OverlayTrial("/state", "nfs", outcome))
    assert str(found.status) == status
    assert found.remedy is None if word is None else word in (found.remedy or "")
    assert outcome is None or "/state (nfs)" in found.found


def test_seccomp() -> None:
    good = filters.evaluate(
        filters.FilterTrials("/p", Outcome(4), Outcome(6), {"default": Outcome(500), "odd": REFUSED})
    )
    assert statuses(good) == {"seccomp": "ok", "libseccomp": "ok", "seccomp:default": "ok", "seccomp:odd": "missing"}
    assert "500" in one(good, "seccomp:default").found
    none = filters.evaluate(filters.FilterTrials("/p", REFUSED, Outcome(error="RuntimeError: no libseccomp"), {}))
    assert set(statuses(none).values()) == {"missing"}
    assert "libseccomp2" in (one(none, "libseccomp").remedy or "")
