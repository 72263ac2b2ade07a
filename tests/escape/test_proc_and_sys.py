"""What of /proc and /sys can be written, and what of the host is read there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from sandboxd import Sandbox
from tests.escape.conftest import PROBES
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real

Run = Callable[[str], str]
#: They open, and act on the caller alone or refuse the write (`test_what_opens_does_not_take_a_write`).
HARMLESS = re.compile(r"/proc/1/(task/1/)?(attr/(current|exec|fscreate|keycreate|sockcreate)|timerslack_ns)$")
PSI = re.compile(r"/proc/pressure/(cpu|io|memory|irq)$")


def opened(shared: Sandbox, user: str | int) -> list[str]:
    shared.write_file("/usr/local/src/writable.py", (PROBES / "writable.py").read_bytes())
    *paths, end = shared.exec("python3 /usr/local/src/writable.py", user=user).check().stdout.splitlines()
    assert int(end.removeprefix("end ")) > 1000
    return [path for path in paths if not HARMLESS.match(path)]


@pytest.mark.parametrize("user", ["root", 1000])
def test_nothing_of_the_hosts_opens_for_writing(shared: Sandbox, user: str | int) -> None:
    assert [path for path in opened(shared, user) if not PSI.match(path)] == []


def test_pressure_of_the_host_is_closed(run: Run) -> None:
    assert "total=" not in run("cat /proc/pressure/cpu 2>&1")


def test_the_hosts_command_line_is_masked(run: Run) -> None:
    with open("/proc/cmdline") as file:
        assert file.read().strip() not in run("cat /proc/cmdline")


def test_what_opens_does_not_take_a_write(run: Run) -> None:
    for name in ("attr/current", "attr/exec", "timerslack_ns"):
        assert "written" not in run(f"echo 1 > /proc/1/{name} && echo written")


@pytest.mark.parametrize(
    "path",
    [
        "kcore",
        "keys",
        "key-users",
        "kallsyms",
        "config.gz",
        "timer_list",
        "partitions",
        "diskstats",
        "iomem",
        "slabinfo",
    ],
)
def test_masked_files_are_empty(run: Run, path: str) -> None:
    assert run(f"cat /proc/{path} 2>/dev/null | wc -c") == "0"


def test_a_mask_outlives_the_node_that_it_is_made_of(sandbox: Sandbox) -> None:
    """The masks are copies of the sandbox's own /dev/null, which its root may remove, replace or close."""
    line = "chmod 0 /dev/null; rm /dev/null; printf evil > /dev/null; cat /proc/kallsyms /proc/keys | wc -c"
    assert sandbox.exec(line).stdout.strip() == "0"


def test_mountinfo_has_no_path_of_the_host(run: Run) -> None:
    for line in run("cat /proc/1/mountinfo /proc/self/mountinfo 2>/dev/null").splitlines():
        options = line.split()[5]
        assert "nosuid" in options, line
        assert "/var/" not in line, line
        assert "sandboxd" not in line, line


def test_dmesg_and_raw_disks_are_closed(run: Run) -> None:
    assert "denied" in run("dmesg 2>&1 || echo denied").lower() or "not permitted" in run("dmesg 2>&1").lower()
    assert run("find /dev -type b | wc -l") == "0"
    assert run("cat /sys/class/dmi/id/product_serial /sys/kernel/vmcoreinfo_x 2>/dev/null | wc -c") == "0"


# --- what of /sys is seen ------------------------------------------------------------------------------------

