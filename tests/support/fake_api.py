"""A small daemon for the tests of the SDK and the command line: real HTTP on a unix socket, no sandbox.

Commands run as plain processes of this machine, so that standard input, exit statuses and disconnects are real;
a command that begins with `@` plays a script instead (a broken stream, a problem, …).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import selectors
import signal
import socket
import socketserver
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from sandboxd import errors
from sandboxd.wire import raw

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STATUS = {"sandbox-not-found": 404, "file-not-found": 404, "name-taken": 409, "unauthenticated": 401}
PNG = (
    b"\x89PNG\r\n\x1a\n" + bytes([0, 0, 0, 13]) + b"IHDR" + bytes([0, 0, 3, 32, 0, 0, 2, 88]) + bytes(20) + b"IEND...."
)


def sandbox_object(number: int, **fields: Any) -> dict[str, Any]:
    base = {
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
    base = {
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


class FakeDaemon(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Holds what it was told; `ended` gets (process id, whether the client left) for each command."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Handler)
        self.url = f"unix://{path}"
        self.token: str | None = None
        self.sandboxes: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ended: queue.Queue[tuple[str, bool]] = queue.Queue()
        self.scripts: dict[str, Callable[[Handler], None]] = {}
        self.before_create: Callable[[], object] = lambda: None
        self.page_size = 100
        self.lock = threading.Lock()
        self.count = 0

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def find(self, key: str) -> dict[str, Any]:
        for found in self.sandboxes.values():
            if key in (found["id"], found["name"]):
                return found
        raise errors.SandboxNotFound(f"cannot find sandbox {key!r}: there is none", id=key)

    def handle_error(self, *_: object) -> None:
        """A client that left is what the tests do."""


class Handler(BaseHTTPRequestHandler):
    server: FakeDaemon
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = False
    body: bytes = b""

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.dispatch()

    do_POST = do_PUT = do_DELETE = do_GET

    # --- plumbing

    def dispatch(self) -> None:
        parts = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        path = [unquote(part) for part in parts.path.split("/")[2:]]
        try:
            if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
                raise errors.Unauthenticated("cannot serve the request: no valid token came with it")
            self.body = self.read_body()
            is_json = self.headers.get("Content-Type") == "application/json"
            self.server.requests.append((self.command, self.path, json.loads(self.body) if is_json else self.body))
            self.route(path)
        except errors.SandboxdError as error:
            self.problem(error)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def answer(self, status: int, body: bytes = b"", content_type: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def json(self, status: int, value: Any) -> None:
        self.answer(status, json.dumps(value).encode())

    def problem(self, error: errors.SandboxdError) -> None:
        status = STATUS.get(error.kind, 400)
        value = {"type": "about:blank", "title": error.kind, "status": status, "detail": str(error), "kind": error.kind}
        self.answer(status, json.dumps(value | error.facts).encode(), "application/problem+json")

    # --- routes

    def route(self, path: list[str]) -> None:
        match self.command, path:
            case "GET", ["health"]:
                self.json(200, {"status": "ok"})
            case "GET", ["info"]:
                self.json(200, {"version": "9.9.9", "sandboxes": len(self.server.sandboxes), "nested": {"a": [1, 2]}})
            case "GET", ["metrics"]:
                self.answer(200, f"of_sandboxes {self.query['sandboxes']}\n".encode(), "text/plain")
            case "POST", ["sandboxes"]:
                self.create(json.loads(self.body or b"{}"))
            case "GET", ["sandboxes"]:
                start, size = int(self.query.get("cursor", 0)), self.server.page_size
                items = list(self.server.sandboxes.values())
                following = str(start + size) if start + size < len(items) else None
                self.json(200, {"items": items[start : start + size], "next": following})
            case "GET", ["sandboxes", key]:
                self.json(200, self.server.find(key))
            case "DELETE", ["sandboxes", key]:
                del self.server.sandboxes[self.server.find(key)["id"]]
                self.answer(204)
            case "POST", ["sandboxes", key, "exec"]:
                self.server.find(key)
                self.exec(json.loads(self.body))
            case _, ["sandboxes", key, "processes", process, *rest]:
                self.server.find(key)
                self.stdin(process, rest)
            case "GET", ["sandboxes", key, "files", "stat"]:
                self.server.find(key)
                raise errors.FileNotFound("cannot look at it: there are no directories here")
            case _, ["sandboxes", key, "files"]:
                self.server.find(key)
                self.file(self.query["path"])
            case _:
                raise errors.RouteNotFound("cannot find the path")

    def create(self, fields: dict[str, Any]) -> None:
        self.server.before_create()
        with self.server.lock:
            if any(found["name"] == fields.get("name") for found in self.server.sandboxes.values() if found["name"]):
                raise errors.NameTaken("cannot create the sandbox: the name is taken", name=fields["name"])
            self.server.count += 1
            made = sandbox_object(self.server.count, **fields)
            self.server.sandboxes[made["id"]] = made
        self.json(201, made)

    def file(self, path: str) -> None:
        if self.command == "PUT":
            status = 200 if path in self.server.files else 201
            self.server.files[path] = self.body
            self.json(status, {"path": path, "size": len(self.body)})
        elif path not in self.server.files:
            raise errors.FileNotFound(f"cannot read {path}: there is no such file", path=path)
        else:
            self.answer(200, self.server.files[path], "application/octet-stream")

    def stdin(self, process: str, rest: list[str]) -> None:
        found = self.server.processes.get(process)
        if found is None or (found.stdin is None and rest != ["signal"]) or found.poll() is not None:
            raise errors.ProcessNotRunning("cannot write to the process: it has ended", id=process)
        try:
            if rest == ["signal"]:
                os.killpg(found.pid, json.loads(self.body)["signal"])
            elif rest == ["stdin", "close"]:
                found.stdin.close()
            else:
                found.stdin.write(self.body)
                found.stdin.flush()
        except (OSError, ValueError):
            raise errors.ProcessNotRunning("cannot write to the process: its input is closed") from None
        self.answer(204)

    # --- exec

    def begin(self, process: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Sandboxd-Process", process)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def end(self, **fields: Any) -> None:
        self.chunk(raw.encode(raw.EXIT, json.dumps(exit_event(**fields)).encode()))
        self.wfile.write(b"0\r\n\r\n")

    def exec(self, fields: dict[str, Any]) -> None:
        command = fields["command"]
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else command
        if argv[0].startswith("@"):
            self.server.scripts[argv[0]](self)
            return
        with self.server.lock:
            self.server.count += 1
            process = f"p{self.server.count}"
        stdin = fields.get("stdin")
        try:
            child = subprocess.Popen(
                argv,
                env={**os.environ, **fields.get("env", {})},
                cwd=fields.get("cwd"),
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError:
            self.begin(process)
            self.chunk(raw.encode(raw.STDERR, f"{argv[0]}: not found\n".encode()))
            self.end(exit_code=127)
            return
        self.server.processes[process] = child
        with child:
            if isinstance(stdin, str):
                data = base64.b64decode(stdin) if fields.get("encoding") == "base64" else stdin.encode()
                threading.Thread(target=self.feed, args=(child.stdin, data), daemon=True).start()
            self.begin(process)
            self.follow(process, child, fields.get("timeout_s"), detached=fields.get("detach", False))

    def feed(self, pipe: Any, data: bytes) -> None:
        with contextlib.suppress(OSError), pipe:
            pipe.write(data)

    def follow(self, process: str, child: subprocess.Popen[bytes], timeout: float | None, *, detached: bool) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        timed_out = left = False
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ, raw.STDOUT)
            selector.register(child.stderr, selectors.EVENT_READ, raw.STDERR)
            selector.register(self.connection, selectors.EVENT_READ, 0)
            while len(selector.get_map()) > 1 and not left:
                ready = selector.select(None if deadline is None else max(0, deadline - time.monotonic()))
                if not ready:
                    timed_out, deadline = True, None
                    os.killpg(child.pid, signal.SIGKILL)
                for key, _ in ready:
                    if key.data == 0:
                        left = True
                    elif data := os.read(key.fd, 65536):
                        left = left or not self.try_chunk(raw.encode(key.data, data))
                    else:
                        selector.unregister(key.fileobj)
        if left and not detached:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        code = child.wait()
        self.server.ended.put((process, left))
        if left:
            self.close_connection = True
            return
        name = signal.Signals(-code).name if code < 0 else None
        self.end(exit_code=None if code < 0 else code, signal=name, timed_out=timed_out)

    def try_chunk(self, data: bytes) -> bool:
        try:
            self.chunk(data)
        except OSError:
            return False
        return True

    def cut(self) -> None:
        """End the connection without ending the answer."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
