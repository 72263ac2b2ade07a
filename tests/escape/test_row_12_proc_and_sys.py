"""ATTACKS 12: what of /proc and /sys can be written, and what of the host is read there."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from sandboxd import Sandbox
from tests.escape.conftest import PROBES

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
