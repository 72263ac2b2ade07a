"""Large bodies go past h11 straight to their handler: whole, in order, and with what comes behind them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.support.fake_daemon import FakeDaemon, daemon_in


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[FakeDaemon]:
    async with daemon_in(tmp_path) as found:
        await found.create(name="box")
        yield found


@pytest.mark.own_server
@pytest.mark.parametrize("size", [65_536, 65_537, 131_072, 300_000, 7_654_321])
async def test_every_byte_arrives_and_the_next_request_is_answered(daemon: FakeDaemon, size: int) -> None:
    data = random.Random(size).randbytes(size)
    stream = await daemon.raw_connection()
    head = b"PUT /v1/sandboxes/box/files?path=/f HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
    behind = b"GET /v1/sandboxes/box/files?path=/f HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, head + data + behind)
        got = b""
        while piece := await stream.receive_some(1 << 20):
            got += piece
    assert got.startswith(b"HTTP/1.1 201")
    assert got.endswith(data)
    assert (daemon.init.tree / "f").read_bytes() == data
