"""Limits that change under what runs, speeds of disks, what is told of use, freeze; with every controller there."""

from __future__ import annotations

import json
import threading
import time

import pytest

from sandboxd import IoLimits, Limits, Sandbox
from sandboxd.client import Client
from sandboxd.errors import LimitExceeded, SandboxdError, SandboxFrozen
from tests.vm.inside.support import Service, group_of, keyed, value

MIB = 1 << 20
#: Touches memory piece by piece and says how far it came; then waits for a line.
HOG = """
import sys
held = []
for _ in range(int(sys.argv[1])):
    held.append(bytearray(b"x") * (1 << 20))
print(len(held), flush=True)
sys.stdin.readline()
print("left", flush=True)
"""


# --- PATCH under what runs


def test_memory_given_to_what_runs_is_there_at_once(service: Service, client: Client) -> None:
    with Sandbox.create(client=client, limits={"memory_bytes": 64 * MIB}) as sandbox:
        assert sandbox.exec(["python3", "-c", HOG, "150"]).oom_killed
        sandbox.update(limits=Limits(memory_bytes=256 * MIB))
        assert value(group_of(service, sandbox) / "work/memory.max") == str(256 * MIB)
        result = sandbox.exec(["python3", "-c", HOG, "150"], stdin="\n")
        assert (result.oom_killed, result.stdout) == (False, "150\nleft\n")


def test_memory_taken_below_what_is_in_use_kills_and_tells_and_init_lives(service: Service, client: Client) -> None:
    with Sandbox.create(client=client, limits={"memory_bytes": 512 * MIB}) as sandbox:
        init = value(group_of(service, sandbox) / "init/cgroup.procs")
        with sandbox.exec_stream(["python3", "-c", HOG, "200"], stdin=True) as stream:
            assert next(iter(stream)).data == b"200\n"
            sandbox.update(limits=Limits(memory_bytes=64 * MIB))
            assert stream.wait().oom_killed
        assert value(group_of(service, sandbox) / "work/memory.max") == str(64 * MIB)
        assert value(group_of(service, sandbox) / "init/cgroup.procs") == init
        assert sandbox.exec("echo on").stdout == "on\n"
        stats = sandbox.stats()
        assert (stats.oom_kills or 0) >= 1
        assert (stats.memory_peak_bytes or 0) > 200 * MIB


def test_other_sandboxes_are_served_while_a_limit_shrinks(client: Client) -> None:
    with (
        Sandbox.create(client=client, limits={"memory_bytes": 1024 * MIB}) as sandbox,
        Sandbox.create(client=client) as near,
        sandbox.exec_stream(["python3", "-c", HOG, "700"], stdin=True) as stream,
    ):
        assert next(iter(stream)).data == b"700\n"
        shrink = threading.Thread(target=lambda: sandbox.update(limits=Limits(memory_bytes=32 * MIB)))
        shrink.start()
        slowest = 0.0
        while shrink.is_alive():
            began = time.monotonic()
            near.stats()  # asks the launcher
            slowest = max(slowest, time.monotonic() - began)
        shrink.join()
        assert slowest < 1.0
        assert stream.wait().oom_killed


def test_pids_change_under_what_runs(service: Service, client: Client) -> None:
    forks = "import os, sys\ndone = 0\nwhile True:\n try:\n  p = os.fork()\n except OSError:\n  break\n"
    forks += " if p == 0:\n  sys.stdin.read(); os._exit(0)\n done += 1\nprint(done)\n"
    with Sandbox.create(client=client, limits={"pids": 20}) as sandbox:
        assert int(sandbox.exec(["python3", "-c", forks], stdin="").stdout) < 20
        sandbox.update(limits=Limits(pids=50))
        assert 30 < int(sandbox.exec(["python3", "-c", forks], stdin="").stdout) < 50
        assert value(group_of(service, sandbox) / "pids.max") == "66"


