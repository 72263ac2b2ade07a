"""The installed units: who runs as whom, and what a sandbox outlives."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pwd
import signal
import subprocess
from collections.abc import Iterator

import pytest

from sandboxd import Sandbox, SandboxNotFound
from sandboxd.client import Client
from tests.vm.inside.support import HOLDER, URL, Service, group_of, systemctl


def status(pid: int) -> dict[str, str]:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_the_daemon_is_the_user_sandboxd_and_has_no_privilege(service: Service) -> None:
    found, user = status(service.pid), pwd.getpwnam("sandboxd")
    assert user.pw_uid != 0
    assert set(found["Uid"].split()) == {str(user.pw_uid)}
    assert set(found["Gid"].split()) == {str(user.pw_gid)}
    assert {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}


def test_the_launcher_is_root_and_unfiltered(service: Service) -> None:
    """What the unit hardened, every sandbox would inherit."""
    found = status(service.launcher_pid)
    assert set(found["Uid"].split()) == {"0"}
    assert (found["Seccomp"], found["NoNewPrivs"]) == ("0", "0")


def test_what_the_daemons_user_owns(service: Service) -> None:
    uid = pwd.getpwnam("sandboxd").pw_uid
    state = pathlib.Path("/var/lib/sandboxd")
    assert (state / "registry").stat().st_uid == uid
    for name in ("pool", "records"):
        assert ((state / name).stat().st_uid, (state / name).stat().st_mode & 0o777) == (0, 0o700)


def test_the_holder_holds_and_the_service_is_not_in_it(service: Service, sandbox: Sandbox) -> None:
    assert (HOLDER / "cgroup.procs").read_text() == ""
    assert len((HOLDER / "holder/cgroup.procs").read_text().split()) == 1
    assert (group_of(service, sandbox) / "init/cgroup.procs").read_text().strip()
    assert "sandboxd.service" in pathlib.Path(f"/proc/{service.pid}/cgroup").read_text()
    assert "sandboxd.service" in pathlib.Path(f"/proc/{service.launcher_pid}/cgroup").read_text()


@pytest.fixture
def living(service: Service) -> Iterator[Sandbox]:
    """A sandbox with something running in it, whose client may lose its daemon."""
    with Client(URL) as client:
        sandbox = Sandbox.create(client=client, env={"KEPT": "yes"})
        try:
            sandbox.write_file("/workspace/f", "kept")
            sandbox.exec("sleep 100007 >/dev/null 2>&1 &", keep_orphans=True, timeout=60)
            yield sandbox
        finally:
            systemctl("start", "sandboxd")
            with Client(URL) as again, contextlib.suppress(SandboxNotFound):
                Sandbox.connect(sandbox.id, client=again).destroy()


def still(sandbox: Sandbox) -> None:
    """Assert that a sandbox is as it was, through a new connection, and destroy it."""
    with Client(URL) as client:
        again = Sandbox.connect(sandbox.id, client=client)
        assert again.exec("cat f; echo -n $KEPT; pgrep -fxc 'sleep 100007'").stdout == "keptyes1\n"
        again.destroy()


def test_a_restart_loses_no_sandbox(service: Service, living: Sandbox) -> None:
    before = service.pid
    systemctl("restart", "sandboxd")
    assert service.pid != before
    still(living)


def test_a_stop_and_a_start_lose_no_sandbox(service: Service, living: Sandbox) -> None:
    systemctl("stop", "sandboxd")
    assert service.pid == 0
    systemctl("start", "sandboxd")
    still(living)


def test_sigkill_of_the_daemon_loses_no_sandbox(service: Service, living: Sandbox) -> None:
    before = service.pid
    os.kill(before, signal.SIGKILL)
    service.wait_for_another(before)
    still(living)


def test_sigkill_of_the_launcher_loses_no_sandbox(service: Service, living: Sandbox) -> None:
    before = service.pid
    os.kill(service.launcher_pid, signal.SIGKILL)
    service.wait_for_another(before)
    still(living)


def test_a_reload_of_systemd_itself_loses_no_sandbox(service: Service, living: Sandbox) -> None:
    before = service.pid
    systemctl("daemon-reload")
    systemctl("daemon-reexec")
    assert service.pid == before
    systemctl("restart", "sandboxd")
    still(living)


def test_the_holders_stop_ends_the_sandboxes_and_the_next_start_is_clean(service: Service, living: Sandbox) -> None:
    systemctl("stop", "sandboxd-cgroups")
    assert not HOLDER.exists()
    systemctl("start", "sandboxd")
    with Client(URL) as client:
        assert [sandbox.id for sandbox in Sandbox.list(client=client)] == []
        with Sandbox.create(client=client) as sandbox:
            assert sandbox.exec("echo new").stdout == "new\n"


def test_the_daemons_user_can_do_nothing_privileged(service: Service, sandbox: Sandbox) -> None:
    """Without the launcher it reads no sandbox's files, enters none of its namespaces and kills nothing in it."""
    pid = (group_of(service, sandbox) / "init/cgroup.procs").read_text().strip()
    line = (
        f"ls /var/lib/sandboxd/pool; cat /proc/{pid}/environ; kill -9 {pid}; nsenter -t {pid} -a true; "
        f"echo 1 > {group_of(service, sandbox)}/cgroup.kill; mount -t tmpfs none /mnt; echo allowed $?"
    )
    done = subprocess.run(
        ["setpriv", "--reuid=sandboxd", "--regid=sandboxd", "--clear-groups", "sh", "-c", line],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("allowed ")
    assert done.stdout != "allowed 0\n"
    assert done.stderr.lower().count("denied") + done.stderr.lower().count("not permitted") >= 5, done.stderr
    assert sandbox.exec("echo on").stdout == "on\n"


def test_installing_again_changes_nothing(service: Service) -> None:
    before = service.pid
    subprocess.run(["make", "install"], cwd="/root/sandboxd", check=True, capture_output=True)
    assert service.pid == before


def test_doctor_finds_every_limit(service: Service) -> None:
    done = subprocess.run(["sandboxd", "doctor"], capture_output=True, text=True, check=False)
    assert "limits: yes" in done.stdout
    assert done.returncode == 0, done.stdout
