"""The doctor's verdicts on rootfs, storage and network, for hosts that are made up."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sandboxd.linux import procfs
from sandboxd.linux.probes import files, network, rootfs, storage
from sandboxd.linux.probes.child import Outcome
from sandboxd.linux.probes.feature import Feature, Status

WORKS = Outcome(True)
REFUSED = Outcome(error="clone3: EPERM", code="EPERM", syscall="clone3")


def one(features: list[Feature], name: str) -> Feature:
    (found,) = [item for item in features if item.name == name]
    return found


def statuses(features: list[Feature]) -> dict[str, str]:
    return {item.name: str(item.status) for item in features}


# --- rootfs -------------------------------------------------------------------------------------------------

BUILT = {"name": "default", "recipe": "default", "trusted": True, "built_at": "2030-01-01T00:00:00+00:00"}


def images(*found: rootfs.Rootfs, error: str | None = None) -> list[Feature]:
    return rootfs.evaluate(rootfs.RootfsListing("/r", found, error))


@pytest.mark.parametrize(
    ("found", "status", "word"),
    [
        ([], "missing", "rootfs build default"),
        ([rootfs.Rootfs("default", BUILT, True)], "ok", None),
        ([rootfs.Rootfs("other", BUILT, True)], "degraded", "rootfs build default"),
        ([rootfs.Rootfs("default", None, True, "its rootfs.json is not JSON")], "missing", "rootfs build default"),
        ([rootfs.Rootfs("default", BUILT, False, "it has no tree")], "missing", "rootfs build default"),
        ([rootfs.Rootfs("default", BUILT, None)], "unknown", "sudo"),
    ],
)
def test_rootfs(found: list[rootfs.Rootfs], status: str, word: str | None) -> None:
    whole, *each = images(*found)
    assert str(whole.status) == status
    assert whole.remedy is None if word is None else word in (whole.remedy or "")
    assert [item.name for item in each] == [f"rootfs:{item.name}" for item in found]


def test_each_rootfs_tells_whence_it_came_and_what_it_lacks() -> None:
    found = images(
        rootfs.Rootfs("default", BUILT, True),
        rootfs.Rootfs("musl", {"name": "musl", "trusted": False}, True, "it has no /bin/sh"),
        rootfs.Rootfs("torn", None, True, "its rootfs.json cannot be read: No such file or directory"),
    )
    assert "built by the recipe default" in one(found, "rootfs:default").found
    assert "imported" in one(found, "rootfs:musl").found
    assert "no /bin/sh" in one(found, "rootfs:musl").found
    assert statuses(found) == {
        "rootfs": "ok",
        "rootfs:default": "ok",
        "rootfs:musl": "degraded",
        "rootfs:torn": "degraded",
    }
    assert "rootfs rm torn" in (one(found, "rootfs:torn").remedy or "")
    assert images(error="/r cannot be listed: Permission denied")[0].status is Status.UNKNOWN


# --- storage and network ------------------------------------------------------------------------------------

DIRECTORIES = {"state-dir": storage.Directory("/s", "/s", True), "id-claims": storage.Directory("/c", "/", True)}
GOOD_STORAGE = storage.StorageState(
    DIRECTORIES, "ext4", 100 << 30, 200 << 30, "the kernel has it", "/usr/sbin/mkfs.btrfs", True
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"free": 2 << 30}, {"free-space": "degraded"}),
        ({"free": 1 << 20}, {"free-space": "missing"}),
        ({"mkfs": None}, {"mkfs.btrfs": "missing"}),
        ({"loop": False}, {"loop": "missing"}),
        ({"loop": False, "mkfs": None, "filesystem": "btrfs"}, {}),
        ({"btrfs": None, "filesystem": "xfs"}, {"btrfs": "missing"}),
        ({"directories": DIRECTORIES | {"state-dir": storage.Directory("/s", "/", False)}}, {"state-dir": "missing"}),
        ({"directories": DIRECTORIES | {"id-claims": storage.Directory("/c", "/", None)}}, {"id-claims": "unknown"}),
    ],
)
def test_storage(changes: dict[str, Any], expected: dict[str, str]) -> None:
    found = storage.evaluate(dataclasses.replace(GOOD_STORAGE, **changes))
    told = {name: status for name, status in statuses(found).items() if status != "ok" and name != "disk-limits"}
    assert told == expected


def test_disk_limits_follow_btrfs_once_its_driver_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "BTRFS_DRIVER_BUILT", False)
    assert one(storage.evaluate(GOOD_STORAGE), "disk-limits").status is Status.DEGRADED
    monkeypatch.setattr(storage, "BTRFS_DRIVER_BUILT", True)
    assert one(storage.evaluate(GOOD_STORAGE), "disk-limits").status is Status.OK
    lacking = storage.evaluate(dataclasses.replace(GOOD_STORAGE, loop=False))
    assert "loop" in one(lacking, "disk-limits").found


def test_a_path_belongs_to_the_deepest_and_latest_mount() -> None:
    mounts = [
        procfs.Mount("/", target, fstype, ("rw",))
        for target, fstype in (("/", "ext4"), ("/var", "xfs"), ("/var", "btrfs"), ("/var/lib/x", "tmpfs"))
    ]
    expected = {"/": "ext4", "/variety": "ext4", "/var": "btrfs", "/var/lib": "btrfs", "/var/lib/x/y": "tmpfs"}
    for path, fstype in expected.items():
        found = files.mount_of(path, mounts)
        assert found is not None
        assert found.fstype == fstype
    assert files.mount_of("/x", []) is None


@pytest.mark.parametrize(
    ("facts", "nft", "nftables"),
    [
        (network.NetworkTrials("/usr/sbin/nft", WORKS, WORKS), "ok", "ok"),
        (network.NetworkTrials(None, WORKS, None), "missing", "ok"),
        (network.NetworkTrials("/usr/sbin/nft", WORKS, Outcome(error="RuntimeError: no\n such file")), "ok", "missing"),
        (network.NetworkTrials(None, REFUSED, None), "missing", "missing"),
        (network.NetworkTrials(None), "missing", "unknown"),
    ],
)
def test_network(facts: network.NetworkTrials, nft: str, nftables: str) -> None:
    found = network.evaluate(facts)
    assert statuses(found) == {"nft": nft, "nftables": nftables}
    assert not any(item.essential or "\n" in item.found for item in found)
