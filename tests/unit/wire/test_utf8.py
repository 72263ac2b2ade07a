"""Where text may be cut: held against the standard library's own decoder."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.runtime import runs
from sandboxd.runtime.patterns import MAX_SHOWN_BYTES, LineSearch
from sandboxd.runtime.runs import Run
from sandboxd.wire import utf8

#: Letters of every length, beside anything that is none.
DATA = st.lists(st.one_of(st.sampled_from(["a", "é", "日", "😀"]).map(str.encode), st.binary(max_size=3))).map(b"".join)


@given(DATA)
def test_what_waits_is_what_a_decoder_would_keep(data: bytes) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    assert utf8.unfinished(data) == len(decoder.getstate()[0])


@given(DATA, st.integers(1, 5))
def test_pieces_are_the_same_bytes_and_end_at_characters(data: bytes, size: int) -> None:
    pieces = utf8.Pieces(["out", "err"])
    found = [pieces.feed("out", data[start : start + size]) for start in range(0, len(data), size)]
    assert pieces.rest("err") == b""
    rest = pieces.rest("out")
    assert b"".join([*found, rest]) == data
    assert len(rest) <= 3
    text = "".join(piece.decode("utf-8", "replace") for piece in [*found, rest])
    assert text == data.decode("utf-8", "replace")


@pytest.mark.parametrize("limit", range(8))
def test_a_head_ends_at_a_character(limit: int) -> None:
    data = "é日a".encode()
    assert utf8.head(data, limit) == "é日a"[: [0, 0, 1, 1, 1, 2, 3, 3][limit]].encode()
    assert utf8.head(data[:-2], 4) == "é".encode() + data[2:4]  # what is not cut is left as it is


def test_a_bound_cuts_no_character(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "MAX_OUTPUT_BYTES", 300)
    run = Run("1", None, {}, detach=False)
    run.add_output("stdout", "日".encode() * 200)
    run.add_output("stdout", b"more")
    run.finish("ok")
    assert [event.data for event in run.events if event.type == "stdout"] == ["日".encode() * 100]
    assert run.dropped_bytes == 304
    line = LineSearch("日").feed("stdout", "日".encode() * MAX_SHOWN_BYTES + b"\n")
    assert line is not None
    assert set(line) == {"日"}
