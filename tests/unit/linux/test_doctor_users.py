"""The doctor's verdicts on switches, users and the way to the interpreter, for hosts that are made up."""

from __future__ import annotations

import dataclasses
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.linux.probes import access, sysctls, users
from sandboxd.linux.probes.feature import Feature, Status


def one(features: list[Feature], name: str) -> Feature:
    (found,) = [item for item in features if item.name == name]
    return found


def statuses(features: list[Feature]) -> dict[str, str]:
    return {item.name: str(item.status) for item in features}


# --- the kernel's switches ----------------------------------------------------------------------------------

SWITCHES = {
    "kernel.core_pattern": "core",
    "fs.file-max": "9223372036854775807",
    "kernel.pid_max": "4194304",
    "net.ipv4.ip_forward": "1",
    "fs.inotify.max_user_instances": "128",
    "fs.inotify.max_user_watches": "65536",
    "net.ipv4.tcp_mem": "6000 6000 6000",
    "net.ipv4.udp_mem": "6000\t7000\t8000",
    "kernel.dmesg_restrict": "1",
    "kernel.perf_event_paranoid": "2",
    "vm.unprivileged_userfaultfd": "0",
}


PAGES = 6000


def switched(release: str = "6.12.1", machine: str = "x86_64", **changes: str) -> list[Feature]:
    values = SWITCHES | {name.replace("__", "."): value for name, value in changes.items()}
    return sysctls.evaluate(sysctls.SysctlValues(release, machine, values, PAGES))


def test_a_good_kernel() -> None:
    assert set(statuses(switched()).values()) == {"ok"}


def test_a_host_that_forwards_nothing() -> None:
    assert statuses(switched(net__ipv4__ip_forward="0"))["ip-forward"] == "degraded"


@pytest.mark.parametrize(
    ("release", "machine", "status"),
    [
        ("6.1.0-13-amd64", "x86_64", "ok"),
        ("6.1", "aarch64", "ok"),
        ("10.0-rc1", "x86_64", "ok"),
        ("6.0.19", "x86_64", "missing"),
        ("5.15.0", "x86_64", "missing"),
        ("6.12", "riscv64", "missing"),
        ("strange", "x86_64", "unknown"),
    ],
)
def test_kernel_versions(release: str, machine: str, status: str) -> None:
    assert str(one(switched(release, machine), "kernel").status) == status


def test_a_core_pattern_that_no_limit_stops_is_a_warning() -> None:
    piped = one(switched(kernel__core_pattern="|/usr/lib/systemd/systemd-coredump %P %u"), "core-pattern")
    assert piped.status is Status.OK
    assert piped.found == "piped to /usr/lib/systemd/systemd-coredump"
    found = one(switched(kernel__core_pattern="@@/run/dump.sock"), "core-pattern")
    assert found.status is Status.DEGRADED
    assert found.found == "sent to the socket /run/dump.sock"
    assert found.remedy == "sysctl -w kernel.core_pattern=core"


def test_counters_that_one_sandbox_could_use_up() -> None:
    low = switched(**{"fs.file-max": "2466170", "kernel__pid_max": "32768"})
    assert one(low, "counters").status is Status.DEGRADED
    assert one(low, "counters").remedy == "sysctl -w fs.file-max=100000000 kernel.pid_max=4194304"
    assert one(switched(kernel__pid_max="x"), "counters").status is Status.UNKNOWN


def test_a_budget_of_sockets_that_one_sandbox_could_use_up() -> None:
    low = one(switched(net__ipv4__tcp_mem="2000 3000\t4000"), "socket-memory")
    assert low.status is Status.DEGRADED
    assert low.found == "net.ipv4.tcp_mem=2000 3000 4000, net.ipv4.udp_mem=6000 7000 8000"
    assert low.remedy
    assert low.remedy.startswith('sysctl -w net.ipv4.tcp_mem="6000 6000 6000" (')
    bypassed = switched(net__ipv4__tcp_mem="2000 3000 4000", net__core__bypass_prot_mem="0")
    assert one(bypassed, "socket-memory").status is Status.OK
    assert one(switched(net__ipv4__udp_mem="x"), "socket-memory").status is Status.UNKNOWN


def test_switches_that_are_open_or_low() -> None:
    found = switched(fs__inotify__max_user_instances="12", kernel__dmesg_restrict="0", vm__unprivileged_userfaultfd="1")
    assert one(found, "inotify").remedy == "sysctl -w fs.inotify.max_user_instances=128"
    assert one(found, "hardening").remedy == "sysctl -w kernel.dmesg_restrict=1 vm.unprivileged_userfaultfd=0"
    # A higher number of these is a stricter one, and Debian has its own.
    strict = switched(kernel__perf_event_paranoid="3", kernel__unprivileged_bpf_disabled="2")
    assert one(strict, "hardening").status is Status.OK


def test_switches_that_cannot_be_read() -> None:
    found = statuses(sysctls.evaluate(sysctls.SysctlValues("6.12", "x86_64", {})))
    assert found["core-pattern"] == found["inotify"] == found["hardening"] == "unknown"


