"""Each forbidden system call, by the C probe, as root and as a user."""

from __future__ import annotations

import pytest

from sandboxd import Sandbox
from tests.escape.conftest import PROBES

pytestmark = pytest.mark.real

ROWS = {"13", "14", "15", "16", "17", "18", "19", "20", "21", "24", "40", "41"}


@pytest.fixture(scope="module")
def probe(shared: Sandbox) -> str:
    """The compiled probe."""
    shared.write_file("/usr/local/src/syscalls.c", (PROBES / "syscalls.c").read_bytes())
    shared.exec("cc -O -w -o /usr/local/bin/syscalls-probe /usr/local/src/syscalls.c").check()
    return "syscalls-probe"


@pytest.mark.parametrize("user", ["root", 1000])
def test_each_is_blocked(shared: Sandbox, probe: str, user: str | int) -> None:
    shared.exec("rm -rf /tmp/*").check()
    lines = shared.exec(probe, user=user, timeout=60).check().stdout.splitlines()
    assert lines.pop() == "end"
    assert {line.split()[0] for line in lines} == ROWS
    assert [line for line in lines if " blocked " not in line] == []


def test_foreign_architectures_are_killed_not_just_refused(shared: Sandbox, probe: str) -> None:
    """An errno could come from the call itself; SIGSYS is the filter."""
    lines = shared.exec(f"{probe} | grep -E '^19 (int|x32)'").stdout.splitlines()
    assert len(lines) >= 3
    assert all("Bad system call" in line for line in lines), lines
