"""The pure parts of processes: followers, last lines, patterns, signals, who listens, how a list is cut."""

from __future__ import annotations

import itertools
import re
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import InvalidRequest, LimitExceeded, RemoteProtocolError
from sandboxd.guest.followers import Follower
from sandboxd.guest.processes import _printable_argv
from sandboxd.guest.waiting import status_of
from sandboxd.linux.sockdiag import Listener, ListenerQuery, parse_proc
from sandboxd.runtime import patterns
from sandboxd.runtime.execution import EventCheck
from sandboxd.runtime.logs import TextDecoder, last_lines
from sandboxd.runtime.patterns import LineSearch
from sandboxd.runtime.processes import parse_info
from sandboxd.spec import CommandSpec, check_signal, check_size
from sandboxd.wire.journal import Journal
from sandboxd.wire.messages import Event


class RecordingPeer:
    """What a follower needs of a peer."""

    def __init__(self) -> None:
        self.has_room = True
        self.events: list[Event] = []
        self.replies: list[dict[str, object]] = []

    def send(self, event: Event) -> None:
        self.events.append(event)

    def reply(self, request: int, result: dict[str, object]) -> None:
        self.replies.append(result)


def output(*pieces: bytes) -> list[Event]:
    return [Event(1, n, 0.0, "stdout", piece) for n, piece in enumerate(pieces)]


# --- followers ---------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=300), max_size=40), st.integers(300, 5000), st.data())
def test_a_follower_gives_each_byte_once_or_counts_it(pieces: list[bytes], capacity: int, data: st.DataObject) -> None:
    """Whatever the moments of reading, and over reconnections that say what they have seen."""
    journal, peer = Journal(capacity), RecordingPeer()
    follower = Follower(peer, 1, 0, 0)  # type: ignore[arg-type]
    read = dropped = 0
    seen: list[Event] = []
    for piece in [*pieces, None]:
        over = piece is None
        if piece is None:
            journal.append("exit", {}, 0.0)
        else:
            journal.append("stdout", piece, 0.0)
        follower.credit = 10**9 if over else data.draw(st.sampled_from([0, 200, 10**9]))
        assert follower.pump(journal, over=over) == over
        for event in peer.events:
            if event.type == "truncated":
                assert isinstance(event.data, dict)
                dropped += event.data["dropped_bytes"]
            elif isinstance(event.data, bytes):
                read += len(event.data)
        seen += peer.events
        peer.events.clear()
        if data.draw(st.booleans()) and not over:
            follower = Follower(peer, 1, follower.position, 0, seen_bytes=read + dropped)  # type: ignore[arg-type]
    assert read + dropped == sum(map(len, pieces))
    assert [event.offset for event in seen] == sorted({event.offset for event in seen})
    assert seen[-1].type == "exit"


def test_a_snapshot_ends_where_it_was_taken() -> None:
    journal, peer = Journal(), RecordingPeer()
    journal.append("stdout", b"one", 0.0)
    follower = Follower(peer, 1, 0, 10**6, until=journal.next)  # type: ignore[arg-type]
    journal.append("stdout", b"two", 0.0)
    assert follower.pump(journal, over=False)
    assert [event.data for event in peer.events] == [b"one"]


def test_a_follower_from_behind_the_end_ends() -> None:
    journal, peer = Journal(), RecordingPeer()
    journal.append("exit", {}, 0.0)
    for start in (1, 2, 10**15):
        assert Follower(peer, 1, start, 0).pump(journal, over=True)  # type: ignore[arg-type]
        assert not Follower(peer, 1, start, 0).pump(journal, over=False)  # type: ignore[arg-type]
    assert not peer.events


# --- logs --------------------------------------------------------------------------------------------------


@given(st.lists(st.text("ab\n", max_size=6).map(str.encode), max_size=12), st.integers(0, 8))
def test_the_last_lines_are_those_of_tail(pieces: list[bytes], count: int) -> None:
    found = b"".join(e.data for e in last_lines(output(*pieces), count) if isinstance(e.data, bytes))
    lines = b"".join(pieces).splitlines(keepends=True)
    assert found == b"".join(lines[len(lines) - min(count, len(lines)) :])


