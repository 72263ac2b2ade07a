"""The pool under systemd, on a distribution's kernel: limits, restarts, disks for io.max, what memory counts."""

from __future__ import annotations

import pathlib

from sandboxd import Sandbox
from sandboxd.client import Client
from sandboxd.linux import btrfs
from tests.vm.inside.support import URL, Service, group_of, systemctl, value

MIB = 1 << 20
FLOOD = """
made = 0
try:
    while True:
        open(f'/dev/shm/{made}', 'x').close()
        made += 1
except OSError:
    print(made)
"""
FILL = "dd if=/dev/zero of=/workspace/f bs=64k 2>&1; echo"


def loops() -> list[str]:
    return [path.parent.parent.name for path in pathlib.Path("/sys/block").glob("loop*/loop/backing_file")]


def test_disks_are_limited_and_counted(client: Client) -> None:
    launcher = client.info()["launcher"]
    assert launcher["storage"] == "btrfs"
    assert "disk_bytes" in launcher["enforceable"]
    assert launcher["pool"]["capacity_bytes"] > launcher["pool"]["used_bytes"]
    with Sandbox.create(client=client, limits={"disk_bytes": 32 * MIB}) as sandbox:
        assert "Disk quota exceeded" in sandbox.exec(FILL).stdout
        used = sandbox.stats().disk_bytes
        assert used
        assert 30 * MIB < used <= 32 * MIB
        sandbox.exec("rm /workspace/f").check()
        sandbox.write_file("/etc/written", "through the API, over a rootfs on another filesystem")
        assert sandbox.read_text("/etc/written").startswith("through")
        assert sandbox.read_text("/etc/debian_version")


def test_quotas_are_the_simple_ones_where_the_kernel_has_them() -> None:
    modes = {btrfs.quota_mode(path.name) for path in pathlib.Path("/sys/fs/btrfs").glob("*-*-*-*-*")}
    assert modes == {"squota"}


def test_one_loop_device_through_restarts_and_kills(service: Service, client: Client) -> None:
    sandbox = Sandbox.create(client=client)
    sandbox.write_file("/workspace/kept", "kept")
    (device,) = loops()
    client.close()
    for way in ("restart", "kill"):
        before = service.pid
        if way == "restart":
            systemctl("restart", "sandboxd")
        else:
            systemctl("kill", "--signal=KILL", "sandboxd")
            service.wait_for_another(before)
        assert loops() == [device], way
    with Client(URL) as again:
        found = Sandbox.connect(sandbox.id, client=again)
        assert found.read_text("/workspace/kept") == "kept"
        found.destroy()
        assert pathlib.Path("/var/lib/sandboxd/pool.btrfs").stat().st_mode & 0o777 == 0o600
    assert "pool.btrfs" not in pathlib.Path("/proc/self/mountinfo").read_text()


def test_io_limits_are_set_on_the_pools_own_device(service: Service, client: Client) -> None:
    (device,) = loops()
    number = pathlib.Path(f"/sys/block/{device}/dev").read_text().strip()
    with Sandbox.create(client=client, limits={"io": {"write_bytes_per_s": 4 * MIB}}) as sandbox:
        lines = value(group_of(service, sandbox) / "io.max").splitlines()
        assert any(line.startswith(f"{number} ") and f"wbps={4 * MIB}" in line for line in lines), lines


def test_tmp_is_on_the_disk_and_shm_in_the_memory(service: Service, client: Client) -> None:
    limits = {"disk_bytes": 32 * MIB, "memory_bytes": 128 * MIB}
    with Sandbox.create(client=client, limits=limits) as sandbox:
        assert "Disk quota exceeded" in sandbox.exec("dd if=/dev/zero of=/tmp/f bs=64k 2>&1; rm /tmp/f").stdout
        assert "No space left" in sandbox.exec("dd if=/dev/zero of=/dev/shm/f bs=64k 2>&1; echo").stdout
        held = int(value(group_of(service, sandbox) / "work/memory.current"))
        assert 60 * MIB <= held <= 128 * MIB
        sandbox.exec("rm /dev/shm/f").check()
        made = sandbox.exec(["python3", "-c", FLOOD], timeout=100).stdout
        assert 1000 < int(made) <= 64 * MIB // 4096