def test_a_full_sandbox_refuses_a_command_by_the_limits_name(client: Client) -> None:
    with (
        Sandbox.create(client=client, limits={"pids": 8}) as sandbox,
        sandbox.exec_stream("for i in 1 2 3 4 5 6 7; do sleep 600 & done; echo up; wait") as stream,
    ):
        assert next(iter(stream)).data == b"up\n"
        for _ in range(20):  # and nothing of a start that failed is left to run out of
            with pytest.raises(LimitExceeded) as caught:
                sandbox.exec("true")
            assert caught.value.limit == "pids"
        sandbox.update(limits=Limits(pids=20))
        assert sandbox.exec("echo on").stdout == "on\n"


def test_processors_change_under_what_runs(client: Client) -> None:
    loop = "import time\nfor _ in range(2):\n end = time.monotonic() + 3\n used = time.process_time()\n"
    loop += " while time.monotonic() < end: pass\n print(time.process_time() - used, flush=True)\n input()\n"
    with Sandbox.create(client=client, limits={"cpus": 0.2}) as sandbox:
        with sandbox.exec_stream(["python3", "-c", loop], stdin=True) as stream:
            chunks = iter(stream)
            slow = float(next(chunks).data)
            sandbox.update(limits=Limits(cpus=1.0))
            stream.write_stdin("\n")
            fast = float(next(chunks).data)
            stream.write_stdin("\n")
        assert slow < 0.35 * 3
        assert fast > 2 * slow
        assert (sandbox.stats().cpu_throttled_s or 0) > 1


def test_a_refused_change_changes_nothing(service: Service, client: Client, sandbox: Sandbox) -> None:
    before = value(group_of(service, sandbox) / "work/memory.max")
    for wrong in ({"memory_bytes": 1}, {"cpus": 10_000}, {"pids": 10**7}, {"memory_bytes": 1 << 48, "pids": 9}):
        with pytest.raises(SandboxdError) as caught:
            sandbox.update(limits=wrong)
        assert caught.value.kind == "invalid-request"
    assert value(group_of(service, sandbox) / "work/memory.max") == before


# --- disks


def test_speeds_of_the_disk_are_held(service: Service, client: Client) -> None:
    write = "dd if=/dev/zero of=/workspace/f bs=256k count=16 oflag=direct,sync 2>&1 && rm /workspace/f"
    with Sandbox.create(client=client) as sandbox:
        if "io" in sandbox.update(limits=Limits(io=IoLimits(write_bytes_per_s=64 * MIB))).unenforced:
            pytest.skip("the sandboxes' files are on no disk of their own here")
        began = time.monotonic()
        sandbox.exec(write).check()
        free = time.monotonic() - began
        sandbox.update(limits=Limits(io=IoLimits(write_bytes_per_s=1 * MIB)))
        assert "wbps=1048576" in value(group_of(service, sandbox) / "io.max")
        began = time.monotonic()
        sandbox.exec(write).check()
        held = time.monotonic() - began
        assert held > max(2.5, free)  # 4 MiB at 1 MiB/s, less what the kernel lets through at first
        io = sandbox.stats().io
        assert io is not None
        assert io.write_bytes >= 8 * MIB
        sandbox.update(limits={"io": None})
        assert "wbps=1048576" not in value(group_of(service, sandbox) / "io.max")


# --- what is told of use


def test_usage_is_the_whole_trees(client: Client, sandbox: Sandbox) -> None:
    tree = "import subprocess, sys\nkids = [subprocess.Popen([sys.executable, '-c', "
    tree += (
        "'b = bytearray(40 << 20); import time; t = time.process_time()\\nwhile time.process_time() - t < 0.3: pass'"
    )
    tree += "]) for _ in range(3)]\nfor kid in kids: kid.wait()\n"
    usage = sandbox.exec(["python3", "-c", tree]).check().usage
    assert (usage.cpu_s or 0) > 0.85
    assert (usage.memory_peak_bytes or 0) > 100 * MIB
    small = sandbox.exec("true").usage
    assert (small.memory_peak_bytes or 0) < 20 * MIB


