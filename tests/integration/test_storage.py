"""The storage drivers on the real kernel: limits that hold, a pool that no crash hurts, nothing left over."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import pathlib
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sandboxd.errors import AlreadyRunning, ConfigError, HostUnsupported, StorageFull
from sandboxd.images.tree import make_root
from sandboxd.launcher.idranges import DISK_FIRST_ID
from sandboxd.launcher.storage import image
from sandboxd.launcher.storage.btrfs import BtrfsDriver
from sandboxd.launcher.storage.choice import Storage
from sandboxd.linux import btrfs, loopdev
from sandboxd.linux.kernel import Kernel, SyscallError
from tests.support.failing_launcher import FailingKernel
from tests.support.pool import Apart, loops, opened
from tests.support.waiting import SOON_S, wait_until

pytestmark = pytest.mark.real

MIB = 1 << 20
ID = "a" * 20
OTHER = "b" * 20
Say = Callable[[str], object]


def filesystem_of(storage: Storage) -> str:
    assert isinstance(storage.driver, BtrfsDriver)
    fd = os.open(storage.driver.path, os.O_RDONLY)
    try:
        return btrfs.uuid(Kernel(), fd)
    finally:
        os.close(fd)


def fill(path: str, *, most: int = 1 << 40) -> tuple[int, str]:
    """Write until it is refused; return the bytes and the errno's name."""
    written, refused, fd = 0, "", -1
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        while written < most:
            written += os.write(fd, os.urandom(65_536))
    except OSError as error:
        refused = errno.errorcode[error.errno or 0]
    if fd >= 0:
        os.close(fd)
    return written, refused


