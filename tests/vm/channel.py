"""The host's end of the machine's virtio-serial port: run a command there, feed it, read what comes.

The frames are those of recipes/machine/files/usr/local/lib/vm/agent.py.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

HEADER = struct.Struct(">cI")
MAX_FRAME = 1 << 20
CHUNK = 32768


class MachineGone(Exception):
    """The machine ended, or says nothing any more."""


class Channel:
    """One connection to the agent of a machine."""

    def __init__(self, path: str, pidfd: int) -> None:
        self._pidfd = pidfd
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path = path

    def connect(self, deadline: float) -> dict[str, Any]:
        """Wait until the machine is up; return what its agent says of itself; raises MachineGone."""
        while True:
            try:
                self._socket.connect(self._path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                self._wait_for_the_end(deadline, 0.05)
        kind, payload = self.frame(deadline)
        assert kind == b"H", kind
        return dict(json.loads(payload))

    def _wait_for_the_end(self, deadline: float, seconds: float) -> None:
        if select.select([self._pidfd], [], [], seconds)[0]:
            raise MachineGone("the machine ended")
        if time.monotonic() > deadline:
            raise MachineGone("the machine's port is not there")

    def frame(self, deadline: float, also: int | None = None) -> tuple[bytes, bytes]:
        """Return the next frame, or (b"", b"") when the descriptor `also` can be read first.

        Raises:
            MachineGone: the machine ended, or `deadline` (of time.monotonic) is over.
        """
        while True:
            if len(self._received) >= HEADER.size:
                kind, length = HEADER.unpack_from(self._received)
                if length > MAX_FRAME:
                    raise MachineGone(f"its agent sent a frame of {length} bytes")
                if len(self._received) >= HEADER.size + length:
                    payload = self._received[HEADER.size : HEADER.size + length]
                    self._received = self._received[HEADER.size + length :]
                    return kind, payload
            watched: list[Any] = [self._socket, self._pidfd] + ([also] if also is not None else [])
            ready, _, _ = select.select(watched, [], [], max(0.0, deadline - time.monotonic()))
            if self._socket in ready:
                try:
                    data = self._socket.recv(1 << 16)
                except ConnectionResetError:
                    data = b""
                if not data:
                    raise MachineGone("the machine's port was closed")
                self._received += data
            elif self._pidfd in ready:
                raise MachineGone("the machine ended")
            elif not ready:
                raise MachineGone("no answer in time")
            else:
                return b"", b""

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        """Send one frame."""
        self._socket.sendall(HEADER.pack(kind, len(payload)) + payload)

    def start(
        self,
        argv: Sequence[str],
        *,
        cwd: str = "/",
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = b"",
        terminal: tuple[int, int] | None = None,
    ) -> None:
        """Start a command with all of its stdin; None leaves stdin open for `feed`."""
        request = {"argv": list(argv), "cwd": cwd, "env": dict(env or {}), "pty": terminal}
        self.send(b"R", json.dumps(request).encode())
        if stdin is not None:
            for begin in range(0, len(stdin), CHUNK):
                self.send(b"I", stdin[begin : begin + CHUNK])
            self.send(b"I")

    def feed(self, data: bytes) -> None:
        """Send some of the running command's stdin."""
        self.send(b"I", data)

    def signal(self, number: int) -> None:
        """Signal the running command's process group."""
        self.send(b"S", json.dumps(int(number)).encode())

    def events(self, deadline: float) -> Iterator[tuple[bytes, bytes]]:
        """Yield a started command's frames; the last is X."""
        kind = b""
        while kind != b"X":
            kind, payload = self.frame(deadline)
            yield kind, payload

    def run(
        self, argv: Sequence[str], *, timeout: float, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Run a command to its end; return its status (negative: by that signal) and what it wrote."""
        self.start(argv, stdin=stdin, env=env)
        output = bytearray()
        for kind, payload in self.events(time.monotonic() + timeout):
            if kind == b"O":
                output += payload
            elif kind == b"X":
                return int(json.loads(payload)["status"]), bytes(output)
        raise AssertionError("events end with X")

    def close(self) -> None:
        """Leave; the agent ends what it runs."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`."""
    while data:
        data = data[os.write(fd, data) :]