def test_one_process_over_the_limit_takes_its_tree_along_and_no_other(client: Client) -> None:
    with (
        Sandbox.create(client=client, limits={"memory_bytes": 128 * MIB}) as sandbox,
        sandbox.exec_stream("echo up; sleep 600") as other,
    ):
        assert next(iter(other)).data == b"up\n"
        bomb = "sleep 600 & python3 -c 'b = bytearray(512 << 20)'; echo the shell lives"
        result = sandbox.exec(bomb)
        assert (result.oom_killed, result.signal, result.stdout) == (True, "SIGKILL", "")
        assert sandbox.exec("pgrep -c sleep").stdout == "1\n"
        stats = sandbox.stats()
        assert (stats.oom_kills or 0) >= 1
        assert stats.pids is not None
        assert 1 <= stats.pids <= 6  # two of them are init's own: a forker, and what stands by for the next command


def test_a_limit_is_seen_inside_and_cannot_be_written(service: Service, client: Client) -> None:
    attack = """
import errno, json, os
def attempt(path):
    try:
        os.close(os.open(path, os.O_WRONLY))
    except OSError as error:
        return errno.errorcode[error.errno]
    return "allowed"
here = "/sys/fs/cgroup"
found = {"limit": open(f"{here}/work/memory.max").read(), "own": open("/proc/self/cgroup").read(),
         "top": sorted(name for name in os.listdir(here) if os.path.isdir(f"{here}/{name}"))}
found["writes"] = sorted({attempt(os.path.join(directory, name))
                          for directory, _, names in os.walk(here) for name in names})
try:
    os.mkdir(f"{here}/work/mine")
    found["mkdir"] = "allowed"
except OSError as error:
    found["mkdir"] = errno.errorcode[error.errno]
print(json.dumps(found))
"""
    with Sandbox.create(client=client, limits={"memory_bytes": 96 * MIB}) as sandbox:
        found = json.loads(sandbox.exec(["python3", "-c", attack]).check().stdout)
        assert found["limit"] == f"{96 * MIB}\n"
        assert found["own"].startswith("0::/work/p-")
        assert found["top"] == ["init", "work"]
        assert set(found["writes"]) <= {"EROFS", "EACCES"}
        assert found["mkdir"] == "EROFS"


# --- freeze


def test_a_frozen_bomb_stands_still_and_can_be_destroyed(service: Service, client: Client) -> None:
    with Sandbox.create(client=client, limits={"pids": 64}) as sandbox:
        bomb = "import os\nwhile True:\n try: os.fork()\n except OSError: pass\n"
        with sandbox.exec_stream(["python3", "-c", bomb], detach=True):
            group = group_of(service, sandbox)
            for _ in range(200):
                if int(value(group / "work/pids.current")) > 50:
                    break
                time.sleep(0.05)
            sandbox.freeze()
            assert keyed(group / "cgroup.events")["frozen"] == 1
            used = sandbox.stats().cpu_s
            time.sleep(0.3)
            assert sandbox.stats().cpu_s == used
            with pytest.raises(SandboxFrozen):
                sandbox.exec("true")
            began = time.monotonic()
            sandbox.destroy()
            assert time.monotonic() - began < 5
        assert not group.exists()


# --- the path of exec


def test_no_wait_lies_on_the_path_of_a_command_after_a_pause(sandbox: Sandbox) -> None:
    """A write to cgroup.procs would wait for the kernel after a pause; with controllers on, being born does not."""

    def duration() -> float:
        began = time.monotonic()
        sandbox.exec(["true"])
        return time.monotonic() - began

    for _ in range(5):
        duration()
    close = sorted(duration() for _ in range(30))
    apart = []
    for _ in range(30):
        time.sleep(0.08)
        apart.append(duration())
    apart.sort()
    print(f"exec p50 back to back {1000 * close[15]:.1f} ms, after 80 ms {1000 * apart[15]:.1f} ms")
    assert apart[15] < 2 * close[15] + 0.005
