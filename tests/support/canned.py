"""A raw HTTP server that answers with what a test gives it: for daemons that are hostile, broken or of another version.

It knows no route and no rule of the API; what does comes from the real application (`local_daemon.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import h11

from sandboxd.errors import SandboxdError
from sandboxd.wire import raw

PNG = (
    b"\x89PNG\r\n\x1a\n" + bytes([0, 0, 0, 13]) + b"IHDR" + bytes([0, 0, 3, 32, 0, 0, 2, 88]) + bytes(20) + b"IEND...."
)


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    target: str
    body: bytes

    @property
    def path(self) -> list[str]:
        """The parts of its path below `/v1`."""
        return [unquote(part) for part in urlsplit(self.target).path.split("/")[2:]]

    @property
    def query(self) -> dict[str, str]:
        """Its query; the first of each name."""
        return {name: values[0] for name, values in parse_qs(urlsplit(self.target).query).items()}

    @property
    def json(self) -> Any:
        """What its body says."""
        return json.loads(self.body)


class Cut(bytes):
    """An answer behind which the connection is closed, wherever it is."""


class CannedServer:
    """Answers every request with the bytes that `answer` returns; `requests` has what was asked."""

    def __init__(self, path: Path, answer: Callable[[Asked], bytes]) -> None:
        self.url = f"unix://{path}"
        self.answer = answer
        self.requests: list[Asked] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._threads = [threading.Thread(target=self._accept)]
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            self._open.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while (asked := _next_request(connection)) is not None:
                self.requests.append(asked)
                answer = self.answer(asked)
                connection.sendall(answer)
                if isinstance(answer, Cut):
                    connection.shutdown(socket.SHUT_RDWR)
                    return


def _next_request(connection: socket.socket) -> Asked | None:
    server = h11.Connection(h11.SERVER)
    method = target = ""
    body = bytearray()
    while True:
        event = server.next_event()
        if event is h11.NEED_DATA:
            server.receive_data(connection.recv(1 << 16))
        elif isinstance(event, h11.Request):
            method, target = event.method.decode(), event.target.decode()
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return Asked(method, target, bytes(body))
        else:
            return None


# --- answers -----------------------------------------------------------------------------------------------


def plain(status: int, body: bytes = b"", content_type: str = "application/json") -> bytes:
    """Return an answer."""
    length = "" if status == 204 else f"Content-Length: {len(body)}\r\n"
    return f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\n{length}\r\n".encode() + body


def json_answer(status: int, value: Any) -> bytes:
    """Return an answer in JSON."""
    return plain(status, json.dumps(value).encode())


def problem_answer(error: SandboxdError) -> bytes:
    """Return the answer that tells of an error."""
    value = {"type": "about:blank", "title": error.kind, "status": error.status, "detail": str(error)}
    body = json.dumps({**value, "kind": error.kind, **error.facts}).encode()
    return plain(error.status, body, "application/problem+json")


def stream_answer(*pieces: bytes, ends: bool = True) -> bytes:
    """Return the answer to an exec, in chunks; one that does not end is cut."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nSandboxd-Process: p\r\n"
    chunks = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces if piece)
    whole = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    return whole + b"0\r\n\r\n" if ends else Cut(whole)


def exit_frame(**fields: Any) -> bytes:
    """Return the frame that ends a command's stream."""
    return raw.encode(raw.EXIT, json.dumps(exit_event(**fields)).encode())


# --- objects -----------------------------------------------------------------------------------------------


def sandbox_object(number: int, **fields: Any) -> dict[str, Any]:
    """Return a sandbox as the API shows one."""
    base: dict[str, Any] = {
        "id": f"{number:020d}",
        "name": None,
        "state": "running",
        "rootfs": "default",
        "cwd": "/workspace",
        "user": "root",
        "env": {},
        "limits": {"memory_bytes": 1 << 30, "cpus": 2.0, "pids": 100, "disk_bytes": 1 << 30},
        "network": {"mode": "none"},
        "seccomp": "default",
        "labels": {},
        "unenforced": [],
        "created_at": "2026-01-02T03:04:05.678Z",
    }
    return base | {key: value for key, value in fields.items() if value is not None}


def exit_event(**fields: Any) -> dict[str, Any]:
    """Return how a command ended as the API shows it."""
    base: dict[str, Any] = {
        "offset": 9,
        "time": 1.5,
        "exit_code": 0,
        "signal": None,
        "duration_s": 0.25,
        "timed_out": False,
        "oom_killed": False,
        "truncated": False,
        "usage": {"cpu_s": 0.125, "memory_peak_bytes": 4096},
        "reason": "exit",
    }
    return base | fields
