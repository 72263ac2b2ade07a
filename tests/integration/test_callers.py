"""Who calls over the unix socket, as the kernel says it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.daemon import Daemon

pytestmark = pytest.mark.real

#: Prints the status of an answer, or why there was none.
PROGRAM = """
import os, socket, sys
number, uid, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with socket.socket(socket.AF_UNIX) as sock:
    if uid:
        os.chmod(path, 0o666)
    os.chdir(os.path.dirname(path))  # what is above may be for root alone
    os.setgroups(range(100_000, 100_000 + number))
    os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
    sock.connect(os.path.basename(path))
    sock.sendall(b"GET /v1/sandboxes HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
    print(sock.recv(100).split(b" ")[1].decode())
"""


@pytest.mark.parametrize("number", [0, 1, 64, 65, 300, 65_536])
def test_a_caller_may_be_in_any_number_of_groups(daemon: Daemon, number: int) -> None:
    mode, above = daemon.socket.stat().st_mode, daemon.socket.parent.stat().st_mode
    daemon.socket.parent.chmod(0o755)
    try:
        for uid, status in ((0, "200"), (54_321, "403")):
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, str(number), str(uid), str(daemon.socket)],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert (done.stdout, done.stderr) == (f"{status}\n", "")
    finally:
        os.chmod(daemon.socket, mode & 0o7777)
        daemon.socket.parent.chmod(above & 0o7777)


@pytest.mark.parametrize("number", [0, 64, 65, 257, 65_536])
def test_every_group_is_seen(number: int) -> None:
    program = (
        "import os, socket; from sandboxd.api.access import identify\n"
        f"os.setgroups(range(7, 7 + {number})); os.setresuid(5, 5, 5); ours, theirs = socket.socketpair()\n"
        f"print(identify(ours).groups == frozenset(range(7, 7 + {number})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"
