"""The launcher's end of the daemon's socket."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from sandboxd.launcher.server import Launcher


@pytest.fixture
def launcher() -> Any:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    found: Any = Launcher.__new__(Launcher)
    found._socket, found.theirs, found.got = ours, theirs, []
    found._link = SimpleNamespace(receive=lambda data, fds: found.got.append((data, list(fds))) or [])
    yield found
    for fd in (fd for _, fds in found.got for fd in fds):
        os.close(fd)
    ours.close()
    theirs.close()


def test_no_program_that_the_launcher_runs_inherits_what_the_daemon_passes(launcher: Any) -> None:
    socket.send_fds(launcher.theirs, [b"x"], [0, 1])
    launcher._on_daemon()
    [(data, fds)] = launcher.got
    assert data == b"x"
    assert [os.get_inheritable(fd) for fd in fds] == [False, False]


def test_nothing_to_read_is_nothing_and_the_end_ends_it(launcher: Any) -> None:
    launcher._on_daemon()
    assert not launcher.got
    launcher.theirs.shutdown(socket.SHUT_RDWR)
    with pytest.raises(EOFError):
        launcher._on_daemon()