@pytest.mark.parametrize("piece", [1_000_000, 100_000, 1])
def test_very_many_lines_are_counted_not_gone_through(piece: int) -> None:
    """Each line alone was 150 ms of the daemon's loop; counted by CPU time, so that a busy machine tells the same."""
    events = output(*[b"\n" * piece] * (1_000_000 // max(piece, 200)))
    total = sum(len(event.data) for event in events)
    began = time.thread_time()
    for count in (total // 2, total - 1, total):
        found = last_lines(events, count)
        assert sum(len(event.data) for event in found) == count
    assert time.thread_time() - began < 0.15


@given(st.text(max_size=20), st.lists(st.integers(0, 80), max_size=5))
def test_text_is_the_same_however_it_is_cut(text: str, cuts: list[int]) -> None:
    data = text.encode()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    for begin in range(len(pieces) + 1):
        decoder = TextDecoder()
        decoder.prime(output(*pieces[:begin]))
        before = TextDecoder()
        head = "".join(before.decode("stdout", piece) for piece in pieces[:begin])
        assert head + "".join(decoder.decode("stdout", piece) for piece in pieces[begin:]) == text


# --- patterns ----------------------------------------------------------------------------------------------


@given(st.lists(st.text("ab\n", max_size=8), max_size=10), st.sampled_from(["^a+$", "b", "ab$", "^$", "bb|aa"]))
def test_a_search_finds_the_first_line_that_matches(pieces: list[str], pattern: str) -> None:
    search = LineSearch(pattern)
    found = next((line for piece in pieces if (line := search.feed("stdout", piece.encode())) is not None), None)
    ended = "".join(pieces).split("\n")[:-1]
    assert found == next((line for line in ended if re.search(pattern, line)), None)


def test_streams_do_not_mix_and_a_line_end_may_be_crlf() -> None:
    search = LineSearch("^ready$|^ready\r$")
    assert search.feed("stdout", b"rea") is None
    assert search.feed("stderr", b"dy\n") is None
    assert search.feed("stdout", b"dy\r\n") == "ready"


def test_a_very_long_line_is_looked_at_as_far_as_the_bound() -> None:
    size = patterns.MAX_LINE_BYTES
    search = LineSearch("needle")
    assert search.feed("stdout", b"x" * (size - 10)) is None
    assert search.feed("stdout", b"x" * 20 + b"needle") is None
    assert search.feed("stdout", b"needle\nneedle here\n") == "needle here"
    assert (LineSearch("needle").feed("stdout", b"needle" + b"x" * size * 3) or "").startswith("needlex")


def test_invalid_text_is_no_obstacle() -> None:
    assert LineSearch("r.ady").feed("stdout", b"\xff\xfe ready \x80\n") == "�� ready �"


@pytest.mark.parametrize(
    "pattern",
    ["(", "a)(b", "(?=x)", r"(x)\1", "", "x" * 1025, "a{1001}", r"(\pL{0,99}){9}", r"(\w{1,100}\s?){9}!", "\ud800"],
)
def test_patterns_that_are_refused(pattern: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        LineSearch(pattern)
    assert caught.value.field == "pattern"


def test_a_search_that_takes_too_long_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MAX_SECONDS", 0.0)
    with pytest.raises(LimitExceeded):
        LineSearch("x").feed("stdout", b"a\n" * 10)


# --- the rest ----------------------------------------------------------------------------------------------


def test_signals() -> None:
    assert [check_signal(value) for value in ("TERM", "sigkill", "9", 64, "RTMIN")] == [15, 9, 9, 64, 34]
    for value in ("", "SIG", "0", "65", "-9", "1e1", "\u0661", 0, 65, -1, True):
        with pytest.raises(InvalidRequest):
            check_signal(value)


@pytest.mark.parametrize("size", [(0, 24), (80, 0), (-1, 24), (2001, 24), (80, 10**9)])
def test_sizes_of_terminals(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidRequest):
        check_size(*size)
    with pytest.raises(InvalidRequest):
        CommandSpec(argv=("x",), terminal=size)


PROC = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:0050 0100007F:1F91 01 00000000:00000000 00:00000000 00000000     0        0 1 1
"""
PROC6 = """  sl  local_address                         remote_address                        st
   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 0:0 0
"""


def test_listeners_out_of_proc() -> None:
    assert parse_proc(PROC, socket.AF_INET, 8080) == Listener(socket.AF_INET, "127.0.0.1")
    assert parse_proc(PROC, socket.AF_INET, 80) is None
    assert parse_proc(PROC6, socket.AF_INET6, 8080) == Listener(socket.AF_INET6, "::1")


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_kernel_knows_who_listens(family: socket.AddressFamily, address: str) -> None:
    query = ListenerQuery()
    with socket.socket(family) as sock:
        sock.bind((address, 0))
        port = sock.getsockname()[1]
        assert query.find(port) is None
        sock.listen()
        assert query.find(port) == Listener(family, address)
        again = ListenerQuery()
        again.close()
        assert again.find(port) == Listener(family, address)  # its socket is gone: by /proc
    assert query.find(port) is None
    query.close()
    again.close()


@pytest.mark.parametrize(
    ("answer", "status"),
    [(b"HTTP/1.1 200 OK", 200), (b"HTTP/1.0 302 Fo", 302), (b"HTTP/1.1 399 ", 399), (b"HTTP/1.1 404 N", 404)],
)
def test_answers(answer: bytes, status: int) -> None:
    assert status_of(answer) == status


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 2", b"HTTP/1.1 2xx", b"SSH-2.0-x", b"HTTP/2 200 OK"])
def test_what_is_no_answer(answer: bytes) -> None:
    assert status_of(answer) is None


def test_a_shown_command_fits_a_frame() -> None:
    assert _printable_argv(("a", "b")) == ["a", "b"]
    assert len(_printable_argv(("a",) * 5000)) == 257
    shown = _printable_argv(("é" * 100_000, "b"))
    assert len(shown) == 1
    assert shown[0].endswith("é…")


def info(**fields: object) -> dict[str, object]:
    base: dict[str, object] = {
        "id": "p",
        "pid": 5,
        "running": True,
        "argv": ["x"],
        "cwd": "/",
        "user": "root",
        "started_at": 1.0,
        "ended_at": None,
        "restarts": 0,
        "terminal": False,
        "result": None,
        "usage": {"cpu_s": 0.0, "memory_peak_bytes": None},
        "next": 1,
    }
    return base | fields


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "../x"},
        {"id": None},
        {"pid": -1},
        {"running": None},
        {"running": False},
        {"argv": []},
        {"argv": ["x"] * 258},
        {"argv": ["x" * 200_000]},
        {"cwd": "x" * 5000},
        {"started_at": float("nan")},
        {"started_at": 1e300},
        {"usage": None},
        {"next": -1},
        {"restarts": 1 << 40},
    ],
)
def test_what_an_init_says_of_a_process_is_checked(fields: dict[str, object]) -> None:
    assert parse_info(info()).running
    with pytest.raises(RemoteProtocolError):
        parse_info(info(**fields))


def test_restarts_are_events_like_others() -> None:
    restart = {"exit_code": 1, "signal": None, "reason": "exit", "delay_s": 0.1, "count": 1}
    check = EventCheck(started=False)
    check(Event(1, 0, 0.0, "start", {"id": "p", "pid": 1}))
    check(Event(1, 1, 0.0, "restart", restart))
    check(Event(1, 2, 0.0, "start", {"id": "p", "pid": 2}))
    for bad in ({**restart, "delay_s": -1.0}, {**restart, "exit_code": 256}, {**restart, "count": "1"}):
        with pytest.raises(RemoteProtocolError):
            check(Event(1, 3, 0.0, "restart", bad))
