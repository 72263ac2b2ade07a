"""A bare HTTP connection, for what no well-behaved client would send."""

from __future__ import annotations

import json
import select
import socket
from types import TracebackType
from typing import Any, Self

import h11

TIMEOUT_S = 30.0


class Answer:
    """One answer, read whole."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def __repr__(self) -> str:
        return f"<Answer {self.status} {self.body[:200]!r}>"

    @property
    def problem(self) -> dict[str, Any]:
        """The problem object, after a look at its form."""
        assert self.headers["content-type"] == "application/problem+json", self
        found: dict[str, Any] = json.loads(self.body)
        assert found["status"] == self.status
        return found


class Rude:
    """One connection over the unix socket (a path) or TCP (host and port); sends whatever bytes it is given."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        self.socket = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        if not isinstance(address, str):
            self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(address)  # over the unix socket without a timeout: with one, a full backlog is an error
        self.socket.settimeout(TIMEOUT_S)
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send all; a daemon that closes meanwhile is no error, its answer is what counts."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> None:
        """Send one well-formed request."""
        content = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(content)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join([*lines, "", ""]).encode() + content)

    def answer(self) -> Answer:
        """Read the next answer; what came behind it stays for the one after."""
        client = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(self._received) if self._received else None
        response, body = None, bytearray()
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA:
                client.receive_data(self.socket.recv(1 << 20))
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                assert isinstance(event, h11.InformationalResponse), event
        self._received = client.trailing_data[0]
        assert response
        headers = {name.decode(): value.decode() for name, value in response.headers}
        return Answer(response.status_code, headers, bytes(body))

    def receive(self, size: int = 1 << 20) -> bytes:
        """Read some bytes as they are."""
        return self.socket.recv(size)

    def is_closed(self) -> bool:
        """Wait until the daemon has closed, or said something."""
        select.select([self.socket], [], [], TIMEOUT_S)
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except ConnectionResetError:
            return True
