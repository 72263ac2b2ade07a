"""Raw frames: nothing is lost whatever the pieces, and nothing out of bounds is taken."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import LocalProtocolError, RemoteProtocolError
from sandboxd.wire import raw

OUTPUT = st.tuples(st.sampled_from([raw.STDOUT, raw.STDERR]), st.binary(max_size=300))
LAST = st.tuples(st.sampled_from([raw.EXIT, raw.PROBLEM]), st.binary(max_size=300))
CUTS = st.lists(st.integers(0, 4000), max_size=30)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut for cut in cuts if cut <= len(data)), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


@given(st.lists(OUTPUT, max_size=10), LAST, CUTS)
def test_any_pieces_give_the_frames_back(
    output: list[tuple[int, bytes]], last: tuple[int, bytes], cuts: list[int]
) -> None:
    frames = [*output, last]
    decoder = raw.RawDecoder()
    found = []
    for piece in pieces(b"".join(raw.encode(*frame) for frame in frames), cuts):
        found += decoder.feed(piece)
    decoder.close()
    assert found == frames
    assert decoder.ended


def test_one_byte_at_a_time() -> None:
    decoder = raw.RawDecoder()
    data = raw.encode(raw.STDOUT, b"ab") + raw.encode(raw.EXIT, b"{}")
    assert [frame for byte in data for frame in decoder.feed(bytes([byte]))] == [(1, b"ab"), (3, b"{}")]


def test_payloads_are_bytes_of_their_own() -> None:
    decoder = raw.RawDecoder()
    decoder.feed(b"\x01\x00\x00\x00\x04ab")
    [frame] = decoder.feed(b"cd")
    assert type(frame.payload) is bytes
    decoder.feed(raw.encode(raw.EXIT, b"{}"))
    assert frame == (raw.STDOUT, b"abcd")


@pytest.mark.parametrize("frame_type", [0, 7, 255])
def test_a_type_that_does_not_exist_is_refused(frame_type: int) -> None:
    decoder = raw.RawDecoder()
    with pytest.raises(RemoteProtocolError):
        decoder.feed(bytes([frame_type]) + bytes(4))
    with pytest.raises(RemoteProtocolError):
        decoder.feed(raw.encode(raw.STDOUT, b"x"))
    with pytest.raises(RemoteProtocolError):
        decoder.close()
    with pytest.raises(LocalProtocolError):
        raw.encode(frame_type, b"")


@pytest.mark.parametrize(
    ("frame_type", "limit"), [(raw.STDOUT, raw.MAX_PAYLOAD_BYTES), (raw.EXIT, raw.MAX_CONTROL_BYTES)]
)
def test_a_length_over_its_bound_is_refused_before_its_bytes_come(frame_type: int, limit: int) -> None:
    raw.header(frame_type, limit)
    with pytest.raises(LocalProtocolError):
        raw.header(frame_type, limit + 1)
    decoder = raw.RawDecoder()
    assert decoder.feed(bytes([frame_type])) == []  # also when the header comes in two pieces
    with pytest.raises(RemoteProtocolError):
        decoder.feed((limit + 1).to_bytes(4, "big") + b"more")


@pytest.mark.parametrize("cut", range(1, 8))
def test_bytes_after_the_last_frame_are_refused(cut: int) -> None:
    data = raw.encode(raw.EXIT, b"{}") + b"\x01"
    decoder = raw.RawDecoder()

    def feed() -> None:
        decoder.feed(data[:cut])
        decoder.feed(data[cut:])

    with pytest.raises(RemoteProtocolError):
        feed()


@pytest.mark.parametrize("data", [b"", b"\x01", raw.encode(raw.STDOUT, b"abc"), raw.encode(raw.EXIT, b"{}")[:-1]])
def test_a_stream_that_is_cut_is_told(data: bytes) -> None:
    decoder = raw.RawDecoder()
    decoder.feed(data)
    with pytest.raises(RemoteProtocolError):
        decoder.close()


@given(st.integers(0, 3), st.integers(-2, 2))
def test_split_fits_every_piece_into_a_frame(times: int, more: int) -> None:
    data = bytes(max(0, times * raw.MAX_PAYLOAD_BYTES + more))
    found = list(raw.split(data))
    assert sum(map(len, found)) == len(data)
    assert all(len(piece) <= raw.MAX_PAYLOAD_BYTES for piece in found)
    assert b"".join(found) == data
