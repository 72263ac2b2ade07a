"""The tests' own ground: what hangs ends with a stack, and nothing that a caller left ignored is inherited."""

import ctypes
import json
import os
import pathlib
import platform
import signal
import struct
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.support import seeds
from tests.support.waiting import wait_until

LIBC = ctypes.CDLL(None, use_errno=True)
RT_SIGACTION = {"x86_64": 13, "aarch64": 134}[platform.machine()]
REPOSITORY = pathlib.Path(__file__).parents[2]
#: Those that can be ignored at all, but for the two that Python ignores itself.
IGNORABLE = sorted(
    signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ} - set(range(32, 65))
)
#: What is left ignored and blocked, but for the two signals that glibc keeps for its threads (nptl(7)): whoever began
#: the tests may have them ignored, no program can ask glibc to restore them, and it sets a handler before it uses one.
DISPOSITIONS = """
import json, signal
import tests.conftest
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
valid = sum(1 << number - 1 for number in signal.valid_signals())
print(json.dumps([int(status["SigIgn"], 16) & valid, int(status["SigBlk"], 16) & valid]))
"""


def _ignore_all() -> None:
    for number in IGNORABLE:
        signal.signal(number, signal.SIG_IGN)


def _ignore_glibcs() -> None:
    """Ignore SIGCANCEL and SIGSETXID as some supervisors do: the kernel knows no reserved signals."""
    ignore = struct.pack("LLLL", 1, 0, 0, 0)  # struct kernel_sigaction: handler SIG_IGN, flags, restorer, mask
    for number in (32, 33):
        if LIBC.syscall(RT_SIGACTION, number, ignore, None, 8):
            os._exit(99)


def _block_all() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())


@pytest.mark.parametrize("before", [_ignore_all, _ignore_glibcs, _block_all], ids=["ignored", "glibcs", "blocked"])
def test_no_signal_stays_ignored_or_blocked(before: Callable[[], None]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DISPOSITIONS], cwd=REPOSITORY, preexec_fn=before, capture_output=True, check=True
    )
    ignored, blocked = json.loads(done.stdout)
    assert ignored == sum(1 << number - 1 for number in (signal.SIGPIPE, signal.SIGXFSZ))
    assert blocked == 0


HANGS = """
import subprocess, threading, trio, pytest

def test_a_thread():
    threading.Event().wait()

async def test_trio():
    await trio.sleep_forever()

@pytest.mark.timeout(2)
async def test_trio_with_a_limit_of_its_own():
    await trio.sleep_forever()

@pytest.mark.timeout(100)
async def test_trio_that_may_take_longer():
    await trio.sleep(3)

def test_a_child():
    subprocess.run(["sleep", "1000"])

def test_what_comes_after():
    pass
"""


@pytest.mark.slow
def test_what_hangs_fails_with_its_stack_and_the_run_goes_on(tmp_path: pathlib.Path) -> None:
    (tmp_path / "test_hangs.py").write_text(HANGS)
    plugins = ("-p", "no:cacheprovider", "-p", "tests.conftest")
    options = ("-c", str(REPOSITORY / "pyproject.toml"), "--rootdir", str(tmp_path), "-o", "timeout=4", str(tmp_path))
    command = [sys.executable, "-m", "pytest", *plugins, *options]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert "4 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    for line in ("threading.Event().wait()", "trio.sleep_forever()", 'subprocess.run(["sleep", "1000"])'):
        assert line in done.stdout


def test_every_lane_has_a_limit_for_each_test(pytestconfig: pytest.Config) -> None:
    assert 60 <= float(pytestconfig.getini("timeout")) <= 600


@pytest.mark.parametrize(("given", "found"), [(None, 7), ("", 7), ("23", 23)])
def test_the_seed_is_that_of_the_run(monkeypatch: pytest.MonkeyPatch, given: str | None, found: int) -> None:
    """`make test-long` without SEED passes an empty one, at which the collection of all tests failed."""
    monkeypatch.delenv("SANDBOXD_TEST_SEED", raising=False)
    if given is not None:
        monkeypatch.setenv("SANDBOXD_TEST_SEED", given)
    assert seeds.seed(7) == found


def test_a_wait_says_what_did_not_come() -> None:
    answers = iter((False, 0, "yes"))
    wait_until(lambda: next(answers))
    with pytest.raises(AssertionError, match="the end of the world did not come about within 0 s"):
        wait_until(lambda: False, "the end of the world", seconds=0)


@pytest.mark.slow
def test_each_long_test_is_collected_without_a_seed() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "long", "--collect-only", "-q"]
    environment = {**os.environ, "SANDBOXD_TEST_SEED": ""}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_hundreds_of_kills_at_random_points" in done.stdout
