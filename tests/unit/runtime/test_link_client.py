"""The daemon's side of a link: what becomes of descriptors that it wanted to pass on."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from sandboxd.errors import SandboxdError, SandboxGone, ServerBusy
from sandboxd.runtime import link_client
from sandboxd.runtime.link_client import HIGH_WATER, LinkClient


@pytest.fixture
async def pair() -> AsyncIterator[tuple[LinkClient, socket.socket]]:
    """A client, and the other end of its socket, which answers nothing."""
    ours, theirs = socket.socketpair()
    client = LinkClient(ours, "a test")
    with theirs:
        yield client, theirs
        client.abort(SandboxGone("the test is over"))


def pipe_end() -> tuple[int, select.poll]:
    """Return the writing end of a pipe, and what hears of its last close."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    poll = select.poll()
    poll.register(reader, select.POLLHUP)
    return writer, poll


def is_closed(poll: select.poll) -> bool:
    return bool(poll.poll(5000))


async def test_what_cannot_be_asked_closes_what_was_to_be_passed(pair: tuple[LinkClient, socket.socket]) -> None:
    client, _ = pair
    client.abort(SandboxGone("it is gone"))
    writer, poll = pipe_end()
    with pytest.raises(SandboxGone):
        await client.request("enter", {}, passing=[writer])
    assert is_closed(poll)


async def test_too_many_open_requests_close_what_was_to_be_passed(
    pair: tuple[LinkClient, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = pair
    monkeypatch.setattr(link_client, "MAX_CALLS", 1)
    client.begin("ping", {})
    writer, poll = pipe_end()
    with pytest.raises(ServerBusy):
        await client.request("enter", {}, passing=[writer])
    assert is_closed(poll)


async def test_a_caller_that_leaves_a_full_queue_closes_what_was_to_be_passed(
    pair: tuple[LinkClient, socket.socket],
) -> None:
    client, _ = pair
    client.begin("stdin", {"data": bytes(HIGH_WATER + (1 << 20))})
    writer, poll = pipe_end()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: client.request("enter", {}, passing=[writer]))
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert is_closed(poll)


async def test_what_was_queued_goes_with_the_connection(pair: tuple[LinkClient, socket.socket]) -> None:
    client, _ = pair
    client.begin("stdin", {"data": bytes(HIGH_WATER // 2)})
    writer, poll = pipe_end()
    client.begin("enter", {}, passing=[writer])
    assert client.statistics()["queued_bytes"] > 0
    assert not poll.poll(0)
    client.abort(SandboxGone("it is gone"))
    assert is_closed(poll)
    with pytest.raises(SandboxdError):
        client.begin("ping", {})
