"""Server-sent events: as the WHATWG standard reads them, whatever the pieces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import LocalProtocolError, RemoteProtocolError
from sandboxd.wire import sse
from sandboxd.wire.sse import SseEvent

WORD = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=20)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text("\r\n a:\ufeff", max_size=20)
CUTS = st.lists(st.integers(0, 2000), max_size=30)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut for cut in cuts if cut <= len(data)), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


def decode(*data: bytes) -> list[SseEvent]:
    decoder = sse.SseDecoder()
    return [event for piece in data for event in decoder.feed(piece)]


@given(st.lists(st.tuples(WORD, TEXT, WORD), max_size=6), CUTS)
def test_any_pieces_give_the_events_back(events: list[tuple[str, str, str]], cuts: list[int]) -> None:
    data = b"".join(sse.encode(text, event=name, id=number) + sse.KEEP_ALIVE for name, text, number in events)
    expected = [
        SseEvent(name or "message", text.replace("\r\n", "\n").replace("\r", "\n"), number)
        for name, text, number in events
    ]
    assert decode(*pieces(data, cuts)) == expected


@given(st.text("ab: \r\n\0\ufeffdatievn", max_size=80), CUTS)
def test_pieces_never_matter_even_for_nonsense(text: str, cuts: list[int]) -> None:
    data = text.encode()
    assert decode(*pieces(data, cuts)) == decode(data)


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_the_three_line_ends(end: str) -> None:
    stream = f"event: a{end}data: one{end}data: two{end}{end}data: three{end}{end}".encode()
    expected = [SseEvent("a", "one\ntwo"), SseEvent("message", "three")]
    assert decode(stream) == expected
    assert decode(*(bytes([byte]) for byte in stream)) == expected


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"\xef\xbb\xbfdata: x\n\n", [SseEvent("message", "x")]),
        (b"data: x\n\n\xef\xbb\xbfdata: y\n\n", [SseEvent("message", "x")]),
        (b"data\n\n", [SseEvent("message", "")]),
        (b"data:\n\n", [SseEvent("message", "")]),
        (b"data:  x\n\n", [SseEvent("message", " x")]),
        (b"data:x:y\n\n", [SseEvent("message", "x:y")]),
        (b"data\ndata\n\n", [SseEvent("message", "\n")]),
        (b"id: 1\n\ndata: x\n\n", [SseEvent("message", "x", "1")]),
        (b"id: 1\ndata: x\n\ndata: y\n\n", [SseEvent("message", "x", "1"), SseEvent("message", "y", "1")]),
        (b"id: 1\nid: 2\0\ndata: x\n\n", [SseEvent("message", "x", "1")]),
        (b"id: 1\nid\ndata: x\n\n", [SseEvent("message", "x", "")]),
        (b"event: a\n\ndata: x\n\n", [SseEvent("message", "x")]),
        (b"event: a\nevent: b\ndata: x\n\n", [SseEvent("b", "x")]),
        (b": only a comment\n\n", []),
        (b"colour: red\ndata: x\n\n", [SseEvent("message", "x")]),
        (b"data: cut", []),
        (b"data: cut\n", []),
        (b"data: \xff\n\n", [SseEvent("message", "\ufffd")]),
        (b"\n\n\n", []),
        (b"", []),
    ],
)
def test_what_the_standard_says(stream: bytes, expected: list[SseEvent]) -> None:
    assert decode(stream) == expected


def test_retry_counts_when_it_is_digits() -> None:
    decoder = sse.SseDecoder()
    decoder.feed(b"retry: 1500\nretry: soon\nretry: -1\n")
    assert decoder.retry_ms == 1500


@pytest.mark.parametrize("fields", [{"event": "a\nb"}, {"id": "a\rb"}, {"id": "a\0"}])
def test_what_cannot_come_back_is_not_sent(fields: dict[str, str]) -> None:
    with pytest.raises(LocalProtocolError):
        sse.encode("x", **fields)


@pytest.mark.parametrize("line", [b"data: 0123456789\n", b": 0123456789", b"event: 0123456789\ndata:01234\n"])
def test_an_event_over_the_bound_is_refused(line: bytes) -> None:
    decoder = sse.SseDecoder(limit=16)

    def overflow() -> None:
        for _ in range(3):
            decoder.feed(line)

    with pytest.raises(RemoteProtocolError):
        overflow()
    with pytest.raises(RemoteProtocolError):
        decoder.feed(b"\n")


def test_the_bound_is_of_one_event_not_of_the_stream() -> None:
    decoder = sse.SseDecoder(limit=16)
    for _ in range(100):
        assert len(decoder.feed(b"event: abc\ndata: 0") + decoder.feed(b"1234\n\n")) == 1


def test_comments_hold_no_line_of_their_own() -> None:
    assert decode(sse.comment("a\ndata: b") + sse.encode("x")) == [SseEvent("message", "x")]
