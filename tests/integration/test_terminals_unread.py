"""What is typed into a terminal and not read keeps nothing else waiting: a size, a goodbye, the next viewer."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import struct
import termios

import pytest

from sandboxd import Pty, Sandbox
from tests.integration.test_terminals import Person
from tests.support.daemon import Daemon

pytestmark = pytest.mark.real

#: Reads nothing, and tells each new size.
DEAF = "stty raw -echo; trap 'stty size' WINCH; echo up; while :; do sleep 0.05; done"
#: More than the kernel's terminal and the link take together, in messages of both sizes that there may be.
PASTE = b"x" * 3_000_000


def until(pty: Pty, wanted: bytes) -> None:
    data = b""
    while wanted not in data:
        piece = pty.read()
        assert piece, data
        data += piece


def test_a_size_is_applied_at_once(sandbox: Sandbox) -> None:
    with sandbox.open_pty(DEAF) as pty:
        until(pty, b"up")
        pty.write(PASTE)
        for cols in (90, 91, 92):
            pty.resize(cols, 30)
            until(pty, f"30 {cols}".encode())
        with sandbox.open_pty(process=pty.process_id, cols=93, rows=31) as other:
            until(pty, b"31 93")
            other.resize(94, 32)
            until(other, b"32 94")


def test_who_leaves_is_noticed(sandbox: Sandbox) -> None:
    with sandbox.open_pty(DEAF, linger=0.1) as pty:
        until(pty, b"up")
        pty.write(PASTE)
    assert sandbox.wait_for_exit(pty.process_id, timeout=100).met


def test_nothing_of_a_paste_is_lost(sandbox: Sandbox) -> None:
    """Far over what may wait: the connection waits for the program then, as a terminal does."""
    line = "stty raw -echo; echo up; head -c 12000000 | sha256sum"
    with sandbox.open_pty(line) as pty:
        until(pty, b"up")
        data = os.urandom(12_000_000)
        pty.write(data)
        until(pty, hashlib.sha256(data).hexdigest().encode())


def test_a_person_at_a_shell(daemon: Daemon, sandbox: Sandbox) -> None:
    person = Person(daemon, "--id", "unread", sandbox.id, "--", "sh", "-c", DEAF)
    person.until(b"up")
    for _ in range(100):
        person.type(b"x" * 4000)
    fcntl.ioctl(person.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    os.kill(person.process.pid, signal.SIGWINCH)
    person.until(b"33 99")
    sandbox.remove_process("unread")
    person.leave()
