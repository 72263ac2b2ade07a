"""Waits for ports: what init does where it has no descriptors to spare."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from sandboxd.guest.waiting import GOOD_STATUSES, PortWaits
from sandboxd.linux.eventloop import READ, EventLoop
from sandboxd.linux.sockdiag import ListenerQuery


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    loop.open()
    yield loop
    loop.close()


def test_a_probe_without_descriptors_is_tried_again(loop: EventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a timer's: init would end of it, and the sandbox with init."""
    real, refused = socket.socket, 0

    def scarce(*given: Any, **named: Any) -> socket.socket:
        nonlocal refused
        if refused < 2:
            refused += 1
            raise OSError(errno.EMFILE, "no descriptors")
        return real(*given, **named)

    with socket.create_server(("127.0.0.1", 0)) as server:
        waits, met, kept = PortWaits(loop), list[int | None](), list[socket.socket]()
        waits._query = ListenerQuery()
        monkeypatch.setattr(socket, "socket", scarce)
        waits.add(server.getsockname()[1], "/", met.append, GOOD_STATUSES)

        def answer() -> None:
            kept.append(server.accept()[0])
            kept[-1].sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        loop.watch(server.fileno(), READ, answer)
        loop.run_while(lambda: not met, 5)
        loop.unwatch(server.fileno())
        for connection in kept:
            connection.close()
        assert (refused, met) == (2, [200])
