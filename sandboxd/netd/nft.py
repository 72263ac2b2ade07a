"""Runs nft: here, or in the router's namespace by a process that is in there (`-m sandboxd.netd.nft`).

What nft reads is a file in memory, never a pipe: of a pipe whose writer was killed it would take the part that it got
for all of it. And it ends with whoever called it, so that what it was told is never done after a successor's.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from typing import Final

import prctl

from .. import stdio

_NFT: Final = "/usr/sbin/nft"
_TIMEOUT_S: Final = 60.0
_MAX_ERROR: Final = 400


def run(commands: str) -> tuple[str, int]:
    """Run commands in one transaction, here; return why they were refused, or nothing, and nft's pid."""
    if not commands:
        return "", 0
    fd = os.memfd_create("commands")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(commands.encode())
        return run_file(fd)
    finally:
        os.close(fd)


def run_file(fd: int) -> tuple[str, int]:
    """Run the commands in a file."""
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        with subprocess.Popen(
            [_NFT, "-f", "-"],
            stdin=fd,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={},
            preexec_fn=_end_with_caller,  # noqa: PLW1509 - there is one thread
        ) as process:
            try:
                _, said = process.communicate(timeout=_TIMEOUT_S)
            except subprocess.TimeoutExpired as error:
                process.kill()
                return f"nft: {error}", process.pid
    except OSError as error:
        return f"nft: {error}", 0
    refused = said.decode(errors="replace").strip()[:_MAX_ERROR] or f"nft ended with status {process.returncode}"
    return (refused if process.returncode else ""), process.pid


def _end_with_caller() -> None:
    prctl.set_pdeathsig(signal.SIGKILL)


class Remote:
    """Runs nft by the process behind a socket.

    Raises:
        OSError: that process is gone.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._connection.settimeout(_TIMEOUT_S + 5)

    def run(self, commands: str) -> str:
        """Run commands in one transaction; return why they were refused, or nothing."""
        if not commands:
            return ""
        fd = os.memfd_create("commands")
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(commands.encode())
            socket.send_fds(self._connection, [b"run"], [fd])
        finally:
            os.close(fd)
        answer = self._connection.recv(_MAX_ERROR * 4)
        if not answer.startswith(b"."):
            raise ConnectionResetError(f"the process that runs nft for the router is gone: {answer.decode()}")
        return answer[1:].decode(errors="replace")


def main() -> None:
    """Run what is asked for over descriptor 3 until its other end is closed.

    It needs no event loop: there is one connection, and whoever asks waits for the answer before asking again.
    """
    stdio.open_standard()
    connection = socket.socket(fileno=3)
    while True:
        message, fds, _, _ = socket.recv_fds(connection, 64, 1)
        if not message:
            return
        refused = run_file(fds[0])[0]
        os.close(fds[0])
        connection.send(b"." + refused.encode())


if __name__ == "__main__":
    main()
