"""What a real daemon holds for its callers, and what it gives back."""

from __future__ import annotations

import http.client
import json
import pathlib
import socket
from typing import Any

import pytest

from sandboxd.client import Sandbox
from sandboxd.runtime import budget
from tests.support.daemon import Daemon
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]

MIB = 1 << 20
#: How much more than before the daemon may hold once its callers are gone.
ALLOWED = 100 * MIB
#: Three results of 9 MiB: five contexts with such a run hold 135 MiB.
RICH = "from IPython.display import HTML, display\nfor _ in range(3): display(HTML('x' * (9 << 20)))"


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: pathlib.Path) -> None:
        super().__init__("sandboxd", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(120)
        self.sock.connect(str(self._path))


def ask(daemon: Daemon, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes, int]:
    """Return the status, the beginning and the size of an answer, of which no more is kept."""
    link = _Unix(daemon.socket)
    try:
        link.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
        response = link.getresponse()
        head, size = b"", 0
        while piece := response.read(MIB):
            head, size = head or piece, size + len(piece)
        return response.status, head, size
    finally:
        link.close()


def resident(daemon: Daemon) -> int:
    assert daemon.process
    status = pathlib.Path(f"/proc/{daemon.process.pid}/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


def test_a_storm_of_large_answers_leaves_little_behind(own_daemon: Daemon) -> None:
    with own_daemon.client() as client:
        sandbox = Sandbox.create(name="box", client=client)
        sandbox.exec("true")
        before = resident(own_daemon)
        # 64 MiB of what JSON has six bytes for, in two streams.
        command = r"head -c 33554432 /dev/zero | tr '\0' '\1' | tee /dev/stderr"
        status, head, size = ask(own_daemon, "POST", "/cloudflare/sandboxes/box/api/execute", {"command": command})
        assert (status, head[:15]) == (200, b'{"success":true')
        assert size > 6 * 64 * MIB
        wait_until(lambda: resident(own_daemon) < before + ALLOWED)
        status, _, size = ask(own_daemon, "POST", "/v1/sandboxes/box/exec", {"command": command})
        assert (status, size > 6 * 16_000_000) == (200, True)
        runs = []
        for _ in range(5):
            context = json.loads(ask(own_daemon, "POST", "/v1/sandboxes/box/contexts", {})[1])["id"]
            path = f"/v1/sandboxes/box/contexts/{context}"
            status, head, size = ask(own_daemon, "POST", f"{path}/run", {"code": RICH})
            assert (status, size > 27 * MIB) == (200, True)
            runs.append(f"{path}/runs/{json.loads(_first_field(head))['id']}")
        # They are kept to be followed again while there is room; the oldest went, and is told to be gone.
        assert [ask(own_daemon, "GET", path)[0] for path in (runs[0], runs[-1])] == [404, 200]
        wait_until(lambda: resident(own_daemon) < before + ALLOWED)
        assert budget.SHARE_BYTES < ALLOWED
        sandbox.destroy()
        wait_until(lambda: resident(own_daemon) < before + ALLOWED // 3)


def _first_field(head: bytes) -> bytes:
    return head.partition(b",")[0] + b"}"