@given(st.text(), st.dictionaries(st.sampled_from(sorted(SWITCHES)), st.text()))
def test_switches_may_say_anything(release: str, values: dict[str, str]) -> None:
    assert len(sysctls.evaluate(sysctls.SysctlValues(release, "x86_64", values, 9))) == 7


# --- users and the way to the interpreter -------------------------------------------------------------------

EVERYTHING = (1 << 41) - 1
GOOD_USERS = users.Accounts(0, EVERYTHING, True, "sandboxd", "sandboxd", 990, True, "/usr/bin/python3", None)


@pytest.mark.parametrize(
    ("changes", "name", "status", "word"),
    [
        ({}, "root", "ok", None),
        ({"uid": 1000}, "root", "missing", "sudo"),
        ({"maps_host": False}, "root", "missing", "host's own root"),
        ({"capabilities": EVERYTHING & ~(1 << 27)}, "root", "missing", "all capabilities"),
        ({"capabilities": EVERYTHING & ~(1 << 24)}, "root", "ok", None),
        ({"user_id": None}, "user", "degraded", "useradd"),
        ({"has_group": False}, "group", "degraded", "groupadd"),
        ({"blocked": "/root"}, "interpreter", "missing", "chmod o+rX /root"),
        ({"blocked": "/root", "user_id": None}, "interpreter", "degraded", "chmod o+rX /root"),
    ],
)
def test_users(changes: dict[str, Any], name: str, status: str, word: str | None) -> None:
    found = users.evaluate(dataclasses.replace(GOOD_USERS, **changes))
    assert str(one(found, name).status) == status
    assert one(found, name).remedy is None if word is None else word in (one(found, name).remedy or "")
    others = {item.name for item in found if item.name != name and item.status is not Status.OK}
    assert others == ({"user"} if "user_id" in changes and name != "user" else set())


def directory(mode: int = 0o755, uid: int = 0, gid: int = 0) -> access.Node:
    return access.Node(stat.S_IFDIR | mode, uid, gid)


def program(mode: int = 0o755, uid: int = 0, gid: int = 0) -> access.Node:
    return access.Node(stat.S_IFREG | mode, uid, gid)


def link(target: str) -> access.Node:
    return access.Node(stat.S_IFLNK | 0o777, 0, 0, target)


TREE = {
    "/": directory(),
    "/usr": directory(),
    "/usr/bin": directory(),
    "/usr/bin/python3": link("python3.11"),
    "/usr/bin/python3.11": program(),
    "/root": directory(0o700),
    "/root/uv": directory(),
    "/root/uv/python": program(),
    "/srv": directory(),
    "/srv/venv": link("/root/uv"),
    "/srv/python": link("../usr/bin/../bin/python3"),
    "/srv/loop": link("loop"),
    "/srv/group": directory(0o750, 0, 50),
    "/srv/group/python": program(0o754, 0, 50),
    "/srv/own": directory(0o077, 990, 990),
    "/srv/file": program(0o644),
}


@pytest.mark.parametrize(
    ("path", "gids", "stopped"),
    [
        ("/usr/bin/python3", (), None),
        ("/srv/python", (), None),
        ("/", (), None),
        ("/root/uv/python", (), "/root"),
        ("/srv/venv/python", (), "/root"),
        ("/srv/loop", (), "/srv/loop"),
        ("/srv/nothing", (), "/srv/nothing"),
        ("/srv/file", (), "/srv/file"),
        ("/srv/file/below", (), "/srv/file"),
        ("/srv/group/python", (50,), None),
        ("/srv/group/python", (51,), "/srv/group"),
        ("/srv/own", (), "/srv/own"),
    ],
)
def test_the_way_to_a_file(path: str, gids: tuple[int, ...], stopped: str | None) -> None:
    wanted = access.READ | access.SEARCH
    assert access.obstacle(path, 990, gids, wanted=wanted, see=TREE.get) == stopped


def test_root_is_stopped_by_nothing_but_absence() -> None:
    assert access.obstacle("/srv/venv/python", 0, (), see=TREE.get) is None
    assert access.obstacle("/srv/none", 0, (), see=TREE.get) == "/srv/none"


@given(st.lists(st.sampled_from(["usr", "bin", "python3", "srv", "venv", "..", ".", "", "loop", "root"]), max_size=12))
def test_every_way_ends(parts: list[str]) -> None:
    found = access.obstacle("/" + "/".join(parts), 990, (), see=TREE.get)
    assert found is None or found.startswith("/")


def test_every_module_of_the_package_is_looked_at() -> None:
    with tempfile.TemporaryDirectory() as directory:
        package = Path(directory)
        package.chmod(0o755)
        for name, mode in (("a.py", 0o644), ("b.py", 0o644), ("data.json", 0o600)):
            (package / name).write_text("")
            (package / name).chmod(mode)
        assert users.first_obstacle(4242, (), "/", [], str(package)) is None
        (package / "b.py").chmod(0o600)
        assert users.first_obstacle(4242, (), "/", [], str(package)) == str(package / "b.py")
        package.chmod(0o700)
        assert users.first_obstacle(4242, (), "/", [], str(package)) == str(package)