@pytest.fixture
def pool(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A directory for a pool; at the end nothing of it may be attached."""
    yield tmp_path
    # The last process is gone, its filesystem is still writing.
    wait_until(lambda: not loops(tmp_path / "state/pool.btrfs"), "the end of the pool's loop device")
    assert str(tmp_path) not in pathlib.Path("/proc/self/mountinfo").read_text()


# --- limits ---


def limits(say: Say, pool: pathlib.Path) -> dict[str, Any]:
    storage = opened(pool)
    path = storage.create(ID, 32 * MIB)
    owner = {(facts.st_uid, facts.st_gid) for name in ("", "upper", "work") for facts in [os.stat(f"{path}/{name}")]}
    found: dict[str, Any] = {"owners": owner, "empty": storage.used(ID)}
    found["first"] = fill(f"{path}/upper/f")
    found["used"] = storage.used(ID)
    storage.create(OTHER, 32 * MIB)
    found["neighbour"] = fill(f"{storage.driver.path}/{OTHER}/upper/f", most=MIB)
    os.unlink(f"{path}/upper/f")
    found["again"] = fill(f"{path}/upper/f")
    storage.resize(ID, 48 * MIB)
    found["raised"] = fill(f"{path}/upper/g")
    storage.resize(ID, 8 * MIB)
    found["lowered"] = fill(f"{path}/upper/h")
    os.unlink(f"{path}/upper/f")
    os.unlink(f"{path}/upper/g")
    found["freed"] = fill(f"{path}/upper/f", most=4 * MIB)
    with open(f"{path}/upper/sparse", "wb") as sparse:
        sparse.truncate(1 << 40)  # a hole takes nothing
    found["sparse"] = fill(f"{path}/upper/sparse")
    return found


def test_bytes_are_limited_at_once_and_freed_at_once(pool: pathlib.Path) -> None:
    found = Apart(limits, pool).result()
    assert found["owners"] == {(DISK_FIRST_ID, DISK_FIRST_ID)}
    assert found["empty"] < MIB
    for name, least in (("first", 31), ("again", 31), ("raised", 15), ("sparse", 2)):
        written, refused = found[name]
        assert refused == "EDQUOT", name
        assert least * MIB <= written < (least + 3) * MIB, (name, written)
    assert 31 * MIB <= found["used"] <= 32 * MIB
    assert found["neighbour"] == (MIB, "")
    assert found["lowered"] == (0, "EDQUOT")
    assert found["freed"] == (4 * MIB, "")


def compressible(say: Say, pool: pathlib.Path) -> list[tuple[str, bool]]:
    """In a sandbox's layers and, for a control, in a directory beside them: what a wish to compress comes to."""
    storage = opened(pool)
    path = storage.create(ID, 64 * MIB)
    os.mkdir(f"{path}/control")
    found = []
    for name in ("control", "upper", "work"):
        os.mkdir(f"{path}/{name}/below")
        try:
            os.setxattr(f"{path}/{name}/below", "btrfs.compression", b"zlib")
            answer = "granted"
        except OSError as error:
            answer = errno.errorcode[error.errno or 0]
        with open(f"{path}/{name}/below/f", "w+b", buffering=0) as file:
            file.write(bytes(MIB))
            os.fsync(file.fileno())
            extents = bytearray(struct.pack("QQIIII", 0, 1 << 40, 1, 0, 1, 0) + bytes(56))
            fcntl.ioctl(file, 0xC020660B, extents)  # FS_IOC_FIEMAP
        assert struct.unpack_from("I", extents, 20)[0] == 1
        found.append((answer, bool(struct.unpack_from("I", extents, 32 + 40)[0] & 8)))
    return found


def test_a_sandboxs_files_are_never_compressed(pool: pathlib.Path) -> None:
    assert Apart(compressible, pool).result() == [("granted", True), ("EINVAL", False), ("EINVAL", False)]


def roots(say: Say, pool: pathlib.Path) -> list[list[str]]:
    storage = opened(pool)
    path = pathlib.Path(storage.create(ID, 64 * MIB))
    above = path / "above"
    above.mkdir()
    os.setxattr(above, "btrfs.compression", b"zstd")
    make_root(above / "tree")
    (above / "tree/file").touch()
    (above / "control").touch()
    return [os.listxattr(above / name) for name in ("control", "tree", "tree/file")]


def test_a_rootfs_takes_no_wish_to_compress_from_the_folder_above(pool: pathlib.Path) -> None:
    """Its files could not be copied up."""
    assert Apart(roots, pool).result() == [["btrfs.compression"], [], []]


def metadata(say: Say, pool: pathlib.Path) -> tuple[int, int | None, str, int]:
    storage = opened(pool)
    upper = storage.create(ID, 8 * MIB) + "/upper"
    count, refused = 0, ""
    try:
        while count < 100_000:
            os.close(os.open(f"{upper}/{count:0240d}", os.O_CREAT | os.O_WRONLY))
            count += 1
    except OSError as error:
        refused = errno.errorcode[error.errno or 0]
    used = storage.used(ID)
    wide = 0
    storage.create(OTHER, 8 * MIB)
    other = f"{storage.driver.path}/{OTHER}/upper"
    with contextlib.suppress(OSError):
        for wide in range(100_000):
            os.mkdir(f"{other}/{wide}")
            os.setxattr(f"{other}/{wide}", "user.x", bytes(3900))
    return count, used, refused, wide


def test_files_without_bytes_and_attributes_count_too(pool: pathlib.Path) -> None:
    count, used, refused, wide = Apart(metadata, pool).result()
    assert refused == "EDQUOT"
    assert 1000 < count < 40_000
    assert used
    assert used <= 8 * MIB
    assert 100 < wide < 8 * MIB // 3900


def bounds(say: Say, pool: pathlib.Path) -> tuple[Any, ...]:
    storage = opened(pool, storage_bytes=64 * MIB)
    one, two = (storage.create(name, 48 * MIB) + "/upper/f" for name in (ID, OTHER))
    written = [fill(one, most=32 * MIB), fill(two)]
    try:
        storage.create("c" * 20, MIB)
        full = ""
    except StorageFull as error:
        full = str(error.facts["errno"])
    return written, full, storage.driver.capacity


def test_all_sandboxes_together_are_limited(pool: pathlib.Path) -> None:
    ((one, _), (two, refused)), full, capacity = Apart(bounds, pool).result()
    assert refused == "EDQUOT"
    assert 60 * MIB < one + two <= 64 * MIB
    assert (full, capacity) == ("EDQUOT", 64 * MIB)


# --- nothing is left ---


def teardown(say: Say, pool: pathlib.Path) -> dict[str, Any]:
    storage = opened(pool)
    filesystem = filesystem_of(storage)
    before = sorted(btrfs.groups(filesystem))
    for number in range(20):
        name = f"{number:020d}"
        fill(storage.create(name, 64 * MIB) + "/upper/f", most=number * MIB)
    large = storage.remove(f"{19:020d}")
    removed = [storage.remove(f"{number:020d}", in_child=number > 6) for number in range(20)]
    stored, again = storage.stored(), storage.remove(ID)
    deadline = time.monotonic() + SOON_S
    while sorted(btrfs.groups(filesystem)) != before and time.monotonic() < deadline:
        storage.tend()
        time.sleep(0.1)
    return {
        "large": large, "removed": removed, "stored": stored, "again": again,
        "left": sorted(set(btrfs.groups(filesystem)) - set(before)),
        "held": btrfs.group_bytes(filesystem, btrfs.level1(0), "referenced"),
    }  # fmt: skip


@pytest.mark.slow
def test_a_removed_sandbox_leaves_no_subvolume_no_quota_group_and_no_bytes(pool: pathlib.Path) -> None:
    found = Apart(teardown, pool).result()
    assert not found["large"], "what takes long is left to a child"
    assert all(found["removed"])
    assert found["again"], "what is not there is removed"
    assert (found["stored"], found["left"], found["held"]) == ([], [], 0)
    image = pool / "state/pool.btrfs"
    wait_until(lambda: image.stat().st_blocks * 512 < 100 * MIB, "the return of the host's blocks")


def failing(say: Say, pool: pathlib.Path, call: int) -> tuple[str, bool]:
    """Fail the n-th call; return why it came to nothing, if it did, and whether there were as many calls."""
    kernel = FailingKernel()
    kernel.left["fail"].value = call
    why = ""
    try:
        opened(pool, kernel)
    except OSError as error:
        why = str(error)
        assert f"{pool}/run" not in pathlib.Path("/proc/self/mountinfo").read_text(), why
    return why, kernel.left["fail"].value <= 0


def put(say: Say, pool: pathlib.Path, text: str) -> str:
    storage = opened(pool)
    if not storage.stored():
        storage.create(ID, 8 * MIB)
    path = pathlib.Path(storage.driver.path) / ID / "upper/f"
    old = path.read_text() if path.exists() else ""
    path.write_text(old + text)
    return old


@pytest.mark.parametrize("there", [False, True], ids=["new image", "image with a sandbox"])
def test_opening_that_fails_at_any_kernel_call_leaves_nothing(pool: pathlib.Path, there: bool) -> None:
    file = pool / "state/pool.btrfs"
    if there:
        Apart(put, pool, "first").result()
    failed = []
    for call in range(1, 100):
        why, reached = Apart(failing, pool, call).result()
        if not reached:
            break
        if not why:  # a call that may fail
            if not there:
                file.unlink()
            continue
        failed.append(why)
        left = {path.name for path in (pool / "state").iterdir()} - {"pool", "pool.btrfs.lock"}
        assert left == ({"pool.btrfs"} if there else set()), f"call {call} ({why}) left {left}"
    else:
        pytest.fail("the pool cannot be opened")
    assert len(failed) > (8 if there else 14), failed
    assert len(loops(file)) <= 1
    if there:
        assert Apart(put, pool, "").result() == "first"


# --- the image ---


def writes(say: Say, pool: pathlib.Path) -> None:
    storage = opened(pool)
    if not storage.stored():
        storage.create(ID, 512 * MIB)
    directory = pathlib.Path(storage.driver.path) / ID / "upper"
    number = len(list(directory.glob("synced-*")))
    for path in sorted(directory.glob("synced-*")):
        data = path.read_bytes()
        say(f"{'whole' if hashlib.sha256(data[32:]).digest() == data[:32] else 'torn'} {path.name}")
    say("checked")
    while True:
        body = os.urandom(MIB // 4)
        fresh = directory / "fresh"
        with fresh.open("wb") as file:
            file.write(hashlib.sha256(body).digest() + body)
            os.fsync(file.fileno())
        fresh.rename(directory / f"synced-{number:05d}")
        fd = os.open(directory, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        say(f"synced-{number:05d}")
        number += 1
        if number % 16 == 0:
            (directory / "noise").write_bytes(os.urandom(4 * MIB))


@pytest.mark.slow
def test_killed_fifty_times_under_writes(pool: pathlib.Path) -> None:
    """tests/README.md, row 49: one loop device at a time, and what was synced is whole."""
    file = pool / "state/pool.btrfs"
    synced: set[str] = set()
    for turn in range(50):
        writer = Apart(writes, pool)
        whole = set()
        while (line := writer.hear()) != "checked":
            assert line, "the writer died"
            state, _, name = line.partition(" ")
            assert state == "whole", (turn, line)
            whole.add(name)
        assert synced <= whole, f"turn {turn} lost {sorted(synced - whole)}"
        assert len(loops(file)) == 1, turn
        for _ in range(turn % 4 + 1):
            synced.add(writer.hear())
        writer.kill()
    assert len(synced) >= 100


def holds(say: Say, pool: pathlib.Path, changes: dict[str, Any]) -> None:
    opened(pool, **changes)
    say("open")
    os.read(os.open("/dev/zero", os.O_RDONLY), 1)
    while True:
        time.sleep(3600)


def second(say: Say, pool: pathlib.Path) -> str:
    image.LOCK_S = 0.2  # type: ignore[misc]
    try:
        opened(pool)
    except AlreadyRunning as error:
        return error.message
    return ""


def test_a_second_launcher_is_refused_while_the_first_lives(pool: pathlib.Path) -> None:
    first = Apart(holds, pool, {})
    assert first.hear() == "open"
    try:
        assert "another launcher is using it" in Apart(second, pool).result()
        assert len(loops(pool / "state/pool.btrfs")) == 1
    finally:
        first.kill()
    assert Apart(put, pool, "x").result() == ""


def found_device(say: Say, pool: pathlib.Path) -> str:
    fd = os.open(pool / "state/renamed", os.O_RDWR)
    found = loopdev.find(Kernel(), fd)
    assert found
    return found[0].removeprefix("/dev/")


def test_a_device_is_found_by_device_and_inode_not_by_path(pool: pathlib.Path) -> None:
    file = pool / "state/pool.btrfs"
    first = Apart(holds, pool, {})
    assert first.hear() == "open"
    try:
        (device,) = loops(file)
        file.rename(pool / "state/renamed")
        (pool / "state/pool.btrfs").write_bytes(b"another file of that name")
        assert Apart(found_device, pool).result() == device
    finally:
        first.kill()


def test_an_image_that_is_attached_in_part_is_refused(pool: pathlib.Path) -> None:
    Apart(put, pool, "x").result()
    file = pool / "state/pool.btrfs"
    wait_until(lambda: not loops(file))
    command = ["losetup", "--find", "--show", "--offset", "65536", str(file)]
    device = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        assert "EBUSY" in Apart(failing, pool, 0).result()[0]
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def grown(say: Say, pool: pathlib.Path, size: int) -> tuple[int, str, bool]:
    storage = opened(pool, storage_bytes=size)
    facts = os.statvfs(storage.driver.path)
    old = pathlib.Path(storage.driver.path) / ID / "upper/f"
    return facts.f_blocks * facts.f_frsize, old.read_text() if old.exists() else "", bool(storage.driver.capacity)


def test_the_image_grows_when_the_bound_does(pool: pathlib.Path) -> None:
    Apart(put, pool, "kept").result()
    small, _, _ = Apart(grown, pool, 1 << 30).result()
    large, text, _ = Apart(grown, pool, 8 << 30).result()
    assert large - small == image.size_for(8 << 30) - image.size_for(1 << 30)
    assert text == "kept"
    assert (pool / "state/pool.btrfs").stat().st_blocks * 512 < 200 * MIB, "sparse"


# --- other drivers and the choice among them ---


def on_a_path(say: Say, pool: pathlib.Path) -> dict[str, Any]:
    """Make a btrfs filesystem as an operator would have it, and keep sandboxes in a directory of it."""
    host = pool / "host"
    host.mkdir()
    opened(pool / "other").driver.tend()  # only to have a btrfs filesystem that is mounted
    kernel = Kernel()
    subprocess.run(["truncate", "-s", "1G", pool / "img"], check=True)
    subprocess.run(["mkfs.btrfs", "-q", pool / "img"], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", pool / "img", host], check=True)
    found: dict[str, Any] = {}
    for name, path in (("off", host), ("foreign", pool)):
        try:
            opened(pool, storage_path=str(path))
        except (HostUnsupported, ConfigError) as error:
            found[name] = (error.kind, error.facts.get("key"), error.facts.get("remedy", ""))
    fd = os.open(host, os.O_RDONLY)
    btrfs.enable_quota(kernel, fd, btrfs.uuid(kernel, fd))
    storage = opened(pool, storage_path=str(host))
    found["filled"] = fill(storage.create(ID, 16 * MIB) + "/upper/f")
    found["inside"] = sorted(path.name for path in host.iterdir())
    found["mode"] = host.stat().st_mode & 0o777
    found["removed"] = storage.remove(ID, in_child=True), storage.stored()
    return found


def test_a_path_on_btrfs_needs_quotas_and_is_otherwise_left_alone(pool: pathlib.Path) -> None:
    found = Apart(on_a_path, pool).result()
    kind, _, remedy = found["off"]
    assert kind == "host-unsupported"
    assert "btrfs quota enable" in remedy
    assert found["foreign"][:2] == ("config-error", "storage_path")
    assert found["filled"][1] == "EDQUOT"
    assert len(found["inside"]) == 1
    assert found["mode"] == 0o755
    assert found["removed"] == (True, [])


def older_quotas(say: Say, pool: pathlib.Path) -> dict[str, Any]:
    """As on a kernel before 6.7: the simple ones are not known."""
    real = btrfs._quota_control

    def old(kernel: Kernel, fd: int, command: int) -> None:
        if command != btrfs._QUOTA_ENABLE:
            raise SyscallError(errno.EINVAL, "ioctl", "BTRFS_IOC_QUOTA_CTL")
        real(kernel, fd, command)

    btrfs._quota_control = old
    storage = opened(pool)
    filesystem = filesystem_of(storage)
    threshold = pathlib.Path(f"/sys/fs/btrfs/{filesystem}/qgroups/drop_subtree_threshold").read_text().strip()
    found = {"mode": btrfs.quota_mode(filesystem), "threshold": threshold}
    found["filled"] = fill(storage.create(ID, 16 * MIB) + "/upper/f")  # type: ignore[assignment]
    return found


def test_older_kernels_limit_as_well(pool: pathlib.Path) -> None:
    found = Apart(older_quotas, pool).result()
    assert (found["mode"], found["threshold"]) == ("qgroup", "8")
    assert found["filled"][1] == "EDQUOT"
    assert 15 * MIB <= found["filled"][0] <= 16 * MIB


def changed_choice(say: Say, pool: pathlib.Path) -> list[Any]:
    plain = opened(pool, storage="directory")
    plain.create(ID, MIB)
    both = opened(pool, storage="auto")
    found: list[Any] = [both.driver.name, both.stored()]
    both.create(OTHER, 8 * MIB)
    found += [both.used(ID), both.used(OTHER), both.remove(ID), both.stored()]
    return found


def back_to_directory(say: Say, pool: pathlib.Path) -> list[Any]:
    storage = opened(pool, storage="directory")
    return [storage.driver.name, storage.stored(), storage.remove(OTHER), storage.stored()]


def test_what_an_earlier_choice_holds_is_still_removed(pool: pathlib.Path) -> None:
    name, stored, none, used, removed, left = Apart(changed_choice, pool).result()
    assert (name, stored, none, removed, left) == ("btrfs", [ID], None, True, [OTHER])
    assert used is not None
    assert Apart(back_to_directory, pool).result() == ["directory", [OTHER], True, []]


def without_loop(say: Say, pool: pathlib.Path) -> tuple[str, str, list[str]]:
    def attach(*_: Any) -> tuple[str, int]:
        raise SyscallError(errno.EPERM, "ioctl", "LOOP_CONFIGURE")

    loopdev.attach = attach  # type: ignore[assignment]
    for _ in range(2):  # what the first try left must not stop the second
        storage = opened(pool, storage="auto")
    return storage.driver.name, storage.driver.unenforced_because, sorted(os.listdir(pool / "state"))


def test_auto_takes_a_directory_where_btrfs_cannot_be_had_and_says_why(pool: pathlib.Path) -> None:
    name, why, files = Apart(without_loop, pool).result()
    assert name == "directory"
    assert "LOOP_CONFIGURE: EPERM" in why
    assert files == ["pool", "pool.btrfs.lock"]


# --- the host's reserve ---


def reserve(say: Say, pool: pathlib.Path) -> dict[str, Any]:
    disk = pool / "disk"
    disk.mkdir()
    Kernel().mount("disk", str(disk), "tmpfs", 0, "size=512m")
    (disk / "run").mkdir()
    storage = opened(disk, storage_bytes=0, storage_reserve_bytes=128 * MIB)
    found: dict[str, Any] = {"capacity": storage.driver.capacity}
    upper = storage.create(ID, 400 * MIB) + "/upper"
    found["first"] = fill(f"{upper}/f", most=100 * MIB)
    # Somebody else takes a part of the disk: what sandboxes may have shrinks by as much.
    os.sync()
    (disk / "others").write_bytes(bytes(100 * MIB))
    storage.tend()
    found["second"] = fill(f"{upper}/g")
    os.sync()
    facts = os.statvfs(disk)
    found["free"] = facts.f_bavail * facts.f_frsize
    (disk / "more").write_bytes(bytes(max(found["free"] - 64 * MIB, 0)))
    try:
        storage.admit()
    except StorageFull as error:
        found["refused"] = error.facts
    (disk / "more").unlink()
    (disk / "others").unlink()
    storage.admit()
    found["third"] = fill(f"{upper}/h", most=16 * MIB)
    return found


@pytest.mark.slow
def test_the_hosts_reserve_is_kept(pool: pathlib.Path) -> None:
    """tests/README.md, row 24: a disk of 512 MiB of which 128 are kept back."""
    found = Apart(reserve, pool).result()
    assert found["capacity"] == 384 * MIB
    assert found["first"] == (100 * MIB, "")
    written, refused = found["second"]
    assert refused == "EDQUOT"
    assert 120 * MIB < written < 190 * MIB
    assert found["free"] > 112 * MIB, "the reserve is there, but for what the limit may drift"
    assert found["refused"]["reserve_bytes"] == 128 * MIB
    assert found["refused"]["free_bytes"] < 128 * MIB
    assert found["third"] == (16 * MIB, "")
