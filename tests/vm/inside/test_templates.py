"""Templates where cgroups have controllers, the hierarchy nsdelegate, and the daemon no privilege."""

from __future__ import annotations

import os
import pathlib
import signal
import time

from sandboxd import Sandbox
from sandboxd.client import Client
from tests.vm.inside.support import Service, group_of, keyed, value

MIB = 1 << 20
LOAD_S = 200.0


def load(client: Client) -> None:
    """Wait until a context can be a template's child."""
    with Sandbox.create(client=client) as sandbox:
        deadline = time.monotonic() + LOAD_S
        while not any(item["ready"] for item in client.info()["launcher"]["templates"]):
            assert time.monotonic() < deadline, client.info()["launcher"]["templates"]
            sandbox.delete_code_context(sandbox.create_code_context("python"))


def filters_of(leaf: pathlib.Path) -> int:
    (pid,) = (leaf / "cgroup.procs").read_text().split()
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Seccomp_filters"))


def test_a_child_is_counted_and_limited_in_its_sandbox(service: Service, client: Client) -> None:
    load(client)
    (template,) = service.root.glob("template-*")
    assert value(template / "memory.max") == str(2 << 30)
    assert int(value(template / "pids.current")) == 1
    with Sandbox.create(client=client, limits={"memory_bytes": 192 * MIB}) as sandbox:
        context = sandbox.create_code_context("python")
        sandbox.run_code("import numpy; x = numpy.ones(1 << 20)", context=context).check()
        (leaf,) = [path for path in (group_of(service, sandbox) / "work").iterdir() if path.name.startswith(context.id)]
        assert filters_of(leaf) == 5  # the template's two beside the sandbox's three
        assert 8 * MIB < int(value(leaf / "memory.current")) < 64 * MIB  # its own pages, not the template's
        result = sandbox.run_code("y = [bytearray(1 << 20) for _ in range(512)]", context=context)
        assert result.status == "oom"
        assert keyed(group_of(service, sandbox) / "work" / "memory.events")["oom_kill"] >= 1
        assert sandbox.exec("echo on").stdout == "on\n"
    assert int(value(template / "pids.current")) == 1


def test_a_daemon_that_comes_again_has_a_template_again(service: Service, client: Client) -> None:
    load(client)
    pid = service.pid
    with Sandbox.create(client=client) as sandbox:
        context = sandbox.create_code_context("python")
        sandbox.run_code("x = 5", context=context).check()
        os.kill(pid, signal.SIGKILL)
        service.wait_for_another(pid)
        assert sandbox.run_code("x", context=context).text == "5"
        load(client)
        assert len(list(service.root.glob("template-*"))) == 1
