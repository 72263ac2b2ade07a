"""Frames and link states: chunking never matters, every bound holds, a broken peer is told apart from our own bug."""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import LocalProtocolError, RemoteProtocolError
from sandboxd.wire import framing, messages
from sandboxd.wire.link import MAX_OVERDRAFT, LinkConnection, Role, State
from sandboxd.wire.messages import Cancel, Credit, Event, Failure, Hello, Reply, Request

ids = st.integers(0, 2**40)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
tables = st.dictionaries(st.text(max_size=8), values, max_size=4)
some_messages = st.one_of(
    st.builds(Hello, ids),
    st.builds(Request, ids, st.text(max_size=10), tables),
    st.builds(Reply, ids, tables, st.integers(0, 2)),
    st.builds(Failure, ids, st.text(max_size=10), st.text(max_size=10), tables),
    st.builds(Event, ids, ids, st.floats(0, 1e10), st.text(max_size=8), st.binary(max_size=99) | tables),
    st.builds(Credit, ids, ids),
    st.builds(Cancel, ids),
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(st.lists(some_messages, max_size=5), st.lists(st.integers(0, 10_000), max_size=8))
def test_any_chunking_gives_the_same_messages(sent: list[messages.Message], cuts: list[int]) -> None:
    stream = b"".join(framing.encode(messages.to_array(m), limit=framing.MAX_REPLY_FRAME) for m in sent)
    decoder = framing.FrameDecoder(limit=framing.MAX_REPLY_FRAME)
    found = []
    for piece in pieces(stream, cuts):
        decoder.feed(piece)
        while (array := decoder.next_message()) is not None:
            found.append(messages.from_array(array))
    assert found == sent


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waited_for(data: bytes) -> None:
    decoder = framing.FrameDecoder(limit=1000)
    decoder.feed(data)
    try:
        while (array := decoder.next_message()) is not None:
            messages.from_array(array)
    except RemoteProtocolError:
        pass


@pytest.mark.parametrize(
    "array",
    [
        [],
        [99],
        [0],
        [0, "1"],
        [0, True],
        [0, -1],
        [1, 1, "op"],
        [1, 1, "op", []],
        [4, 1, 0, 1, "x", b""],
        [None, 1],
        ["0", 1],
    ],
)
def test_messages_of_the_wrong_shape_are_refused(array: list[Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        messages.from_array(array)


def test_a_frame_over_the_bound_is_our_bug_to_send_and_theirs_to_receive() -> None:
    with pytest.raises(LocalProtocolError):
        framing.encode([b"x" * 100], limit=50)
    decoder = framing.FrameDecoder(limit=50)
    decoder.feed(framing.encode([b"x" * 100], limit=1000))
    with pytest.raises(RemoteProtocolError):
        decoder.next_message()


def test_descriptors_are_owned_until_taken() -> None:
    read_end, write_end = os.pipe()
    decoder = framing.FrameDecoder(limit=50)
    decoder.feed(b"", [read_end, write_end])
    assert decoder.take_fds(1) == [read_end]
    with pytest.raises(RemoteProtocolError):
        decoder.take_fds(2)
    decoder.close()
    os.close(read_end)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(write_end)


def pair() -> tuple[LinkConnection, LinkConnection]:
    asker, answerer = LinkConnection(Role.ASKER), LinkConnection(Role.ANSWERER)
    answerer.receive(asker.greet())
    asker.receive(answerer.greet())
    return asker, answerer


def test_a_request_ends_once() -> None:
    asker, answerer = pair()
    assert answerer.receive(asker.send(Request(1, "ping", {}))) == [Request(1, "ping", {})]
    assert asker.receive(answerer.send(Reply(1, {}))) == [Reply(1, {})]
    with pytest.raises(RemoteProtocolError):
        asker.receive(answerer.send(Reply(1, {})))
    assert asker.state is State.ERROR
    with pytest.raises(LocalProtocolError):
        asker.send(Request(2, "ping", {}))


def test_a_stream_cannot_pass_its_credit() -> None:
    asker, answerer = pair()
    answerer.receive(asker.send(Request(1, "exec", {"credit": 1000})))
    event = Event(1, 0, 0.0, "stdout", b"x" * MAX_OVERDRAFT)
    assert len(asker.receive(answerer.send(event))) == 1
    answerer.receive(asker.send(Credit(1, event.cost)))
    assert len(asker.receive(answerer.send(Event(1, 1, 0.0, "stdout", b"x" * 1000)))) == 1
    with pytest.raises(RemoteProtocolError):
        asker.receive(answerer.send(Event(1, 2, 0.0, "stdout", b"x" * MAX_OVERDRAFT)))


def test_another_version_and_an_early_message_are_refused() -> None:
    for first in (Hello(messages.VERSION + 1), Reply(1, {})):
        with pytest.raises(RemoteProtocolError):
            LinkConnection(Role.ASKER).receive(framing.encode(messages.to_array(first), limit=100))


def test_each_role_sends_only_its_own() -> None:
    asker, answerer = pair()
    with pytest.raises(LocalProtocolError):
        asker.send(Reply(1, {}))
    with pytest.raises(RemoteProtocolError):
        asker.receive(framing.encode(messages.to_array(Request(1, "x", {})), limit=100))
    assert answerer.state is State.OPEN
