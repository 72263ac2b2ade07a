"""`umask` of commands, processes, terminals and sessions: the permissions that their files have."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from sandboxd import InvalidRequest, Sandbox
from tests.support.daemon import Daemon
from tests.support.standby import init_pid, pid_inside, ready

pytestmark = pytest.mark.real

#: Makes a file and a directory, and shows what they may be used for.
LOOK = "rm -rf /tmp/f /tmp/d; touch /tmp/f; mkdir /tmp/d; stat -c %a /tmp/f /tmp/d; umask"
SEEN = {
    None: "644\n755\n0022\n",
    "0027": "640\n750\n0027\n",
    "77": "600\n700\n0077\n",
    "0": "666\n777\n0000\n",
    "0777": "0\n0\n0777\n",
}


@pytest.mark.parametrize("umask", SEEN)
def test_a_command(sandbox: Sandbox, umask: str | None) -> None:
    assert sandbox.exec(LOOK, umask=umask).stdout == SEEN[umask]
    assert sandbox.exec("umask").stdout == "0022\n"
    long_line = f": {'x' * 200_000}\n{LOOK}"
    assert sandbox.exec(long_line, umask=umask).stdout == SEEN[umask]


def test_a_command_that_was_stood_by_for(daemon: Daemon, sandbox: Sandbox) -> None:
    for _ in range(2):
        sandbox.exec("true").check()
    for umask, seen in SEEN.items():
        waiting = pid_inside(ready(daemon, sandbox)["standby"])
        assert sandbox.exec(f"echo $$; {LOOK}", umask=umask).stdout == f"{waiting}\n{seen}"


def test_another_user_and_what_comes_of_a_restart(sandbox: Sandbox) -> None:
    found = sandbox.exec("cd /tmp; touch n; stat -c '%U %a' n", user="nobody", umask="0137")
    assert found.stdout == "nobody 640\n"
    line = "umask; [ -e /tmp/again ] || { touch /tmp/again; exit 1; }"
    process = sandbox.start_process(line, umask="0007", restart="on-failure")
    assert sandbox.wait_for_exit(process, timeout=100)
    assert sandbox.get_process_logs(process).stdout == "0007\n0007\n"


def test_a_process_and_a_terminal(sandbox: Sandbox) -> None:
    process = sandbox.start_process(LOOK, umask="0027")
    assert sandbox.wait_for_exit(process, timeout=100)
    assert sandbox.get_process_logs(process).stdout == SEEN["0027"]
    with sandbox.open_pty(LOOK, umask="0027") as pty:
        assert b"".join(pty).replace(b"\r", b"").decode() == SEEN["0027"]


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_a_session(sandbox: Sandbox, shell: str) -> None:
    with sandbox.create_session(shell=shell, umask="0027") as session:
        assert session.exec(LOOK).stdout == SEEN["0027"]
        process = session.start_process("umask")
        assert sandbox.wait_for_exit(process, timeout=100)
        assert sandbox.get_process_logs(process).stdout == "0027\n"
        with session.open_pty("umask") as pty:
            assert b"".join(pty) == b"0027\r\n"
        session.exec("kill -9 $$")
        assert session.exec("umask; umask 077").stdout == "0027\n"
        assert session.exec("umask").stdout == "0077\n"
    with sandbox.create_session(shell=shell) as session:
        assert session.exec(LOOK).stdout == SEEN[None]


@pytest.mark.parametrize("umask", ["8", "01777", "1777", "abc", "", "-1", "0o22", "\u0660", 22])
def test_what_is_no_umask(sandbox: Sandbox, umask: Any) -> None:
    for verb in (sandbox.exec, sandbox.start_process):
        with pytest.raises(InvalidRequest) as caught:
            verb("true", umask=umask)
        assert (caught.value.kind, caught.value.facts["field"]) == ("invalid-request", "umask")
    with pytest.raises(InvalidRequest) as caught:
        sandbox.create_session(umask=umask)
    assert (caught.value.kind, caught.value.facts["field"]) == ("invalid-request", "umask")


def cli(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sandboxd", *words],
        env={**os.environ, "SANDBOXD_URL": daemon.url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_command_line(daemon: Daemon, sandbox: Sandbox) -> None:
    line = ("--", "sh", "-c", LOOK)
    assert cli(daemon, "exec", "--umask", "0027", sandbox.id, *line).stdout == SEEN["0027"]
    assert cli(daemon, "run", "--umask", "77", *line).stdout == SEEN["77"]
    assert cli(daemon, "process", "start", "--umask", "0", "--id", "p", sandbox.id, *line).returncode == 0
    assert sandbox.wait_for_exit("p", timeout=100)
    assert sandbox.get_process_logs("p").stdout == SEEN["0"]
    assert cli(daemon, "session", "create", "--umask", "0027", "--id", "s", sandbox.id).returncode == 0
    assert cli(daemon, "exec", "-s", "s", sandbox.id, LOOK).stdout == SEEN["0027"]
    both = cli(daemon, "exec", "-s", "s", "--umask", "0027", sandbox.id, LOOK)
    assert (both.returncode, "--umask cannot be used with" in both.stderr) == (2, True)
    bad = cli(daemon, "exec", "--umask", "8", sandbox.id, "true")
    assert (bad.returncode, "umask" in bad.stderr) == (125, True)


def test_init_itself_keeps_its_own(daemon: Daemon, sandbox: Sandbox) -> None:
    sandbox.exec("true", umask="0777")
    with open(f"/proc/{init_pid(daemon, sandbox)}/status") as status:
        assert "Umask:\t0022\n" in status.readlines()


def test_a_daemon_may_be_started_with_any(tmp_path: pathlib.Path) -> None:
    daemon = Daemon(tmp_path)
    before = os.umask(0o077)
    try:
        daemon.start()
    finally:
        os.umask(before)
    try:
        with daemon.client() as client, Sandbox.create(client=client, user="user") as sandbox:
            assert sandbox.exec("umask; echo made > made; stat -c %a made").check().stdout == "0022\n644\n"
    finally:
        daemon.close()
