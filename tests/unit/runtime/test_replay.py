"""What is shown to somebody who comes to a terminal: the same screen, and no question asked twice."""

from __future__ import annotations

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.runtime import replay
from sandboxd.wire import modes
from sandboxd.wire.messages import Event
from sandboxd.wire.modes import Modes


def events(*pieces: bytes) -> list[Event]:
    return [Event(1, n, 0.0, "stdout", piece) for n, piece in enumerate(pieces)]


def screen(data: bytes) -> list[str]:
    shown = pyte.Screen(80, 24)
    pyte.ByteStream(shown).feed(data)
    return list(shown.display)


lines = st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=90), max_size=200)


@given(lines, st.integers(3000, 9000), st.integers(1, 40))
def test_the_last_screenful_is_the_same(texts: list[str], limit: int, piece: int) -> None:
    """Also where only the end is replayed: a screen of 24 lines of 90 characters fits into 3000 bytes."""
    data = "\r\n".join(texts).encode()
    pieces = [data[start : start + piece] for start in range(0, len(data), piece)]
    found = replay.build(events(*pieces), dropped_bytes=0, limit=limit)
    assert found.is_whole == (len(data) <= limit)
    assert screen(found.data) == screen(data)


def test_a_new_terminal_shows_nothing_first() -> None:
    assert replay.build([], dropped_bytes=0) == replay.Replay(b"", True)
    assert not replay.build([], dropped_bytes=5).is_whole


@pytest.mark.parametrize(
    "question",
    [
        b"\x1b[6n",
        b"\x1b[?6n",
        b"\x1b[5n",
        b"\x1b[c",
        b"\x1b[>c",
        b"\x1b[>0c",
        b"\x1b[=c",
        b"\x1bZ",
        b"\x05",
        b"\x1b[x",
        b"\x1b[>q",
        b"\x1b[?2026$p",
        b"\x1b[18t",
        b"\x1b[?u",
        b"\x1bP+q544e\x1b\\",
        b"\x1bP$qm\x1b\\",
        b"\x1b]11;?\x1b\\",
        b"\x1b]11;?\x07",
        b"\x1b]4;1;?\x07",
        b"\x1b]52;c;aGk=\x07",
    ],
)
def test_no_question_is_repeated(question: bytes) -> None:
    found = replay.build(events(b"a" + question[:2], question[2:] + b"b"), dropped_bytes=0)
    assert found.data == replay.RESET + b"ab"


@pytest.mark.parametrize(
    "answer_free",
    [
        b"\x1b[1;31mred\x1b[0m",
        b"\x1b[2J\x1b[H",
        b"\x1b]0;title?\x07",
        b"\x1b[?1049h",
        b"\x1b[10;20H",
        b"\x1b[K",
        "€".encode(),
    ],
)
def test_the_rest_is_repeated(answer_free: bytes) -> None:
    assert replay.build(events(answer_free), dropped_bytes=0).data == replay.RESET + answer_free


def test_modes_that_were_set_long_ago_are_set_again() -> None:
    early = b"\x1b[?1049h\x1b[?25l\x1b[?1000;1006h\x1b[?2004h\x1b[?2004l\x1b="
    found = replay.build(events(early, b"line\r\n" * 500), dropped_bytes=0, limit=600)
    assert not found.is_whole
    head = found.data.partition(b"line")[0]
    for mode in (b"\x1b[?1049h", b"\x1b[?25l", b"\x1b[?1000h", b"\x1b[?1006h", b"\x1b[?2004l", b"\x1b="):
        assert mode in head
    known = {"1049": "h", "1": "h", "keypad": "=", "47": "l"}
    found = replay.build(events(b"old\r\nnew"), dropped_bytes=9, known=known)
    assert found.data == replay.RESET + b"\x1b[?1049h\x1b[?1h\x1b=" + b"new"


CHANGES = [b"\x1b[?1049h", b"\x1b[?1;25l", b"\x1b=", b"\x1b>", b"\x1bc", b"text", b"\x1b[?9999h", b"\x1b["]


@given(st.lists(st.sampled_from(CHANGES)), st.integers(1, 9))
def test_modes_do_not_depend_on_how_output_is_cut(pieces: list[bytes], size: int) -> None:
    data = b"".join(pieces)
    whole, disconnect = Modes(), Modes()
    whole.feed(data)
    for start in range(0, len(data), size):
        disconnect.feed(data[start : start + size])
    assert disconnect.to_dict() == whole.to_dict() == modes.checked(whole.to_dict())
    again = Modes()
    again.feed(whole.restore())
    assert {k: v for k, v in whole.to_dict().items() if not (k == "1049" and v == "l")} == again.to_dict()


@pytest.mark.parametrize("value", [None, [], {"1": "x"}, {"2": "h"}, {1: "h"}, {"keypad": "h"}, {"1": None}])
def test_modes_of_a_liar(value: object) -> None:
    assert modes.checked(value) is None


@given(st.binary(max_size=500))
def test_modes_stay_small(data: bytes) -> None:
    found = Modes()
    for _ in range(3):
        found.feed(data * 3)
    assert len(found.to_dict()) <= len(modes.KEPT) + 1


def test_no_sequence_is_cut() -> None:
    found = replay.build(events(b"\x1b[31mx\r\n" * 300), dropped_bytes=7, limit=1003)
    assert found.data.startswith(replay.RESET + b"\x1b[31mx\r\n")
    full_screen = replay.build(events(b"\x1b[10;10Hxyz" * 300), dropped_bytes=0, limit=1005)
    assert full_screen.data.startswith(replay.RESET + b"\x1b[10;10H")


@given(st.binary(max_size=3000), st.integers(1, 2000))
def test_any_output_is_taken(data: bytes, limit: int) -> None:
    assert len(replay.build(events(data), dropped_bytes=1, limit=limit).data) <= limit + 2000