WALK = """
import os
for directory, directories, files in os.walk('/sys'):
    print(directory)
    for name in files:
        print(os.path.join(directory, name))
"""
#: Whatever is below these.
PARTS = (
    "/sys/class/net/", "/sys/devices/virtual/net/", "/sys/devices/system/cpu/", "/sys/devices/system/node/",
    "/sys/fs/cgroup/",
)  # fmt: skip
#: And these alone: files, what is above them, and directories that are empty.
ALONE = """
/sys /sys/block /sys/bus /sys/bus/pci /sys/bus/pci/devices /sys/bus/usb /sys/bus/usb/devices /sys/class /sys/class/block
/sys/class/drm /sys/class/hwmon /sys/class/power_supply /sys/class/thermal /sys/dev /sys/dev/block /sys/dev/char
/sys/devices /sys/devices/system /sys/devices/virtual /sys/firmware /sys/fs /sys/kernel /sys/kernel/mm /sys/module
/sys/kernel/mm/transparent_hugepage /sys/kernel/mm/transparent_hugepage/enabled
/sys/kernel/mm/transparent_hugepage/defrag /sys/kernel/mm/transparent_hugepage/shmem_enabled
/sys/kernel/mm/transparent_hugepage/hpage_pmd_size
"""


def unlisted(paths: str) -> list[str]:
    return [path for path in paths.splitlines() if not f"{path}/".startswith(PARTS) and path not in ALONE.split()]


def test_of_sys_a_stated_list_is_seen(daemon: Daemon, shared: Sandbox) -> None:
    """What the host and neighbours do (loop devices' files, quota groups, disks' figures) is on no list."""
    control = subprocess.run([sys.executable, "-c", WALK], capture_output=True, text=True, check=True).stdout
    assert len(unlisted(control)) > 500
    with daemon.client() as client, Sandbox.create(client=client) as one, Sandbox.create(client=client) as held:
        for sandbox in (shared, one, held):
            for user in ("root", 1000):
                seen = sandbox.exec(["python3", "-c", WALK], user=user).check().stdout
                assert unlisted(seen) == []
                assert {"/sys/devices/system/cpu/online", "/sys/fs/cgroup/work/cgroup.procs"} <= set(seen.split("\n"))


@pytest.mark.parametrize(
    "path", ["block", "fs/btrfs", "class/net/../../kernel/debug", "devices/system/cpu/../../pci0000:00"]
)
def test_no_part_of_sys_leads_to_the_rest(run: Run, path: str) -> None:
    assert run(f"ls /sys/{path} 2>/dev/null") == ""
    assert run("find /sys -name '*loop*' -o -name '*qgroup*' -o -name '[vs]d[a-z]' -o -name backing_file") == ""
    assert run("touch /sys/x /sys/block/x 2>&1").count("Read-only") == 2


@pytest.mark.parametrize("path", ["fs", "bus", "irq", "scsi", "driver", "acpi", "asound"])
def test_folders_of_the_hosts_devices_are_empty(run: Run, path: str) -> None:
    assert run(f"ls -A /proc/{path} 2>/dev/null") == ""


COUNT = str(os.cpu_count())


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("nproc --all", COUNT),
        ("getconf _NPROCESSORS_CONF", COUNT),
        ("python3 -c 'import os; print(os.cpu_count())'", COUNT),
        ("python3 -c 'import psutil as p; p.cpu_freq(), p.sensors_temperatures(); print(p.cpu_count())'", COUNT),
        ("python3 -c 'import psutil as p; print(p.sensors_battery(), p.disk_io_counters())'", "None None"),
        ("python3 -c 'import psutil; print(*psutil.net_if_stats())'", "lo"),
        ("python3 -c 'import numpy as n; a = n.ones((300, 300)); print((a @ a)[0, 0])'", "300.0"),
        ("node -p 'os.cpus().length'", COUNT),
        ("node -p 'Object.keys(os.networkInterfaces()).join()'", "lo"),
        ("lscpu | sed -n 's/^CPU(s): *//p'", COUNT),
        ("cat /sys/class/net/lo/mtu", "65536"),
        ("ls /sys/class/net", "lo"),
        ("lsblk", ""),
    ],
)
def test_programs_find_in_sys_what_they_look_for(run: Run, line: str, wanted: str) -> None:
    assert run(line) == wanted
