"""Crash-only: daemons, launchers and inits that die, and what the next start makes of it."""

from __future__ import annotations

import os
import pathlib
import signal

import pytest

from sandboxd import Sandbox, SandboxdError, SandboxFailed, SandboxNotFound
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real


def init_pid(daemon: Daemon, sandbox: Sandbox) -> int:
    return int((daemon.cgroup() / sandbox.id / "init" / "cgroup.procs").read_text())


def test_sigterm_ends_cleanly_and_leaves_sandboxes_running(own_daemon: Daemon) -> None:
    with own_daemon.client() as client:
        sandbox = Sandbox.create(client=client, name="kept", env={"A": "1"}, labels={"k": "v"})
        sandbox.write_file("/workspace/f", "x")
        pid = init_pid(own_daemon, sandbox)
        assert own_daemon.signal(signal.SIGTERM) == 0
        assert not own_daemon.socket.exists()
        os.kill(pid, 0)
    own_daemon.start()
    with own_daemon.client() as client:
        again = Sandbox.connect("kept", client=client)
        assert (again.id, again.info.state, again.info.labels) == (sandbox.id, "running", {"k": "v"})
        assert again.exec("echo $A; cat f").stdout == "1\nx"
        assert init_pid(own_daemon, again) == pid


def test_sigkill_of_the_daemon_leaves_sandboxes_running(own_daemon: Daemon) -> None:
    with own_daemon.client() as client:
        sandbox = Sandbox.create(client=client)
        with pytest.raises(SandboxdError), sandbox.exec_stream("echo up; sleep 1007") as stream:
            for _ in stream:
                own_daemon.signal(signal.SIGKILL)
    own_daemon.start()
    with own_daemon.client() as client:
        again = Sandbox.connect(sandbox.id, client=client)
        assert again.exec("pgrep -fxc 'sleep 1007'").stdout == "1\n"  # what ran before goes on


def test_sigkill_of_the_launcher_ends_the_daemon_and_nothing_else(own_daemon: Daemon) -> None:
    with own_daemon.client() as client:
        sandbox = Sandbox.create(client=client)
    os.kill(own_daemon.launcher_pid(), signal.SIGKILL)
    assert own_daemon.process
    assert own_daemon.process.wait(30) == 1
    own_daemon.start()
    with own_daemon.client() as client:
        assert Sandbox.connect(sandbox.id, client=client).exec("echo on").stdout == "on\n"


def wait_until_failed(sandbox: Sandbox) -> None:
    """Wait by asking; each question is a round trip, so this neither sleeps nor spins for long."""
    for _ in range(10_000):
        if sandbox.refresh().state == "failed":
            return
    raise AssertionError(f"{sandbox} is not failed")


def test_an_init_that_is_killed_is_failed_with_a_reason(own_daemon: Daemon) -> None:
    with own_daemon.client() as client:
        sandbox = Sandbox.create(client=client)
        os.kill(init_pid(own_daemon, sandbox), signal.SIGKILL)
        wait_until_failed(sandbox)
        assert sandbox.info.reason == "init was killed by SIGKILL"
        with pytest.raises(SandboxFailed):
            sandbox.exec("true")
        sandbox.destroy()
        with pytest.raises(SandboxNotFound):
            sandbox.exec("true")


def test_nothing_inside_can_signal_init(sandbox: Sandbox) -> None:
    """A pid namespace's init gets no signal from inside that it has no handler for (pid_namespaces(7))."""
    sandbox.exec("for s in KILL TERM INT HUP SEGV STOP USR1 CHLD; do kill -$s 1; done")
    sandbox.exec("kill -9 -1")
    assert sandbox.exec("echo still").stdout == "still\n"


def test_a_start_sweeps_what_died_meanwhile(own_daemon: Daemon) -> None:
    with own_daemon.client() as client:
        live, dead = (Sandbox.create(client=client) for _ in range(2))
        pid = init_pid(own_daemon, dead)
        own_daemon.signal(signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
    own_daemon.start()
    with own_daemon.client() as client:
        assert [sandbox.id for sandbox in Sandbox.list(client=client)] == [live.id]
    assert not [path for path in own_daemon.leftovers() if dead.id in path]


def test_two_daemons_do_not_meet(own_daemon: Daemon, tmp_path: pathlib.Path) -> None:
    other = Daemon(tmp_path / "o")
    other.start()
    try:
        with own_daemon.client() as here, other.client() as there:
            one, two = Sandbox.create(client=here), Sandbox.create(client=there)
            bases = {sandbox.exec("cat /proc/self/uid_map").stdout.split()[1] for sandbox in (one, two)}
            assert len(bases) == 2
            with pytest.raises(SandboxNotFound):
                Sandbox.connect(one.id, client=there)
    finally:
        other.close()


def test_a_second_daemon_on_the_same_state_is_refused(own_daemon: Daemon, tmp_path: pathlib.Path) -> None:
    second = Daemon(tmp_path)
    second.log = tmp_path / "second"
    with pytest.raises(AssertionError):
        second.start()
    assert second.process
    assert second.process.wait(30) == 1
    assert "another daemon" in second.log.read_text()
    with own_daemon.client() as client:
        client.health()
