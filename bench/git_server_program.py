"""A web server for `git http-backend`, run by the sandbox's own Python: `git_server_program.py PORT FOLDER`."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    """Runs the CGI program for each request. HTTP/1.0: the end of an answer is the end of its connection."""

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers["Content-Length"])))

    def _serve(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": sys.argv[2],
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        command = ["git", "http-backend"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as program:
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.write(body)
            program.stdin.close()
            self.wfile.write(b"HTTP/1.0 200 OK\r\n")
            while data := program.stdout.read1(65536):  # type: ignore[attr-defined]
                self.wfile.write(data)


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
