"""What tests of previews share: a service inside a sandbox, and a client that says exactly what it is told."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import struct
import urllib.parse
from typing import Any

from sandboxd import Sandbox
from sandboxd.client import ExposedPort

SERVICE = pathlib.Path(__file__).with_name("service.py").read_bytes()


def start_service(sandbox: Sandbox, port: int, host: str = "127.0.0.1") -> str:
    """Run the service and return its process's id once it listens."""
    sandbox.write_file("/srv/service.py", SERVICE)
    process = sandbox.start_process(["python3", "/srv/service.py", str(port), host])
    assert sandbox.wait_for_log(process.id, "listening", timeout=20).met
    return process.id


class Visitor:
    """A connection to the proxy on behalf of one preview."""

    def __init__(self, url: str | ExposedPort, timeout: float = 15.0) -> None:
        parts = urllib.parse.urlsplit(url if isinstance(url, str) else url.url)
        self.host = parts.netloc
        self.sock = socket.create_connection(("127.0.0.1", parts.port or 80), timeout=timeout)
        self.buffer = b""
        self.trailers: list[str] = []

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def ask(
        self, target: str = "/", method: str = "GET", body: bytes = b"", *rows: str, host: str | None = None
    ) -> None:
        """Send a request with the given header rows; a body gets its length."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host or self.host}", *rows]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join([*lines, "", ""]).encode() + body)

    def until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            data = self.sock.recv(1 << 16)
            if not data:
                raise EOFError(self.buffer)
            self.buffer += data
        head, self.buffer = self.buffer.split(mark, 1)
        return head

    def take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            data = self.sock.recv(1 << 20)
            if not data:
                raise EOFError(self.buffer)
            self.buffer += data
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def head(self) -> tuple[int, dict[str, str]]:
        """Return a response's status and headers."""
        line, *rows = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        pairs = [row.partition(":") for row in rows]
        return int(line.split(" ")[1]), {name.lower(): value.strip() for name, _, value in pairs}

    def answer(self, *, is_head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Return a whole response."""
        status, headers = self.head()
        if is_head or status in (204, 304):
            return status, headers, b""
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while piece := self.chunk():
                body += piece
            return status, headers, body
        return status, headers, self.take(int(headers["content-length"]))

    def chunk(self) -> bytes:
        """Return the next chunk, empty at the end; `trailers` are the rows after it."""
        size = int(self.until(b"\r\n"), 16)
        if not size:
            self.trailers = []
            while row := self.until(b"\r\n"):
                self.trailers.append(row.decode("latin-1"))
            return b""
        data = self.take(size)
        assert self.take(2) == b"\r\n"
        return data

    def rest(self) -> bytes:
        """Return what comes until the other side closes."""
        try:
            while data := self.sock.recv(1 << 16):
                self.buffer += data
        except ConnectionResetError:
            pass
        return self.buffer

    def is_closed(self) -> bool:
        """Whether the other side closes without another word."""
        return self.rest() == b""


def ask(url: str | ExposedPort, target: str = "/", *rows: str, **options: Any) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own."""
    with Visitor(url) as visitor:
        visitor.ask(target, options.pop("method", "GET"), options.pop("body", b""), *rows, **options)
        return visitor.answer()


def echoed(url: str | ExposedPort, target: str = "/", *rows: str, **options: Any) -> dict[str, Any]:
    """Return what the service says that it was asked."""
    status, _, body = ask(url, target, *rows, **options)
    assert status == 200, body
    told: dict[str, Any] = json.loads(body)
    return told


def kind_of(body: bytes) -> str:
    return str(json.loads(body)["kind"])


def websocket_frame(opcode: int, data: bytes) -> bytes:
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[n % 4] for n, byte in enumerate(data))
    size = bytes([0x80 | len(data)]) if len(data) < 126 else bytes([0xFE]) + struct.pack("!H", len(data))
    return bytes([0x80 | opcode]) + size + mask + masked
