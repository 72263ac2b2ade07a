"""The SDK and the client's command line run where the daemon does not: without its packages and Linux's modules."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
import trio

from sandboxd.cli.main import COMMANDS, DAEMON_VERBS
from tests.support.fake_daemon import TOKEN, daemon_in

#: Nothing of these is there on another system, or where only the client is installed.
ABSENT = (
    *("fcntl", "grp", "pwd", "resource", "termios", "tty", "prctl", "pyroute2", "pyseccomp", "msgpack", "msgspec"),
    *("quart", "quart_trio", "hypercorn", "psutil", "dulwich", "dns", "re2", "prometheus_client", "urllib3", "trio"),
)
ELSEWHERE = f"""
import enum, os, signal, socket, sys
for name in {ABSENT!r}:
    sys.modules[name] = None
for owner, names in ((socket, ["AF_UNIX"]), (signal, ["SIGHUP", "SIGQUIT", "SIGWINCH", "SIGALRM", "SIGKILL", "SIGPIPE",
                     "setitimer", "ITIMER_REAL"]), (os, ["getuid", "geteuid", "fork"])):
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)
left = {{n: m.value for n, m in signal.Signals.__members__.items() if hasattr(signal, n)}}
signal.Signals = enum.IntEnum("Signals", left)
"""


def elsewhere(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as on another system."""
    program = ELSEWHERE + f"sys.argv = ['sandboxd', *{arguments!r}]\nfrom sandboxd.cli.main import main\nmain()"
    environment = {**os.environ, **env}
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_the_package_is_imported() -> None:
    program = ELSEWHERE + "import sandboxd; sandboxd.Sandbox, sandboxd.AsyncSandbox, sandboxd.Client; print('done')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


def test_every_verbs_help_can_be_read() -> None:
    for verb in COMMANDS:
        done = elsewhere(verb, "--help")
        if verb in DAEMON_VERBS or verb == "doctor":
            continue
        assert done.returncode == 0, f"{verb}: {done.stderr}"
        assert done.stdout.startswith("Usage: sandboxd"), verb


@pytest.mark.parametrize("verb", ["serve", "rootfs", "doctor"])
def test_what_needs_the_daemons_packages_says_so(verb: str) -> None:
    done = elsewhere(verb, *(["ls"] if verb == "rootfs" else []))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "pip install 'sandboxd[daemon]'" in done.stderr


async def test_it_talks_to_a_daemon_over_tcp(tmp_path: pathlib.Path) -> None:
    async with daemon_in(tmp_path) as daemon:
        await daemon.create(name="box")
        url = "http://{}:{}".format(*daemon.tcp)
        listed = await trio.to_thread.run_sync(
            lambda: elsewhere("ls", "--json", SANDBOXD_URL=url, SANDBOXD_TOKEN=TOKEN)
        )
        assert listed.returncode == 0, listed.stderr
        assert '"box"' in listed.stdout


def test_an_address_that_cannot_be_here_is_one_sentence() -> None:
    done = elsewhere("ls", SANDBOXD_URL="unix:///run/sandboxd/sandboxd.sock")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "http://host:port" in done.stderr


def test_a_terminal_needs_posix() -> None:
    done = elsewhere("shell", "box", SANDBOXD_URL="http://127.0.0.1:1")
    assert done.returncode == 125
    assert "needs a POSIX system" in done.stderr
