"""HTTP over a unix socket with the standard library: the same thin client for sandboxd's API and docker's."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

from bench.contender import Unavailable


class UnixConnection(http.client.HTTPConnection):
    """One kept-alive connection."""

    def __init__(self, path: str, timeout_s: float = 60) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def ask(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - anything that JSON holds
        """Send JSON and return the answer's.

        Raises:
            Unavailable: the answer is an error.
        """
        response = self.open(method, path, body)
        data = response.read()
        return json.loads(data) if data else None

    def open(self, method: str, path: str, body: object = None, raw: bytes | None = None) -> http.client.HTTPResponse:
        """Send a request and return the answer, unread.

        Raises:
            Unavailable: the answer is an error, or none.
        """
        data = raw if body is None else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": "application/json" if raw is None else "application/x-tar"}
        try:
            self.request(method, path, data, headers)
            response = self.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unavailable(f"{method} {path.partition('?')[0]}: {error}") from error
        if response.status >= 400:
            raise Unavailable(f"{method} {path.partition('?')[0]}: {response.status} {response.read()[:300].decode()}")
        return response
