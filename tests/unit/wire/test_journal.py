"""The journal: offsets never change, the newest is never dropped, what is lost is counted to the byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sandboxd.wire.journal import Journal
from sandboxd.wire.messages import EVENT_OVERHEAD

outputs = st.lists(st.binary(max_size=400), max_size=60)


@given(outputs, st.integers(200, 4000))
def test_every_byte_is_read_or_counted_as_lost(chunks: list[bytes], capacity: int) -> None:
    journal = Journal(capacity)
    for chunk in chunks:
        journal.append("stdout", chunk, 0.0)
    position, seen_end, read, lost = 0, 0, b"", 0
    while (entry := journal.read(position)) is not None:
        lost += entry.base - seen_end
        assert isinstance(entry.data, bytes)
        assert entry.data == chunks[entry.offset]
        read += entry.data
        seen_end = entry.base + len(entry.data)
        position = entry.offset + 1
    everything = b"".join(chunks)
    assert everything.endswith(read)
    assert lost + len(read) == len(everything)
    assert journal.dropped_bytes == lost
    assert journal.next == len(chunks)
    assert len(chunks) == 0 or position == len(chunks)


@given(outputs, st.integers(200, 4000))
def test_it_is_bounded_but_for_the_newest(chunks: list[bytes], capacity: int) -> None:
    journal = Journal(capacity)
    for chunk in chunks:
        entry = journal.append("stdout", chunk, 0.0)
        assert journal.read(entry.offset) == entry
        assert journal.size <= max(capacity, entry.size)


@given(st.lists(st.integers(1, 3000), max_size=80), st.integers(1500, 6000), st.data())
def test_a_writer_that_keeps_to_the_room_loses_nothing(sizes: list[int], capacity: int, data: st.DataObject) -> None:
    """The lossless contract: append at most `room(floor)` bytes, and no event at or above `floor` is dropped."""
    journal = Journal(capacity)
    floor = 0
    for size in sizes:
        room = journal.room(floor)
        if room > 0:
            journal.append("stdout", b"x" * min(size, room), 0.0)
        assert journal.first <= floor
        floor = data.draw(st.integers(floor, journal.next))


@given(outputs, st.integers(200, 4000), st.integers(0, 70))
def test_the_room_is_what_dropping_the_events_below_a_floor_would_leave(
    chunks: list[bytes], capacity: int, floor: int
) -> None:
    journal = Journal(capacity)
    for chunk in chunks:
        journal.append("stdout", chunk, 0.0)
    kept = sum(entry.size for entry in journal if entry.offset >= floor)
    assert journal.room(floor) == max(0, capacity - kept - 2 * EVENT_OVERHEAD)


def test_shrinking_drops_the_oldest() -> None:
    journal = Journal(10_000)
    for n in range(10):
        journal.append("stdout", bytes([n]) * 500, 0.0)
    journal.shrink(1500)
    assert journal.first > 0
    assert journal.read(9) is not None
    assert journal.dropped_bytes == journal.first * 500
