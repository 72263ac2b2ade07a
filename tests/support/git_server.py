"""Git servers for tests and benchmarks: `git http-backend` behind a real HTTP server, and `git daemon`.

`HttpServer` listens on a socket that the caller may have made elsewhere (in a sandbox's network), and runs the CGI
program `git http-backend` for each request, as any web server does; basic authentication and ways to misbehave are
its own. It serves from threads of its own: what uses it may block or run trio.
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

GIT_ENV = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}


class HttpServer:
    """Serves the bare repositories under `root`.

    Attributes:
        hits: the request lines that came, with the value of their Authorization header.
        answer: asked first for each request; returns True when it has answered (or hung) by itself.
    """

    def __init__(
        self,
        root: Path,
        *,
        sock: socket.socket | None = None,
        login: tuple[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.root = root
        self.login = login
        self.hits: list[tuple[str, str | None]] = []
        self.answer: Callable[[http.server.BaseHTTPRequestHandler], bool] | None = None
        self.stopped = threading.Event()
        outer = self

        class Handler(_Handler):
            server_facts = outer

        self._server = _Quiet(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._server.socket.close()
        self._server.socket = sock or socket.create_server(("127.0.0.1", 0))
        self.port = self._server.socket.getsockname()[1]
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def url(self) -> str:
        """The address that repositories are under."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> HttpServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()


class _Quiet(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that go away are part of the tests."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server_facts: HttpServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        facts = self.server_facts
        facts.hits.append((self.requestline, self.headers.get("Authorization")))
        if facts.answer is not None and facts.answer(self):
            return
        if facts.login is not None:
            token = base64.b64encode(":".join(facts.login).encode()).decode()
            if self.headers.get("Authorization") != f"Basic {token}":
                self._plain(401, b"who are you?", {"WWW-Authenticate": 'Basic realm="git"'})
                return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._cgi()

    def _plain(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _cgi(self) -> None:
        path, _, query = self.path.partition("?")
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else b"".join(self._chunks())
        environment = GIT_ENV | {
            "GIT_PROJECT_ROOT": str(self.server_facts.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_ADDR": "127.0.0.1",
        }
        if self.server_facts.login:
            environment["REMOTE_USER"] = self.server_facts.login[0]
        program = subprocess.Popen(
            ["git", "http-backend"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert program.stdin is not None
        assert program.stdout is not None
        with program:
            program.stdin.write(body)
            program.stdin.close()
            self._relay(program.stdout)

    def _chunks(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _relay(self, out: object) -> None:
        status, headers = 200, []
        while line := out.readline().strip():  # type: ignore[attr-defined]
            name, _, value = line.decode().partition(": ")
            if name == "Status":
                status = int(value.split()[0])
            else:
                headers.append((name, value))
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while data := out.read1(65536):  # type: ignore[attr-defined]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")


@contextlib.contextmanager
def git_daemon(root: Path, *, sock: socket.socket | None = None) -> Iterator[str]:
    """Run `git daemon` over the repositories under `root`; gives their common address."""
    listener = sock or socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    serving = threading.Thread(target=_inetd, args=(listener, root), daemon=True)
    serving.start()
    try:
        yield f"git://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        serving.join(5)


def _inetd(listener: socket.socket, root: Path) -> None:
    with contextlib.ExitStack() as stack:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                program = subprocess.Popen(
                    ["git", "daemon", "--inetd", "--export-all", f"--base-path={root}"],
                    stdin=connection.fileno(),
                    stdout=connection.fileno(),
                    stderr=subprocess.DEVNULL,
                    env=GIT_ENV | {"REMOTE_ADDR": "127.0.0.1"},
                )
            stack.callback(program.wait)
            stack.callback(program.terminate)


if __name__ == "__main__":
    import sys

    with HttpServer(Path(sys.argv[1])) as serving:
        print(serving.url, flush=True)
        os.read(0, 1)
