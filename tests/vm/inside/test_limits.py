"""Limits that the kernel holds: what is written, and what happens at each."""

from __future__ import annotations

import pathlib

import pytest

from sandboxd import Sandbox
from sandboxd.client import Client
from tests.support import operations
from tests.vm.inside.support import URL, Service, group_of, keyed, value

MIB = 1 << 20


def test_every_limit_is_written(service: Service, client: Client) -> None:
    with Sandbox.create(client=client, limits={"memory_bytes": 256 * MIB, "pids": 77, "cpus": 0.25}) as sandbox:
        group = group_of(service, sandbox)
        assert value(group / "work/memory.max") == str(256 * MIB)
        assert value(group / "work/pids.max") == "77"
        assert value(group / "memory.swap.max") == "0"
        assert value(group / "work/cpu.max") == "25000 100000"
        for name, inner in (("memory.max", 256 * MIB), ("pids.max", 77)):
            assert inner < int(value(group / name)) < 2 * inner + 64 * MIB  # with init's own share, and bounded
        assert int(value(group / "init/memory.max")) <= 64 * MIB
        assert int(value(group / "init/pids.max")) <= 64
        assert not set(sandbox.info.unenforced) & {"memory_bytes", "pids", "cpus"}


def test_what_ran_out_of_memory_is_told_and_the_sandbox_goes_on(service: Service, client: Client) -> None:
    with Sandbox.create(client=client, limits={"memory_bytes": 128 * MIB}) as sandbox:
        init = value(group_of(service, sandbox) / "init/cgroup.procs")
        result = sandbox.exec(["python3", "-c", "b = bytearray(512 << 20); print(len(b))"])
        assert (result.oom_killed, result.signal, result.stdout) == (True, "SIGKILL", "")
        assert sandbox.exec("echo on").stdout == "on\n"
        assert value(group_of(service, sandbox) / "init/cgroup.procs") == init
        again = sandbox.exec("kill -KILL $$")
        assert (again.oom_killed, again.signal) == (False, "SIGKILL")


def test_a_shared_memory_bomb_is_the_sandboxs_own(service: Service, client: Client) -> None:
    with Sandbox.create(client=client, limits={"memory_bytes": 128 * MIB}) as sandbox:
        result = sandbox.exec("dd if=/dev/zero of=/dev/shm/bomb bs=1M count=512 2>&1; rm -f /dev/shm/bomb; echo done")
        assert result.oom_killed or "No space" in result.stdout, result
        assert int(value(group_of(service, sandbox) / "memory.peak")) <= 192 * MIB
        assert sandbox.exec("rm -f /dev/shm/bomb; echo on").stdout == "on\n"


def test_a_fork_bomb_is_bounded_and_can_be_ended(service: Service, client: Client) -> None:
    with Sandbox.create(client=client, limits={"pids": 64}) as sandbox:
        bomb = "import os\nwhile True:\n try: os.fork()\n except OSError: pass\n"
        result = sandbox.exec(["python3", "-c", bomb], timeout=5)
        group = group_of(service, sandbox)
        assert result.timed_out
        assert int(value(group / "pids.peak")) <= 64 + 16
        assert keyed(group / "work/pids.events")["max"] > 0
        assert sandbox.exec("echo on").stdout == "on\n"
        assert int(value(group / "work/pids.current")) < 8


def test_a_busy_loop_gets_its_share(service: Service, client: Client) -> None:
    loop = "import time\nend = time.monotonic() + 4\nwhile time.monotonic() < end: pass"
    with Sandbox.create(client=client, limits={"cpus": 0.2}) as sandbox:
        result = sandbox.exec(["python3", "-c", loop]).check()
        # Over all of its life: where processors are slow, the start of the interpreter takes as long as the loop.
        assert (result.usage.cpu_s or 0) < 0.3 * result.duration_s
        assert keyed(group_of(service, sandbox) / "work/cpu.stat")["nr_throttled"] > 0


@pytest.mark.parametrize("limits", [{"memory_bytes": 1}, {"pids": 0}, {"cpus": 0}, {"memory_bytes": "1G"}])
def test_limits_that_cannot_be_are_refused(client: Client, limits: dict[str, object]) -> None:
    from sandboxd import SandboxdError

    with pytest.raises(SandboxdError) as caught:
        Sandbox.create(client=client, limits=limits)
    assert caught.value.kind.startswith("invalid")


SOCKET = pathlib.Path(URL.removeprefix("unix://"))
#: Takes what there is of it, and says so.
HOGS = {
    "pids": """
import os, time
while True:
    try:
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
    except OSError:
        print("full", flush=True)
        time.sleep(0.005)
""",
    # Memory that is a file's: the kernel kills whoever asks for more, and has nothing of it to take back.
    "memory_bytes": """
import os, time
size = int(open("/sys/fs/cgroup/work/memory.max").read()) - int(open("/sys/fs/cgroup/work/memory.current").read())
fd = os.memfd_create("hog")
for _ in range(max(0, size - (LEFT << 10)) >> 16):
    os.write(fd, bytes(1 << 16))
print("full", flush=True)
time.sleep(600)
""",
}


@pytest.mark.parametrize(("limit", "left_kib"), [("pids", 0), ("memory_bytes", 64)])
def test_every_operation_at_a_limit_is_done_or_names_it(client: Client, limit: str, left_kib: int) -> None:
    limits = {"pids": 60, "memory_bytes": 512 * MIB}
    with Sandbox.create(client=client, limits=limits) as sandbox:
        contexts = operations.prepare(sandbox, SOCKET)
        hog = HOGS[limit].replace("LEFT", str(left_kib))
        sandbox.start_process(["python3", "-c", hog], id=operations.HOG)
        assert sandbox.wait_for_log(operations.HOG, "full", timeout=120).met
        found = operations.ask_all(sandbox, SOCKET, contexts)
        if limit == "pids":
            named = {name for name, answer in found.items() if answer.body.get("limit") == limit}
            # Not exec: a process that stands by may become the command.
            assert {"a javascript context", "a python context", "a search"} <= named
        sandbox.remove_process(operations.HOG)
        assert sandbox.exec("echo on").stdout == "on\n"
