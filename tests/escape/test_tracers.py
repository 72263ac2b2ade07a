"""A program that traces every other one of its sandbox sees nothing of init's and holds nobody up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from sandboxd import Sandbox
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real

#: Seizes each process that appears and never looks at it again; tells whom of init's own (before their execve) it got.
TRACER = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <unistd.h>
int main(void)
{
    char path[64], name[32];
    close(open("/workspace/hunting", O_CREAT | O_WRONLY, 0644));
    for (;;)
        for (int pid = 2; pid < 2000; pid++) {
            if (pid == getpid() || pid == getppid() || ptrace(PTRACE_SEIZE, pid, 0, 0))
                continue;
            snprintf(path, sizeof path, "/proc/%d/comm", pid);
            int fd = open(path, O_RDONLY);
            long size = fd < 0 ? 0 : read(fd, name, sizeof name - 1);
            close(fd);
            name[size > 0 ? size : 0] = 0;
            printf("seized %s", name);
            fflush(stdout);
        }
}
"""


@pytest.fixture
def hunted(daemon: Daemon, sandbox: Sandbox) -> Iterator[tuple[Sandbox, list[str]]]:
    """A sandbox whose other processes are all traced, and what the tracer printed when it ended."""
    sandbox.write_file("/workspace/tracer.c", TRACER)
    sandbox.exec("gcc -O2 -w -o tracer tracer.c").check()
    said: list[str] = []

    def hunt() -> None:
        with daemon.client() as client:
            said.append(Sandbox.connect(sandbox.id, client=client).exec("exec ./tracer", timeout=100).stdout)

    thread = threading.Thread(target=hunt)
    thread.start()
    while b"hunting" not in b"".join(_listed(sandbox)) and thread.is_alive():
        time.sleep(0.02)
    yield sandbox, said
    end(sandbox)
    thread.join(100)
    assert not thread.is_alive()


def end(sandbox: Sandbox) -> None:
    sandbox.exec(["pkill", "-KILL", "-x", "tracer"])


def _listed(sandbox: Sandbox) -> list[bytes]:
    try:
        sandbox.read_file("/workspace/hunting")
    except Exception:
        return []
    return [b"hunting"]


def test_a_timeout_is_kept(hunted: tuple[Sandbox, list[str]]) -> None:
    """A dead process that is traced is the tracer's to look at first: the command ends nevertheless."""
    sandbox, said = hunted
    began = time.monotonic()
    result = sandbox.exec("sleep 0.2", timeout=1)
    assert time.monotonic() - began < 30  # the tracer would hold it to its own end
    assert result.timed_out or result.exit_code == 0
    assert sandbox.exec("echo free", timeout=30).stdout == "free\n"
    end(sandbox)
    deadline = time.monotonic() + 100
    while not said and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "seized" in said[0], "the control: it traced somebody"
    assert "init" not in said[0]
    assert "sandboxd" not in said[0]


def test_a_kill_is_kept(daemon: Daemon, hunted: tuple[Sandbox, list[str]]) -> None:
    sandbox, _ = hunted
    began = time.monotonic()
    with sandbox.exec_stream("sleep 0.1") as stream:
        time.sleep(0.5)
        stream.close()
    assert time.monotonic() - began < 30
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if sandbox.exec("echo free", timeout=10).stdout == "free\n":
            return
    pytest.fail("commands are still held")
