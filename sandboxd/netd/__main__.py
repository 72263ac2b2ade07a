"""`python -I -B -m sandboxd.netd`: the launcher starts it, with its socket as descriptor 3."""

from __future__ import annotations

import socket

from .. import stdio
from .server import SOCKET_FD, Server


def main() -> None:
    """Say that everything is loaded, and serve."""
    stdio.open_standard()
    connection = socket.socket(fileno=SOCKET_FD)
    connection.send(b"ready")
    Server(connection).run()


if __name__ == "__main__":
    main()
